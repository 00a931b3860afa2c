// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Forks from inside calls of the library, beside deferred reclamation, and by other ways than fork.

#include "child.h"
#include "code.h"
#include "hosted.h"

#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/syscall.h>

extern char **environ;

struct place {
  jitmem_manager *manager;
  struct graph common;
  // The process that the place is left in.
  pid_t parent;
  // Forks still to be made there, and made.
  atomic_int wanted, made;
};

// A place is a function of the host's, which the library calls without an argument in actions.
static struct place place;

static uint64_t link_code(jitmem_manager *manager, uint32_t value, uint64_t *handle) {
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  MUST_OK(jitmem_manager_allocate(manager, &one, 1, 0, &memory, handle, error));
  emit_return(memory.working_memory, value);
  MUST_OK(jitmem_manager_finalize(manager, *handle, NULL, 0, error));
  return memory.address;
}

static void set_up_place(jitmem_manager *manager, int forks) {
  place = (struct place){.manager = manager, .parent = getpid(), .wanted = forks};
  place.common.memory[0].address = link_code(manager, 4711, &place.common.handle);
}

static void check_place(int forks) {
  assert_int_equal(place.parent, getpid());
  assert_int_equal(place.made, forks);
  assert_int_equal(run(place.common.memory[0].address), 4711);
  deallocate(place.manager, place.common.handle);
}

static void live_in_a_child(void *manager) {
  MUST(run(place.common.memory[0].address) == 4711);
  child_graph(manager);
}

// Forks here. The child lives in the midst of the call, and ends there.
static void fork_here(void) {
  if (place.wanted == 0)
    return;
  place.wanted--;
  in_child(live_in_a_child, place.manager);
  place.made++;
}

// ---- inside the library's calls ----

static struct wrapper_result fork_in_action(const char *args, size_t size) {
  (void)args, (void)size;
  fork_here();
  return succeed();
}

static void in_actions(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  set_up_place(manager, 2);
  const jitmem_action action = {.finalize = call_of(fork_in_action, NULL, 0),
                                .dealloc = call_of(fork_in_action, NULL, 0)};
  struct graph graph = allocate_three(manager, 1);
  OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  deallocate(manager, graph.handle);
  check_place(2);
}

static void fork_in_callback(void *ctx, const jitmem_error *error) {
  if (error != NULL)
    abort();
  fork_here();
  ++*(int *)ctx;
}

static void in_callbacks(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  set_up_place(manager, 2);
  struct graph graph = allocate_three(manager, 1);
  int called = 0;
  OK(jitmem_manager_finalize_async(manager, graph.handle, NULL, 0, fork_in_callback, &called, NULL,
                                   error));
  OK(jitmem_manager_deallocate_async(manager, &graph.handle, 1, fork_in_callback, &called, NULL,
                                     error));
  assert_int_equal(called, 2);
  check_place(2);
}

static void fork_at_event(void *ctx, const jitmem_event *event) {
  (void)ctx;
  if (getpid() == place.parent && event->kind != JITMEM_EVENT_FORKED_PARENT)
    fork_here();
}

// Windows and chunks that come, and every step of an allocation.
static void in_observers(void **state) {
  const jitmem_observer observer = {.struct_size = sizeof observer, .fn = fork_at_event};
  jitmem_manager *manager = manager_with(*state, (jitmem_manager_options){.observer = &observer});
  set_up_place(manager, 0);
  place.wanted = 12;
  for (int i = 0; place.wanted > 0 && i < 100; i++) {
    struct graph graph = allocate_three(manager, 1);
    finalize(manager, graph.handle);
    deallocate(manager, graph.handle);
  }
  check_place(12);
  jitmem_manager_free(manager);
}

// Another manager of the same process is in the midst of growing when the host's mapper forks.
static uint32_t fork_in_prepare(void *ctx, uint64_t address, uint64_t size, uint32_t protection,
                                uint32_t lifetime, void **working_memory) {
  fork_here();
  return host_prepare(ctx, address, size, protection, lifetime, working_memory);
}

static void in_a_mappers_prepare(void **state) {
  struct fixture *fixture = *state;
  set_up_place(fixture->manager, 3);
  struct host host = {.content = JITMEM_CONTENT_SHARED, .timing = AT_ONCE};
  assert_int_equal(pthread_mutex_init(&host.lock, NULL), 0);
  assert_int_equal(pthread_cond_init(&host.idle, NULL), 0);
  const jitmem_mapper_callbacks callbacks = {.struct_size = sizeof callbacks,
                                             .page_size = page_size(),
                                             .granule = 16,
                                             .content = host.content,
                                             .ctx = &host,
                                             .destroy = on_destroy,
                                             .reserve = on_reserve,
                                             .prepare = fork_in_prepare,
                                             .initialize = on_initialize,
                                             .deinitialize = on_deinitialize,
                                             .reclaim = host_reclaim,
                                             .release = on_release};
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_manager_options options = {.struct_size = sizeof options, .window_size = 64 * MIB};
  OK(jitmem_mapper_custom(&callbacks, &mapper, error));
  OK(jitmem_manager_create(mapper, &options, &manager, error));
  struct graph graph = allocate_three(manager, 1);
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  host_wait(&host);
  check_place(3);
}

