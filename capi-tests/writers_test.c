// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Writer views that are closed while nothing is in flight: a write there is a SIGSEGV then.

#include "code.h"
#include "here.h"

#include <setjmp.h>
#include <signal.h>

static sigjmp_buf before_access;

static void leave(int signal) {
  (void)signal;
  siglongjmp(before_access, 1);
}

// Whether writing a byte there is a SIGSEGV; what it was stays.
static int is_closed(void *working_memory) {
  struct sigaction mine = {.sa_handler = leave}, before;
  assert_int_equal(sigaction(SIGSEGV, &mine, &before), 0);
  int closed = sigsetjmp(before_access, 1);
  if (!closed) {
    volatile uint8_t *byte = working_memory;
    *byte = *byte;
  }
  assert_int_equal(sigaction(SIGSEGV, &before, NULL), 0);
  return closed;
}

static jitmem_manager *closing(struct fixture *fixture) {
  return manager_with(fixture, (jitmem_manager_options){.close_writers = 1});
}

static void what_is_finalized_can_not_be_written(void **state) {
  jitmem_manager *manager = closing(*state);
  for (uint32_t round = 1; round < 4; round++) {
    struct graph graph = allocate_three(manager, 1), other = allocate_three(manager, 2);
    emit_return(graph.memory[0].working_memory, round);
    finalize(manager, graph.handle);
    assert_int_equal(run(graph.memory[0].address), round);
    // The other is in flight.
    assert_false(is_closed(graph.memory[0].working_memory));
    OK(jitmem_manager_abandon(manager, other.handle, error));
    for (int i = 0; i < 2; i++)
      assert_true(is_closed(graph.memory[i].working_memory));
    // Linked code writes its data all the same.
    *at(graph.memory[2].address) = 9;
    assert_int_equal(run(graph.memory[0].address), round);
    deallocate(manager, graph.handle);
    assert_true(all_traps(at(graph.memory[0].address), 256));
    assert_true(is_closed(graph.memory[0].working_memory));
  }
  jitmem_manager_free(manager);
}

static void by_default_they_stay_open(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  assert_false(is_closed(graph.memory[0].working_memory));
  deallocate(fixture->manager, graph.handle);
}

static void a_write_scope_opens_them(void **state) {
  jitmem_manager *manager = closing(*state);
  struct graph graph = allocate_three(manager, 1);
  emit_return(graph.memory[0].working_memory, 1);
  finalize(manager, graph.handle);
  jitmem_write_scope *scope = NULL;
  OK(jitmem_write_scope_begin(manager, graph.handle, &scope, error));
  assert_false(is_closed(graph.memory[0].working_memory));
  const uint64_t five = 5;
  OK(jitmem_write_scope_store(scope, graph.memory[1].address, &five, sizeof five, error));
  OK(jitmem_write_scope_end(scope, error));
  assert_true(is_closed(graph.memory[0].working_memory));
  assert_int_equal(*at(graph.memory[1].address), 5);
  deallocate(manager, graph.handle);
  jitmem_manager_free(manager);
}

#define BOTH(test)                                                                                 \
  TWO_VIEWS(test), { #test " (shared)", test, set_up_shared_here, tear_down_here, NULL }

int main(void) {
  const struct CMUnitTest tests[] = {
      BOTH(what_is_finalized_can_not_be_written),
      BOTH(by_default_they_stay_open),
      BOTH(a_write_scope_opens_them),
  };
  return cmocka_run_group_tests_name("writers", tests, NULL, NULL);
}
