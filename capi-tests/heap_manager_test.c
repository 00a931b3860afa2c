// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Managers and allocations with a heap that is exhausted: see heap_calls.h.

#include "heap_calls.h"

// ---- windows ----

// GiB of address space that is only reserved, in mappings as large as windows. So a window that
// stays counts as one.
static long reserved(void) {
  FILE *maps = fopen("/proc/self/maps", "r");
  assert_non_null(maps);
  uint64_t sum = 0;
  char line[5000];
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long start, end;
    char access[5];
    if (sscanf(line, "%lx-%lx %4s", &start, &end, access) == 3 && strcmp(access, "---p") == 0 &&
        end - start >= 256 * MIB)
      sum += end - start;
  }
  fclose(maps);
  return (long)((sum + GIB / 2) / GIB);
}

// An executor gives back what it was to, if not before then when another window is reserved. Where
// all goes by the host's transport, the end of a manager is not waited for; here it is, for a
// minute.
static void no_window_stays(struct subject *subject, long before) {
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(subject->mapper, NULL, &manager, error));
  jitmem_manager_free(manager);
  struct timespec now, end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += 60;
  do {
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (reserved() != before && now.tv_sec <= end.tv_sec && sched_yield() == 0);
  assert_int_equal(reserved(), before);
}

// ---- mappers and managers ----

static void create_managers(void **state) {
  struct subject *subject = *state;
  const long before = reserved();
  EACH_FAILURE(round) {
    jitmem_manager *manager = NULL;
    TRY(round, jitmem_manager_create(subject->mapper, NULL, &manager, error));
    assert_int_equal(round.status == JITMEM_OK, manager != NULL);
    if (manager != NULL)
      goes_on_working(manager);
    jitmem_manager_free(manager);
    no_window_stays(subject, before);
  }
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round,
        jitmem_manager_create_async(subject->mapper, NULL, on_created, &answer, NULL, error));
    answered(&round, &answer);
    assert_int_equal(answer.status == JITMEM_OK, answer.manager != NULL);
    jitmem_manager_free(answer.manager);
    no_window_stays(subject, before);
  }
  goes_on_working(subject->manager);
}

static void free_managers(void **state) {
  struct subject *subject = *state;
  const long before = reserved();
  EACH_FAILURE(round) {
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(subject->mapper, NULL, &manager, error));
    in_flight(manager);
    for (int i = 0; i < 10; i++)
      finalized(manager, i % 2);
    ALWAYS(round, jitmem_manager_free(manager));
    no_window_stays(subject, before);
  }
  goes_on_working(subject->manager);
}

// ---- allocations ----

static void allocations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  long refused = 0;
  EACH_FAILURE(round) {
    // The first of a manager needs more than those that follow.
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_allocate(manager, segments, COUNT(segments), 1, graphs.memory,
                                       &graphs.handle, error));
    assert_int_equal(round.status == JITMEM_OK, graphs.handle != 0);
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    refused = round.refused;
    goes_on_working(manager);
  }
  assert_true(refused > 0);
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_allocate_async(manager, segments, COUNT(segments), 1, on_allocated,
                                             &answer, NULL, error));
    answered(&round, &answer);
    if (answer.status == JITMEM_OK)
      OK(jitmem_manager_abandon(manager, answer.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_try_allocate(manager, segments, COUNT(segments), 1, graphs.memory,
                                           &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
}

// What is kept of the most segments that a graph may have comes from what the library has in
// reserve.
static void many_segments(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  enum { MOST = 256 };
  static jitmem_segment segments[MOST + 1];
  static jitmem_segment_memory memory[MOST];
  for (int i = 0; i <= MOST; i++)
    segments[i] = segment(16, i % 2 ? 8 : 0, i % 3 ? RX : RW);
  uint64_t handle = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "more than 256 segments",
          jitmem_manager_allocate(manager, segments, MOST + 1, 1, memory, &handle, error));
  EACH_FAILURE(round) {
    handle = 0;
    TRY(round, jitmem_manager_allocate(manager, segments, MOST, 1, memory, &handle, error));
    if (handle != 0)
      OK(jitmem_manager_finalize(manager, handle, NULL, 0, error));
    heap_begin(round.kind, round.skip);
    if (handle != 0 && jitmem_manager_deallocate(manager, &handle, 1, NULL) != JITMEM_OK)
      abort();
    heap_end();
    goes_on_working(manager);
  }
}

// What a small graph takes is on stacks and in tables, though its sizes are rounded up and its data
// has zero-fill.
static void the_hot_path_takes_no_heap(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  enum { PARTS = 3 };
  jitmem_segment_memory memory[PARTS];
  for (int round = 0; round < 10; round++) {
    uint64_t handle = 0;
    jitmem_status allocated, finalized, deallocated;
    // The first make chunks and tables.
    if (round > 1)
      heap_begin(ALL_HERE, 0);
    allocated = jitmem_manager_allocate(manager, segments, PARTS, 1, memory, &handle, NULL);
    finalized = jitmem_manager_finalize(manager, handle, NULL, 0, NULL);
    deallocated = jitmem_manager_deallocate(manager, &handle, 1, NULL);
    long failed = heap_end();
    assert_int_equal(allocated, JITMEM_OK);
    assert_int_equal(finalized, JITMEM_OK);
    assert_int_equal(deallocated, JITMEM_OK);
    assert_int_equal(round > 1 ? failed : 0, 0);
  }
}

static void abandonments(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    TRY(round, jitmem_manager_abandon(manager, graphs.handle, error));
    assert_int_equal(round.status, JITMEM_OK);
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_abandon_async(manager, graphs.handle, on_done, &answer, NULL, error));
    assert_int_equal(round.status, JITMEM_OK);
    answered(&round, &answer);
    goes_on_working(manager);
  }
}

