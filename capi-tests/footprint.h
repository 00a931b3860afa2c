// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What this process has of the kernel's.

#ifndef FOOTPRINT_H
#define FOOTPRINT_H

#include "harness.h"

#include <dirent.h>
#include <time.h>

static inline long entries(const char *path) {
  DIR *directory = opendir(path);
  assert_non_null(directory);
  long count = 0;
  while (readdir(directory) != NULL)
    count++;
  closedir(directory);
  return count;
}

struct footprint {
  long mappings, descriptors, threads;
};

static inline struct footprint footprint(void) {
  return (struct footprint){.mappings = line_count("/proc/self/maps"),
                            .descriptors = entries("/proc/self/fd"),
                            .threads = entries("/proc/self/task")};
}

// The footprint once there are no more threads than `threads`: ours end by themselves when there is
// nothing more to do, and take their descriptors with them. Looks for a minute at most.
static inline struct footprint footprint_at_rest(long threads) {
  const struct timespec moment = {.tv_nsec = 1000000};
  for (int looks = 0; looks < 60000 && entries("/proc/self/task") > threads; looks++)
    nanosleep(&moment, NULL);
  return footprint();
}

#endif
