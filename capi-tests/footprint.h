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

// The footprint once there are no more threads and descriptors than before: what closes a
// descriptor last may do so behind the end of its thread's work. A minute at most.
static inline struct footprint footprint_as(struct footprint before) {
  const struct timespec moment = {.tv_nsec = 1000000};
  struct footprint now = footprint_at_rest(before.threads);
  for (int looks = 0; looks < 60000 && now.descriptors > before.descriptors; looks++) {
    nanosleep(&moment, NULL);
    now = footprint();
  }
  return now;
}

#endif
