// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Writing what is finalized while other threads, of this process and of another one, run it.

#include "code.h"
#include "executor.h"
#include "here.h"

#include <pthread.h>
#include <stdatomic.h>

// CHANGES are those of code in this process, for each of which every core serializes.
enum { REDIRECTS = 1000000, CHANGES = 20000, TARGETS = 4096 };

// ---- the code ----

// Where things are in the code segment.
enum { CONSTANT = 0, STUB = 16, WATCH_CONSTANT = 32, WATCH_STUB = 96, FIRST_TARGET = 256 };

// The function that returns a constant has 4 bytes that are changed while it runs. On x86-64 they
// are the constant itself. AArch64 allows that of few instructions, so there it branches to a
// function that returns a small number (Arm Architecture Reference Manual, "Concurrent modification
// and execution of instructions").
#if defined(__x86_64__)
#define CONSTANTS ((uint64_t)1 << 32)
enum { CHANGED = CONSTANT + 4 };
static void emit_constant(uint8_t *out) { emit_return(out + 3, 0); }
static uint32_t changed_to(uint32_t number) { return number; }
#else
#define CONSTANTS TARGETS
enum { CHANGED = CONSTANT };
static uint32_t changed_to(uint32_t number) {
  return branch((int32_t)(FIRST_TARGET + 16 * (number % TARGETS) - CHANGED));
}
static void emit_constant(uint8_t *out) {
  uint32_t code = changed_to(0);
  memcpy(out, &code, sizeof code);
}
#endif

static uint64_t target(uint64_t code, uint64_t number) { return code + FIRST_TARGET + 16 * number; }

