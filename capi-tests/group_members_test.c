// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Groups: executors that join where it is difficult, and groups without any.

#include "groups.h"

#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/resource.h>

// All files of a group are opened once more for one that joins.
static void one_that_finds_no_descriptors_is_refused(void **state) {
  (void)state;
  struct group group;
  struct rlimit usual;
  start_group(&group, 2, NULL);
  struct unit unit = link_unit(group.manager, 5);
  // Each has a window, with an index of frames, where the controller, from which executors are
  // forked, has nothing.
  jitmem_manager *others[4];
  for (size_t i = 0; i < COUNT(others); i++) {
    const jitmem_manager_options options = {.struct_size = sizeof options,
                                            .placement = JITMEM_PLACEMENT_FIXED,
                                            .address = 0x600000000000 + i * 4 * GIB};
    OK(jitmem_manager_create(group.mapper, &options, &others[i], error));
  }
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &usual), 0);
  int refused = 0;
  for (jitmem_status status = JITMEM_INTERNAL; status != JITMEM_OK; refused++) {
    size_t place = group.count;
    start_one(&group, NULL);
    int lowest = dup(0);
    close(lowest);
    const struct rlimit few = {.rlim_cur = (rlim_t)lowest + (rlim_t)refused,
                               .rlim_max = usual.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    const jitmem_new_executor executor = {.transport = group.transports[place]};
    status = jitmem_mapper_add_executor(group.mapper, &executor, NULL, NULL);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &usual), 0);
    assert_int_equal(executors_of(&group), status == JITMEM_OK ? 3 : 2);
    check_unit(&group, 1, &unit, 5);
    if (status == JITMEM_OK)
      check_unit(&group, place, &unit, 5);
  }
  assert_true(refused > 1);
  for (size_t i = 0; i < COUNT(others); i++)
    jitmem_manager_free(others[i]);
  deallocate(group.manager, unit.graph.handle);
  end_group(&group);
}

static void nothing_is_finalized_without_executors(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 1, NULL);
  // What all have by their pages, so that no message is needed.
  const jitmem_segment code[] = {{.content_size = 64, .alignment = 16, .protection = RX}};
  struct graph graphs[] = {allocate(group.manager, code, 1), allocate(group.manager, code, 1)};
  finalize(group.manager, graphs[0].handle);
  kill(group.executors[0].process, SIGKILL);
  wait_for_executors(&group, 0);
  FAILS(JITMEM_DISCONNECTED, "executor",
        jitmem_manager_finalize(group.manager, graphs[1].handle, NULL, 0, error));
  end_executor(&group, 0);
  start_one(&group, NULL);
  join_with(&group, 1);
  struct graph next = allocate(group.manager, code, 1);
  finalize(group.manager, next.handle);
  end_group(&group);
}

// What the second executor of a group has done, which all processes see.
static struct {
  sem_t finalizing, may_end;
  atomic_int count;
  char done[8];
} *seen;

static void note(char what) {
  int place = seen->count++;
  MUST(place < (int)sizeof seen->done);
  seen->done[place] = what;
}

static struct wrapper_result act_in_second(const char *args, size_t size) {
  (void)size;
  if (place_here == 1)
    note(args[0]);
  return succeed();
}

static struct wrapper_result act_late_in_second(const char *args, size_t size) {
  if (place_here == 1) {
    MUST(sem_post(&seen->finalizing) == 0);
    MUST(sem_wait(&seen->may_end) == 0);
  }
  return act_in_second(args, size);
}

static struct wrapper_result fail_late_in_second(const char *args, size_t size) {
  const struct wrapper_result result = act_late_in_second(args, size);
  return place_here == 1 ? fail_with("not in this one") : result;
}

