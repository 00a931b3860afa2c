// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Calls with a heap that is exhausted: each is made with its first allocation failing, its second,
// and so on, until it makes no further one. It must fail with JITMEM_OUT_OF_MEMORY, or succeed none
// the less; nothing is lost, and the next call works. A CMake test compares the programs that do so
// with the header.

#ifndef HEAP_CALLS_H
#define HEAP_CALLS_H

#include "heap.h"

#include "executor.h"
#include "here.h"
#include "hosted.h"

#include <pthread.h>

// ---- calls with a heap that fails ----

// One round of a loop over all failures.
struct failing {
  int kind;
  long skip;
  // Of the call that was made: how many allocations failed, and what it answered.
  long failed;
  jitmem_status status;
  jitmem_error *error;
  // How many calls failed, of all rounds.
  long refused;
};

static inline int goes_on(struct failing *failing) {
  if (failing->failed > 0) {
    assert_true(++failing->skip < 100000);
  } else {
    failing->skip = 0;
    failing->kind++;
  }
  return failing->kind < HEAP_FAILURES;
}

#define EACH_FAILURE(name) for (struct failing name = {.kind = -1}; goes_on(&name);)

// An executor that is this very process has no memory for its answer either; what arrives then is
// none.
static int executor_is_here;

static inline int said_by_executor(jitmem_status status) {
  return executor_is_here && status == JITMEM_MAPPER_FAILED;
}

// Makes a call that names its last argument `error`. It may fail for want of memory, and then says
// so.
#define TRY(name, call)                                                                            \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    heap_begin((name).kind, (name).skip);                                                          \
    jitmem_status status = (call);                                                                 \
    (name).failed = heap_end();                                                                    \
    (void)error;                                                                                   \
    tried(&(name), status, object, #call, __LINE__);                                               \
  } while (0)

// Makes a call that can't fail.
#define ALWAYS(name, call)                                                                         \
  do {                                                                                             \
    heap_begin((name).kind, (name).skip);                                                          \
    (call);                                                                                        \
    (name).failed = heap_end();                                                                    \
  } while (0)

static inline void tried(struct failing *failing, jitmem_status status, jitmem_error *error,
                         const char *call, int line) {
  const char *message = jitmem_error_message(error);
  failing->status = status;
  failing->refused += status != JITMEM_OK;
  int right = status == JITMEM_OK ? error == NULL
                                  : (status == JITMEM_OUT_OF_MEMORY || said_by_executor(status)) &&
                                        failing->failed > 0 &&
                                        jitmem_error_status(error) == status && strlen(message) > 0;
  if (!right) {
    print_error("ERROR: %s\n  failure kind %d after %ld gave %s: %s\n", call, failing->kind,
                failing->skip, jitmem_status_name(status), message);
    _fail(__FILE__, line);
  }
  jitmem_error_free(error);
}

// ---- what is tried ----