static void finalizations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  char args[300] = {0};
  const jitmem_action actions[] = {
      {.finalize = call_of(action, args, sizeof args), .dealloc = call_of(action, args, 3)},
      {.finalize = call_of(action, args, 1), .dealloc = call_of(action, args, sizeof args)}};
  for (size_t count = 0; count <= COUNT(actions); count++) {
    for (int async = 0; async < 2; async++) {
      EACH_FAILURE(round) {
        struct graphs graphs = in_flight(manager);
        struct answer answer = ANSWER;
        if (async) {
          TRY(round, jitmem_manager_finalize_async(manager, graphs.handle, actions, count, on_done,
                                                   &answer, NULL, error));
          answered(&round, &answer);
        } else {
          TRY(round, jitmem_manager_finalize(manager, graphs.handle, actions, count, error));
          answer.status = round.status;
        }
        // What was refused at once is still in flight; what failed later is gone.
        if (answer.status == JITMEM_OK)
          OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
        else
          jitmem_manager_abandon(manager, graphs.handle, NULL);
        goes_on_working(manager);
      }
    }
  }
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_try_finalize(manager, graphs.handle, &object);
    round.failed = heap_end();
    assert_true(status == JITMEM_OK || status == JITMEM_WOULD_BLOCK);
    if (status == JITMEM_OK)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    else
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
}

static void deallocations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  uint64_t handles[40];
  const size_t counts[] = {1, 40};
  for (size_t i = 0; i < COUNT(counts); i++) {
    for (int async = 0; async < 2; async++) {
      EACH_FAILURE(round) {
        for (size_t j = 0; j < counts[i]; j++)
          handles[j] = finalized(manager, j % 3 == 0).handle;
        struct answer answer = ANSWER;
        if (async) {
          TRY(round, jitmem_manager_deallocate_async(manager, handles, counts[i], on_done, &answer,
                                                     NULL, error));
          answered(&round, &answer);
        } else {
          TRY(round, jitmem_manager_deallocate(manager, handles, counts[i], error));
        }
        // What an executor could not do all of is gone.
        assert_true(round.status != JITMEM_OUT_OF_MEMORY);
        goes_on_working(manager);
      }
    }
  }
  EACH_FAILURE(round) {
    struct graphs graphs = finalized(manager, 0);
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_try_deallocate(manager, &graphs.handle, 1, &object);
    round.failed = heap_end();
    if (status == JITMEM_WOULD_BLOCK)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    else
      assert_int_equal(status, JITMEM_OK);
    goes_on_working(manager);
  }
}

// More than is done at once, in a heap that fails ever later.
enum { MANY = 1000 };
static uint64_t many[MANY];

static void make_many(jitmem_manager *manager) {
  for (size_t i = 0; i < MANY; i++)
    many[i] = finalized(manager, i % 3 == 0).handle;
}

// A large batch that is refused is there as before.
static void ended(jitmem_manager *manager, jitmem_status status) {
  if (stats_of(manager).finalized != 0) {
    assert_int_equal(status, JITMEM_OUT_OF_MEMORY);
    assert_int_equal(stats_of(manager).finalized, MANY);
    OK(jitmem_manager_deallocate(manager, many, MANY, error));
  }
  goes_on_working(manager);
}

static void fail_later(struct failing *failing) { failing->skip += failing->skip; }

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

static void large_batches(void **state) {
  struct subject *subject = *state;
  jitmem_manager *manager = subject->manager;
  make_many(manager);
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_layout(manager, ignore_item, NULL, error));
    fail_later(&round);
  }
  OK(jitmem_manager_deallocate(manager, many, MANY, error));
  EACH_FAILURE(round) {
    make_many(manager);
    TRY(round, jitmem_manager_deallocate(manager, many, MANY, error));
    ended(manager, round.status);
    fail_later(&round);
  }
  EACH_FAILURE(round) {
    make_many(manager);
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_deallocate_async(manager, many, MANY, on_done, &answer, NULL, error));
    answered(&round, &answer);
    ended(manager, answer.status);
    fail_later(&round);
  }
  EACH_FAILURE(round) {
    for (size_t i = 0; i < MANY; i++)
      many[i] = finalized(manager, 0).handle;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_try_deallocate(manager, many, MANY, NULL);
    round.failed = heap_end();
    if (status == JITMEM_WOULD_BLOCK)
      OK(jitmem_manager_deallocate(manager, many, MANY, error));
    ended(manager, status);
    fail_later(&round);
  }
  EACH_FAILURE(round) {
    jitmem_manager *other = NULL;
    OK(jitmem_manager_create(subject->mapper, NULL, &other, error));
    make_many(other);
    ALWAYS(round, jitmem_manager_free(other));
    fail_later(&round);
  }
  const jitmem_manager_options options = {.struct_size = sizeof options, .defer_reclamation = 1};
  OK(jitmem_manager_create(subject->mapper, &options, &manager, error));
  EACH_FAILURE(round) {
    uint64_t epoch = 0;
    make_many(manager);
    OK(jitmem_manager_deallocate(manager, many, MANY, error));
    OK(jitmem_manager_advance_epoch(manager, &epoch, error));
    TRY(round, jitmem_manager_reclaim(manager, epoch, NULL, error));
    OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
    assert_int_equal(stats_of(manager).waiting, 0);
    fail_later(&round);
  }
  jitmem_manager_free(manager);
}