// A function that returns a constant, one that jumps through a pointer, both with their watchers,
// and functions that return their numbers. The pointer is in a segment of its own.
static struct graph emit_all(jitmem_manager *manager, uint32_t pointer_protection) {
  const jitmem_segment segments[] = {segment(FIRST_TARGET + 16 * TARGETS, 0, RX),
                                     segment(16, 0, pointer_protection)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  uint64_t code = graph.memory[0].address, pointer = graph.memory[1].address;
  uint8_t *out = graph.memory[0].working_memory;
  // On x86-64 instructions that do nothing, in front of the constant at a multiple of 4 bytes.
  memset(out, 0x90, FIRST_TARGET);
  emit_constant(out + CONSTANT);
  emit_jump(out + STUB, code + STUB, pointer);
  emit_watch(out + WATCH_CONSTANT, CONSTANT - WATCH_CONSTANT);
  emit_watch(out + WATCH_STUB, STUB - WATCH_STUB);
  for (uint32_t i = 0; i < TARGETS; i++)
    emit_return(out + FIRST_TARGET + 16 * i, i);
  uint64_t first[2] = {target(code, 0), 0};
  memcpy(graph.memory[1].working_memory, first, sizeof first);
  finalize(manager, graph.handle);
  return graph;
}

static jitmem_write_scope *begin(const jitmem_manager *manager, uint64_t allocation) {
  jitmem_write_scope *scope = NULL;
  OK(jitmem_write_scope_begin(manager, allocation, &scope, error));
  return scope;
}

static void change_constant(const jitmem_manager *manager, const struct graph *graph,
                            uint32_t value) {
  jitmem_write_scope *scope = begin(manager, graph->handle);
  const uint32_t bytes = changed_to(value);
  OK(jitmem_write_scope_store(scope, graph->memory[0].address + CHANGED, &bytes, sizeof bytes,
                              error));
  OK(jitmem_write_scope_end(scope, error));
}

static void redirect(const jitmem_manager *manager, const struct graph *graph, uint64_t number) {
  uint64_t to = target(graph->memory[0].address, number);
  jitmem_write_scope *scope = begin(manager, graph->handle);
  OK(jitmem_write_scope_store(scope, graph->memory[1].address, &to, sizeof to, error));
  OK(jitmem_write_scope_end(scope, error));
}

// ---- in this process ----

struct race {
  uint64_t function;
  // What the function returns counts up; the last number of which the scope has ended.
  _Atomic uint64_t published;
  // Numbers are told apart up to this.
  uint64_t period;
  uint64_t calls;
  uint64_t wrong;
  _Atomic int stop;
};

// Each answer is at least what was published before the call, and at most the next after it.
static void *run_again_and_again(void *ctx) {
  struct race *race = ctx;
  while (!race->stop) {
    uint64_t before = race->published;
    uint64_t answer = run(race->function);
    uint64_t after = race->published + 1;
    uint64_t ahead = (answer + race->period - before % race->period) % race->period;
    race->wrong += after - before < race->period && ahead > after - before;
    race->calls++;
  }
  return NULL;
}

static void race_against(struct race *race,
                         void (*change)(const jitmem_manager *, const struct graph *, uint64_t),
                         const jitmem_manager *manager, const struct graph *graph, uint64_t count) {
  pthread_t threads[2];
  for (size_t i = 0; i < COUNT(threads); i++)
    assert_int_equal(pthread_create(&threads[i], NULL, run_again_and_again, race), 0);
  for (uint64_t number = 1; number <= count; number++) {
    change(manager, graph, number);
    race->published = number;
    assert_int_equal(run(race->function), number % race->period);
  }
  race->stop = 1;
  for (size_t i = 0; i < COUNT(threads); i++)
    assert_int_equal(pthread_join(threads[i], NULL), 0);
  assert_int_equal(race->wrong, 0);
  assert_true(race->calls > 0);
}

static void redirect_to_next(const jitmem_manager *manager, const struct graph *graph,
                             uint64_t number) {
  redirect(manager, graph, number % TARGETS);
}

static void no_call_is_torn_or_stale_after_a_redirect(void **state) {
  struct fixture *fixture = *state;
  // Linked code can't write the pointer where that needs no change of a protection.
  int two_views = fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS;
  struct graph graph = emit_all(fixture->manager, two_views ? R : RW);
  struct race race = {.function = graph.memory[0].address + STUB, .period = TARGETS};
  race_against(&race, redirect_to_next, fixture->manager, &graph, rounds(REDIRECTS));
  deallocate(fixture->manager, graph.handle);
}

static void change_to(const jitmem_manager *manager, const struct graph *graph, uint64_t number) {
  change_constant(manager, graph, (uint32_t)number);
}

static void no_call_runs_old_code_after_a_scope(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = emit_all(fixture->manager, R);
  struct race race = {.function = graph.memory[0].address, .period = CONSTANTS};
  race_against(&race, change_to, fixture->manager, &graph, rounds(CHANGES));
  deallocate(fixture->manager, graph.handle);
}

static void sixteen_bytes_are_stored_at_once(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = emit_all(fixture->manager, RW);
  // Two different functions of 16 bytes each, one of them in the place of the constant.
  uint8_t other[16] = {0}, first[16];
  emit_return(other, 2);
  memcpy(first, at(graph.memory[0].address), sizeof first);
  for (int i = 0; i < 1000; i++) {
    jitmem_write_scope *scope = begin(fixture->manager, graph.handle);
    OK(jitmem_write_scope_store(scope, graph.memory[0].address, i % 2 ? first : other, 16, error));
    OK(jitmem_write_scope_end(scope, error));
    assert_int_equal(run(graph.memory[0].address), i % 2 ? 0 : 2);
  }
  deallocate(fixture->manager, graph.handle);
}

static void a_pointer_is_for_any_bytes(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  jitmem_write_scope *scope = begin(fixture->manager, graph.handle);
  int two_views = fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS;
  for (int i = two_views ? 0 : 2; i < 3; i++) {
    void *pointer = NULL;
    OK(jitmem_write_scope_pointer(scope, graph.memory[i].address + 3, 50, &pointer, error));
    memset(pointer, 2, 50);
    assert_true(all_bytes_are(at(graph.memory[i].address) + 3, 50, 2));
    assert_int_equal(at(graph.memory[i].address)[53], 1);
  }
  OK(jitmem_write_scope_end(scope, error));
  deallocate(fixture->manager, graph.handle);
}

static void what_can_not_be_written_is_refused(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1),
               next = allocate_three(fixture->manager, 2);
  jitmem_write_scope *scope = NULL;
  REFUSED(JITMEM_INVALID_HANDLE, "still in flight",
          jitmem_write_scope_begin(fixture->manager, graph.handle, &scope, error));
  finalize(fixture->manager, graph.handle);
  finalize(fixture->manager, next.handle);
  scope = begin(fixture->manager, graph.handle);
  uint64_t data = graph.memory[2].address, value[2] = {0};
  REFUSED(JITMEM_INVALID_ARGUMENT, "no multiple of 8",
          jitmem_write_scope_store(scope, data + 4, value, 8, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "no multiple of 16",
          jitmem_write_scope_store(scope, data + 8, value, 16, error));
  const size_t sizes[] = {0, 1, 2, 3, 12, 32};
  for (size_t i = 0; i < COUNT(sizes); i++)
    REFUSED(JITMEM_INVALID_ARGUMENT, "4, 8 and 16 are stored at once",
            jitmem_write_scope_store(scope, data, value, sizes[i], error));
  const uint64_t outside[] = {next.memory[2].address, data - 16, data + page_size(), 0,
                              UINT64_MAX - 15};
  void *pointer = NULL;
  for (size_t i = 0; i < COUNT(outside); i++) {
    REFUSED(JITMEM_INVALID_ARGUMENT, "not inside one segment",
            jitmem_write_scope_store(scope, outside[i] & ~(uint64_t)15, value, 8, error));
    REFUSED(JITMEM_INVALID_ARGUMENT, "not inside one segment",
            jitmem_write_scope_pointer(scope, outside[i], 8, &pointer, error));
  }
  if (fixture->kind == JITMEM_IN_PROCESS_MPROTECT)
    for (int i = 0; i < 2; i++)
      REFUSED(JITMEM_UNSUPPORTED, "choose two views",
              jitmem_write_scope_store(scope, graph.memory[i].address, value, 4, error));
  assert_null(pointer);
  assert_true(all_bytes_are(at(data), 64, 1) && all_bytes_are(at(next.memory[2].address), 64, 2));
  OK(jitmem_write_scope_end(scope, error));
  REFUSED(JITMEM_INVALID_HANDLE, "was freed before",
          jitmem_write_scope_store(scope, data, value, 4, error));
  OK(jitmem_write_scope_end(scope, error));
  deallocate(fixture->manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "",
          jitmem_write_scope_begin(fixture->manager, graph.handle, &scope, error));
  deallocate(fixture->manager, next.handle);
}

// ---- deallocation ----

struct deallocation {
  const jitmem_manager *manager;
  uint64_t handle;
  struct counter done;
};

static void *deallocate_and_wait(void *ctx) {
  struct deallocation *deallocation = ctx;
  if (jitmem_manager_deallocate(deallocation->manager, &deallocation->handle, 1, NULL) != JITMEM_OK)
    abort();
  count(&deallocation->done);
  return NULL;
}

static void a_deallocation_waits_for_scopes(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1),
               next = allocate_three(fixture->manager, 2);
  finalize(fixture->manager, graph.handle);
  finalize(fixture->manager, next.handle);
  jitmem_write_scope *scopes[] = {begin(fixture->manager, graph.handle),
                                  begin(fixture->manager, graph.handle)};
  const uint64_t both[] = {next.handle, graph.handle};
  FAILS(JITMEM_INVALID_ARGUMENT, "this thread has a write scope",
        jitmem_manager_deallocate(fixture->manager, both, 2, error));
  assert_int_equal(jitmem_manager_try_deallocate(fixture->manager, both, 2, NULL),
                   JITMEM_WOULD_BLOCK);
  struct counter done = COUNTER;
  OK(jitmem_manager_deallocate_async(fixture->manager, both, 2, count_success, &done, NULL, error));
  assert_int_equal(stats_of(fixture->manager).finalized, 2);
  jitmem_write_scope *late = NULL;
  REFUSED(JITMEM_INVALID_HANDLE, "is being deallocated",
          jitmem_write_scope_begin(fixture->manager, graph.handle, &late, error));
  uint32_t value = 7;
  OK(jitmem_write_scope_store(scopes[0], graph.memory[2].address, &value, 4, error));
  OK(jitmem_write_scope_end(scopes[0], error));
  assert_int_equal(done.count, 0);
  assert_int_equal(*at(graph.memory[2].address), 7);
  OK(jitmem_write_scope_end(scopes[1], error));
  assert_int_equal(counted(&done, 1), 1);
  assert_int_equal(stats_of(fixture->manager).finalized, 0);