static struct wrapper_result act_in_first(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static void *join_as_second(void *ctx) {
  join_with(ctx, 1);
  return NULL;
}

static void has_gone(void *ctx, const jitmem_error *failure) {
  if (failure != NULL)
    abort();
  *(atomic_int *)ctx = 1;
}

static void see_anew(void) {
  seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(seen != MAP_FAILED);
  assert_int_equal(sem_init(&seen->finalizing, 1, 0), 0);
  assert_int_equal(sem_init(&seen->may_end, 1, 0), 0);
}

// What an executor has, and what it is being told of, go while it joins: last allocation first.
static void what_goes_while_one_joins_goes_in_order(void **state) {
  (void)state;
  for (int round = 0; round < 5; round++) {
    struct group group;
    see_anew();
    start_group(&group, 1, NULL);
    // So much content has a message of its own.
    const jitmem_segment large[] = {segment(300 * KIB, 0, RW)}, small[] = {segment(16, 0, RW)};
    const struct graph graphs[] = {allocate(group.manager, large, 1),
                                   allocate(group.manager, small, 1)};
    const jitmem_action actions[] = {
        {.finalize = call_of(act_in_second, "A", 1), .dealloc = call_of(act_in_second, "a", 1)},
        {.finalize = call_of(act_late_in_second, "B", 1),
         .dealloc = call_of(act_in_second, "b", 1)}};
    uint64_t handles[2];
    for (int i = 0; i < 2; i++) {
      handles[i] = graphs[i].handle;
      OK(jitmem_manager_finalize(group.manager, handles[i], &actions[i], 1, error));
    }
    start_one(&group, NULL);
    pthread_t joining;
    atomic_int gone = 0;
    assert_int_equal(pthread_create(&joining, NULL, join_as_second, &group), 0);
    assert_int_equal(sem_wait(&seen->finalizing), 0);
    OK(jitmem_manager_deallocate_async(group.manager, handles, 2, has_gone, &gone, NULL, error));
    // It answers other calls meanwhile.
    for (int i = 0; i < 20; i++)
      assert_int_equal(jitmem_transport_call(group.transports[1], (uintptr_t)act_in_first, NULL, 0,
                                             NULL, NULL, NULL),
                       JITMEM_OK);
    assert_int_equal(gone, 0);
    assert_int_equal(sem_post(&seen->may_end), 0);
    pthread_join(joining, NULL);
    while (!gone)
      sched_yield();
    assert_string_equal(seen->done, "ABba");
    assert_int_equal(stats_of(group.manager).live, 0);
    end_group(&group);
    munmap(seen, sizeof *seen);
  }
}

static struct graph finalize_with(const struct group *group, const jitmem_action *action) {
  struct graph graph = allocate(group->manager, unit_segments, PARTS);
  OK(jitmem_manager_finalize(group->manager, graph.handle, action, 1, error));
  return graph;
}

static jitmem_action nothing_to_do(void) {
  return (jitmem_action){.finalize = call_of(act_in_first, "", 0),
                         .dealloc = call_of(act_in_first, "", 0)};
}

static void *join_in_vain(void *ctx) {
  const struct group *group = ctx;
  const jitmem_new_executor second = {.transport = group->transports[1]};
  const jitmem_status status = jitmem_mapper_add_executor(group->mapper, &second, NULL, NULL);
  return (void *)(uintptr_t)status;
}

// What goes while an executor is told of it goes with that one, if it never joins.
static void what_goes_while_one_fails_to_join_goes(void **state) {
  (void)state;
  for (int killed = 0; killed < 2; killed++) {
    struct group group;
    pthread_t joining;
    atomic_int gone = 0;
    void *status = NULL;
    see_anew();
    start_group(&group, 1, NULL);
    const jitmem_action late = {.finalize = call_of(fail_late_in_second, "A", 1),
                                .dealloc = call_of(act_in_second, "a", 1)};
    const jitmem_action other = nothing_to_do();
    const struct graph graph = finalize_with(&group, &late);
    start_one(&group, NULL);
    assert_int_equal(pthread_create(&joining, NULL, join_in_vain, &group), 0);
    assert_int_equal(sem_wait(&seen->finalizing), 0);
    OK(jitmem_manager_deallocate_async(group.manager, &graph.handle, 1, has_gone, &gone, NULL,
                                       error));
    // When the first one has answered this, it has answered what was asked before.
    const struct graph next = finalize_with(&group, &other);
    assert_int_equal(gone, 0);
    assert_int_equal(killed ? kill(group.executors[1].process, SIGKILL) : sem_post(&seen->may_end),
                     0);
    pthread_join(joining, &status);
    assert_int_equal((uintptr_t)status, killed ? JITMEM_DISCONNECTED : JITMEM_ACTION_FAILED);
    while (!gone)
      sched_yield();
    deallocate(group.manager, next.handle);
    assert_int_equal(stats_of(group.manager).live, 0);
    assert_int_equal(executors_of(&group), 1);
    assert_string_equal(seen->done, killed ? "" : "A");
    end_group(&group);
    munmap(seen, sizeof *seen);
  }
}

static void *remove_second(void *ctx) {
  const struct group *group = ctx;
  OK(jitmem_mapper_remove_executor(group->mapper, 2, error));
  return NULL;
}

static void meet(void *ctx, const jitmem_error *failure) {
  atomic_int *met = ctx;
  if (failure != NULL)
    abort();
  ++*met;
  while (*met < 2)
    sched_yield();
}

// What waits for an executor that leaves is answered at once, by callbacks that may wait for each
// other.
static void callbacks_after_a_removal_may_wait_for_each_other(void **state) {
  (void)state;
  struct group group;
  pthread_t removing;
  atomic_int met = 0;
  see_anew();
  start_group(&group, 2, NULL);
  const jitmem_action late = {.finalize = call_of(act_in_second, "A", 1),
                              .dealloc = call_of(act_late_in_second, "a", 1)};
  const jitmem_action other = nothing_to_do();
  finalize_with(&group, &late);
  const struct graph graphs[] = {finalize_with(&group, &other), finalize_with(&group, &other)};
  assert_int_equal(pthread_create(&removing, NULL, remove_second, &group), 0);
  assert_int_equal(sem_wait(&seen->finalizing), 0);
  for (size_t i = 0; i < COUNT(graphs); i++)
    OK(jitmem_manager_deallocate_async(group.manager, &graphs[i].handle, 1, meet, &met, NULL,
                                       error));
  // When the first one has answered this, it has answered what was asked before.
  finalize_with(&group, &other);
  assert_int_equal(met, 0);
  assert_int_equal(sem_post(&seen->may_end), 0);
  pthread_join(removing, NULL);
  while (met < 2)
    sched_yield();
  end_group(&group);
  munmap(seen, sizeof *seen);
}

// The way to an executor by another transport, with a place of its own for callbacks.
struct way {
  jitmem_transport *to;
  atomic_int tasks;
};

static void way_called(void *ctx, const void *bytes, size_t size, const jitmem_error *failure) {
  const uint32_t outcome = failure != NULL ? jitmem_error_status(failure) : JITMEM_OK;
  const char *message = failure != NULL ? jitmem_error_message(failure) : NULL;
  OK(jitmem_transport_answer((uintptr_t)ctx, outcome, message, bytes, size, error));
}

static void way_call(void *ctx, uint64_t function, const void *args, size_t size,
                     jitmem_call call) {
  const struct way *way = ctx;
  OK(jitmem_transport_start(way->to, function, args, size, 0, way_called, (void *)(uintptr_t)call,
                            NULL, NULL, error));
}

static uint64_t way_symbol(void *ctx, const char *name) {
  const struct way *way = ctx;
  uint64_t address = 0;
  jitmem_transport_symbol(way->to, name, &address, NULL);
  return address;
}

static void way_dispatch(void *ctx, jitmem_task task) {
  struct way *way = ctx;
  way->tasks++;
  OK(jitmem_task_run(task, error));
}

// Callbacks run where the host of an executor wants them that is in the group.
static void callbacks_run_by_a_member(void **state) {
  (void)state;
  struct group group = {0};
  struct way ways[2] = {0};
  jitmem_new_executor executors[2] = {0};
  jitmem_transport *by[2];
  for (size_t i = 0; i < 2; i++) {
    start_one(&group, NULL);
    ways[i].to = group.transports[i];
    const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks,
                                                  .ctx = &ways[i],
                                                  .call = way_call,
                                                  .symbol = way_symbol,
                                                  .dispatch = way_dispatch};
    OK(jitmem_transport_custom(&callbacks, &by[i], error));
    executors[i].transport = by[i];
  }
  OK(jitmem_mapper_group(executors, 2, NULL, &group.mapper, error));
  OK(jitmem_manager_create(group.mapper, NULL, &group.manager, error));
  const jitmem_action action = nothing_to_do();
  for (int removed = 0; removed < 2; removed++) {
    const int before[] = {ways[0].tasks, ways[1].tasks};
    atomic_int gone = 0;
    const struct graph graph = finalize_with(&group, &action);
    OK(jitmem_manager_deallocate_async(group.manager, &graph.handle, 1, has_gone, &gone, NULL,
                                       error));
    while (!gone)
      sched_yield();
    for (int i = 0; i < 2; i++)
      assert_int_equal(ways[i].tasks - before[i], i == removed);
    if (!removed)
      OK(jitmem_mapper_remove_executor(group.mapper, 1, error));
  }
  jitmem_manager_free(group.manager);
  jitmem_mapper_free(group.mapper);
  for (size_t i = 0; i < 2; i++) {
    jitmem_transport_free(by[i]);
    end_executor(&group, i);
  }
}

int main(void) {
#ifdef M_ARENA_MAX
  // As in groups_test.c.
  mallopt(M_ARENA_MAX, 1);
#endif
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_that_finds_no_descriptors_is_refused),
      cmocka_unit_test(nothing_is_finalized_without_executors),
      cmocka_unit_test(what_goes_while_one_joins_goes_in_order),
      cmocka_unit_test(what_goes_while_one_fails_to_join_goes),
      cmocka_unit_test(callbacks_after_a_removal_may_wait_for_each_other),
      cmocka_unit_test(callbacks_run_by_a_member),
  };
  return at_rest(cmocka_run_group_tests_name("group members", tests, NULL, NULL));
}
