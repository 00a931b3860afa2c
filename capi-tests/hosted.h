// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A manager over the custom mapper of host.h, and the check that nothing of either is left.

#ifndef HOSTED_H
#define HOSTED_H

#include "host.h"

struct hosted {
  struct host host;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static inline int host_set_up_as(void **state, uint32_t content, enum timing timing,
                                 int chunks_later) {
  struct hosted *hosted = calloc(1, sizeof *hosted);
  assert_non_null(hosted);
  *state = hosted;
  struct host *host = &hosted->host;
  host->content = content;
  host->timing = timing;
  host->message = "the host says no";
  assert_int_equal(pthread_mutex_init(&host->lock, NULL), 0);
  assert_int_equal(pthread_cond_init(&host->idle, NULL), 0);
  host->chunks_later = chunks_later;
  const jitmem_mapper_callbacks callbacks = {.struct_size = sizeof callbacks,
                                             .page_size = page_size(),
                                             .granule = 16,
                                             .content = content,
                                             .ctx = host,
                                             .destroy = on_destroy,
                                             .reserve = on_reserve,
                                             .prepare = chunks_later ? NULL : host_prepare,
                                             .prepare_async = chunks_later ? on_prepare : NULL,
                                             .reclaim_async = chunks_later ? on_reclaim : NULL,
                                             .initialize = on_initialize,
                                             .deinitialize = on_deinitialize,
                                             .reclaim = chunks_later ? NULL : host_reclaim,
                                             .release = on_release};
  OK(jitmem_mapper_custom(&callbacks, &hosted->mapper, error));
  jitmem_manager_options options = {.struct_size = sizeof options, .window_size = 64 * MIB};
  OK(jitmem_manager_create(hosted->mapper, &options, &hosted->manager, error));
  return 0;
}

static inline int host_set_up(void **state, uint32_t content, enum timing timing) {
  return host_set_up_as(state, content, timing, 0);
}

// Everything that was reserved is released, everything remembered done with, and the context
// destroyed exactly once.
static inline int host_tear_down_all(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  memset(host->fails, 0, sizeof host->fails);
  jitmem_manager_free(hosted->manager);
  host_wait(host);
  assert_int_equal(host->destroyed, 0);
  jitmem_mapper_free(hosted->mapper);
  host_wait(host);
  if (host->wrong != NULL)
    fail_msg("%s", host->wrong);
  assert_int_equal(host->destroyed, 1);
  for (size_t i = 0; i < COUNT(host->windows); i++)
    assert_int_equal(host->windows[i].size, 0);
  for (size_t i = 0; i < COUNT(host->chunks); i++)
    assert_int_equal(host->chunks[i].size, 0);
  for (size_t i = 0; i < COUNT(host->teardowns); i++)
    assert_int_equal(host->teardowns[i].used, 0);
  pthread_mutex_destroy(&host->lock);
  pthread_cond_destroy(&host->idle);
  free(hosted);
  return 0;
}

static inline int set_up_shared(void **state) {
  return host_set_up(state, JITMEM_CONTENT_SHARED, AT_ONCE);
}

static inline int set_up_copied(void **state) {
  return host_set_up(state, JITMEM_CONTENT_COPIED, AT_ONCE);
}

static inline int set_up_shared_late(void **state) {
  return host_set_up(state, JITMEM_CONTENT_SHARED, BY_A_THREAD);
}

static inline int set_up_copied_late(void **state) {
  return host_set_up(state, JITMEM_CONTENT_COPIED, BY_A_THREAD);
}

// Chunks by prepare_async and reclaim_async, answered in the call or by another thread.
static inline int set_up_async_chunks(void **state) {
  return host_set_up_as(state, JITMEM_CONTENT_SHARED, AT_ONCE, 1);
}

static inline int set_up_async_chunks_late(void **state) {
  return host_set_up_as(state, JITMEM_CONTENT_COPIED, BY_A_THREAD, 1);
}

// Entries of a test table: each way for content to travel, answered at once.
#define BOTH_CONTENTS(test)                                                                        \
  {#test " (shared)", test, set_up_shared, host_tear_down_all, NULL}, {                            \
    #test " (copied)", test, set_up_copied, host_tear_down_all, NULL                               \
  }
// The same, and answered by another thread.
#define EACH_HOST(test)                                                                            \
  BOTH_CONTENTS(test),                                                                             \
      {#test " (shared, late)", test, set_up_shared_late, host_tear_down_all, NULL},               \
      {#test " (copied, late)", test, set_up_copied_late, host_tear_down_all, NULL},               \
      {#test " (chunks async)", test, set_up_async_chunks, host_tear_down_all, NULL}, {            \
    #test " (chunks async, late)", test, set_up_async_chunks_late, host_tear_down_all, NULL        \
  }

static inline jitmem_manager *hosted_manager(struct hosted *hosted,
                                             jitmem_manager_options options) {
  options.struct_size = sizeof options;
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(hosted->mapper, &options, &manager, error));
  return manager;
}

#endif
