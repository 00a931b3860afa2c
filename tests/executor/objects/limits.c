// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Goes on until a limit of its process stops it. The argument says which.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static void print_all(void) {
  static const char *const names[] = {"as",      "core",   "cpu",   "data", "fsize",
                                      "memlock", "nofile", "nproc", "stack"};
  static const int limits[] = {RLIMIT_AS,     RLIMIT_CORE,  RLIMIT_CPU,
                               RLIMIT_DATA,   RLIMIT_FSIZE, RLIMIT_MEMLOCK,
                               RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_STACK};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    struct rlimit limit;
    getrlimit(limits[i], &limit);
    printf("%s %llu %llu\n", names[i], (unsigned long long)limit.rlim_cur,
           (unsigned long long)limit.rlim_max);
  }
}

static void *sleep_on(void *unused) {
  pause();
  return unused;
}

// Each gives how much there was, and leaves errno to say why no more.
static long megabytes(void) {
  long count = 0;
  while (mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
    count++;
  return count;
}

static long megabytes_of_data(void) {
  long count = 0;
  while (mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
         MAP_FAILED)
    count++;
  return count;
}

static long files(void) {
  long count = 0;
  while (dup(1) >= 0)
    count++;
  return count;
}

static long threads(void) {
  long count = 0;
  pthread_t thread;
  while (!(errno = pthread_create(&thread, NULL, sleep_on, NULL)))
    count++;
  return count;
}

static long locked(void) {
  long count = 0;
  char *memory = mmap(NULL, 16 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  while (count < 4096 && !mlock(memory + count * 4096, 4096))
    count++;
  return count;
}

int main(int argc, char **argv) {
  const char *what = argv[argc - 1];
  long count = 0;
  if (!strcmp(what, "print")) {
    print_all();
    return 42;
  }
  if (!strcmp(what, "spin")) {
    printf("%d\n", getpid());
    fflush(stdout);
    for (volatile int i = 0;; i++)
      ;
  }
  if (!strcmp(what, "write")) {
    int file = memfd_create("x", 0);
    while (write(file, what, 1) == 1)
      ;
  }
  if (!strcmp(what, "abort"))
    abort();
  errno = 0;
  if (!strcmp(what, "as"))
    count = megabytes();
  if (!strcmp(what, "data"))
    count = megabytes_of_data();
  if (!strcmp(what, "nofile"))
    count = files();
  if (!strcmp(what, "nproc"))
    count = threads();
  if (!strcmp(what, "memlock"))
    count = locked();
  int why = errno;
  printf("%ld %s\n", count, strerrorname_np(why));
  fflush(stdout);
  _exit(0);
}
