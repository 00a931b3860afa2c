// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Asynchronous calls: each accepted one calls back once, each one at all destroys its context once,
// errors are lent, and the manager may be used from inside any callback.

#include "wrapper.h"

// What one asynchronous call came to.
struct outcome {
  int called, destroyed;
  // Whether the callback came after the destructor.
  int out_of_order;
  jitmem_status status;
  char message[256];
  const jitmem_error *lent;
  jitmem_manager *manager;
  struct graph graph;
  size_t count;
};

static void take(struct outcome *outcome, const jitmem_error *error) {
  outcome->called++;
  outcome->out_of_order |= outcome->destroyed;
  outcome->status = jitmem_error_status(error);
  outcome->lent = error;
  snprintf(outcome->message, sizeof outcome->message, "%s", jitmem_error_message(error));
}

static void created(void *ctx, jitmem_manager *manager, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  take(outcome, error);
  outcome->manager = manager;
}

static void allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                      size_t count, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  take(outcome, error);
  outcome->graph.handle = allocation;
  outcome->count = count;
  if (error != NULL && memory != NULL)
    outcome->out_of_order = 1;
  for (size_t i = 0; i < count && i < COUNT(outcome->graph.memory); i++)
    outcome->graph.memory[i] = memory[i];
}

static void done(void *ctx, const jitmem_error *error) { take(ctx, error); }

static void destroy(void *ctx) { ((struct outcome *)ctx)->destroyed++; }

// Makes an asynchronous call that is accepted, and checks how it ended.
#define ACCEPTED(wanted, words, call)                                                              \
  do {                                                                                             \
    memset(outcome, 0, sizeof *outcome);                                                           \
    OK(call);                                                                                      \
    assert_int_equal(outcome->called, 1);                                                          \
    assert_int_equal(outcome->destroyed, 1);                                                       \
    assert_int_equal(outcome->out_of_order, 0);                                                    \
    assert_int_equal(outcome->status, wanted);                                                     \
    assert_non_null(strstr(outcome->message, words));                                              \
  } while (0)

static const jitmem_segment three[] = {{.content_size = 64, .alignment = 16, .protection = 5},
                                       {.content_size = 64, .alignment = 16, .protection = 1},
                                       {.content_size = 64, .alignment = 16, .protection = 3}};

static void a_whole_life(void **state) {
  struct fixture *fixture = *state;
  struct outcome result, *outcome = &result;
  ACCEPTED(JITMEM_OK, "success",
           jitmem_manager_create_async(fixture->mapper, NULL, created, outcome, destroy, error));
  jitmem_manager *manager = result.manager;
  assert_non_null(manager);
  ACCEPTED(JITMEM_OK, "success",
           jitmem_manager_allocate_async(manager, three, 3, 0, allocated, outcome, destroy, error));
  assert_int_equal(result.count, 3);
  struct graph graph = result.graph;
  for (int i = 0; i < 3; i++)
    memset(graph.memory[i].working_memory, 0x40 + i, 64);
  ACCEPTED(
      JITMEM_OK, "success",
      jitmem_manager_finalize_async(manager, graph.handle, NULL, 0, done, outcome, destroy, error));
  for (int i = 0; i < 3; i++)
    assert_true(all_bytes_are(at(graph.memory[i].address), 64, 0x40 + i));
  ACCEPTED(
      JITMEM_OK, "success",
      jitmem_manager_deallocate_async(manager, &graph.handle, 1, done, outcome, destroy, error));
  ACCEPTED(JITMEM_OK, "success",
           jitmem_manager_allocate_async(manager, three, 3, 0, allocated, outcome, destroy, error));
  graph = result.graph;
  ACCEPTED(JITMEM_OK, "success",
           jitmem_manager_abandon_async(manager, graph.handle, done, outcome, destroy, error));
  assert_int_equal(stats_of(manager).live, 0);
  jitmem_manager_free(manager);
}

static void no_destructor(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct outcome result = {0};
  OK(jitmem_manager_allocate_async(manager, NULL, 0, 0, allocated, &result, NULL, error));
  assert_int_equal(result.called, 1);
  OK(jitmem_manager_abandon_async(manager, result.graph.handle, done, &result, NULL, error));
  assert_int_equal(result.called, 2);
}

static struct wrapper_result fail_action(const char *args, size_t size) {
  (void)args, (void)size;
  return fail_with("the action has failed");
}

