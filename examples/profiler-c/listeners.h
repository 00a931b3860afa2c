// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Listeners: each writes down, from a manager's events, what a tool needs to know of linked code.
// All take one call at a time, and are for code of this process.

#ifndef LISTENERS_H
#define LISTENERS_H

#include <jitmem.h>

// Whether this is a segment of code.
static inline int is_code(const jitmem_allocation_segment *segment) {
  return (segment->protection & JITMEM_PROT_EXEC) != 0 && segment->size > 0;
}

// /tmp/perf-PID.map: perf looks addresses of anonymous memory up there when it reports, and takes
// the first line that has them. So a line stays when its code goes, and goes when other code is at
// its addresses.
int perf_map_open(void);
void perf_map_event(const jitmem_event *event);
void perf_map_close(void);

// FOLDER/jit-PID.dump: code with its bytes and times, for `perf record -k mono` and `perf inject
// --jit`. So code is told apart that was at the same address at different times. Needs events with
// times.
int jitdump_open(const char *folder);
void jitdump_event(const jitmem_event *event);
void jitdump_close(void);

// GDB's JIT interface: gdb and lldb read an object file in memory for each allocation with code,
// here one with a symbol for each segment.
void gdb_jit_event(const jitmem_event *event);

#endif