struct subject {
  void *fixture;
  int (*tear_down)(void **);
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static inline int subject(void **state, int (*set_up)(void **), int (*tear_down)(void **)) {
  struct subject *subject = calloc(1, sizeof *subject);
  assert_non_null(subject);
  set_up(&subject->fixture);
  subject->tear_down = tear_down;
  *state = subject;
  return 0;
}

static inline int of_fixture(void **state, int (*set_up)(void **), int (*tear_down)(void **)) {
  subject(state, set_up, tear_down);
  struct subject *subject = *state;
  subject->mapper = ((struct fixture *)subject->fixture)->mapper;
  subject->manager = ((struct fixture *)subject->fixture)->manager;
  return 0;
}

static inline int of_host(void **state, int (*set_up)(void **)) {
  subject(state, set_up, host_tear_down_all);
  struct subject *subject = *state;
  subject->mapper = ((struct hosted *)subject->fixture)->mapper;
  subject->manager = ((struct hosted *)subject->fixture)->manager;
  return 0;
}

static inline int two_views(void **state) { return of_fixture(state, set_up_two_views, tear_down); }
static inline int mprotected(void **state) { return of_fixture(state, set_up_mprotect, tear_down); }
static inline int in_place(void **state) { return of_fixture(state, set_up_in_place, tear_down); }
static inline int shared(void **state) {
  executor_is_here = 1;
  return of_fixture(state, set_up_shared_here, tear_down_here);
}
static inline int remote(void **state) {
  executor_is_here = 1;
  return of_fixture(state, set_up_remote_here, tear_down_here);
}
static inline int host_shared(void **state) { return of_host(state, set_up_shared); }
static inline int host_copied(void **state) { return of_host(state, set_up_copied); }
static inline int host_async(void **state) { return of_host(state, set_up_async_chunks); }

static inline int subject_tear_down(void **state) {
  struct subject *subject = *state;
  subject->tear_down(&subject->fixture);
  free(subject);
  executor_is_here = 0;
  return 0;
}

#define MODE(test, mode) {#test " (" #mode ")", test, mode, subject_tear_down, NULL}
#define MODES(test)                                                                                \
  MODE(test, two_views), MODE(test, mprotected), MODE(test, in_place), MODE(test, host_shared),    \
      MODE(test, host_copied), MODE(test, shared), MODE(test, remote)

static inline struct wrapper_result action(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static const jitmem_segment segments[] = {
    {.content_size = 100, .alignment = 16, .protection = RX},
    {.content_size = 100, .alignment = 16, .protection = R},
    {.content_size = 100, .zero_fill_size = 9, .alignment = 16, .protection = RW},
    {.content_size = 10, .alignment = 16, .protection = RX, .lifetime = JITMEM_LIFETIME_FINALIZE},
    {.content_size = 10, .alignment = 16, .protection = RW, .lifetime = JITMEM_LIFETIME_FINALIZE},
};

struct graphs {
  uint64_t handle;
  jitmem_segment_memory memory[COUNT(segments)];
};

static inline struct graphs in_flight(jitmem_manager *manager) {
  struct graphs graphs;
  OK(jitmem_manager_allocate(manager, segments, COUNT(segments), 1, graphs.memory, &graphs.handle,
                             error));
  return graphs;
}

static inline struct graphs finalized(jitmem_manager *manager, int with_actions) {
  struct graphs graphs = in_flight(manager);
  const jitmem_action actions[] = {
      {.finalize = call_of(action, "a", 1), .dealloc = call_of(action, "bcdefghijklmnop", 15)}};
  OK(jitmem_manager_finalize(manager, graphs.handle, with_actions ? actions : NULL,
                             with_actions ? 1 : 0, error));
  return graphs;
}

// A whole life works, and then nothing is left.
static inline void goes_on_working(jitmem_manager *manager) {
  struct graphs graphs = finalized(manager, 1);
  OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.in_flight, 0);
  assert_int_equal(stats.finalized, 0);
  assert_int_equal(stats.live, 0);
}

// ---- answers to asynchronous calls ----

struct answer {
  struct counter counter;
  jitmem_status status;
  uint64_t handle;
  jitmem_manager *manager;
  int destroyed;
};

static inline void on_created(void *ctx, jitmem_manager *manager, const jitmem_error *error) {
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  answer->manager = manager;
  count(&answer->counter);
}

static inline void on_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                                size_t number, const jitmem_error *error) {
  (void)memory, (void)number;
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  answer->handle = allocation;
  count(&answer->counter);
}

static inline void on_done(void *ctx, const jitmem_error *error) {
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  count(&answer->counter);
}

// Waits for the answer to a call that was accepted; a call that was refused is not answered.
static inline void answered(struct failing *failing, struct answer *answer) {
  if (failing->status != JITMEM_OK) {
    assert_int_equal(answer->counter.count, 0);
    answer->status = failing->status;
    return;
  }
  assert_int_equal(counted(&answer->counter, 1), 1);
  assert_true(answer->status == JITMEM_OK ||
              ((answer->status == JITMEM_OUT_OF_MEMORY || said_by_executor(answer->status)) &&
               failing->failed > 0));
}

#define ANSWER {.counter = COUNTER}

#endif
