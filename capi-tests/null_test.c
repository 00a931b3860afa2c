// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// NULL for every pointer of every function: an error that names it, nothing done, nothing written.
// REFUSED makes each call twice, the second time with error == NULL.

#include "harness.h"

enum { UNTOUCHED = 0x5a };

struct calls {
  int ran, destroyed;
};

static void count_created(void *ctx, jitmem_manager *manager, const jitmem_error *error) {
  (void)manager, (void)error;
  ((struct calls *)ctx)->ran++;
}

static void count_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                            size_t count, const jitmem_error *error) {
  (void)allocation, (void)memory, (void)count, (void)error;
  ((struct calls *)ctx)->ran++;
}

static void count_done(void *ctx, const jitmem_error *error) {
  (void)error;
  ((struct calls *)ctx)->ran++;
}

static void destroy(void *ctx) { ((struct calls *)ctx)->destroyed++; }

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

// REFUSED for an asynchronous call: nothing is called back, and each call destroys its context.
#define REFUSED_ASYNC(words, call)                                                                 \
  do {                                                                                             \
    struct calls calls = {0}, *ctx = &calls;                                                       \
    REFUSED(JITMEM_INVALID_ARGUMENT, words, call);                                                 \
    assert_int_equal(calls.ran, 0);                                                                \
    assert_int_equal(calls.destroyed, 2);                                                          \
  } while (0)

static void errors(void **state) {
  (void)state;
  assert_int_equal(jitmem_error_status(NULL), JITMEM_OK);
  assert_string_equal(jitmem_error_message(NULL), "success");
  assert_int_equal(jitmem_error_os_code(NULL), 0);
  jitmem_error_free(NULL);
}

static void versions_and_status_names(void **state) {
  (void)state;
  assert_int_equal(jitmem_version(), JITMEM_VERSION);
  assert_string_equal(jitmem_version_string(), JITMEM_VERSION_STRING);
  assert_string_equal(jitmem_status_name(JITMEM_OK), "JITMEM_OK");
  assert_string_equal(jitmem_status_name(JITMEM_INTERNAL), "JITMEM_INTERNAL");
  assert_string_equal(jitmem_status_name(1000), "unknown status");
  assert_string_equal(jitmem_status_name(UINT32_MAX), "unknown status");
}

static void mappers(void **state) {
  (void)state;
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, NULL, error));
  jitmem_mapper *mapper = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper_callbacks is NULL",
          jitmem_mapper_custom(NULL, &mapper, error));
  assert_null(mapper);
  jitmem_mapper_free(NULL);
  REFUSED(JITMEM_INVALID_HANDLE, "request 0x0",
          jitmem_mapper_complete(0, JITMEM_OK, NULL, 0, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "request 0xffffffffffffffff",
          jitmem_mapper_complete(UINT64_MAX, JITMEM_SYSTEM, "why", 0, 0, error));
}

static void creating_a_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
          jitmem_manager_create(NULL, NULL, &manager, error));
  assert_null(manager);
  REFUSED(JITMEM_INVALID_ARGUMENT, "manager is NULL",
          jitmem_manager_create(fixture->mapper, NULL, NULL, error));
  REFUSED_ASYNC("jitmem_mapper is NULL",
                jitmem_manager_create_async(NULL, NULL, count_created, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_create_async(fixture->mapper, NULL, NULL, ctx, destroy, error));
  // No destructor, and no context either.
  REFUSED(JITMEM_INVALID_ARGUMENT, "fn is NULL",
          jitmem_manager_create_async(fixture->mapper, NULL, NULL, NULL, NULL, error));
  jitmem_manager_free(NULL);
}

