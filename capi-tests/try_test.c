// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Calls that never wait: they do all of it or, saying so without an error object, nothing.

#include "hosted.h"

#define WOULD_BLOCK(call)                                                                          \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    assert_int_equal((call), JITMEM_WOULD_BLOCK);                                                  \
    assert_null(object);                                                                           \
    error = NULL;                                                                                  \
    assert_int_equal((call), JITMEM_WOULD_BLOCK);                                                  \
    (void)error;                                                                                   \
  } while (0)

static const jitmem_segment three[] = {{.content_size = 64, .alignment = 16, .protection = 5},
                                       {.content_size = 64, .alignment = 16, .protection = 1},
                                       {.content_size = 64, .alignment = 16, .protection = 3}};

// Another window would have to be reserved, by a mapper that answers later.
static void allocate_needs_a_window(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB,
                                                      .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  jitmem_segment most = segment(0, 6 * MIB, RW);
  allocate(manager, &most, 1);
  hosted->host.timing = WHEN_TOLD;
  jitmem_stats before = stats_of(manager);
  struct graph graph = {0};
  WOULD_BLOCK(
      jitmem_manager_try_allocate(manager, &most, 1, 0, graph.memory, &graph.handle, error));
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.live, before.live);
  assert_int_equal(after.padding, before.padding);
  assert_int_equal(after.in_flight, before.in_flight);
  assert_int_equal(after.failures, before.failures);
  assert_int_equal(graph.handle, 0);
  assert_null(graph.memory[0].working_memory);
  assert_int_equal(hosted->host.held_count, 0);
  hosted->host.timing = AT_ONCE;
  // The call that may wait does it.
  graph = allocate(manager, &most, 1);
  assert_int_equal(stats_of(manager).windows, 2);
  jitmem_manager_free(manager);
}

static void a_whole_life_without_waiting(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph warm = allocate_three(manager, 1), graph;
  uint64_t before = stats_of(manager).system_calls;
  for (int i = 0; i < 100; i++) {
    OK(jitmem_manager_try_allocate(manager, three, 3, 0, graph.memory, &graph.handle, error));
    for (int j = 0; j < 3; j++)
      memset(graph.memory[j].working_memory, i + j, 64);
    OK(jitmem_manager_try_finalize(manager, graph.handle, error));
    for (int j = 0; j < 3; j++)
      assert_true(all_bytes_are(at(graph.memory[j].address), 64, (uint8_t)(i + j)));
    OK(jitmem_manager_try_deallocate(manager, &graph.handle, 1, error));
  }
  jitmem_stats stats = stats_of(manager);
  // Where other cores must be told of code, each finalize does, and the first registers the
  // process.
  assert_in_range(stats.system_calls - before, COHERENT_FETCH ? 0 : 100, COHERENT_FETCH ? 0 : 102);
  assert_int_equal(stats.finalize_calls, 100);
  assert_int_equal(stats.deallocate_calls, 100);
  OK(jitmem_manager_abandon(manager, warm.handle, error));
  assert_int_equal(stats_of(manager).live, 0);
}

// Whatever a call comes to, the graph is in the state that its answer says.
static void what_would_block_is_not_done(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 7);
  jitmem_status status = jitmem_manager_try_finalize(manager, graph.handle, NULL);
  if (status == JITMEM_WOULD_BLOCK) {
    assert_int_equal(stats_of(manager).in_flight, 1);
    finalize(manager, graph.handle);
  } else {
    assert_int_equal(status, JITMEM_OK);
  }
  assert_true(all_bytes_are(at(graph.memory[0].address), 64, 7));
  status = jitmem_manager_try_deallocate(manager, &graph.handle, 1, NULL);
  if (status == JITMEM_WOULD_BLOCK) {
    assert_int_equal(stats_of(manager).finalized, 1);
    assert_true(all_bytes_are(at(graph.memory[0].address), 64, 7));
    deallocate(manager, graph.handle);
  } else {
    assert_int_equal(status, JITMEM_OK);
  }
  assert_int_equal(stats_of(manager).live + stats_of(manager).failures, 0);
}

static int ran;

static struct wrapper_result count(const char *args, size_t size) {
  (void)args, (void)size;
  ran++;
  return succeed();
}

