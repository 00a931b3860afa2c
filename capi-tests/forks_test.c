// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Forked children: they may run their parent's code and make managers of their own, and can do no
// harm with their parent's.

#include "child.h"
#include "code.h"
#include "here.h"

#include <pthread.h>
#include <stdatomic.h>

struct family {
  jitmem_mapper *mapper;
  jitmem_manager *manager;
  uint32_t kind;
  struct graph finalized, in_flight;
};

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

static void count_done(void *ctx, const jitmem_error *error) {
  *(jitmem_status *)ctx = jitmem_error_status(error);
}

static void set_up_family(struct family *family, struct fixture *fixture) {
  *family = (struct family){
      .mapper = fixture->mapper, .manager = fixture->manager, .kind = fixture->kind};
  family->finalized = allocate_three(fixture->manager, 0x90);
  emit_return(family->finalized.memory[0].working_memory, 4711);
  finalize(fixture->manager, family->finalized.handle);
  family->in_flight = allocate_three(fixture->manager, 0x55);
}

// The parent's manager is as it was, whatever children did.
static void check_family(struct family *family) {
  assert_int_equal(run(family->finalized.memory[0].address), 4711);
  assert_true(all_bytes_are(at(family->finalized.memory[1].address), 64, 0x90));
  finalize(family->manager, family->in_flight.handle);
  for (int i = 0; i < 3; i++)
    assert_true(all_bytes_are(at(family->in_flight.memory[i].address), 64, 0x55));
  deallocate(family->manager, family->in_flight.handle);
  deallocate(family->manager, family->finalized.handle);
  assert_int_equal(stats_of(family->manager).live, 0);
}

// ---- what a child may do ----

static void run_inherited_code(void *argument) {
  struct family *family = argument;
  MUST(run(family->finalized.memory[0].address) == 4711);
  MUST(all_bytes_are(at(family->finalized.memory[2].address), 64, 0x90));
  // Data is private to each process from here on.
  memset(at(family->finalized.memory[2].address), 1, 64);
}

static void code_runs_in_children(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(run_inherited_code, &family);
  assert_true(all_bytes_are(at(family.finalized.memory[2].address), 64, 0x90));
  check_family(&family);
}

static void make_a_manager(void *argument) {
  struct family *family = argument;
  jitmem_manager *manager = child_manager(family->kind, (jitmem_manager_options){0});
  child_graph(manager);
  jitmem_manager_free(manager);
  // The mapper itself holds nothing of the parent's.
  MUST_OK(jitmem_manager_create(family->mapper, NULL, &manager, error));
  child_graph(manager);
  MUST(run(family->finalized.memory[0].address) == 4711);
  jitmem_manager_free(manager);
}

static void children_make_managers_of_their_own(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(make_a_manager, &family);
  check_family(&family);
}

// ---- what it may not ----