static void allocating(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment one = segment(16, 0, RW);
  jitmem_segment_memory memory;
  memset(&memory, UNTOUCHED, sizeof memory);
  uint64_t allocation = UNTOUCHED;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_allocate(NULL, &one, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "segments is NULL",
          jitmem_manager_allocate(manager, NULL, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_allocate(manager, &one, 1, 0, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_allocate(manager, &one, 1, 0, &memory, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_allocate(NULL, &one, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "segments is NULL",
          jitmem_manager_try_allocate(manager, NULL, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_try_allocate(manager, &one, 1, 0, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_try_allocate(manager, &one, 1, 0, &memory, NULL, error));
  assert_int_equal(allocation, UNTOUCHED);
  assert_true(all_bytes_are((uint8_t *)&memory, sizeof memory, UNTOUCHED));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_allocate_async(NULL, &one, 1, 0, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("segments is NULL", jitmem_manager_allocate_async(
                                        manager, NULL, 1, 0, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_allocate_async(manager, &one, 1, 0, NULL, ctx, destroy, error));
  assert_int_equal(stats_of(manager).in_flight, 0);
  assert_int_equal(stats_of(manager).live, 0);

  // With a count of 0 there is nothing to point to.
  OK(jitmem_manager_allocate(manager, NULL, 0, 0, NULL, &allocation, error));
  OK(jitmem_manager_abandon(manager, allocation, error));
}

static void writing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), UNTOUCHED);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_write(NULL, graph.handle, 0, 0, "a", 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes is NULL",
          jitmem_manager_write(manager, graph.handle, 0, 0, NULL, 1, error));
  OK(jitmem_manager_write(manager, graph.handle, 0, 0, NULL, 0, error));
  finalize(manager, graph.handle);
  assert_true(all_bytes_are(at(graph.memory[0].address), 16, UNTOUCHED));
  deallocate(manager, graph.handle);
}

static void finalizing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), UNTOUCHED);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_finalize(NULL, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_finalize(NULL, graph.handle, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "actions is NULL",
          jitmem_manager_finalize(manager, graph.handle, NULL, 1, error));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_finalize_async(NULL, graph.handle, NULL, 0, count_done, ctx, destroy, error));
  REFUSED_ASYNC("actions is NULL", jitmem_manager_finalize_async(manager, graph.handle, NULL, 1,
                                                                 count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL", jitmem_manager_finalize_async(manager, graph.handle, NULL, 0, NULL,
                                                            ctx, destroy, error));
  jitmem_action action = {.finalize = {.function = 1, .args = NULL, .args_size = 1}};
  REFUSED(JITMEM_INVALID_ARGUMENT, "args is NULL",
          jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  action = (jitmem_action){.dealloc = {.function = 1, .args = NULL, .args_size = 1}};
  REFUSED_ASYNC("args is NULL", jitmem_manager_finalize_async(manager, graph.handle, &action, 1,
                                                              count_done, ctx, destroy, error));
  // It is in flight still.
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
}

static void abandoning(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_abandon(NULL, graph.handle, error));
  REFUSED_ASYNC("jitmem_manager is NULL",
                jitmem_manager_abandon_async(NULL, graph.handle, count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_abandon_async(manager, graph.handle, NULL, ctx, destroy, error));
  assert_int_equal(stats_of(manager).in_flight, 1);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

static void deallocating(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), 0);
  finalize(manager, graph.handle);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_deallocate(NULL, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocations is NULL",
          jitmem_manager_deallocate(manager, NULL, 1, error));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_deallocate_async(NULL, &graph.handle, 1, count_done, ctx, destroy, error));
  REFUSED_ASYNC("allocations is NULL",
                jitmem_manager_deallocate_async(manager, NULL, 1, count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL", jitmem_manager_deallocate_async(manager, &graph.handle, 1, NULL, ctx,
                                                              destroy, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_deallocate(NULL, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocations is NULL",
          jitmem_manager_try_deallocate(manager, NULL, 1, error));
  OK(jitmem_manager_deallocate(manager, NULL, 0, error));
  assert_int_equal(stats_of(manager).finalized, 1);
  deallocate(manager, graph.handle);
}

static void looking(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_stats stats;
  memset(&stats, UNTOUCHED, sizeof stats);
  stats.struct_size = sizeof stats;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_stats(NULL, &stats, error));
  assert_true(all_bytes_are((uint8_t *)&stats.reserved, sizeof stats - sizeof stats.struct_size,
                            UNTOUCHED));
  REFUSED(JITMEM_INVALID_ARGUMENT, "stats is NULL", jitmem_manager_stats(manager, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_layout(NULL, ignore_item, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "visit is NULL",
          jitmem_manager_layout(manager, NULL, NULL, error));
  OK(jitmem_manager_layout(manager, ignore_item, NULL, error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(errors),  cmocka_unit_test(versions_and_status_names),
      cmocka_unit_test(mappers), EACH(creating_a_manager),
      EACH(allocating),          EACH(writing),
      EACH(finalizing),          EACH(abandoning),
      EACH(deallocating),        EACH(looking),
  };
  return cmocka_run_group_tests_name("NULL", tests, NULL, NULL);
}
