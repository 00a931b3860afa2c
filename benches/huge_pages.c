// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What it takes to have 2 MiB of memory in two views, by page faults and as a huge page, in turns;
// the medians.
//   cc -O2 -o huge_pages benches/huge_pages.c && ./huge_pages
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { HUGE = 2 << 20, PAGE = 4096, ROUNDS = 64, COLLAPSE = 25 }; // MADV_COLLAPSE, Linux 6.1

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static char *aligned(void) {
  char *space = mmap(NULL, 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return space + HUGE - (size_t)space % HUGE;
}

static double microseconds(int huge) {
  char *code = aligned(), *writer = aligned();
  mmap(code, HUGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  mremap(code, 0, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, writer);
  mprotect(writer, HUGE, PROT_READ | PROT_WRITE);
  double begin = now();
  writer[0] = 1;
  if (huge && madvise(writer, HUGE, COLLAPSE) != 0) {
    perror("madvise(MADV_COLLAPSE)");
    exit(1);
  }
  for (size_t i = 0; i < HUGE; i += PAGE)
    writer[i] = 1;
  double taken = now() - begin;
  munmap(code, HUGE);
  munmap(writer, HUGE);
  return taken;
}

static int compare(const void *a, const void *b) {
  double difference = *(const double *)a - *(const double *)b;
  return (difference > 0) - (difference < 0);
}

int main(void) {
  double times[2][ROUNDS];
  for (int i = 0; i < ROUNDS; i++)
    for (int huge = 0; huge < 2; huge++)
      times[huge][i] = microseconds(huge);
  for (int huge = 0; huge < 2; huge++)
    qsort(times[huge], ROUNDS, sizeof(double), compare);
  double faults = times[0][ROUNDS / 2], huge = times[1][ROUNDS / 2];
  printf("512 faults %.0f us, a huge page %.0f us: %.3f\n", faults, huge, huge / faults);
  return 0;
}
