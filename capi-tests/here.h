// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An executor that is this very process: its service, and a transport that calls wrapper functions
// directly. So linked code can be run and looked at wherever it went.

#ifndef HERE_H
#define HERE_H

#include "wrapper.h"

#include <pthread.h>
#include <time.h>

// ---- waiting ----

// Something that other threads do, as often as counted.
struct counter {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int count;
};

#define COUNTER {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}

static inline void count(struct counter *counter) {
  pthread_mutex_lock(&counter->lock);
  counter->count++;
  pthread_cond_broadcast(&counter->changed);
  pthread_mutex_unlock(&counter->lock);
}

// A callback that counts successes.
static inline void count_success(void *ctx, const jitmem_error *error) {
  if (error != NULL)
    abort();
  count(ctx);
}

// Waits until it was counted to `wanted`, for a minute; returns how far it was counted.
static inline int counted(struct counter *counter, int wanted) {
  struct timespec deadline;
  clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += 60;
  pthread_mutex_lock(&counter->lock);
  while (counter->count < wanted &&
         pthread_cond_timedwait(&counter->changed, &counter->lock, &deadline) == 0)
    ;
  int count = counter->count;
  pthread_mutex_unlock(&counter->lock);
  return count;
}

// ---- the transport ----

struct here {
  jitmem_service *service;
  jitmem_transport *transport;
  uint64_t open, instance;
  struct counter destroyed;
};

// Hands over what a wrapper function answered.
static inline jitmem_status answer_with(jitmem_call call, struct wrapper_result result) {
  jitmem_status status;
  if (result.size == 0 && result.data.pointer != NULL)
    status =
        jitmem_transport_answer(call, JITMEM_MAPPER_FAILED, result.data.pointer, NULL, 0, NULL);
  else if (result.size > sizeof result.data.bytes)
    status = jitmem_transport_answer(call, JITMEM_OK, NULL, result.data.pointer, result.size, NULL);
  else
    return jitmem_transport_answer(call, JITMEM_OK, NULL, result.data.bytes, result.size, NULL);
  free(result.data.pointer);
  return status;
}

static inline struct wrapper_result call_here(uint64_t function, const void *args, size_t size) {
  return ((wrapper_function *)(uintptr_t)function)(args, size);
}

static inline void here_call(void *ctx, uint64_t function, const void *args, size_t size,
                             jitmem_call call) {
  (void)ctx;
  if (answer_with(call, call_here(function, args, size)) != JITMEM_OK)
    abort();
}

static inline uint64_t here_symbol(void *ctx, const char *name) {
  struct here *here = ctx;
  if (strcmp(name, "jitmem_service_open") == 0)
    return here->open;
  return strcmp(name, "jitmem_service_instance") == 0 ? here->instance : 0;
}

static inline void here_destroy(void *ctx) { count(&((struct here *)ctx)->destroyed); }

static inline void here_publish(void *ctx, const char *name, uint64_t address) {
  struct here *here = ctx;
  *(strcmp(name, "jitmem_service_open") == 0 ? &here->open : &here->instance) = address;
}

// Fills `here`, whose transport calls with `call`, which gets `here` as its context.
static inline void here_set_up(struct here *here,
                               void (*call)(void *, uint64_t, const void *, size_t, jitmem_call)) {
  *here = (struct here){.destroyed = COUNTER};
  OK(jitmem_service_create(&here->service, error));
  OK(jitmem_service_symbols(here->service, here_publish, here, error));
  const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks,
                                                .ctx = here,
                                                .destroy = here_destroy,
                                                .call = call,
                                                .symbol = here_symbol};
  OK(jitmem_transport_custom(&callbacks, &here->transport, error));
}

// When all mappers are gone: what is left goes, and the context is destroyed exactly once.
static inline void here_tear_down(struct here *here) {
  jitmem_transport_free(here->transport);
  assert_int_equal(counted(&here->destroyed, 1), 1);
  jitmem_service_free(here->service);
}

// ---- managers ----

// `shared`: through shared memory, else through messages.
static inline jitmem_manager *manager_over(jitmem_transport *transport, int shared,
                                           jitmem_mapper **mapper) {
  jitmem_manager *manager = NULL;
  OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(transport, NULL, mapper, error));
  OK(jitmem_manager_create(*mapper, NULL, &manager, error));
  return manager;
}

static inline jitmem_manager *manager_here(struct here *here, int shared, jitmem_mapper **mapper) {
  return manager_over(here->transport, shared, mapper);
}

struct fixture_here {
  struct fixture fixture;
  struct here here;
};

static inline int set_up_here(void **state, int shared) {
  struct fixture_here *all = calloc(1, sizeof *all);
  assert_non_null(all);
  *state = all;
  here_set_up(&all->here, here_call);
  all->fixture.kind = shared ? JITMEM_MAPPER_SHARED : JITMEM_MAPPER_REMOTE;
  all->fixture.manager = manager_here(&all->here, shared, &all->fixture.mapper);
  return 0;
}

static inline int set_up_shared_here(void **state) { return set_up_here(state, 1); }

static inline int set_up_remote_here(void **state) { return set_up_here(state, 0); }

static inline int tear_down_here(void **state) {
  struct fixture_here *all = *state;
  jitmem_stats stats = {.struct_size = sizeof stats};
  if (jitmem_manager_stats(all->fixture.manager, &stats, NULL) == JITMEM_OK)
    assert_int_equal(stats.unmap_failures, 0);
  jitmem_manager_free(all->fixture.manager);
  jitmem_mapper_free(all->fixture.mapper);
  here_tear_down(&all->here);
  free(all);
  return 0;
}

// Two entries of a test table: through shared memory, and through messages.
#define ACROSS(test)                                                                               \
  {#test " (shared)", test, set_up_shared_here, tear_down_here, NULL}, {                           \
    #test " (remote)", test, set_up_remote_here, tear_down_here, NULL                              \
  }
// Four entries: in this process directly, and as if it were another one.
#define EVERYWHERE(test) EACH(test), ACROSS(test)

#endif