  // A thread that waits for another's scope.
  graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  jitmem_write_scope *scope = begin(fixture->manager, graph.handle);
  struct deallocation deallocation = {fixture->manager, graph.handle, COUNTER};
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, deallocate_and_wait, &deallocation), 0);
  OK(jitmem_write_scope_store(scope, graph.memory[2].address, &value, 4, error));
  assert_int_equal(deallocation.done.count, 0);
  OK(jitmem_write_scope_end(scope, error));
  assert_int_equal(counted(&deallocation.done, 1), 1);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_int_equal(stats_of(fixture->manager).live, 0);
}

static void a_scope_keeps_a_freed_manager(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  jitmem_write_scope *scope = begin(fixture->manager, graph.handle);
  jitmem_manager_free(fixture->manager);
  uint32_t value = 7;
  OK(jitmem_write_scope_store(scope, graph.memory[2].address, &value, 4, error));
  assert_int_equal(*at(graph.memory[2].address), 7);
  OK(jitmem_write_scope_end(scope, error));
}

static void a_child_does_not_write_its_parents_code(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  jitmem_write_scope *scope = begin(fixture->manager, graph.handle);
  fflush(NULL);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    uint32_t value = 7;
    MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "",
              jitmem_write_scope_store(scope, graph.memory[2].address, &value, 4, error));
    MUST_OK(jitmem_write_scope_end(scope, error));
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  OK(jitmem_write_scope_end(scope, error));
  deallocate(fixture->manager, graph.handle);
}

