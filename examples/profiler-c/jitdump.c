// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The format is that of tools/perf/Documentation/jitdump-specification.txt in Linux.
#include "listeners.h"

#include <elf.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
enum { MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64 };
#elif defined(__riscv)
enum { MACHINE = EM_RISCV };
#endif

enum { MAGIC = 0x4a695444, VERSION = 1, CODE_LOAD = 0 };

struct header {
  uint32_t magic, version, size, machine, reserved, process;
  uint64_t time, flags;
};

struct code_load {
  uint32_t id, size;
  uint64_t time;
  uint32_t process, thread;
  uint64_t address, code_address, code_size, index;
  // Then the name with its NUL, and the code.
};

static FILE *dump;
static void *mark;
static size_t mark_size;
static uint64_t loaded;

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

int jitdump_open(const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/jit-%d.dump", folder, (int)getpid());
  dump = fopen(path, "w+");
  if (dump == NULL)
    return 0;
  // perf record notes executable mappings of files, and so hears of this one.
  mark_size = (size_t)sysconf(_SC_PAGESIZE);
  mark = mmap(NULL, mark_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fileno(dump), 0);
  const struct header header = {.magic = MAGIC,
                                .version = VERSION,
                                .size = sizeof header,
                                .machine = MACHINE,
                                .process = (uint32_t)getpid(),
                                .time = now()};
  return mark != MAP_FAILED && fwrite(&header, sizeof header, 1, dump) == 1 && fflush(dump) == 0;
}

void jitdump_event(const jitmem_event *event) {
  if (dump == NULL || event->kind != JITMEM_EVENT_FINALIZED)
    return;
  const jitmem_allocation *it = event->allocation;
  const char *name = it->name ? it->name : "linked code";
  for (size_t i = 0; i < it->segment_count; i++) {
    const jitmem_allocation_segment *segment = &it->segments[i];
    if (!is_code(segment))
      continue;
    const struct code_load record = {
        .id = CODE_LOAD,
        .size = (uint32_t)(sizeof record + strlen(name) + 1 + segment->size),
        .time = event->time,
        .process = (uint32_t)getpid(),
        .thread = (uint32_t)syscall(SYS_gettid),
        .address = segment->address,
        .code_address = segment->address,
        .code_size = segment->size,
        .index = loaded++};
    fwrite(&record, sizeof record, 1, dump);
    fwrite(name, strlen(name) + 1, 1, dump);
    // Content is in place when a finalize is told.
    fwrite((const void *)(uintptr_t)segment->address, segment->size, 1, dump);
  }
  fflush(dump);
}

void jitdump_close(void) {
  if (dump == NULL)
    return;
  munmap(mark, mark_size);
  fclose(dump);
  dump = NULL;
}
