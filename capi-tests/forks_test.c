// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Forked children: they go on running and linking with their parent's managers, and neither process
// sees what the other does later.

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

static void use_the_parents_manager(void *argument) {
  struct family *family = argument;
  jitmem_manager *manager = family->manager;
  child_graph(manager);
  struct graph graph = {0};
  const jitmem_segment one = segment(64, 0, RX);
  MUST_OK(jitmem_manager_allocate(manager, &one, 1, 0, graph.memory, &graph.handle, error));
  emit_return(graph.memory[0].working_memory, 4712);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST(run(graph.memory[0].address) == 4712);
  MUST(run(family->finalized.memory[0].address) == 4711);
  MUST_OK(jitmem_manager_deallocate(manager, &family->finalized.handle, 1, error));
  for (int i = 0; i < 1000; i++)
    child_graph(manager);
  MUST(run(graph.memory[0].address) == 4712);
}

static void a_childs_manager_goes_on(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(use_the_parents_manager, &family);
  check_family(&family);
}

// ---- what it may not ----

static void use_what_was_in_flight(void *argument) {
  struct family *family = argument;
  jitmem_manager *manager = family->manager;
  uint64_t flying = family->in_flight.handle;
  // Under mprotect the working memory is the child's own.
  if (family->kind != JITMEM_IN_PROCESS_TWO_VIEWS) {
    MUST_OK(jitmem_manager_finalize(manager, flying, NULL, 0, error));
    MUST(all_bytes_are(at(family->in_flight.memory[0].address), 64, 0x55));
    return;
  }
  MUST_FAIL(JITMEM_INVALID_HANDLE, "in flight when the process was forked", "in the child",
            jitmem_manager_finalize(manager, flying, NULL, 0, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "in flight when the process was forked", "in the child",
            jitmem_manager_abandon(manager, flying, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "in flight when the process was forked", "in the child",
            jitmem_manager_write(manager, flying, 0, 0, "harm", 4, error));
}

static void what_was_in_flight_is_the_parents(void **state) {
  struct family family;
  set_up_family(&family, *state);
  in_child(use_what_was_in_flight, &family);
  check_family(&family);
}

// A child of _Fork, for which no handler runs, and the locks of which may be held for ever.
static void a_child_without_handlers_is_refused(void **state) {
  struct family family;
  set_up_family(&family, *state);
  pid_t child = _Fork();
  assert_true(child >= 0);
  if (child == 0) {
    const jitmem_segment one = segment(64, 0, RX);
    struct graph graph;
    jitmem_manager *manager = NULL;
    MUST(run(family.finalized.memory[0].address) == 4711);
    MUST_FAIL(
        JITMEM_INVALID_HANDLE, "_Fork", "make it by fork",
        jitmem_manager_allocate(family.manager, &one, 1, 0, graph.memory, &graph.handle, error));
    MUST_FAIL(JITMEM_INVALID_HANDLE, "_Fork", "make it by fork",
              jitmem_manager_deallocate(family.manager, &family.finalized.handle, 1, error));
    MUST_FAIL(JITMEM_INVALID_HANDLE, "_Fork", "make it by fork",
              jitmem_manager_create(family.mapper, NULL, &manager, error));
    jitmem_manager_free(family.manager);
    jitmem_mapper_free(family.mapper);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  check_family(&family);
}

// ---- what the parent does later ----

static void parents_do_not_change_what_children_run(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = fixture->manager;
  struct graph old = allocate_three(manager, 0x90);
  emit_return(old.memory[0].working_memory, 1);
  finalize(manager, old.handle);
  int to_child[2];
  assert_int_equal(pipe(to_child), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    char byte;
    close(to_child[1]);
    MUST(read(to_child[0], &byte, 1) == 1);
    MUST(run(old.memory[0].address) == 1);
    MUST(all_bytes_are(at(old.memory[1].address), 64, 0x90));
    child_graph(manager);
    MUST(run(old.memory[0].address) == 1);
    _exit(CHILD_PASSED);
  }
  deallocate(manager, old.handle);
  for (int i = 0; i < 5000; i++) {
    struct graph graph = allocate_three(manager, 0x77);
    emit_return(graph.memory[0].working_memory, 2);
    finalize(manager, graph.handle);
    assert_int_equal(run(graph.memory[0].address), 2);
    if (i % 2 == 0)
      deallocate(manager, graph.handle);
  }
  assert_int_equal(write(to_child[1], "x", 1), 1);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  close(to_child[0]);
  close(to_child[1]);
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

static void trim_and_go_on(void *argument) {
  jitmem_manager *manager = argument;
  const uint64_t before = child_stats(manager).chunks;
  MUST_OK(jitmem_manager_trim(manager, NULL, error));
  MUST(child_stats(manager).chunks < before);
  child_graph(manager);
}

static void a_child_gives_back_what_was_empty(void **state) {
  struct family family;
  set_up_family(&family, *state);
  // More than a first chunk has, so that others are made for it and are empty then.
  const jitmem_segment segments[] = {segment(700 * KIB, 0, RX), segment(700 * KIB, 0, R),
                                     segment(700 * KIB, 0, RW)};
  struct graph large = allocate(family.manager, segments, 3);
  for (int i = 0; i < 3; i++)
    memset(large.memory[i].working_memory, 0x44, 700 * KIB);
  finalize(family.manager, large.handle);
  deallocate(family.manager, large.handle);
  in_child(trim_and_go_on, family.manager);
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

static void go_on(void *argument) {
  jitmem_manager *manager = argument;
  alarm(10);
  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_status status = jitmem_manager_stats(manager, &stats, NULL);
  // Over an executor it is refused.
  MUST(status == JITMEM_OK || status == JITMEM_INVALID_HANDLE);
  if (status == JITMEM_OK)
    child_graph(manager);
  jitmem_manager_free(manager);
  // Its own.
  manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  child_graph(manager);
  jitmem_manager_free(manager);
}

// The child of a fork in the middle of another thread's call must be answered, not wait for a lock
// whose holder does not exist there.
static void a_fork_while_others_are_at_work(void **state) {
  struct fixture *fixture = *state;
  struct crowd crowd = {.manager = fixture->manager};
  pthread_t threads[8];
  for (size_t i = 0; i < COUNT(threads); i++)
    assert_int_equal(pthread_create(&threads[i], NULL, keep_busy, &crowd), 0);
  int hung = 0, failed = 0;
  for (unsigned i = 0; i < rounds(300) && hung == 0; i++) {
    int status = status_of_child(go_on, fixture->manager);
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
      EACH(a_childs_manager_goes_on),
      EACH(what_was_in_flight_is_the_parents),
      EACH(a_child_without_handlers_is_refused),
      EACH(parents_do_not_change_what_children_run),
      EACH(children_may_look),
      EACH(a_child_that_frees_does_no_harm),
      EACH(a_child_gives_back_what_was_empty),
      EACH(a_child_has_no_way_to_write_its_parents_code),
      EVERYWHERE(a_fork_while_others_are_at_work),
  };
  return at_rest(cmocka_run_group_tests_name("forks", tests, NULL, NULL));
}
