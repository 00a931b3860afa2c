// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Nothing lingers: mappings, descriptors and threads are as many as before, however a manager
// ended.

#include "footprint.h"

// Makes a manager, uses it and frees it with graphs in every state, of every size.
static void one_life(uint32_t kind, int i) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_manager_options options = {.struct_size = sizeof options,
                                    .window_size = 32 * MIB,
                                    .growth = JITMEM_GROWTH_ANOTHER_WINDOW};
  OK(jitmem_mapper_in_process(kind, &mapper, error));
  OK(jitmem_manager_create(mapper, &options, &manager, error));
  if (i % 2)
    jitmem_mapper_free(mapper);
  for (int j = 0; j < 4; j++) {
    struct graph flying = allocate_three(manager, 1), finalized = allocate_three(manager, 2);
    struct graph gone = allocate_three(manager, 3), abandoned = allocate_three(manager, 4);
    finalize(manager, finalized.handle);
    finalize(manager, gone.handle);
    deallocate(manager, gone.handle);
    OK(jitmem_manager_abandon(manager, abandoned.handle, error));
    assert_int_not_equal(flying.handle, 0);
    // A window of its own.
    struct graph large = allocate_one(manager, segment(0, 20 * MIB, j % 2 ? RX : RW), 0);
    finalize(manager, large.handle);
  }
  assert_true(stats_of(manager).windows > 1);
  REFUSED(JITMEM_INVALID_HANDLE, "", jitmem_manager_abandon(manager, 1, error));
  assert_int_equal(stats_of(manager).unmap_failures, 0);
  jitmem_manager_free(manager);
  if (i % 2 == 0)
    jitmem_mapper_free(mapper);
}

static void check_lives(uint32_t kind) {
  // What the C library and the first use keep for good.
  for (int i = 0; i < 4; i++)
    one_life(kind, i);
  int lives = instrumented() ? 100 : 200;
  struct footprint before = footprint();
  for (int i = 0; i < lives; i++)
    one_life(kind, i);
  struct footprint after = footprint();
  printf("%d managers: %ld mappings before, %ld after\n", lives, before.mappings, after.mappings);
  assert_int_equal(after.descriptors, before.descriptors);
  assert_int_equal(after.threads, before.threads);
  // A heap that is looked after by a sanitizer grows by mappings, and valgrind by some for each
  // random place.
  if (!under_valgrind())
    assert_true(after.mappings <= before.mappings + (instrumented() ? 50 : 0));
}

static void managers_with_two_views(void **state) {
  (void)state;
  check_lives(JITMEM_IN_PROCESS_TWO_VIEWS);
}

static void managers_with_mprotect(void **state) {
  (void)state;
  check_lives(JITMEM_IN_PROCESS_MPROTECT);
}

static void managers_that_could_not_be(void **state) {
  (void)state;
  jitmem_mapper *mapper = NULL;
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, error));
  struct footprint before = {0};
  for (int i = 0; i < 204; i++) {
    if (i == 4)
      before = footprint();
    jitmem_manager_options options = {.struct_size = sizeof options,
                                      .placement = JITMEM_PLACEMENT_FIXED,
                                      .address = (uintptr_t)&before & ~(uintptr_t)4095};
    jitmem_manager *manager = NULL;
    jitmem_error *error = NULL;
    assert_int_not_equal(jitmem_manager_create(mapper, &options, &manager, &error), JITMEM_OK);
    jitmem_error_free(error);
  }
  struct footprint after = footprint();
  assert_int_equal(after.descriptors, before.descriptors);
  assert_true(after.mappings <= before.mappings + (instrumented() ? 50 : 0));
  jitmem_mapper_free(mapper);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(managers_with_two_views),
      cmocka_unit_test(managers_with_mprotect),
      cmocka_unit_test(managers_that_could_not_be),
  };
  return cmocka_run_group_tests_name("leaks", tests, NULL, NULL);
}
