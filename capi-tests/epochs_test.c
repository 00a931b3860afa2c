// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Deferred reclamation: code that other threads may still run is deallocated, and used again only
// after every thread has been outside.

#include "code.h"
#include "here.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { RUNNERS = 3, GENERATIONS = 6000, BATCH = 16 };

static jitmem_manager *deferring(struct fixture *fixture) {
  return manager_with(fixture, (jitmem_manager_options){.defer_reclamation = 1});
}

static struct graph link_return(const jitmem_manager *manager, uint32_t value) {
  struct graph graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(graph.memory[0].working_memory, value);
  finalize(manager, graph.handle);
  return graph;
}

// ---- threads that run what others deallocate ----

struct runner {
  pthread_t thread;
  _Atomic uint64_t *function;
  _Atomic int *stop;
  // Counts how often this thread was outside of linked code.
  _Atomic uint64_t outside;
  uint64_t wrong;
};

static void *run_what_is_published(void *ctx) {
  struct runner *runner = ctx;
  uint32_t last = 0;
  while (!*runner->stop) {
    uint64_t function = *runner->function;
    // The code behind it may be deallocated here, and is run several times all the same.
    for (int i = 0; i < 20; i++) {
      uint32_t answer = run(function);
      runner->wrong += answer < last;
      last = answer;
    }
    runner->outside++;
  }
  return NULL;
}

// Waits until every thread has been outside since.
static void wait_until_outside(struct runner *runners) {
  uint64_t before[RUNNERS];
  for (int i = 0; i < RUNNERS; i++)
    before[i] = runners[i].outside;
  // The one round may have begun before, the next did not.
  for (int i = 0; i < RUNNERS; i++)
    while (runners[i].outside < before[i] + 1)
      sched_yield();
}

static void threads_run_code_that_others_deallocate(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = deferring(fixture);
  struct graph now = link_return(manager, 1);
  _Atomic uint64_t function = now.memory[0].address;
  _Atomic int stop = 0;
  struct runner runners[RUNNERS] = {0};
  for (int i = 0; i < RUNNERS; i++) {
    runners[i].function = &function;
    runners[i].stop = &stop;
    assert_int_equal(pthread_create(&runners[i].thread, NULL, run_what_is_published, &runners[i]),
                     0);
  }
  uint64_t most = 0;
  for (uint32_t generation = 2; generation < rounds(GENERATIONS); generation++) {
    struct graph next = link_return(manager, generation);
    function = next.memory[0].address;
    deallocate(manager, now.handle);
    now = next;
    if (generation % BATCH == 0) {
      uint64_t epoch = 0, bytes = 0;
      OK(jitmem_manager_advance_epoch(manager, &epoch, error));
      wait_until_outside(runners);
      most = stats_of(manager).waiting;
      OK(jitmem_manager_reclaim(manager, epoch, &bytes, error));
      assert_int_equal(bytes, most);
      assert_int_equal(stats_of(manager).waiting, 0);
    }
  }
  stop = 1;
  for (int i = 0; i < RUNNERS; i++) {
    assert_int_equal(pthread_join(runners[i].thread, NULL), 0);
    assert_int_equal(runners[i].wrong, 0);
    assert_true(runners[i].outside > 0);
  }
  // Memory is that of a batch, however many generations there were.
  assert_in_range(most, BATCH * 16, BATCH * page_size());
  assert_int_equal(stats_of(manager).chunks, 1);
  jitmem_manager_free(manager);
}

static void nothing_is_used_again_before_the_host_says_so(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = deferring(fixture);
  enum { COUNT_OF_CODE = 500 };
  uint64_t addresses[COUNT_OF_CODE];
  for (uint32_t i = 0; i < COUNT_OF_CODE; i++) {
    struct graph graph = link_return(manager, i);
    addresses[i] = graph.memory[0].address;
    if (i % 2 == 0) {
      deallocate(manager, graph.handle);
    } else {
      struct counter done = COUNTER;
      OK(jitmem_manager_deallocate_async(manager, &graph.handle, 1, count_success, &done, NULL,
                                         error));
      assert_int_equal(counted(&done, 1), 1);
    }
    REFUSED(JITMEM_INVALID_HANDLE, "not live",
            jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  }
  for (uint32_t i = 0; i < COUNT_OF_CODE; i++)
    assert_int_equal(run(addresses[i]), i);
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.finalized, 0);
  assert_int_equal(stats.live, 0);
  assert_in_range(stats.waiting, COUNT_OF_CODE * RETURN_SIZE, COUNT_OF_CODE * page_size());
  uint64_t epoch = 0;
  OK(jitmem_manager_advance_epoch(manager, &epoch, error));
  struct counter done = COUNTER;
  OK(jitmem_manager_reclaim_async(manager, epoch, count_success, &done, NULL, error));
  assert_int_equal(counted(&done, 1), 1);
  assert_int_equal(stats_of(manager).waiting, 0);
  uint64_t first = link_return(manager, 1).memory[0].address;
  int again = 0;
  for (uint32_t i = 0; i < COUNT_OF_CODE; i++)
    again |= addresses[i] == first;
  assert_true(again);
  jitmem_manager_free(manager);
}

static atomic_int ended;

static struct wrapper_result end_it(const char *args, size_t size) {
  (void)args, (void)size;
  ended++;
  return succeed();
}

static void actions_run_when_it_is_deallocated(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = deferring(fixture);
  const jitmem_action action = {.dealloc = call_of(end_it, "", 0)};
  struct graph graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(graph.memory[0].working_memory, 7);
  OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  ended = 0;
  deallocate(manager, graph.handle);
  assert_int_equal(ended, 1);
  assert_int_equal(run(graph.memory[0].address), 7);
  uint64_t epoch = 0;
  OK(jitmem_manager_advance_epoch(manager, &epoch, error));
  OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
  assert_int_equal(ended, 1);
  // What waits at the end has nothing left to run.
  graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  deallocate(manager, graph.handle);
  jitmem_manager_free(manager);
  assert_int_equal(ended, 2);
}

static void an_epoch_that_has_not_ended_is_refused(void **state) {
  struct fixture *fixture = *state;
  uint64_t bytes = 1, epoch = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "has ended is 0",
          jitmem_manager_reclaim(fixture->manager, 1, &bytes, error));
  OK(jitmem_manager_advance_epoch(fixture->manager, &epoch, error));
  assert_int_equal(epoch, 1);
  // Without the option nothing ever waits.
  struct graph graph = link_return(fixture->manager, 1);
  deallocate(fixture->manager, graph.handle);
  assert_int_equal(stats_of(fixture->manager).waiting, 0);
  OK(jitmem_manager_reclaim(fixture->manager, epoch, &bytes, error));
  assert_int_equal(bytes, 0);
  const jitmem_manager_options options = {.struct_size = sizeof options, .defer_reclamation = 2};
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "defer_reclamation 2",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(threads_run_code_that_others_deallocate),
      EVERYWHERE(nothing_is_used_again_before_the_host_says_so),
      EVERYWHERE(actions_run_when_it_is_deallocated),
      EVERYWHERE(an_epoch_that_has_not_ended_is_refused),
  };
  return cmocka_run_group_tests_name("epochs", tests, NULL, NULL);
}
