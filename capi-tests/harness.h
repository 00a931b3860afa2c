// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What all tests share: checked calls, and a manager of each in-process kind.

#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <jitmem.h>

#define R ((uint32_t)JITMEM_PROT_READ)
#define RW ((uint32_t)(JITMEM_PROT_READ | JITMEM_PROT_WRITE))
#define RX ((uint32_t)(JITMEM_PROT_READ | JITMEM_PROT_EXEC))
#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define COUNT(array) (sizeof(array) / sizeof *(array))

// ---- checked calls ----

// A call under test names its last argument `error`. It must succeed and make no error object.
#define OK(call)                                                                                   \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    jitmem_status status = (call);                                                                 \
    check_ok(status, object, #call, __FILE__, __LINE__);                                           \
    (void)error;                                                                                   \
  } while (0)

// The call must fail like this, once.
#define FAILS(wanted, words, call)                                                                 \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    jitmem_status status = (call);                                                                 \
    check_failed(wanted, words, status, object, #call, __FILE__, __LINE__);                        \
    (void)error;                                                                                   \
  } while (0)

// The call must fail like this and do nothing, with and without a place for the error object.
#define REFUSED(wanted, words, call)                                                               \
  do {                                                                                             \
    FAILS(wanted, words, call);                                                                    \
    jitmem_error **error = NULL;                                                                   \
    assert_int_equal((call), wanted);                                                              \
    (void)error;                                                                                   \
  } while (0)

static inline void check_ok(jitmem_status status, jitmem_error *error, const char *call,
                            const char *file, int line) {
  if (status == JITMEM_OK && error == NULL)
    return;
  print_error("ERROR: %s\n  gave %s: %s\n", call, jitmem_status_name(status),
              jitmem_error_message(error));
  jitmem_error_free(error);
  _fail(file, line);
}

// Every message must hold `words`, and be written as all messages are: without final full stop.
static inline void check_failed(jitmem_status wanted, const char *words, jitmem_status status,
                                jitmem_error *error, const char *call, const char *file, int line) {
  const char *message = jitmem_error_message(error);
  size_t length = strlen(message);
  if (status == wanted && error != NULL && jitmem_error_status(error) == wanted && length > 0 &&
      message[length - 1] != '.' && strstr(message, words) != NULL) {
    jitmem_error_free(error);
    return;
  }
  print_error("ERROR: %s\n  gave %s: %s\n  instead of %s with \"%s\"\n", call,
              jitmem_status_name(status), message, jitmem_status_name(wanted), words);
  jitmem_error_free(error);
  _fail(file, line);
}

// ---- managers ----

struct fixture {
  uint32_t kind;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static inline jitmem_stats stats_of(const jitmem_manager *manager) {
  jitmem_stats stats = {.struct_size = sizeof stats};
  OK(jitmem_manager_stats(manager, &stats, error));
  return stats;
}

// Waits, for a minute at most, until a manager has no more windows than that: an empty one goes
// when what is being changed in it has been answered. Returns how many it has.
static inline uint64_t windows_at_most(const jitmem_manager *manager, uint64_t most) {
  struct timespec now, end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += 60;
  uint64_t windows;
  while ((windows = stats_of(manager).windows) > most) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec > end.tv_sec)
      break;
    sched_yield();
  }
  return windows;
}

static inline int set_up(void **state, uint32_t kind) {
  struct fixture *fixture = calloc(1, sizeof *fixture);
  assert_non_null(fixture);
  *state = fixture;
  fixture->kind = kind;
  OK(jitmem_mapper_in_process(kind, &fixture->mapper, error));
  OK(jitmem_manager_create(fixture->mapper, NULL, &fixture->manager, error));
  return 0;
}

static inline int set_up_two_views(void **state) {
  return set_up(state, JITMEM_IN_PROCESS_TWO_VIEWS);
}

static inline int set_up_mprotect(void **state) {
  return set_up(state, JITMEM_IN_PROCESS_MPROTECT);
}

static inline int set_up_in_place(void **state) {
  return set_up(state, JITMEM_IN_PROCESS_IN_PLACE);
}

static inline int tear_down(void **state) {
  struct fixture *fixture = *state;
  // A test may have freed its manager itself.
  jitmem_stats stats = {.struct_size = sizeof stats};
  if (jitmem_manager_stats(fixture->manager, &stats, NULL) == JITMEM_OK)
    assert_int_equal(stats.unmap_failures, 0);
  jitmem_manager_free(fixture->manager);
  jitmem_mapper_free(fixture->mapper);
  free(fixture);
  return 0;
}

// One entry of a test table, on two views only.
#define TWO_VIEWS(test) {#test " (two views)", test, set_up_two_views, tear_down, NULL}
// Two entries, one for each in-process mapper.
#define EACH(test)                                                                                 \
  TWO_VIEWS(test), { #test " (mprotect)", test, set_up_mprotect, tear_down, NULL }

// A further manager over the fixture's mapper.
static inline jitmem_manager *manager_with(struct fixture *fixture,
                                           jitmem_manager_options options) {
  options.struct_size = sizeof options;
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(fixture->mapper, &options, &manager, error));
  return manager;
}

