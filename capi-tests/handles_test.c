// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Handles used after they are gone, twice, in the wrong state or with the wrong manager.

#include "here.h"

// ---- handles to objects ----

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

static void ignore_done(void *ctx, const jitmem_error *error) { (void)ctx, (void)error; }

static void count_destroy(void *ctx) { ++*(int *)ctx; }

static void a_freed_manager(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  jitmem_manager *gone = fixture->manager;
  jitmem_manager_free(gone);

  jitmem_segment one = segment(16, 0, RW);
  jitmem_segment_memory memory;
  uint64_t handle = 0;
  jitmem_stats stats = {.struct_size = sizeof stats};
  const char *words = "was freed before";
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_manager_stats(gone, &stats, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_manager_layout(gone, ignore_item, NULL, error));
  REFUSED(JITMEM_INVALID_HANDLE, words,
          jitmem_manager_allocate(gone, &one, 1, 0, &memory, &handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, words,
          jitmem_manager_write(gone, graph.handle, 0, 0, "a", 1, error));
  REFUSED(JITMEM_INVALID_HANDLE, words,
          jitmem_manager_finalize(gone, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_manager_abandon(gone, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_manager_deallocate(gone, &graph.handle, 1, error));
  int destroyed = 0;
  REFUSED(JITMEM_INVALID_HANDLE, words,
          jitmem_manager_abandon_async(gone, graph.handle, ignore_done, &destroyed, count_destroy,
                                       error));
  assert_int_equal(destroyed, 2);
  jitmem_manager_free(gone);
  jitmem_manager_free(gone);
}

static void a_freed_manager_stays_gone_when_others_are_made(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *gone = fixture->manager;
  jitmem_manager_free(gone);
  for (int i = 0; i < 20; i++) {
    jitmem_manager *other = manager_with(fixture, (jitmem_manager_options){0});
    assert_ptr_not_equal(other, gone);
    // Freeing the old one again does nothing to the new one.
    jitmem_manager_free(gone);
    stats_of(other);
    jitmem_manager_free(other);
  }
  jitmem_stats stats = {.struct_size = sizeof stats};
  REFUSED(JITMEM_INVALID_HANDLE, "was freed before", jitmem_manager_stats(gone, &stats, error));
}

static void a_freed_mapper_stays_gone_after_a_million_others(void **state) {
  (void)state;
  jitmem_mapper *gone, *other = NULL;
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_MPROTECT, &gone, error));
  jitmem_mapper_free(gone);
  for (int i = 0; i < 1000000; i++) {
    OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_MPROTECT, &other, error));
    if (other == gone)
      fail_msg("the old handle is live again after %d others", i);
    // Freeing the old one again does nothing to the new one.
    jitmem_mapper_free(gone);
    if (i < 999999)
      jitmem_mapper_free(other);
  }
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_INVALID_HANDLE, "was freed before",
          jitmem_manager_create(gone, NULL, &manager, error));
  OK(jitmem_manager_create(other, NULL, &manager, error));
  jitmem_manager_free(manager);
  jitmem_mapper_free(other);
}

static void a_freed_mapper(void **state) {
  struct fixture *fixture = *state;
  jitmem_mapper *gone = fixture->mapper;
  jitmem_mapper_free(gone);
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_INVALID_HANDLE, "was freed before",
          jitmem_manager_create(gone, NULL, &manager, error));
  assert_null(manager);
  jitmem_mapper_free(gone);
  // A manager keeps what it needs of its mapper.
  struct graph graph = allocate_three(fixture->manager, 7);
  finalize(fixture->manager, graph.handle);
  assert_true(all_bytes_are(at(graph.memory[0].address), 256, 7));
  deallocate(fixture->manager, graph.handle);
}

