// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors and controllers that are killed at any instant: every completion comes once, with an
// error that says what happened, and nothing is left of either.

#include "executor.h"
#include "footprint.h"
#include "here.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

static struct wrapper_result nothing(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static const jitmem_segment two[] = {
    {.content_size = 64, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
    {.content_size = 64, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE}};

// ---- work that goes on until the executor is gone ----

enum { MOST_GRAPHS = 5000, KEPT = 32 };

struct work {
  jitmem_manager *manager;
  struct counter called, destroyed;
  atomic_int made, wrong;
  _Atomic uint64_t random;
};

static int is_end(jitmem_status status) { return status == JITMEM_DISCONNECTED; }

static void done(void *ctx, const jitmem_error *error) {
  struct work *work = ctx;
  if (error != NULL && !is_end(jitmem_error_status(error))) {
    print_error("ERROR: %s\n", jitmem_error_message(error));
    atomic_fetch_add(&work->wrong, 1);
  }
  count(&work->called);
}

static void destroyed(void *ctx) { count(&((struct work *)ctx)->destroyed); }

// Whether it goes on.
static int check(struct work *work, jitmem_status status, jitmem_error *error) {
  if (status != JITMEM_OK && !is_end(status)) {
    print_error("ERROR: %s: %s\n", jitmem_status_name(status), jitmem_error_message(error));
    atomic_fetch_add(&work->wrong, 1);
  }
  jitmem_error_free(error);
  return status == JITMEM_OK;
}

// Graphs in and out, with and without actions and waiting, until the executor is gone.
static void *keep_working(void *argument) {
  struct work *work = argument;
  const jitmem_action action = {.finalize = call_of(nothing, "", 0),
                                .dealloc = call_of(nothing, "", 0)};
  uint64_t kept[KEPT] = {0}, state = atomic_fetch_add(&work->random, 12345);
  for (int i = 0; i < MOST_GRAPHS; i++) {
    uint64_t random = next_random(&state) >> 32, *place = &kept[i % KEPT];
    jitmem_segment_memory memory[2];
    jitmem_error *error = NULL;
    if (*place != 0 && random & 1) {
      atomic_fetch_add(&work->made, 1);
      jitmem_manager_deallocate_async(work->manager, place, 1, done, work, destroyed, NULL);
    } else if (*place != 0) {
      if (!check(work, jitmem_manager_deallocate(work->manager, place, 1, &error), error))
        break;
    }
    *place = 0;
    error = NULL;
    uint64_t handle;
    if (!check(work, jitmem_manager_allocate(work->manager, two, 2, 0, memory, &handle, &error),
               error))
      break;
    memset(memory[0].working_memory, i, 64);
    error = NULL;
    if (random & 2) {
      // Never finalized before it is deallocated: nothing is kept.
      atomic_fetch_add(&work->made, 1);
      jitmem_manager_finalize_async(work->manager, handle, &action, random >> 2 & 1, done, work,
                                    destroyed, NULL);
    } else if (check(
                   work,
                   jitmem_manager_finalize(work->manager, handle, &action, random >> 2 & 1, &error),
                   error)) {
      *place = handle;
    } else {
      break;
    }
  }
  return NULL;
}

struct killer {
  struct work *work;
  pid_t victim;
  int after;
};

static void *kill_in_the_middle(void *argument) {
  struct killer *killer = argument;
  counted(&killer->work->called, killer->after);
  kill(killer->victim, SIGKILL);
  return NULL;
}

static void be_killed_at_work(int shared, uint64_t *random) {
  enum { WORKERS = 2 };
  struct executor executor = start_executor(NULL);
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  OK(jitmem_transport_socket(executor.socket, &transport, error));
  struct work work = {.called = COUNTER, .destroyed = COUNTER, .random = next_random(random)};
  work.manager = manager_over(transport, shared, &mapper);
  pthread_t workers[WORKERS], thread;
  struct killer killer = {
      .work = &work, .victim = executor.process, .after = (int)(next_random(random) % 200)};
  assert_int_equal(pthread_create(&thread, NULL, kill_in_the_middle, &killer), 0);
  for (int i = 0; i < WORKERS; i++)
    assert_int_equal(pthread_create(&workers[i], NULL, keep_working, &work), 0);
  for (int i = 0; i < WORKERS; i++)
    assert_int_equal(pthread_join(workers[i], NULL), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  int status = status_of_executor(executor);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  const int made = atomic_load(&work.made);
  assert_int_equal(counted(&work.called, made), made);
  assert_int_equal(counted(&work.destroyed, made), made);
  jitmem_manager_free(work.manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  assert_int_equal(work.called.count, made);
  assert_int_equal(work.destroyed.count, made);
  assert_int_equal(atomic_load(&work.wrong), 0);
}

// ---- and what is left ----

static void leave_nothing(void (*life)(int shared, uint64_t *random), int shared) {
  uint64_t random = 0x853c49e6748fea9b;
  // What the C library keeps for good.
  for (int i = 0; i < 5; i++)
    life(shared, &random);
  struct footprint before = footprint_at_rest(3), after;
  int lives = instrumented() ? 20 : 100;
  for (int i = 0; i < lives; i++)
    life(shared, &random);
  after = footprint_at_rest(before.threads);
  printf("%d executors lost: %ld mappings before, %ld after\n", lives, before.mappings,
         after.mappings);
  assert_int_equal(after.threads, before.threads);
  assert_int_equal(after.descriptors, before.descriptors);
  // Stacks of threads and heaps of theirs are kept by the C library, not one for each life;
  // valgrind has more for each random place.
  if (!under_valgrind())
    assert_true(after.mappings <= before.mappings + 20);
}

static void killed_at_work_shared(void **state) {
  (void)state;
  leave_nothing(be_killed_at_work, 1);
}

static void killed_at_work_remote(void **state) {
  (void)state;
  leave_nothing(be_killed_at_work, 0);
}

// ---- killed while the connection is made ----

struct sniper {
  pid_t victim;
  unsigned delay;
};

static void *kill_after_a_moment(void *argument) {
  struct sniper *sniper = argument;
  struct timespec moment = {.tv_nsec = 1000 * (long)sniper->delay};
  nanosleep(&moment, NULL);
  kill(sniper->victim, SIGKILL);
  return NULL;
}

static void be_killed_while_connecting(int shared, uint64_t *random) {
  struct executor executor = start_executor(NULL);
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  struct sniper sniper = {.victim = executor.process,
                          .delay = (unsigned)(next_random(random) % 3000)};
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, kill_after_a_moment, &sniper), 0);
  jitmem_status status = jitmem_transport_socket(executor.socket, &transport, &error);
  if (status != JITMEM_OK)
    close(executor.socket);
  if (status == JITMEM_OK)
    status =
        (shared ? jitmem_mapper_shared : jitmem_mapper_remote)(transport, NULL, &mapper, &error);
  if (status == JITMEM_OK)
    status = jitmem_manager_create(mapper, NULL, &manager, &error);
  if (status != JITMEM_OK && !is_end(status))
    fail_msg("%s: %s", jitmem_status_name(status), jitmem_error_message(error));
  jitmem_error_free(error);
  assert_int_equal(pthread_join(thread, NULL), 0);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  assert_true(WIFSIGNALED(status_of_executor(executor)));
}

static void killed_while_connecting_shared(void **state) {
  (void)state;
  leave_nothing(be_killed_while_connecting, 1);
}

static void killed_while_connecting_remote(void **state) {
  (void)state;
  leave_nothing(be_killed_while_connecting, 0);
}

// ---- others go on ----

static void other_executors_go_on(void **state) {
  (void)state;
  struct executor executors[4];
  jitmem_transport *transports[4];
  jitmem_mapper *mappers[4];
  jitmem_manager *managers[4];
  struct graph graphs[4];
  for (int i = 0; i < 4; i++) {
    executors[i] = start_executor(NULL);
    OK(jitmem_transport_socket(executors[i].socket, &transports[i], error));
    managers[i] = manager_over(transports[i], i % 2, &mappers[i]);
    graphs[i] = allocate(managers[i], two, 2);
    emit_add(graphs[i].memory[0].working_memory, i);
    finalize(managers[i], graphs[i].handle);
  }
  for (int gone = 0; gone < 4; gone++) {
    kill(executors[gone].process, SIGKILL);
    assert_true(WIFSIGNALED(status_of_executor(executors[gone])));
    int32_t answer = 0;
    FAILS(JITMEM_DISCONNECTED, "the executor is gone",
          call_int(transports[gone], graphs[gone].memory[0].address, 1, &answer, error));
    for (int i = gone + 1; i < 4; i++) {
      OK(call_int(transports[i], graphs[i].memory[0].address, 100, &answer, error));
      assert_int_equal(answer, 100 + i);
      struct graph graph = allocate(managers[i], two, 2);
      finalize(managers[i], graph.handle);
      deallocate(managers[i], graph.handle);
    }
    jitmem_manager_free(managers[gone]);
    jitmem_mapper_free(mappers[gone]);
    jitmem_transport_free(transports[gone]);
  }
}

static void linked_code_that_exits(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct executor executor = start_executor(NULL);
    jitmem_transport *transport = NULL;
    jitmem_mapper *mapper = NULL;
    OK(jitmem_transport_socket(executor.socket, &transport, error));
    jitmem_manager *manager = manager_over(transport, shared, &mapper);
    struct graph graph = allocate(manager, two, 2);
    // The child is a copy of this process: _exit is where it is here.
    int32_t answer = 0;
    FAILS(JITMEM_DISCONNECTED, "the executor is gone",
          call_int(transport, (uintptr_t)_exit, 7, &answer, error));
    int status = status_of_executor(executor);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    const jitmem_action action = {.finalize = call_of(nothing, "", 0)};
    FAILS(JITMEM_DISCONNECTED, "the executor is gone",
          jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    jitmem_transport_free(transport);
  }
}

// A child of the executor's, which has all that its host has not closed.
static int32_t leave_a_child(int32_t ignored) {
  (void)ignored;
  pid_t child = fork();
  if (child == 0) {
    close(served_end);
    for (;;)
      pause();
  }
  return (int32_t)child;
}

static void executors_whose_children_live_on(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct executor executor = start_executor(NULL);
    jitmem_transport *transport = NULL;
    jitmem_mapper *mapper = NULL;
    OK(jitmem_transport_socket(executor.socket, &transport, error));
    jitmem_manager *manager = manager_over(transport, shared, &mapper);
    struct graph graph = allocate(manager, two, 2);
    const jitmem_action action = {.finalize = call_of(nothing, "", 0)};
    int32_t child = 0, answer = 0;
    OK(call_int(transport, (uintptr_t)leave_a_child, 0, &child, error));
    assert_true(child > 0);
    // The connections are as they were, for the executor itself.
    OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
    graph = allocate(manager, two, 2);
    kill(executor.process, SIGKILL);
    assert_true(WIFSIGNALED(status_of_executor(executor)));
    FAILS(JITMEM_DISCONNECTED, "the executor is gone",
          jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
    FAILS(JITMEM_DISCONNECTED, "the executor is gone",
          call_int(transport, (uintptr_t)leave_a_child, 0, &answer, error));
    assert_int_equal(kill(child, SIGKILL), 0);
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    jitmem_transport_free(transport);
  }
}

// ---- controllers ----

// What actions have done, seen by all processes.
struct trace {
  atomic_int finalized, live;
};

static struct trace *trace;

static struct wrapper_result begin(const char *args, size_t size) {
  (void)args, (void)size;
  atomic_fetch_add(&trace->live, 1);
  atomic_fetch_add(&trace->finalized, 1);
  return succeed();
}

static struct wrapper_result end(const char *args, size_t size) {
  (void)args, (void)size;
  atomic_fetch_sub(&trace->live, 1);
  return succeed();
}

static void control_for_ever(int socket, int shared) {
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_transport_socket(socket, &transport, error));
  MUST_OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(transport, NULL, &mapper, error));
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  const jitmem_action action = {.finalize = call_of(begin, "", 0), .dealloc = call_of(end, "", 0)};
  for (uint64_t i = 0, last = 0;; i++) {
    jitmem_segment_memory memory[2];
    uint64_t handle;
    MUST_OK(jitmem_manager_allocate(manager, two, 2, 0, memory, &handle, error));
    MUST_OK(jitmem_manager_finalize(manager, handle, &action, 1, error));
    if (i % 3 == 2)
      MUST_OK(jitmem_manager_deallocate(manager, &last, 1, error));
    last = handle;
  }
}

