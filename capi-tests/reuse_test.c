// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Code that comes to lie where other code was runs as it was written. Runs by itself, and under
// valgrind with its defaults, which keeps what it has translated until it is told.

#include "reuse.h"

static void count(void *ctx, const jitmem_event *event) {
  assert_true(event->time > 0);
  ++*(int *)ctx;
}

// Events have the time, which other programs read where valgrind has nothing.
static void observed_code_runs(void **state) {
  int events = 0;
  const jitmem_observer observer = {
      .struct_size = sizeof observer, .fn = count, .ctx = &events, .times = 1};
  jitmem_manager *manager = manager_with(*state, (jitmem_manager_options){.observer = &observer});
  struct graph graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(graph.memory[0].working_memory, 7);
  finalize(manager, graph.handle);
  assert_int_equal(run(graph.memory[0].address), 7);
  assert_in_range(events, 4, 10);
  jitmem_manager_free(manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {EACH(other_code_runs_in_the_same_place),
                                     EACH(observed_code_runs)};
  return at_rest(cmocka_run_group_tests_name("reuse", tests, NULL, NULL));
}
