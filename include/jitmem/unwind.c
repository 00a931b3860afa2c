// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Has libgcc's unwinder ask jitmem for frames of linked code, so that linking an object registers
// nothing and a throw takes as long with a million objects as with one. For executables: CMake's
// jitmem::unwind links it, or compile it with the program and link with
// -Wl,--export-dynamic-symbol=_Unwind_Find_FDE. jitmem finds out by itself that it is asked.
//
// libgcc_s asks the process for this name, and the program's definition is the first. What jitmem
// does not know goes to the next one, which is libgcc_s's own.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../jitmem.h"

#include <dlfcn.h>

typedef const void *(*find_fde)(const void *pc, void *bases);

static find_fde next;

__attribute__((visibility("default"))) const void *_Unwind_Find_FDE(const void *pc, void *bases);

// At the start of the program, so that no signal handler calls the dynamic linker.
__attribute__((constructor)) static void find_next(void) {
  void *found = dlsym(RTLD_NEXT, "_Unwind_Find_FDE");
  if (!found) {
    // A program with libgcc in itself has no other, and libgcc_s knows all images.
    void *library = dlopen("libgcc_s.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (library)
      found = dlsym(library, "_Unwind_Find_FDE");
  }
  __atomic_store_n(&next, (find_fde)found, __ATOMIC_RELEASE);
}

const void *_Unwind_Find_FDE(const void *pc, void *bases) {
  const void *found = jitmem_find_fde(pc, bases);
  if (found)
    return found;
  if (!__atomic_load_n(&next, __ATOMIC_ACQUIRE))
    find_next();
  find_fde known = __atomic_load_n(&next, __ATOMIC_ACQUIRE);
  return known ? known(pc, bases) : 0;
}