static void killed_controllers(void **state) {
  (void)state;
  uint64_t random = 0x2545f4914f6cdd1d;
  trace = mmap(NULL, sizeof *trace, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(trace != MAP_FAILED);
  for (int i = 0, lives = instrumented() ? 10 : 50; i < lives; i++) {
    atomic_store(&trace->finalized, 0);
    struct executor executor = start_executor(NULL);
    fflush(NULL);
    pid_t controller = fork();
    if (controller == 0) {
      alarm(instrumented() ? 120 : 30);
      control_for_ever(executor.socket, i % 2);
    }
    close(executor.socket);
    int after = (int)(next_random(&random) % 100), status = 0;
    while (atomic_load(&trace->finalized) < after && waitpid(controller, &status, WNOHANG) == 0)
      sched_yield();
    kill(controller, SIGKILL);
    if (status == 0)
      assert_int_equal(waitpid(controller, &status, 0), controller);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    // The executor runs the actions that are left, and ends in order.
    assert_int_equal(status_of_executor(executor), 0);
    assert_true(atomic_load(&trace->finalized) >= after);
    assert_int_equal(atomic_load(&trace->live), 0);
  }
  munmap(trace, sizeof *trace);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(killed_at_work_shared),
      cmocka_unit_test(killed_at_work_remote),
      cmocka_unit_test(killed_while_connecting_shared),
      cmocka_unit_test(killed_while_connecting_remote),
      cmocka_unit_test(other_executors_go_on),
      cmocka_unit_test(linked_code_that_exits),
      cmocka_unit_test(executors_whose_children_live_on),
      cmocka_unit_test(killed_controllers),
  };
  return at_rest(cmocka_run_group_tests_name("lost executors and controllers", tests, NULL, NULL));
}