static void a_freed_error(void **state) {
  (void)state;
  jitmem_error *error = NULL;
  assert_int_equal(jitmem_mapper_in_process(99, NULL, &error), JITMEM_INVALID_ARGUMENT);
  assert_int_equal(jitmem_error_status(error), JITMEM_INVALID_ARGUMENT);
  jitmem_error_free(error);
  assert_int_equal(jitmem_error_status(error), JITMEM_INVALID_HANDLE);
  assert_non_null(strstr(jitmem_error_message(error), "freed"));
  assert_int_equal(jitmem_error_os_code(error), 0);
  jitmem_error_free(error);

  // The second free must not free what came after the first.
  jitmem_error *next = NULL;
  assert_int_equal(jitmem_mapper_in_process(98, NULL, &next), JITMEM_INVALID_ARGUMENT);
  jitmem_error_free(error);
  assert_int_equal(jitmem_error_status(next), JITMEM_INVALID_ARGUMENT);
  jitmem_error_free(next);
}

static void an_error_that_is_there_already(void **state) {
  (void)state;
  // The place is only written to, never read: an old pointer in it is the caller's.
  jitmem_error *first = NULL, *second;
  assert_int_equal(jitmem_mapper_in_process(97, NULL, &first), JITMEM_INVALID_ARGUMENT);
  second = first;
  assert_int_equal(jitmem_mapper_in_process(96, NULL, &second), JITMEM_INVALID_ARGUMENT);
  assert_ptr_not_equal(first, second);
  assert_int_equal(jitmem_error_status(first), JITMEM_INVALID_ARGUMENT);
  jitmem_error_free(first);
  jitmem_error_free(second);
}

// ---- handles of allocations ----

static void each_state_admits_only_its_own_calls(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 3);
  REFUSED(JITMEM_INVALID_HANDLE, "still in flight",
          jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  finalize(manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "finalized already",
          jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "finalized already",
          jitmem_manager_abandon(manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "finalized already",
          jitmem_manager_write(manager, graph.handle, 0, 0, "a", 1, error));
  assert_true(all_bytes_are(at(graph.memory[0].address), 256, 3));
  deallocate(manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_abandon(manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_write(manager, graph.handle, 0, 0, "a", 1, error));
  assert_int_equal(stats_of(manager).live, 0);
}

static void abandoned_is_gone(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 3);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_abandon(manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.live + stats.padding + stats.in_flight, 0);
  assert_int_equal(stats.abandon_calls, 1);
}

static void a_reused_record_gets_a_new_handle(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph old = allocate_three(manager, 1);
  OK(jitmem_manager_abandon(manager, old.handle, error));
  struct graph new = allocate_three(manager, 2);
  assert_int_not_equal(new.handle, old.handle);
  // It has the memory of the old one, whose handle must not reach it.
  assert_int_equal(new.memory[0].address, old.memory[0].address);
  REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_abandon(manager, old.handle, error));
  finalize(manager, new.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(manager, &old.handle, 1, error));
  deallocate(manager, new.handle);
}

// A batch with something wrong in it: nothing of it is done.
static void check_batch(jitmem_manager *manager, uint64_t wrong, const char *words) {
  struct graph first = allocate_three(manager, 1), second = allocate_three(manager, 2);
  finalize(manager, first.handle);
  finalize(manager, second.handle);
  jitmem_stats before = stats_of(manager);
  for (size_t place = 0; place < 3; place++) {
    uint64_t batch[3], next = 0;
    const uint64_t right[] = {first.handle, second.handle};
    for (size_t i = 0; i < COUNT(batch); i++)
      batch[i] = i == place ? wrong : right[next++];
    REFUSED(JITMEM_INVALID_HANDLE, words,
            jitmem_manager_deallocate(manager, batch, COUNT(batch), error));
  }
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.live, before.live);
  assert_int_equal(after.finalized, before.finalized);
  assert_int_equal(after.deallocate_calls, before.deallocate_calls);
  assert_true(all_bytes_are(at(first.memory[0].address), 256, 1));
  assert_true(all_bytes_are(at(second.memory[0].address), 256, 2));
  const uint64_t batch[] = {first.handle, second.handle};
  OK(jitmem_manager_deallocate(manager, batch, COUNT(batch), error));
}

static void a_batch_with_something_wrong(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = fixture->manager;
  struct graph flying = allocate_three(manager, 3), gone = allocate_three(manager, 4);
  OK(jitmem_manager_abandon(manager, gone.handle, error));
  jitmem_manager *other = manager_with(fixture, (jitmem_manager_options){0});
  struct graph foreign = allocate_three(other, 5);
  finalize(other, foreign.handle);

  check_batch(manager, flying.handle, "still in flight");
  check_batch(manager, gone.handle, "not live");
  check_batch(manager, foreign.handle, "not live");
  check_batch(manager, 0, "0x0 is not live");
  check_batch(manager, UINT64_MAX, "0xffffffffffffffff is not live");
  OK(jitmem_manager_abandon(manager, flying.handle, error));
  deallocate(other, foreign.handle);
  jitmem_manager_free(other);
}

