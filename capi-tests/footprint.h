// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What this process has of the kernel's.

#ifndef FOOTPRINT_H
#define FOOTPRINT_H

#include "harness.h"

struct footprint {
  long mappings, descriptors, threads;
};

static inline struct footprint footprint(void) {
  return (struct footprint){.mappings = line_count("/proc/self/maps"),
                            .descriptors = entries("/proc/self/fd"),
                            .threads = entries("/proc/self/task")};
}

// The footprint once there are no more threads than `threads`: ours end by themselves when there is
// nothing more to do, and take their descriptors with them.
static inline struct footprint footprint_at_rest(long threads) {
  wait_for_threads(threads);
  return footprint();
}

#endif