// ---- memory ----

// Where no process can have anything.
#if defined(__x86_64__)
#define ADDRESSES_END ((uint64_t)1 << 47)
#else
#define ADDRESSES_END ((uint64_t)1 << 52)
#endif

static inline uint64_t page_size(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

// ---- graphs ----

struct graph {
  uint64_t handle;
  jitmem_segment_memory memory[4];
};

static inline jitmem_segment segment(uint64_t content, uint64_t zero_fill, uint32_t protection) {
  return (jitmem_segment){.content_size = content,
                          .zero_fill_size = zero_fill,
                          .alignment = 16,
                          .protection = protection};
}

static inline struct graph allocate(const jitmem_manager *manager, const jitmem_segment *segments,
                                    size_t count) {
  struct graph graph = {0};
  assert_true(count <= COUNT(graph.memory));
  OK(jitmem_manager_allocate(manager, segments, count, 0, graph.memory, &graph.handle, error));
  for (size_t i = 0; i < count; i++) {
    uint64_t alignment = segments[i].alignment;
    assert_int_equal(graph.memory[i].address % alignment, 0);
    assert_int_equal((uintptr_t)graph.memory[i].working_memory % (alignment < 16 ? alignment : 16),
                     0);
  }
  return graph;
}

// A graph of one segment, all its content filled with `byte`.
static inline struct graph allocate_one(const jitmem_manager *manager, jitmem_segment segment,
                                        uint8_t byte) {
  struct graph graph = allocate(manager, &segment, 1);
  if (segment.content_size > 0)
    memset(graph.memory[0].working_memory, byte, segment.content_size);
  return graph;
}

// Code, constants and data, one segment each, all content filled with `byte`.
static inline struct graph allocate_three(const jitmem_manager *manager, uint8_t byte) {
  const jitmem_segment segments[] = {segment(256, 0, RX), segment(64, 0, R), segment(64, 64, RW)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  for (size_t i = 0; i < COUNT(segments); i++)
    memset(graph.memory[i].working_memory, byte, segments[i].content_size);
  return graph;
}

static inline void finalize(const jitmem_manager *manager, uint64_t handle) {
  OK(jitmem_manager_finalize(manager, handle, NULL, 0, error));
}

static inline void deallocate(const jitmem_manager *manager, uint64_t handle) {
  OK(jitmem_manager_deallocate(manager, &handle, 1, error));
}

// Executor memory of this process.
static inline uint8_t *at(uint64_t address) { return (uint8_t *)(uintptr_t)address; }

static inline int all_bytes_are(const uint8_t *bytes, uint64_t count, uint8_t byte) {
  for (uint64_t i = 0; i < count; i++)
    if (bytes[i] != byte)
      return 0;
  return 1;
}

// ---- the run itself ----

static inline int under_valgrind(void) {
  const char *preloaded = getenv("LD_PRELOAD");
  return preloaded != NULL && strstr(preloaded, "vgpreload") != NULL;
}

// Skips a test if valgrind runs this program.
static inline void not_under_valgrind(const char *why) {
  if (under_valgrind()) {
    print_message("SKIPPED: %s\n", why);
    skip();
  }
}

// Under a sanitizer or valgrind, which add mappings of their own and take their time.
static inline int instrumented(void) { return getenv("JITMEM_TEST_INSTRUMENTED") != NULL; }

// How often to do something, less often where everything is slow.
static inline unsigned rounds(unsigned count) { return instrumented() ? count / 20 : count; }

// Milliseconds in which something happens or not, more of them where everything is slow.
static inline uint64_t patience(uint64_t milliseconds) {
  return instrumented() ? milliseconds * 10 : milliseconds;
}

// Lines of a file of /proc.
static inline long line_count(const char *path) {
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  long lines = 0;
  for (int c; (c = fgetc(file)) != EOF;)
    lines += c == '\n';
  fclose(file);
  return lines;
}

// Entries of a folder of /proc, with the two that each folder has.
static inline long entries(const char *path) {
  DIR *directory = opendir(path);
  assert_non_null(directory);
  long count = 0;
  while (readdir(directory) != NULL)
    count++;
  closedir(directory);
  return count;
}

// Waits until a process whose threads these are has no more than that, for a minute at most.
static inline void wait_for_threads_of(const char *tasks, long threads) {
  const struct timespec moment = {.tv_nsec = 1000000};
  for (int looks = 0; looks < 60000 && entries(tasks) > threads; looks++)
    nanosleep(&moment, NULL);
}

// The same of this process.
static inline void wait_for_threads(long threads) {
  wait_for_threads_of("/proc/self/task", threads);
}

// What a program returns whose tests had the library start threads: they end by themselves, but
// valgrind takes what they have still got for lost.
static inline int at_rest(int failed) {
  wait_for_threads(3);
  return failed;
}

// Numbers that look random and are the same in each run (xorshift64*).
static inline uint64_t next_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 0x2545f4914f6cdd1d;
}

#endif