static void a_batch_that_names_one_twice(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph first = allocate_three(manager, 1), second = allocate_three(manager, 2);
  finalize(manager, first.handle);
  finalize(manager, second.handle);
  const uint64_t twice[] = {first.handle, second.handle, first.handle};
  REFUSED(JITMEM_INVALID_HANDLE, "deallocate 3",
          jitmem_manager_deallocate(manager, twice, COUNT(twice), error));
  assert_int_equal(stats_of(manager).deallocate_calls, 0);
  assert_true(all_bytes_are(at(first.memory[0].address), 256, 1));
  assert_true(all_bytes_are(at(second.memory[0].address), 256, 2));
  OK(jitmem_manager_deallocate(manager, twice, 2, error));
  assert_int_equal(stats_of(manager).deallocate_calls, 2);
}

static void handles_of_another_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *mine = fixture->manager;
  jitmem_manager *other = manager_with(fixture, (jitmem_manager_options){0});
  // Both managers number alike inside; the handles must differ none the less.
  for (int i = 0; i < 50; i++) {
    struct graph graph = allocate_three(mine, 1), foreign = allocate_three(other, 2);
    assert_int_not_equal(graph.handle, foreign.handle);
    REFUSED(JITMEM_INVALID_HANDLE, "another manager's",
            jitmem_manager_abandon(mine, foreign.handle, error));
    REFUSED(JITMEM_INVALID_HANDLE, "another manager's",
            jitmem_manager_finalize(mine, foreign.handle, NULL, 0, error));
    finalize(other, foreign.handle);
    REFUSED(JITMEM_INVALID_HANDLE, "another manager's",
            jitmem_manager_deallocate(mine, &foreign.handle, 1, error));
  }
  assert_int_equal(stats_of(mine).in_flight, 50);
  assert_int_equal(stats_of(other).finalized, 50);
  jitmem_manager_free(other);
}

static void numbers_that_are_no_handles(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 1);
  assert_int_not_equal(graph.handle, 0);
  assert_true(graph.handle != UINT64_MAX);
  uint64_t random = 88172645463325252;
  for (int i = 0; i < 1000; i++) {
    uint64_t number = i == 0 ? 0 : i == 1 ? UINT64_MAX : next_random(&random);
    assert_true(number != graph.handle);
    REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_abandon(manager, number, error));
  }
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

static void a_handle_with_one_bit_wrong(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 1);
  for (int bit = 0; bit < 64; bit++) {
    uint64_t wrong = graph.handle ^ ((uint64_t)1 << bit);
    jitmem_error *error = NULL;
    jitmem_status status = jitmem_manager_write(manager, wrong, 0, 0, "a", 1, &error);
    jitmem_error_free(error);
    if (status != JITMEM_INVALID_HANDLE)
      fail_msg("bit %d of a handle makes no difference", bit);
  }
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(a_freed_manager),
      EVERYWHERE(a_freed_manager_stays_gone_when_others_are_made),
      EVERYWHERE(a_freed_mapper),
      cmocka_unit_test(a_freed_mapper_stays_gone_after_a_million_others),
      cmocka_unit_test(a_freed_error),
      cmocka_unit_test(an_error_that_is_there_already),
      EVERYWHERE(each_state_admits_only_its_own_calls),
      EVERYWHERE(abandoned_is_gone),
      EVERYWHERE(a_reused_record_gets_a_new_handle),
      EVERYWHERE(a_batch_with_something_wrong),
      EVERYWHERE(a_batch_that_names_one_twice),
      EVERYWHERE(handles_of_another_manager),
      EVERYWHERE(numbers_that_are_no_handles),
      EVERYWHERE(a_handle_with_one_bit_wrong),
  };
  return at_rest(cmocka_run_group_tests_name("handles", tests, NULL, NULL));
}
