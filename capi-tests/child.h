// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Tests that need a process of their own, because they change its limits, fork, or might hang.

#ifndef CHILD_H
#define CHILD_H

#include "harness.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_PASSED = 0, CHILD_FAILED = 1, CHILD_SKIPPED = 77 };

// In a child, in place of cmocka's assertions, which would go on with the parent's tests there.
#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "ERROR: %s:%d: %s\n", __FILE__, __LINE__, #condition);                       \
      _exit(CHILD_FAILED);                                                                         \
    }                                                                                              \
  } while (0)

// A call that must succeed; it names its last argument `error`.
#define MUST_OK(call)                                                                              \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    if ((call) != JITMEM_OK) {                                                                     \
      fprintf(stderr, "ERROR: %s:%d: %s\n  gave %s\n", __FILE__, __LINE__, #call,                  \
              jitmem_error_message(object));                                                       \
      _exit(CHILD_FAILED);                                                                         \
    }                                                                                              \
    (void)error;                                                                                   \
  } while (0)

// A call that must fail with this status and all these words in its message.
#define MUST_FAIL(wanted, words, other_words, call)                                                \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    jitmem_status status = (call);                                                                 \
    if (status != (wanted) || strstr(jitmem_error_message(object), words) == NULL ||               \
        strstr(jitmem_error_message(object), other_words) == NULL) {                               \
      fprintf(stderr, "ERROR: %s:%d: %s\n  gave %s: %s\n  instead of %s with \"%s\", \"%s\"\n",    \
              __FILE__, __LINE__, #call, jitmem_status_name(status), jitmem_error_message(object), \
              jitmem_status_name(wanted), words, other_words);                                     \
      _exit(CHILD_FAILED);                                                                         \
    }                                                                                              \
    jitmem_error_free(object);                                                                     \
    (void)error;                                                                                   \
  } while (0)

// Says why a test can't be had here.
#define SKIP_CHILD(...)                                                                            \
  do {                                                                                             \
    fprintf(stderr, "SKIPPED: " __VA_ARGS__);                                                      \
    fputc('\n', stderr);                                                                           \
    _exit(CHILD_SKIPPED);                                                                          \
  } while (0)

// How a child process that runs `body` ends; a child that hangs is killed.
static inline int status_of_child(void (*body)(void *), void *argument) {
  fflush(NULL);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    // cmocka's handlers would go on with the parent's tests here.
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
    for (size_t i = 0; i < COUNT(signals); i++)
      signal(signals[i], SIG_DFL);
    alarm(instrumented() ? 600 : 30);
    body(argument);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  return status;
}

// Whether any test of this program could not be had.
static int skipped_tests;

// Runs `body` in a child process, which must come to its end or say why it can't.
static inline void in_child(void (*body)(void *), void *argument) {
  int status = status_of_child(body, argument);
  if (WIFSIGNALED(status))
    fail_msg("the child was killed by signal %d (%s)", WTERMSIG(status),
             WTERMSIG(status) == SIGALRM ? "it hung" : strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == CHILD_SKIPPED) {
    skipped_tests++;
    skip();
  }
  assert_int_equal(WEXITSTATUS(status), CHILD_PASSED);
}

// A child that runs a function when its parent says so.
struct waiting_child {
  pid_t process;
  int gate;
};

static inline struct waiting_child start_waiting_child(void (*body)(void *), void *argument) {
  int gate[2];
  assert_int_equal(pipe(gate), 0);
  fflush(NULL);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    char byte;
    close(gate[1]);
    MUST(read(gate[0], &byte, 1) == 0);
    body(argument);
    _exit(CHILD_PASSED);
  }
  close(gate[0]);
  return (struct waiting_child){child, gate[1]};
}

// Has it run the function, which must come to its end.
static inline void have_run(struct waiting_child child) {
  int status = 0;
  close(child.gate);
  assert_int_equal(waitpid(child.process, &status, 0), child.process);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
}

// ---- what a child needs of jitmem ----

static inline jitmem_manager *child_manager(uint32_t kind, jitmem_manager_options options) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  options.struct_size = sizeof options;
  MUST_OK(jitmem_mapper_in_process(kind, &mapper, error));
  MUST_OK(jitmem_manager_create(mapper, &options, &manager, error));
  jitmem_mapper_free(mapper);
  return manager;
}

static inline jitmem_stats child_stats(const jitmem_manager *manager) {
  jitmem_stats stats = {.struct_size = sizeof stats};
  MUST_OK(jitmem_manager_stats(manager, &stats, error));
  return stats;
}

// One graph through its whole life, and what is seen of it in between.
static inline void child_graph(jitmem_manager *manager) {
  const jitmem_segment segments[] = {segment(300, 0, RX), segment(300, 0, R),
                                     segment(300, 100, RW)};
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, graph.memory, &graph.handle, error));
  for (int i = 0; i < 3; i++)
    memset(graph.memory[i].working_memory, 0x30 + i, 300);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  for (int i = 0; i < 3; i++)
    MUST(all_bytes_are(at(graph.memory[i].address), 300, 0x30 + i));
  MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
}

#endif