// Frees thousands at once in a heap that has nothing.
static jitmem_status without_a_heap(jitmem_manager *manager, const uint64_t *handles, size_t count,
                                    int async) {
  struct answer answer = ANSWER;
  struct failing call = {.kind = ALL_ANYWHERE};
  if (async) {
    TRY(call,
        jitmem_manager_deallocate_async(manager, handles, count, on_done, &answer, NULL, error));
    answered(&call, &answer);
  } else {
    TRY(call, jitmem_manager_deallocate(manager, handles, count, error));
    answer.status = call.status;
  }
  assert_true(call.failed > 0);
  return answer.status;
}

static void thousands_without_a_heap(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  enum { FREED = 4000, REFUSED_WHOLE = 10000 };
  static uint64_t handles[REFUSED_WHOLE];
  for (int async = 0; async < 2; async++) {
    for (size_t i = 0; i < REFUSED_WHOLE; i++)
      handles[i] = finalized(manager, i % 3 == 0).handle;
    assert_int_equal(without_a_heap(manager, handles, REFUSED_WHOLE, async), JITMEM_OUT_OF_MEMORY);
    assert_int_equal(stats_of(manager).finalized, REFUSED_WHOLE);
    // The same in batches for which the reserve has room.
    for (size_t i = 0; i < REFUSED_WHOLE; i += FREED) {
      size_t count = REFUSED_WHOLE - i < FREED ? REFUSED_WHOLE - i : FREED;
      jitmem_status status = without_a_heap(manager, handles + i, count, async);
      // What an executor could not do all of is gone.
      assert_true(status == JITMEM_OK || said_by_executor(status));
      assert_int_equal(stats_of(manager).finalized, REFUSED_WHOLE - i - count);
    }
    goes_on_working(manager);
  }
}

// A heap that has nothing for a long time: calls are refused, one after the other, and what gives
// memory back works. Afterwards all is as before.
static void for_a_long_time(void **state) {
  struct subject *subject = *state;
  enum { GRAPHS = 3000 };
  static struct graphs graphs[GRAPHS];
  for (int round = 0; round < 3; round++) {
    size_t made = 0;
    jitmem_status status = JITMEM_OK;
    heap_begin(ALL_ANYWHERE, 0);
    for (int i = 0; i < GRAPHS; i++) {
      status = jitmem_manager_allocate(subject->manager, segments, COUNT(segments), 1,
                                       graphs[made].memory, &graphs[made].handle, NULL);
      made += status == JITMEM_OK;
      if (status != JITMEM_OK && status != JITMEM_OUT_OF_MEMORY && !said_by_executor(status))
        break;
      jitmem_manager *manager = NULL;
      status = jitmem_manager_create(subject->mapper, NULL, &manager, NULL);
      if ((status != JITMEM_OUT_OF_MEMORY && !said_by_executor(status)) || manager != NULL)
        break;
    }
    for (size_t i = 0; i < made; i++)
      if (jitmem_manager_abandon(subject->manager, graphs[i].handle, NULL) != JITMEM_OK)
        status = JITMEM_INTERNAL;
    heap_end();
    assert_true(status == JITMEM_OUT_OF_MEMORY || said_by_executor(status));
    goes_on_working(subject->manager);
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(subject->mapper, NULL, &manager, error));
    goes_on_working(manager);
    jitmem_manager_free(manager);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      MODES(create_managers),
      MODES(free_managers),
      MODES(allocations),
      MODES(many_segments),
      MODE(allocations, host_async),
      MODE(the_hot_path_takes_no_heap, two_views),
      MODES(abandonments),
      MODES(finalizations),
      MODES(deallocations),
      MODE(deallocations, host_async),
      MODE(large_batches, two_views),
      MODE(large_batches, mprotected),
      MODE(large_batches, shared),
      MODE(large_batches, remote),
      MODE(thousands_without_a_heap, two_views),
      MODE(thousands_without_a_heap, mprotected),
      MODE(thousands_without_a_heap, shared),
      MODE(thousands_without_a_heap, remote),
      MODES(for_a_long_time),
  };
  return at_rest(cmocka_run_group_tests_name("heap-manager", tests, NULL, NULL));
}