static void actions_are_a_reason_to_wait(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_action action = {.dealloc = call_of(count, NULL, 0)};
  uint64_t batch[2];
  for (size_t i = 0; i < COUNT(batch); i++) {
    batch[i] = allocate_three(manager, 1).handle;
    OK(jitmem_manager_finalize(manager, batch[i], i == 1 ? &action : NULL, i == 1, error));
  }
  ran = 0;
  WOULD_BLOCK(jitmem_manager_try_deallocate(manager, batch, COUNT(batch), error));
  assert_int_equal(ran, 0);
  assert_int_equal(stats_of(manager).finalized, 2);
  OK(jitmem_manager_deallocate(manager, batch, COUNT(batch), error));
  assert_int_equal(ran, 1);
}

static void wrong_is_wrong_at_once(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 1), refused;
  jitmem_segment bad = segment(UINT64_MAX, 1, RW), huge = segment(0, 4 * GIB, RW);
  REFUSED(JITMEM_INVALID_ARGUMENT, "overflow",
          jitmem_manager_try_allocate(manager, &bad, 1, 0, refused.memory, &refused.handle, error));
  REFUSED(
      JITMEM_WINDOW_FULL, "larger",
      jitmem_manager_try_allocate(manager, &huge, 1, 0, refused.memory, &refused.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "still in flight",
          jitmem_manager_try_deallocate(manager, &graph.handle, 1, error));
  finalize(manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "finalized already",
          jitmem_manager_try_finalize(manager, graph.handle, error));
  const uint64_t twice[] = {graph.handle, graph.handle};
  REFUSED(JITMEM_INVALID_HANDLE, "", jitmem_manager_try_deallocate(manager, twice, 2, error));
  assert_int_equal(stats_of(manager).finalized, 1);
  deallocate(manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_try_finalize(manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_try_deallocate(manager, &graph.handle, 1, error));
}

static void a_quota_is_an_answer(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.quota = 64 * KIB});
  struct graph graph, most = allocate_one(manager, segment(60 * KIB, 0, RW), 1);
  jitmem_segment more = segment(8 * KIB, 0, RW);
  REFUSED(JITMEM_QUOTA_EXCEEDED, "quota of 65536",
          jitmem_manager_try_allocate(manager, &more, 1, 0, graph.memory, &graph.handle, error));
  OK(jitmem_manager_abandon(manager, most.handle, error));
  jitmem_manager_free(manager);
}

// A mapper that takes its time is never waited for.
static void a_slow_mapper_is_not_waited_for(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  struct graph warm = allocate_three(hosted->manager, 1), graph;
  host->timing = WHEN_TOLD;
  jitmem_status status =
      jitmem_manager_try_allocate(hosted->manager, three, 3, 0, graph.memory, &graph.handle, NULL);
  assert_int_equal(status, JITMEM_OK);
  unsigned initialized = host->calls[INITIALIZE];
  status = jitmem_manager_try_finalize(hosted->manager, graph.handle, NULL);
  assert_true(status == JITMEM_OK || status == JITMEM_WOULD_BLOCK);
  // A request without a callback has no one to answer.
  assert_int_equal(host->calls[INITIALIZE], initialized);
  host_tell(host);
  if (status == JITMEM_WOULD_BLOCK)
    finalize(hosted->manager, graph.handle);
  host->timing = WHEN_TOLD;
  status = jitmem_manager_try_deallocate(hosted->manager, &graph.handle, 1, NULL);
  assert_true(status == JITMEM_OK || status == JITMEM_WOULD_BLOCK);
  assert_int_equal(host->held_count, 0);
  host_tell(host);
  if (status == JITMEM_WOULD_BLOCK)
    deallocate(hosted->manager, graph.handle);
  OK(jitmem_manager_abandon(hosted->manager, warm.handle, error));
  assert_int_equal(stats_of(hosted->manager).live, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      BOTH_CONTENTS(allocate_needs_a_window),
      TWO_VIEWS(a_whole_life_without_waiting),
      EACH(what_would_block_is_not_done),
      EACH(actions_are_a_reason_to_wait),
      EACH(wrong_is_wrong_at_once),
      EACH(a_quota_is_an_answer),
      BOTH_CONTENTS(a_slow_mapper_is_not_waited_for),
  };
  return cmocka_run_group_tests_name("calls that never wait", tests, NULL, NULL);
}
