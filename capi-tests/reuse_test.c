// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Code that comes to lie where other code was runs as it was written. Runs by itself, and under
// valgrind with its defaults, which keeps what it has translated until it is told.

#include "code.h"
#include "harness.h"

static void the_newest_code_runs(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph neighbour = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(neighbour.memory[0].working_memory, 1000);
  finalize(manager, neighbour.handle);
  uint64_t place = 0;
  for (uint32_t i = 0; i < 50; i++) {
    struct graph graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
    emit_return(graph.memory[0].working_memory, i);
    finalize(manager, graph.handle);
    assert_true(place == 0 || place == graph.memory[0].address);
    place = graph.memory[0].address;
    assert_int_equal(run(place), i);
    deallocate(manager, graph.handle);
  }
  assert_int_equal(run(neighbour.memory[0].address), 1000);
  deallocate(manager, neighbour.handle);
}

int main(void) {
  const struct CMUnitTest tests[] = {EACH(the_newest_code_runs)};
  return at_rest(cmocka_run_group_tests_name("reuse", tests, NULL, NULL));
}
