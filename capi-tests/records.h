// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Many graphs, and what memory processes have.

#ifndef RECORDS_H
#define RECORDS_H

#include "harness.h"
#include <unistd.h>

// A line of a process's status, in bytes.
static inline uint64_t status_bytes(pid_t process, const char *field) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/status", (int)process);
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  long kib = -1;
  while (kib < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, field, strlen(field)) == 0)
      sscanf(line + strlen(field), ": %ld", &kib);
  fclose(file);
  assert_true(kib >= 0);
  return (uint64_t)kib * KIB;
}

// Private memory of a process, all of it touched.
static inline uint64_t private_bytes(pid_t process) { return status_bytes(process, "RssAnon"); }

static inline uint64_t *handles_for(size_t count) {
  uint64_t *handles = malloc(count * sizeof *handles);
  assert_non_null(handles);
  // So that they are not taken for the manager's.
  memset(handles, 1, count * sizeof *handles);
  return handles;
}

static inline void shuffle(uint64_t *handles, size_t count) {
  uint64_t random = 88172645463325252u;
  for (size_t i = count - 1; i > 0; i--) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    size_t other = random % (i + 1);
    uint64_t swapped = handles[i];
    handles[i] = handles[other];
    handles[other] = swapped;
  }
}

#endif