static void use_the_parents_manager(void *argument) {
  struct family *family = argument;
  jitmem_manager *manager = family->manager;
  const jitmem_segment one = segment(64, 0, RX);
  struct graph graph;
  uint64_t flying = family->in_flight.handle, finalized = family->finalized.handle;
  jitmem_status later = JITMEM_OK;
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "create a manager in the child",
            jitmem_manager_allocate(manager, &one, 1, 0, graph.memory, &graph.handle, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_finalize(manager, flying, NULL, 0, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_abandon(manager, flying, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_deallocate(manager, &finalized, 1, error));
  MUST_OK(jitmem_manager_deallocate_async(manager, &finalized, 1, count_done, &later, NULL, error));
  MUST(later == JITMEM_INVALID_HANDLE);
}

static void children_are_refused(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(use_the_parents_manager, &family);
  check_family(&family);
}

static void write_through_the_parents_manager(void *argument) {
  struct family *family = argument;
  MUST_FAIL(
      JITMEM_INVALID_HANDLE, "parent process", "child",
      jitmem_manager_write(family->manager, family->in_flight.handle, 0, 0, "harm", 4, error));
}

static void children_can_not_write(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(write_through_the_parents_manager, &family);
  check_family(&family);
}

static void look_at_the_parents_manager(void *argument) {
  struct family *family = argument;
  jitmem_stats stats = {.struct_size = sizeof stats};
  // A look does no harm; a refusal is fine too.
  jitmem_status status = jitmem_manager_stats(family->manager, &stats, NULL);
  MUST(status == JITMEM_OK || status == JITMEM_INVALID_HANDLE);
  status = jitmem_manager_layout(family->manager, ignore_item, NULL, NULL);
  MUST(status == JITMEM_OK || status == JITMEM_INVALID_HANDLE);
}

static void children_may_look(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(look_at_the_parents_manager, &family);
  check_family(&family);
}

static void free_everything(void *argument) {
  struct family *family = argument;
  jitmem_manager_free(family->manager);
  jitmem_mapper_free(family->mapper);
}

static void a_child_that_frees_does_no_harm(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(free_everything, &family);
  check_family(&family);
}

static void harm_writer_views(void *argument) {
  struct family *family = argument;
  memset(family->in_flight.memory[0].working_memory, 0, 64);
}

static void a_child_has_no_way_to_write_its_parents_code(void **state) {
  struct family family;
  set_up_family(&family, *state);
  int status = status_of_child(harm_writer_views, &family);
  // With two views there is nothing to write to; with mprotect it is the child's own copy.
  if (family.kind == JITMEM_IN_PROCESS_TWO_VIEWS)
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  else
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  check_family(&family);
}

// ---- forks at any moment ----

struct crowd {
  jitmem_manager *manager;
  atomic_int stop;
};

static void *keep_busy(void *argument) {
  struct crowd *crowd = argument;
  const jitmem_segment segments[] = {segment(200, 0, RX), segment(200, 0, RW)};
  while (!crowd->stop) {
    struct graph graph;
    if (jitmem_manager_allocate(crowd->manager, segments, 2, 0, graph.memory, &graph.handle, NULL))
      abort();
    if (jitmem_manager_abandon(crowd->manager, graph.handle, NULL))
      abort();
  }
  return NULL;
}

static void ask_once(void *argument) {
  jitmem_manager *manager = argument;
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle = 0;
  alarm(10);
  MUST(jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, NULL) ==
       JITMEM_INVALID_HANDLE);
  jitmem_manager_free(manager);
}

// The child of a fork in the middle of another thread's call must be answered, not wait for a lock
// whose holder does not exist there.
static void a_fork_while_others_are_at_work(void **state) {
  struct fixture *fixture = *state;
  struct crowd crowd = {.manager = fixture->manager};
  pthread_t threads[2];
  for (size_t i = 0; i < COUNT(threads); i++)
    assert_int_equal(pthread_create(&threads[i], NULL, keep_busy, &crowd), 0);
  int hung = 0, failed = 0;
  for (unsigned i = 0; i < rounds(300) && hung == 0; i++) {
    int status = status_of_child(ask_once, fixture->manager);
    hung += WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
    failed += !WIFEXITED(status) || WEXITSTATUS(status) != CHILD_PASSED;
  }
  crowd.stop = 1;
  for (size_t i = 0; i < COUNT(threads); i++)
    assert_int_equal(pthread_join(threads[i], NULL), 0);
  if (hung > 0)
    fail_msg("a child waits for ever");
  assert_int_equal(failed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(code_runs_in_children),
      EACH(children_make_managers_of_their_own),
      EACH(children_are_refused),
      EACH(children_can_not_write),
      EACH(children_may_look),
      EACH(a_child_that_frees_does_no_harm),
      EACH(a_child_has_no_way_to_write_its_parents_code),
      EVERYWHERE(a_fork_while_others_are_at_work),
  };
  return at_rest(cmocka_run_group_tests_name("forks", tests, NULL, NULL));
}
