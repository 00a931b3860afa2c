// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A heap that fails when told: this program's malloc and its kin take the place of the C library's,
// for the library under test too.

#ifndef HEAP_H
#define HEAP_H

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

// glibc's own, by the names under which it exports them.
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

enum heap_failures {
  ONE_HERE,     // one allocation of the thread that asked for it
  ALL_HERE,     // and all that follow
  ONE_ANYWHERE, // one allocation of any thread
  ALL_ANYWHERE, // and all that follow
  HEAP_FAILURES,
};

// How many allocations succeed before the first failure; negative: nothing fails.
static atomic_long heap_left = -1;
static atomic_int heap_kind;
// Allocations that failed.
static atomic_long heap_failed;
static _Thread_local int heap_here;

static inline int heap_fails(void) {
  int kind = atomic_load(&heap_kind);
  if (atomic_load(&heap_left) < 0 || ((kind == ONE_HERE || kind == ALL_HERE) && !heap_here))
    return 0;
  int all = kind == ALL_HERE || kind == ALL_ANYWHERE;
  long left = atomic_load(&heap_left);
  while (left >= 0 && (left > 0 || !all) &&
         !atomic_compare_exchange_weak(&heap_left, &left, left - 1))
    ;
  if (left != 0)
    return 0;
  atomic_fetch_add(&heap_failed, 1);
  errno = ENOMEM;
  return 1;
}

// From now on allocations fail as `kind` says, after `skip` of them.
static inline void heap_begin(enum heap_failures kind, long skip) {
  atomic_store(&heap_failed, 0);
  atomic_store(&heap_kind, kind);
  heap_here = 1;
  atomic_store(&heap_left, skip);
}

// Nothing fails any more. Returns how many failed.
static inline long heap_end(void) {
  atomic_store(&heap_left, -1);
  heap_here = 0;
  return atomic_load(&heap_failed);
}

void *malloc(size_t size) { return heap_fails() ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) { return heap_fails() ? NULL : __libc_calloc(count, size); }

void *realloc(void *block, size_t size) {
  return heap_fails() ? NULL : __libc_realloc(block, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  return heap_fails() ? NULL : __libc_memalign(alignment, size);
}

void *memalign(size_t alignment, size_t size) {
  return heap_fails() ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size) {
  if (heap_fails())
    return ENOMEM;
  *block = __libc_memalign(alignment, size);
  return *block == NULL ? ENOMEM : 0;
}

#endif
