// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The library's fork handlers beside those of a host, which come before and after them, and without
// them.

#include "code.h"
#include "limits.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

// ---- what registers handlers ----

typedef void handler(void);
typedef int register_handlers(handler *, handler *, handler *, void *);
register_handlers __register_atfork;

static const char without[] = "JITMEM_TEST_WITHOUT_FORK_HANDLERS";

// What pthread_atfork calls, in the library too; the C library's, or one that has no memory.
int __register_atfork(handler *prepare, handler *parent, handler *child, void *object) {
  if (getenv(without) != NULL)
    return ENOMEM;
  // POSIX's way to make a function of what dlsym gives.
  register_handlers *next;
  *(void **)&next = dlsym(RTLD_NEXT, "__register_atfork");
  return next(prepare, parent, child, object);
}

// ---- handlers that were there before the library ----

static atomic_int early[3];

static void prepare_early(void) { early[0]++; }
static void go_on_early_in_parent(void) { early[1]++; }
static void go_on_early_in_child(void) { early[2]++; }

static void begin(int count, char **arguments, char **environment) {
  (void)count, (void)arguments, (void)environment;
  pthread_atfork(prepare_early, go_on_early_in_parent, go_on_early_in_child);
}

// Before the constructors of the libraries that this program links.
__attribute__((section(".preinit_array"), used)) static void (*const at_begin)(int, char **,
                                                                               char **) = begin;

// ---- handlers that came after it ----

static jitmem_manager *linked_to;
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t kept, made[2];
static uint64_t kept_at;

static uint64_t link_code(uint32_t value, uint64_t *handle) {
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  MUST_OK(jitmem_manager_allocate(linked_to, &one, 1, 0, &memory, handle, error));
  emit_return(memory.working_memory, value);
  MUST_OK(jitmem_manager_finalize(linked_to, *handle, NULL, 0, error));
  return memory.address;
}

// Links before the fork, with a lock that other threads have while they call the library.
static void prepare(void) {
  pthread_mutex_lock(&own_lock);
  if (linked_to != NULL)
    kept_at = link_code(4711, &kept);
}

static void go_on(uint64_t *handle, uint32_t value) {
  if (linked_to != NULL) {
    MUST(run(kept_at) == 4711);
    MUST_OK(jitmem_manager_deallocate(linked_to, &kept, 1, error));
    MUST(run(link_code(value, handle)) == value);
    MUST_OK(jitmem_manager_deallocate(linked_to, handle, 1, error));
  }
  pthread_mutex_unlock(&own_lock);
}

static void go_on_in_parent(void) { go_on(&made[0], 1); }
static void go_on_in_child(void) { go_on(&made[1], 2); }

static void *link_under_own_lock(void *argument) {
  atomic_int *stop = argument;
  while (!*stop) {
    pthread_mutex_lock(&own_lock);
    child_graph(linked_to);
    pthread_mutex_unlock(&own_lock);
    child_graph(linked_to);
  }
  return NULL;
}

static void use_manager(void *manager) {
  MUST(made[1] != 0);
  MUST(early[0] == early[1] + 1 && early[2] == 1);
  child_graph(manager);
}

static void handlers_of_the_host_link_and_free(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  static int registered;
  if (!registered)
    assert_int_equal(pthread_atfork(prepare, go_on_in_parent, go_on_in_child), 0);
  registered = 1;
  linked_to = manager;
  atomic_int stop = 0;
  pthread_t linkers[2];
  for (size_t i = 0; i < COUNT(linkers); i++)
    assert_int_equal(pthread_create(&linkers[i], NULL, link_under_own_lock, &stop), 0);
  for (unsigned i = 0; i < rounds(100); i++) {
    made[0] = made[1] = 0;
    in_child(use_manager, manager);
    assert_true(made[0] != 0 && made[1] == 0);
  }
  stop = 1;
  for (size_t i = 0; i < COUNT(linkers); i++)
    assert_int_equal(pthread_join(linkers[i], NULL), 0);
  linked_to = NULL;
  assert_int_equal(early[0], early[1]);
  assert_int_equal(stats_of(manager).live, 0);
}

// ---- forks that fail ----

static void fail_to_fork(void *argument) {
  struct sock_filter code[] = {
      LOAD(nr),
      EQUAL(SYS_clone, 0, 1),
      ANSWER(SECCOMP_RET_ERRNO | EAGAIN),
      EQUAL(SYS_clone3, 0, 1),
      ANSWER(SECCOMP_RET_ERRNO | EAGAIN),
      ANSWER(SECCOMP_RET_ALLOW),
  };
  jitmem_manager *manager = argument;
  install_filter(code, COUNT(code));
  for (int i = 0; i < 3; i++) {
    MUST(fork() == -1 && errno == EAGAIN);
    child_graph(manager);
  }
}

static void a_fork_that_fails_holds_nothing(void **state) {
  in_child(fail_to_fork, ((struct fixture *)*state)->manager);
}

// ---- without handlers ----

static void try_to_link(void *argument) {
  jitmem_manager *manager = argument;
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle = 0;
  MUST(run(kept_at) == 4711);
  MUST_FAIL(JITMEM_INVALID_HANDLE, "without fork handlers", "by fork",
            jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "without fork handlers", "by fork",
            jitmem_manager_deallocate(manager, &kept, 1, error));
}

static void children_that_are_not_known_are_refused(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  linked_to = manager;
  kept_at = link_code(4711, &kept);
  linked_to = NULL;
  in_child(try_to_link, manager);
  child_graph(manager);
  deallocate(manager, kept);
}

// In this program once more, whose libraries could register no handlers.
static void run_without_handlers(void *argument) {
  (void)argument;
  MUST(setenv(without, "1", 1) == 0);
  execl("/proc/self/exe", "fork_handlers_test", (char *)NULL);
  MUST(!"exec");
}

static void no_memory_for_handlers(void **state) {
  (void)state;
  not_under_valgrind("/proc/self/exe is valgrind when it is executed");
  in_child(run_without_handlers, NULL);
}

int main(void) {
  const struct CMUnitTest alone[] = {EACH(children_that_are_not_known_are_refused)};
  if (getenv(without) != NULL)
    return cmocka_run_group_tests_name("fork_handlers, without any", alone, NULL, NULL);
  const struct CMUnitTest tests[] = {
      EACH(handlers_of_the_host_link_and_free),
      EACH(a_fork_that_fails_holds_nothing),
      cmocka_unit_test(no_memory_for_handlers),
  };
  return cmocka_run_group_tests_name("fork_handlers", tests, NULL, NULL);
}