static void failures_come_by_callback(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct outcome result, *outcome = &result;
  jitmem_segment huge = segment(0, 4 * GIB, RW);
  // A request that can never be met may be refused or answered, once, by either way.
  memset(outcome, 0, sizeof *outcome);
  jitmem_status status =
      jitmem_manager_allocate_async(manager, &huge, 1, 0, allocated, outcome, destroy, NULL);
  assert_int_equal(status == JITMEM_OK ? result.status : status, JITMEM_WINDOW_FULL);
  assert_int_equal(result.called, status == JITMEM_OK);
  assert_int_equal(result.destroyed, 1);
  assert_int_equal(result.graph.handle, 0);
  assert_int_equal(result.count, 0);

  const uint64_t wrong = 1234;
  ACCEPTED(JITMEM_INVALID_HANDLE, "0x4d2 is not live",
           jitmem_manager_finalize_async(manager, wrong, NULL, 0, done, outcome, destroy, error));
  ACCEPTED(JITMEM_INVALID_HANDLE, "0x4d2 is not live",
           jitmem_manager_abandon_async(manager, wrong, done, outcome, destroy, error));
  ACCEPTED(JITMEM_INVALID_HANDLE, "0x4d2 is not live",
           jitmem_manager_deallocate_async(manager, &wrong, 1, done, outcome, destroy, error));

  const jitmem_action action = {.finalize = call_of(fail_action, NULL, 0)};
  struct graph graph = allocate_three(manager, 1);
  ACCEPTED(JITMEM_ACTION_FAILED, "the action has failed",
           jitmem_manager_finalize_async(manager, graph.handle, &action, 1, done, outcome, destroy,
                                         error));
  // The error was lent for the call and is gone now.
  assert_int_equal(jitmem_error_status(result.lent), JITMEM_INVALID_HANDLE);
  assert_int_equal(stats_of(manager).live, 0);
}

static void creation_fails_by_callback(void **state) {
  struct fixture *fixture = *state;
  struct outcome result, *outcome = &result;
  jitmem_manager_options options = {
      .struct_size = sizeof options, .placement = JITMEM_PLACEMENT_FIXED, .address = 4097};
  ACCEPTED(
      JITMEM_INVALID_ARGUMENT, "0x1001",
      jitmem_manager_create_async(fixture->mapper, &options, created, outcome, destroy, error));
  assert_null(result.manager);
}

// ---- from inside callbacks ----

// A graph that goes through its life over and over, each step taken in the callback of the last.
struct cycle {
  jitmem_manager *manager;
  struct graph graph;
  int left, failures, destroyed;
};

static void next_allocate(struct cycle *cycle);

static void cycle_destroyed(void *ctx) { ((struct cycle *)ctx)->destroyed++; }

static void cycle_deallocated(void *ctx, const jitmem_error *error) {
  struct cycle *cycle = ctx;
  cycle->failures += error != NULL;
  if (--cycle->left > 0)
    next_allocate(cycle);
}

static void cycle_finalized(void *ctx, const jitmem_error *error) {
  struct cycle *cycle = ctx;
  cycle->failures += error != NULL || !all_bytes_are(at(cycle->graph.memory[0].address), 64, 7);
  cycle->failures +=
      jitmem_manager_deallocate_async(cycle->manager, &cycle->graph.handle, 1, cycle_deallocated,
                                      cycle, cycle_destroyed, NULL) != JITMEM_OK;
}

static void cycle_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                            size_t count, const jitmem_error *error) {
  struct cycle *cycle = ctx;
  if (error != NULL || count != 3) {
    cycle->failures++;
    return;
  }
  cycle->graph.handle = allocation;
  memcpy(cycle->graph.memory, memory, count * sizeof *memory);
  for (size_t i = 0; i < count; i++)
    memset(memory[i].working_memory, 7, 64);
  cycle->failures +=
      jitmem_manager_finalize_async(cycle->manager, allocation, NULL, 0, cycle_finalized, cycle,
                                    cycle_destroyed, NULL) != JITMEM_OK;
}

static void next_allocate(struct cycle *cycle) {
  cycle->failures +=
      jitmem_manager_allocate_async(cycle->manager, three, COUNT(three), 0, cycle_allocated, cycle,
                                    cycle_destroyed, NULL) != JITMEM_OK;
}

static void each_step_in_the_callback_of_the_last(void **state) {
  enum { ROUNDS = 100 };
  struct cycle cycle = {.manager = ((struct fixture *)*state)->manager, .left = ROUNDS};
  next_allocate(&cycle);
  assert_int_equal(cycle.left, 0);
  assert_int_equal(cycle.failures, 0);
  assert_int_equal(cycle.destroyed, 3 * ROUNDS);
  jitmem_stats stats = stats_of(cycle.manager);
  assert_int_equal(stats.deallocate_calls, ROUNDS);
  assert_int_equal(stats.live, 0);
}

