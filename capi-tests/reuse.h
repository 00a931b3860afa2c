// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A test that two programs run: one over every mapper, one under valgrind's defaults too.

#ifndef REUSE_H
#define REUSE_H

#include "code.h"
#include "harness.h"

static inline void other_code_runs_in_the_same_place(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph neighbour = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(neighbour.memory[0].working_memory, 1000);
  finalize(manager, neighbour.handle);
  uint64_t place = 0;
  for (uint32_t i = 0; i < 100; i++) {
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

#endif
