// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Many threads on one manager, each graph passed from thread to thread, its pattern checked all the
// way.

#include "here.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 8, GRAPHS_PER_THREAD = 2000, SLOTS = 64 };

// A graph on its way; the thread that takes it out of its slot owns it.
struct life {
  struct graph graph;
  uint64_t sizes[3], zeros[3];
  uint8_t pattern;
  int finalized;
};

struct stage {
  jitmem_manager *manager;
  uint64_t largest;
  _Atomic(struct life *) slots[SLOTS];
  atomic_uint allocated, finalized, abandoned, deallocated, full;
  atomic_flag complained;
  atomic_int failed, windows_were_opened;
};

struct worker {
  pthread_t thread;
  struct stage *stage;
  uint64_t random;
};

// Threads can't leave the test by cmocka's way out.
static void complain(struct stage *stage, const char *what, jitmem_error *error) {
  if (!atomic_flag_test_and_set(&stage->complained))
    print_error("ERROR: %s: %s\n", what, jitmem_error_message(error));
  jitmem_error_free(error);
  stage->failed = 1;
}

static struct life *begin(struct stage *stage, uint64_t *random) {
  static const uint32_t protections[] = {RX, R, RW};
  struct life *life = calloc(1, sizeof *life);
  if (life == NULL)
    abort();
  jitmem_segment segments[3];
  for (int i = 0; i < 3; i++) {
    life->sizes[i] = next_random(random) % stage->largest;
    life->zeros[i] = next_random(random) % 300;
    segments[i] = segment(life->sizes[i], life->zeros[i], protections[i]);
    segments[i].alignment = (uint64_t)1 << next_random(random) % 8;
  }
  life->pattern = (uint8_t)next_random(random);
  // What belongs together stays together, here as with JITDylibs.
  uint64_t dylib = next_random(random) % 4;
  jitmem_error *error = NULL;
  jitmem_status status = jitmem_manager_allocate(stage->manager, segments, 3, dylib,
                                                 life->graph.memory, &life->graph.handle, &error);
  if (status == JITMEM_OK) {
    stage->allocated++;
    for (int i = 0; i < 3; i++)
      memset(life->graph.memory[i].working_memory, life->pattern + i, life->sizes[i]);
    return life;
  }
  free(life);
  if (status == JITMEM_WINDOW_FULL && dylib != 0) {
    // The window of that JITDylib is full, which is an answer and no failure.
    stage->full++;
    jitmem_error_free(error);
  } else {
    complain(stage, "allocate", error);
  }
  return NULL;
}

static void check(struct stage *stage, struct life *life) {
  for (int i = 0; i < 3; i++) {
    const uint8_t *bytes = at(life->graph.memory[i].address);
    if (!all_bytes_are(bytes, life->sizes[i], life->pattern + i) ||
        !all_bytes_are(bytes + life->sizes[i], life->zeros[i], 0))
      complain(stage, "another graph's bytes are in this one", NULL);
  }
}

// Takes a graph one step further; NULL when it has come to its end.
static struct life *advance(struct stage *stage, struct life *life, uint64_t random) {
  jitmem_error *error = NULL;
  uint64_t handle = life->graph.handle;
  if (!life->finalized && random % 8 != 0) {
    if (jitmem_manager_finalize(stage->manager, handle, NULL, 0, &error) != JITMEM_OK)
      complain(stage, "finalize", error);
    stage->finalized++;
    life->finalized = 1;
    check(stage, life);
    return life;
  }
  if (!life->finalized) {
    if (jitmem_manager_abandon(stage->manager, handle, &error) != JITMEM_OK)
      complain(stage, "abandon", error);
    stage->abandoned++;
  } else {
    check(stage, life);
    if (jitmem_manager_deallocate(stage->manager, &handle, 1, &error) != JITMEM_OK)
      complain(stage, "deallocate", error);
    stage->deallocated++;
  }
  free(life);
  return NULL;
}