// ---- deferred reclamation ----

static void reclaim_in_a_child(void *argument) {
  jitmem_manager *manager = argument;
  // What waited at the fork waits here too, until this process says so.
  MUST(child_stats(manager).waiting > 0);
  MUST(run(place.common.memory[0].address) == 4711);
  uint64_t epoch = 0;
  MUST_OK(jitmem_manager_advance_epoch(manager, &epoch, error));
  MUST_OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
  MUST(child_stats(manager).waiting == 0);
  child_graph(manager);
}

static void beside_deferred_reclamation(void **state) {
  jitmem_manager *manager = manager_with(*state, (jitmem_manager_options){.defer_reclamation = 1});
  set_up_place(manager, 0);
  deallocate(manager, place.common.handle);
  in_child(reclaim_in_a_child, manager);
  // The parent reclaims while a child still runs it.
  struct waiting_child child = start_waiting_child(reclaim_in_a_child, manager);
  uint64_t epoch = 0;
  OK(jitmem_manager_advance_epoch(manager, &epoch, error));
  OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
  assert_int_equal(stats_of(manager).waiting, 0);
  for (uint32_t i = 0; i < 1000; i++) {
    uint64_t handle;
    assert_int_equal(run(link_code(manager, i, &handle)), i);
  }
  have_run(child);
  jitmem_manager_free(manager);
}

// ---- other ways to make a process ----

static void *keep_linking(void *argument) {
  atomic_int *stop = argument;
  while (!*stop)
    child_graph(place.manager);
  return NULL;
}

// Children of these share the memory or leave it at once, so nothing freezes and nothing is
// refused.
static void spawned_and_vforked(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  set_up_place(manager, 0);
  atomic_int stop = 0;
  pthread_t linkers[2];
  for (size_t i = 0; i < COUNT(linkers); i++)
    assert_int_equal(pthread_create(&linkers[i], NULL, keep_linking, &stop), 0);
  for (unsigned i = 0; i < rounds(200); i++) {
    int status = 1;
    pid_t child = 0;
    char *const arguments[] = {"true", NULL};
    assert_int_equal(posix_spawnp(&child, "true", NULL, NULL, arguments, environ), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    child = vfork();
    if (child == 0)
      _exit(run(place.common.memory[0].address) == 4711 ? CHILD_PASSED : CHILD_FAILED);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
  }
  stop = 1;
  for (size_t i = 0; i < COUNT(linkers); i++)
    assert_int_equal(pthread_join(linkers[i], NULL), 0);
  assert_int_equal(stats_of(manager).frozen, 0);
  check_place(0);
}

static int link_in_shared_memory(void *argument) {
  struct place *it = argument;
  uint64_t handle = 0;
  if (run(it->common.memory[0].address) != 4711 || run(link_code(it->manager, 5, &handle)) != 5)
    return CHILD_FAILED;
  return jitmem_manager_deallocate(it->manager, &handle, 1, NULL) == JITMEM_OK ? CHILD_PASSED
                                                                               : CHILD_FAILED;
}

// A child that has its parent's memory, as vfork's, is no other process to the manager.
static void cloned_with_the_same_memory(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  not_under_valgrind("valgrind gives a child memory of its own, and calls no fork handlers");
  set_up_place(manager, 0);
  enum { STACK = 1 << 20 };
  char *stack = malloc(STACK);
  assert_non_null(stack);
  for (int i = 0; i < 20; i++) {
    pid_t child =
        clone(link_in_shared_memory, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, &place);
    int status = 1;
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, CHILD_PASSED);
  }
  free(stack);
  check_place(0);
}

// No handler runs for it. It is refused by name, and runs what it was made with.
static void cloned_without_handlers(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  set_up_place(manager, 0);
  fflush(NULL);
  pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
  assert_true(child >= 0);
  if (child == 0) {
    const jitmem_segment one = segment(64, 0, RX);
    jitmem_segment_memory memory;
    uint64_t handle = 0;
    MUST(run(place.common.memory[0].address) == 4711);
    MUST_FAIL(JITMEM_INVALID_HANDLE, "clone", "make it by fork",
              jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, error));
    MUST_FAIL(JITMEM_INVALID_HANDLE, "clone", "make it by fork",
              jitmem_manager_trim(manager, NULL, error));
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  check_place(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(in_actions),
      EACH(in_callbacks),
      EACH(in_observers),
      EACH(in_a_mappers_prepare),
      EACH(beside_deferred_reclamation),
      EACH(spawned_and_vforked),
      EACH(cloned_with_the_same_memory),
      EACH(cloned_without_handlers),
  };
  return cmocka_run_group_tests_name("fork_places", tests, NULL, NULL);
}