// ---- in another process ----

struct other {
  struct executor executor;
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static void connect_other(struct other *other,
                          jitmem_status (*make)(const jitmem_transport *,
                                                const jitmem_executor_options *, jitmem_mapper **,
                                                jitmem_error **)) {
  const char *program = getenv("JITMEM_EXECUTOR");
  other->executor = program != NULL ? start_program(program) : start_executor(NULL);
  OK(jitmem_transport_socket(other->executor.socket, &other->transport, error));
  OK(make(other->transport, NULL, &other->mapper, error));
  OK(jitmem_manager_create(other->mapper, NULL, &other->manager, error));
}

static void disconnect_other(struct other *other) {
  jitmem_manager_free(other->manager);
  jitmem_mapper_free(other->mapper);
  jitmem_transport_free(other->transport);
  assert_int_equal(status_of_executor(other->executor), 0);
}

struct watch {
  const jitmem_transport *transport;
  uint64_t function;
  int32_t last, answer;
};

static void *watch(void *ctx) {
  struct watch *watch = ctx;
  if (call_int(watch->transport, watch->function, watch->last, &watch->answer, NULL) != JITMEM_OK)
    abort();
  return NULL;
}

static void code_of_another_process_is_written(void **state) {
  (void)state;
  struct other other;
  connect_other(&other, jitmem_mapper_shared);
  struct graph graph = emit_all(other.manager, R);
  uint64_t code = graph.memory[0].address;
  const uint64_t last_constant = CONSTANTS > REDIRECTS ? rounds(REDIRECTS) : CONSTANTS - 1;
  const struct {
    uint64_t watcher;
    void (*change)(const jitmem_manager *, const struct graph *, uint64_t);
    uint64_t last;
  } cases[] = {{WATCH_STUB, redirect_to_next, TARGETS - 1},
               {WATCH_CONSTANT, change_to, last_constant}};
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct watch watched = {other.transport, code + cases[i].watcher, (int32_t)cases[i].last, -1};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, watch, &watched), 0);
    uint64_t before = stats_of(other.manager).messages;
    for (uint64_t number = 1; number <= cases[i].last; number++)
      cases[i].change(other.manager, &graph, number);
    // Where only the executor can maintain its caches, it is told of each change of code.
    const int told = !COHERENT_FETCH && cases[i].change == change_to;
    assert_int_equal(stats_of(other.manager).messages - before, told ? cases[i].last : 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(watched.answer, 0);
  }
  deallocate(other.manager, graph.handle);
  disconnect_other(&other);
}

static void content_in_messages_is_refused(void **state) {
  (void)state;
  struct other other;
  connect_other(&other, jitmem_mapper_remote);
  struct graph graph = allocate_three(other.manager, 1);
  finalize(other.manager, graph.handle);
  jitmem_write_scope *scope = NULL;
  REFUSED(JITMEM_UNSUPPORTED, "choose a mapper with shared pages",
          jitmem_write_scope_begin(other.manager, graph.handle, &scope, error));
  assert_null(scope);
  deallocate(other.manager, graph.handle);
  disconnect_other(&other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(no_call_is_torn_or_stale_after_a_redirect),
      TWO_VIEWS(no_call_runs_old_code_after_a_scope),
      TWO_VIEWS(sixteen_bytes_are_stored_at_once),
      EACH(a_pointer_is_for_any_bytes),
      EACH(what_can_not_be_written_is_refused),
      EACH(a_deallocation_waits_for_scopes),
      EACH(a_scope_keeps_a_freed_manager),
      EACH(a_child_does_not_write_its_parents_code),
      cmocka_unit_test(code_of_another_process_is_written),
      cmocka_unit_test(content_in_messages_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