static void *work(void *argument) {
  struct worker *worker = argument;
  struct stage *stage = worker->stage;
  unsigned begun = 0, wanted = rounds(GRAPHS_PER_THREAD);
  while (begun < wanted && !stage->failed) {
    uint64_t random = next_random(&worker->random);
    _Atomic(struct life *) *slot = &stage->slots[random % SLOTS];
    struct life *life = atomic_exchange(slot, NULL);
    if (life == NULL) {
      life = begin(stage, &worker->random);
      begun++;
      if (stats_of(stage->manager).windows > 1)
        stage->windows_were_opened = 1;
    } else {
      life = advance(stage, life, random >> 32);
    }
    // Another thread may have filled the slot meanwhile; then that graph is ours now.
    while (life != NULL && (life = atomic_exchange(slot, life)) != NULL)
      life = advance(stage, life, next_random(&worker->random));
  }
  return NULL;
}

// Whether there was more than one window at a time.
static int run_threads(jitmem_manager *manager, uint64_t largest) {
  struct stage stage = {.manager = manager, .largest = largest, .complained = ATOMIC_FLAG_INIT};
  struct worker workers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    workers[i] = (struct worker){.stage = &stage, .random = 0x9e3779b97f4a7c15 * (i + 1)};
    assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
  }
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
  for (int i = 0; i < SLOTS; i++)
    for (struct life *life = stage.slots[i]; life != NULL;)
      life = advance(&stage, life, 1);
  assert_int_equal(stage.failed, 0);
  if (rounds(GRAPHS_PER_THREAD) == GRAPHS_PER_THREAD)
    assert_true(stage.allocated > THREADS * GRAPHS_PER_THREAD / 2);

  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.allocate_calls, stage.allocated);
  assert_int_equal(stats.finalize_calls, stage.finalized);
  assert_int_equal(stats.abandon_calls, stage.abandoned);
  assert_int_equal(stats.deallocate_calls, stage.deallocated);
  assert_int_equal(stats.failures, stage.full);
  assert_int_equal(stats.live + stats.padding + stats.in_flight + stats.finalized, 0);
  return stage.windows_were_opened;
}

static void small_graphs(void **state) {
  struct fixture *fixture = *state;
  run_threads(fixture->manager, 600);
  assert_int_equal(stats_of(fixture->manager).windows, 1);
}

static void chunks_and_windows_come_and_go(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager =
      manager_with(fixture, (jitmem_manager_options){.window_size = 8 * MIB,
                                                     .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  assert_true(run_threads(manager, 200 * KIB));
  assert_int_equal(windows_at_most(manager, 1), 1);
  jitmem_manager_free(manager);
}

// Managers of their own over one mapper.
static void *own_manager(void *argument) {
  struct fixture *fixture = argument;
  for (unsigned i = 0; i < rounds(100); i++) {
    jitmem_manager *manager = NULL;
    if (jitmem_manager_create(fixture->mapper, NULL, &manager, NULL) != JITMEM_OK)
      return "create";
    const jitmem_segment one = segment(100, 0, RX);
    jitmem_segment_memory memory;
    uint64_t handle;
    if (jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, NULL) != JITMEM_OK)
      return "allocate";
    memset(memory.working_memory, (int)i, 100);
    if (jitmem_manager_finalize(manager, handle, NULL, 0, NULL) != JITMEM_OK ||
        !all_bytes_are(at(memory.address), 100, (uint8_t)i))
      return "finalize";
    jitmem_manager_free(manager);
  }
  return NULL;
}

static void one_mapper_serves_managers_of_many_threads(void **state) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, own_manager, *state), 0);
  for (int i = 0; i < THREADS; i++) {
    void *failed = NULL;
    assert_int_equal(pthread_join(threads[i], &failed), 0);
    if (failed != NULL)
      fail_msg("%s failed in thread %d", (char *)failed, i);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(small_graphs),
      EVERYWHERE(chunks_and_windows_come_and_go),
      EVERYWHERE(one_mapper_serves_managers_of_many_threads),
  };
  return at_rest(cmocka_run_group_tests_name("threads", tests, NULL, NULL));
}