static void synchronous_inside_asynchronous(void *ctx, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  take(outcome, error);
  struct graph graph = {0};
  if (jitmem_manager_allocate(outcome->manager, three, 3, 0, graph.memory, &graph.handle, NULL) ||
      jitmem_manager_finalize(outcome->manager, graph.handle, NULL, 0, NULL) ||
      jitmem_manager_deallocate(outcome->manager, &graph.handle, 1, NULL))
    outcome->status = JITMEM_INTERNAL;
}

static void a_callback_may_wait(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct outcome result = {.manager = manager};
  struct graph graph = allocate_three(manager, 1);
  OK(jitmem_manager_finalize_async(manager, graph.handle, NULL, 0, synchronous_inside_asynchronous,
                                   &result, destroy, error));
  OK(jitmem_manager_deallocate_async(manager, &graph.handle, 1, synchronous_inside_asynchronous,
                                     &result, destroy, error));
  assert_int_equal(result.called, 2);
  assert_int_equal(result.destroyed, 2);
  assert_int_equal(result.status, JITMEM_OK);
  assert_int_equal(stats_of(manager).deallocate_calls, 3);
}

static void free_the_manager(void *ctx, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  take(outcome, error);
  jitmem_manager_free(outcome->manager);
}

static void free_the_manager_allocated(void *ctx, uint64_t allocation,
                                       const jitmem_segment_memory *memory, size_t count,
                                       const jitmem_error *error) {
  (void)allocation, (void)memory, (void)count;
  free_the_manager(ctx, error);
}

static void a_manager_may_be_freed_in_its_callback(void **state) {
  struct fixture *fixture = *state;
  jitmem_stats stats = {.struct_size = sizeof stats};
  for (int call = 0; call < 5; call++) {
    jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
    struct outcome result = {.manager = manager};
    struct graph graph = allocate_three(manager, 1), other = allocate_three(manager, 2);
    finalize(manager, graph.handle);
    switch (call) {
    case 0:
      OK(jitmem_manager_allocate_async(manager, three, 3, 0, free_the_manager_allocated, &result,
                                       destroy, error));
      break;
    case 1:
      OK(jitmem_manager_finalize_async(manager, other.handle, NULL, 0, free_the_manager, &result,
                                       destroy, error));
      break;
    case 2:
      OK(jitmem_manager_abandon_async(manager, other.handle, free_the_manager, &result, destroy,
                                      error));
      break;
    case 3:
      OK(jitmem_manager_deallocate_async(manager, &graph.handle, 1, free_the_manager, &result,
                                         destroy, error));
      break;
    default:
      // A request that fails.
      OK(jitmem_manager_abandon_async(manager, graph.handle, free_the_manager, &result, destroy,
                                      error));
    }
    assert_int_equal(result.called, 1);
    assert_int_equal(result.destroyed, 1);
    assert_int_equal(result.status, call < 4 ? JITMEM_OK : JITMEM_INVALID_HANDLE);
    REFUSED(JITMEM_INVALID_HANDLE, "freed", jitmem_manager_stats(manager, &stats, error));
  }
}

static void visit_and_allocate(void *ctx, const jitmem_layout_item *item) {
  struct outcome *outcome = ctx;
  (void)item;
  outcome->called++;
  struct graph graph;
  if (jitmem_manager_allocate(outcome->manager, three, 3, 0, graph.memory, &graph.handle, NULL))
    outcome->status = JITMEM_INTERNAL;
}

static void a_layout_visitor_may_use_the_manager(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct outcome result = {.manager = manager};
  allocate_three(manager, 1);
  OK(jitmem_manager_layout(manager, visit_and_allocate, &result, error));
  // The picture of one moment: a window, three chunks, three ranges.
  assert_int_equal(result.called, 7);
  assert_int_equal(result.status, JITMEM_OK);
  assert_int_equal(stats_of(manager).in_flight, 8);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(a_whole_life),
      EACH(no_destructor),
      EACH(failures_come_by_callback),
      EACH(creation_fails_by_callback),
      EACH(each_step_in_the_callback_of_the_last),
      EACH(a_callback_may_wait),
      EACH(a_manager_may_be_freed_in_its_callback),
      EACH(a_layout_visitor_may_use_the_manager),
  };
  return cmocka_run_group_tests_name("asynchronous calls", tests, NULL, NULL);
}
