// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Transports made by a host: answers that come late, twice, in another order, from other threads or
// never, and callbacks that run where the host wants them.

#include "here.h"
#include "limits.h"

#include <stdatomic.h>

// ---- a host that keeps its calls until the test answers them ----

struct kept {
  uint64_t function;
  char args[16];
  size_t size;
  jitmem_call call;
};

struct keeper {
  jitmem_transport *transport;
  struct kept calls[64];
  struct counter made, destroyed;
  // The executor is gone: what is kept is answered so, and so is all that comes.
  int gone;
};

static void answer_gone(jitmem_call call) {
  const char *message = "the host gives up";
  if (jitmem_transport_answer(call, JITMEM_DISCONNECTED, message, NULL, 0, NULL) != JITMEM_OK)
    abort();
}

static void keep_call(void *ctx, uint64_t function, const void *args, size_t size,
                      jitmem_call call) {
  struct keeper *keeper = ctx;
  pthread_mutex_lock(&keeper->made.lock);
  int gone = keeper->gone;
  if (!gone) {
    if (keeper->made.count == COUNT(keeper->calls))
      abort();
    struct kept *kept = &keeper->calls[keeper->made.count++];
    *kept = (struct kept){.function = function, .size = size, .call = call};
    memcpy(kept->args, args, size < sizeof kept->args ? size : sizeof kept->args);
    pthread_cond_broadcast(&keeper->made.changed);
  }
  pthread_mutex_unlock(&keeper->made.lock);
  if (gone)
    answer_gone(call);
}

static void give_up(struct keeper *keeper) {
  pthread_mutex_lock(&keeper->made.lock);
  keeper->gone = 1;
  pthread_mutex_unlock(&keeper->made.lock);
  for (int i = 0; i < keeper->made.count; i++)
    answer_gone(keeper->calls[i].call);
}

static void destroy_keeper(void *ctx) { count(&((struct keeper *)ctx)->destroyed); }

static void keeper_set_up(struct keeper *keeper) {
  *keeper = (struct keeper){.made = COUNTER, .destroyed = COUNTER};
  const jitmem_transport_callbacks callbacks = {
      .struct_size = sizeof callbacks, .ctx = keeper, .destroy = destroy_keeper, .call = keep_call};
  OK(jitmem_transport_custom(&callbacks, &keeper->transport, error));
}

// ---- a caller that waits in a thread of its own ----

struct caller {
  pthread_t thread;
  jitmem_transport *transport;
  char number;
  int results;
  char result[16];
  size_t size;
  jitmem_status status;
  jitmem_error *error;
};

static void take_result(void *ctx, const void *bytes, size_t size) {
  struct caller *caller = ctx;
  caller->results++;
  caller->size = size;
  memcpy(caller->result, bytes, size < sizeof caller->result ? size : sizeof caller->result);
}

static void *call_and_wait(void *argument) {
  struct caller *caller = argument;
  caller->status = jitmem_transport_call(caller->transport, 7, &caller->number, 1, take_result,
                                         caller, &caller->error);
  return NULL;
}

static void start_calls(struct keeper *keeper, struct caller *callers, int count) {
  for (int i = 0; i < count; i++) {
    callers[i] = (struct caller){.transport = keeper->transport, .number = (char)('a' + i)};
    assert_int_equal(pthread_create(&callers[i].thread, NULL, call_and_wait, &callers[i]), 0);
  }
  assert_int_equal(counted(&keeper->made, count), count);
}

static void end_call(struct caller *caller) {
  assert_int_equal(pthread_join(caller->thread, NULL), 0);
}

// ---- answers ----

static void answers_find_their_calls_in_any_order(void **state) {
  (void)state;
  struct keeper keeper;
  struct caller callers[8];
  keeper_set_up(&keeper);
  start_calls(&keeper, callers, COUNT(callers));
  for (int i = COUNT(callers) - 1; i >= 0; i--) {
    struct kept *kept = &keeper.calls[i];
    assert_int_equal(kept->function, 7);
    assert_int_equal(kept->size, 1);
    const char result[] = {'>', kept->args[0]};
    OK(jitmem_transport_answer(kept->call, JITMEM_OK, NULL, result, sizeof result, error));
  }
  for (size_t i = 0; i < COUNT(callers); i++) {
    end_call(&callers[i]);
    assert_int_equal(callers[i].status, JITMEM_OK);
    assert_int_equal(callers[i].results, 1);
    assert_int_equal(callers[i].size, 2);
    assert_int_equal(callers[i].result[1], callers[i].number);
  }
  jitmem_transport_free(keeper.transport);
  assert_int_equal(keeper.destroyed.count, 1);
}

static void a_second_answer_is_refused(void **state) {
  (void)state;
  struct keeper keeper;
  struct caller caller;
  keeper_set_up(&keeper);
  start_calls(&keeper, &caller, 1);
  jitmem_call call = keeper.calls[0].call;
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes is NULL",
          jitmem_transport_answer(call, JITMEM_OK, NULL, NULL, 5, error));
  for (int bit = 0; bit < 64; bit++)
    FAILS(JITMEM_INVALID_HANDLE, "never made",
          jitmem_transport_answer(call ^ (uint64_t)1 << bit, JITMEM_OK, NULL, NULL, 0, error));
  OK(jitmem_transport_answer(call, JITMEM_OK, NULL, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "answered before",
          jitmem_transport_answer(call, JITMEM_DISCONNECTED, "gone", NULL, 0, error));
  end_call(&caller);
  assert_int_equal(caller.status, JITMEM_OK);
  assert_int_equal(caller.size, 0);
  jitmem_transport_free(keeper.transport);
  REFUSED(JITMEM_INVALID_HANDLE, "answered before",
          jitmem_transport_answer(call, JITMEM_OK, NULL, NULL, 0, error));
  assert_int_equal(keeper.destroyed.count, 1);
}

// What has 0 for its number, as a call that was not started, is none; those that follow are all
// there.
static void the_number_0_names_nothing(void **state) {
  (void)state;
  struct keeper keeper;
  struct caller callers[3];
  keeper_set_up(&keeper);
  start_calls(&keeper, callers, 1);
  OK(jitmem_transport_answer(keeper.calls[0].call, JITMEM_OK, NULL, NULL, 0, error));
  end_call(&callers[0]);
  for (int i = 0; i < 3; i++) {
    REFUSED(JITMEM_INVALID_HANDLE, "call 0x0",
            jitmem_transport_answer(0, JITMEM_OK, NULL, NULL, 0, error));
    REFUSED(JITMEM_INVALID_HANDLE, "call 0x0", jitmem_transport_cancel(0, error));
    REFUSED(JITMEM_INVALID_HANDLE, "task 0x0", jitmem_task_run(0, error));
  }
  keeper.made.count = 0;
  start_calls(&keeper, callers, COUNT(callers));
  for (size_t i = 0; i < COUNT(callers); i++)
    OK(jitmem_transport_answer(keeper.calls[i].call, JITMEM_OK, NULL, NULL, 0, error));
  for (size_t i = 0; i < COUNT(callers); i++) {
    end_call(&callers[i]);
    assert_int_equal(callers[i].status, JITMEM_OK);
  }
  jitmem_transport_free(keeper.transport);
}

// An answer for which the host's own heap has no room answers its call, since nothing else will.
static void answer_without_room(void *unused) {
  (void)unused;
  enum { SIZE = 200 << 20 };
  struct keeper keeper;
  struct caller caller;
  keeper_set_up(&keeper);
  start_calls(&keeper, &caller, 1);
  void *bytes = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUST(bytes != MAP_FAILED);
  set_limit(RLIMIT_AS, address_space() + (64 << 20));
  MUST_OK(jitmem_transport_answer(keeper.calls[0].call, JITMEM_OK, NULL, bytes, SIZE, error));
  end_call(&caller);
  set_limit(RLIMIT_AS, RLIM_INFINITY);
  MUST(caller.status == JITMEM_OUT_OF_MEMORY && caller.results == 0);
  jitmem_error_free(caller.error);
  jitmem_transport_free(keeper.transport);
}

static void an_answer_without_room_fails_its_call(void **state) {
  (void)state;
  in_child(answer_without_room, NULL);
}

static void failures_come_with_their_message(void **state) {
  (void)state;
  const struct {
    uint32_t given;
    jitmem_status seen;
    const char *message, *words;
  } cases[] = {
      {JITMEM_MAPPER_FAILED, JITMEM_MAPPER_FAILED, "out of band", "out of band"},
      {JITMEM_DISCONNECTED, JITMEM_DISCONNECTED, "it went", "it went"},
      {JITMEM_DISCONNECTED, JITMEM_DISCONNECTED, NULL, "no message"},
      {1000, JITMEM_MAPPER_FAILED, "no such status", "no such status"},
      {UINT32_MAX, JITMEM_MAPPER_FAILED, "not UTF-8: \xff", "not UTF-8"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct keeper keeper;
    struct caller caller;
    keeper_set_up(&keeper);
    start_calls(&keeper, &caller, 1);
    // What comes with a failure is no result.
    OK(jitmem_transport_answer(keeper.calls[0].call, cases[i].given, cases[i].message, "bytes", 5,
                               error));
    end_call(&caller);
    assert_int_equal(caller.status, cases[i].seen);
    assert_int_equal(caller.results, 0);
    assert_non_null(strstr(jitmem_error_message(caller.error), cases[i].words));
    jitmem_error_free(caller.error);
    jitmem_transport_free(keeper.transport);
    assert_int_equal(keeper.destroyed.count, 1);
  }
}

static void a_result_need_not_be_wanted(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  OK(jitmem_transport_call(here.transport, here.open, "", 1, NULL, NULL, error));
  here_tear_down(&here);
}

// ---- the handle ----

static void a_freed_transport(void **state) {
  (void)state;
  struct keeper keeper;
  keeper_set_up(&keeper);
  jitmem_transport *gone = keeper.transport;
  jitmem_transport_free(gone);
  jitmem_mapper *mapper = NULL;
  uint64_t address = 0;
  const char *words = "was freed before";
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_transport_call(gone, 1, "", 1, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_transport_symbol(gone, "name", &address, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_mapper_shared(gone, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_mapper_remote(gone, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_HANDLE, words, jitmem_mapper_llvm_shared(gone, NULL, &mapper, error));
  jitmem_transport_free(gone);
  assert_int_equal(keeper.destroyed.count, 1);
}

static void a_transport_lives_as_long_as_its_calls(void **state) {
  (void)state;
  struct keeper keeper;
  struct caller caller;
  keeper_set_up(&keeper);
  start_calls(&keeper, &caller, 1);
  jitmem_transport_free(keeper.transport);
  assert_int_equal(keeper.destroyed.count, 0);
  OK(jitmem_transport_answer(keeper.calls[0].call, JITMEM_DISCONNECTED, "closing", NULL, 0, error));
  end_call(&caller);
  assert_int_equal(caller.status, JITMEM_DISCONNECTED);
  jitmem_error_free(caller.error);
  assert_int_equal(counted(&keeper.destroyed, 1), 1);
}

static void sizes_of_the_struct(void **state) {
  (void)state;
  struct {
    jitmem_transport_callbacks table;
    uint64_t more;
  } grown = {.table = {.ctx = NULL, .call = keep_call}};
  jitmem_transport *transport = NULL;
  const size_t wrong[] = {0, 1, offsetof(jitmem_transport_callbacks, call), 4097, SIZE_MAX};
  for (size_t i = 0; i < COUNT(wrong); i++) {
    grown.table.struct_size = wrong[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
            jitmem_transport_custom(&grown.table, &transport, error));
  }
  // An older host's, which knows no names; and a newer one's.
  grown.table.symbol = (uint64_t (*)(void *, const char *))(uintptr_t)1;
  grown.table.struct_size = offsetof(jitmem_transport_callbacks, symbol);
  uint64_t address = 0;
  OK(jitmem_transport_custom(&grown.table, &transport, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "no symbol x",
          jitmem_transport_symbol(transport, "x", &address, error));
  jitmem_transport_free(transport);
  grown.table.struct_size = sizeof grown;
  OK(jitmem_transport_custom(&grown.table, &transport, error));
  jitmem_transport_free(transport);
  grown.more = 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
          jitmem_transport_custom(&grown.table, &transport, error));
}

static void names_come_from_the_host(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  uint64_t address = 0;
  OK(jitmem_transport_symbol(here.transport, "jitmem_service_open", &address, error));
  assert_int_equal(address, here.open);
  REFUSED(JITMEM_INVALID_ARGUMENT, "no symbol elsewhere",
          jitmem_transport_symbol(here.transport, "elsewhere", &address, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "not UTF-8",
          jitmem_transport_symbol(here.transport, "\xff", &address, error));
  assert_int_equal(address, here.open);
  here_tear_down(&here);
}

// ---- executors that go wrong under a mapper ----

struct outcome {
  struct counter called, destroyed;
  jitmem_status status;
};

static void done(void *ctx, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  outcome->status = jitmem_error_status(error);
  count(&outcome->called);
}

static void outcome_destroyed(void *ctx) { count(&((struct outcome *)ctx)->destroyed); }

// From when the test says so, calls are kept.
struct fading {
  struct here here;
  atomic_int keeps;
  struct keeper keeper;
};

static void fading_call(void *ctx, uint64_t function, const void *args, size_t size,
                        jitmem_call call) {
  struct fading *fading = ctx;
  if (atomic_load(&fading->keeps))
    keep_call(&fading->keeper, function, args, size, call);
  else
    here_call(ctx, function, args, size, call);
}

static void an_executor_that_never_answers(void **state) {
  (void)state;
  struct fading fading = {.keeper = {.made = COUNTER}};
  jitmem_mapper *mapper = NULL;
  here_set_up(&fading.here, fading_call);
  jitmem_manager *manager = manager_here(&fading.here, 0, &mapper);
  struct graph graphs[3];
  struct outcome outcomes[4];
  for (size_t i = 0; i < COUNT(graphs); i++)
    graphs[i] = allocate_three(manager, (uint8_t)i);
  atomic_store(&fading.keeps, 1);
  for (size_t i = 0; i < COUNT(outcomes); i++)
    outcomes[i] = (struct outcome){.called = COUNTER, .destroyed = COUNTER};
  for (size_t i = 0; i < COUNT(graphs); i++)
    OK(jitmem_manager_finalize_async(manager, graphs[i].handle, NULL, 0, done, &outcomes[i],
                                     outcome_destroyed, error));
  assert_true(counted(&fading.keeper.made, 1) >= 1);
  // All handles go while everything is under way.
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(fading.here.transport);
  for (size_t i = 0; i < COUNT(graphs); i++)
    assert_int_equal(outcomes[i].called.count, 0);
  assert_int_equal(fading.here.destroyed.count, 0);
  give_up(&fading.keeper);
  for (size_t i = 0; i < COUNT(graphs); i++) {
    assert_int_equal(counted(&outcomes[i].destroyed, 1), 1);
    assert_int_equal(outcomes[i].called.count, 1);
    assert_int_equal(outcomes[i].status, JITMEM_DISCONNECTED);
  }
  assert_int_equal(counted(&fading.here.destroyed, 1), 1);
  jitmem_service_free(fading.here.service);
}

// ---- a host with places of its own for callbacks ----

struct stage {
  struct here here;
  jitmem_transport *transport;
  struct counter destroyed, dispatched;
  jitmem_task tasks[64];
};

static void stage_call(void *ctx, uint64_t function, const void *args, size_t size,
                       jitmem_call call) {
  here_call(ctx, function, args, size, call);
}

static uint64_t stage_symbol(void *ctx, const char *name) {
  return here_symbol(&((struct stage *)ctx)->here, name);
}

static void stage_destroy(void *ctx) { count(&((struct stage *)ctx)->destroyed); }

static void keep_task(void *ctx, jitmem_task task) {
  struct stage *stage = ctx;
  pthread_mutex_lock(&stage->dispatched.lock);
  if (stage->dispatched.count == COUNT(stage->tasks))
    abort();
  stage->tasks[stage->dispatched.count++] = task;
  pthread_cond_broadcast(&stage->dispatched.changed);
  pthread_mutex_unlock(&stage->dispatched.lock);
}

static struct wrapper_result nothing(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static int calls_of(struct outcome *outcomes, size_t count) {
  int calls = 0;
  for (size_t i = 0; i < count; i++)
    calls += counted(&outcomes[i].called, 0);
  return calls;
}

static void callbacks_run_where_the_host_wants_them(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct stage stage = {.destroyed = COUNTER, .dispatched = COUNTER};
    here_set_up(&stage.here, here_call);
    const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks,
                                                  .ctx = &stage,
                                                  .destroy = stage_destroy,
                                                  .call = stage_call,
                                                  .symbol = stage_symbol,
                                                  .dispatch = keep_task};
    OK(jitmem_transport_custom(&callbacks, &stage.transport, error));
    jitmem_mapper *mapper = NULL;
    // What is waited for needs no dispatcher.
    jitmem_manager *manager = manager_over(stage.transport, shared, &mapper);
    const jitmem_action action = {.finalize = call_of(nothing, "", 0),
                                  .dealloc = call_of(nothing, "", 0)};
    struct graph graphs[3];
    struct outcome outcomes[COUNT(graphs)];
    for (size_t i = 0; i < COUNT(graphs); i++) {
      graphs[i] = allocate_three(manager, (uint8_t)i);
      OK(jitmem_manager_finalize(manager, graphs[i].handle, &action, 1, error));
      outcomes[i] = (struct outcome){.called = COUNTER, .destroyed = COUNTER};
      OK(jitmem_manager_deallocate_async(manager, &graphs[i].handle, 1, done, &outcomes[i],
                                         outcome_destroyed, error));
    }
    // They come in one task or in several, and run when the host has them run.
    for (int ran = 0; calls_of(outcomes, COUNT(outcomes)) < (int)COUNT(outcomes); ran++) {
      assert_true(ran < counted(&stage.dispatched, ran + 1));
      int before = calls_of(outcomes, COUNT(outcomes));
      OK(jitmem_task_run(stage.tasks[ran], error));
      assert_true(calls_of(outcomes, COUNT(outcomes)) > before);
      REFUSED(JITMEM_INVALID_HANDLE, "task", jitmem_task_run(stage.tasks[ran], error));
    }
    for (size_t i = 0; i < COUNT(graphs); i++) {
      assert_int_equal(counted(&outcomes[i].destroyed, 1), 1);
      assert_int_equal(outcomes[i].called.count, 1);
      assert_int_equal(outcomes[i].status, JITMEM_OK);
    }
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    jitmem_transport_free(stage.transport);
    assert_int_equal(counted(&stage.destroyed, 1), 1);
    here_tear_down(&stage.here);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(answers_find_their_calls_in_any_order),
      cmocka_unit_test(a_second_answer_is_refused),
      cmocka_unit_test(the_number_0_names_nothing),
      cmocka_unit_test(an_answer_without_room_fails_its_call),
      cmocka_unit_test(failures_come_with_their_message),
      cmocka_unit_test(a_result_need_not_be_wanted),
      cmocka_unit_test(a_freed_transport),
      cmocka_unit_test(a_transport_lives_as_long_as_its_calls),
      cmocka_unit_test(sizes_of_the_struct),
      cmocka_unit_test(names_come_from_the_host),
      cmocka_unit_test(an_executor_that_never_answers),
      cmocka_unit_test(callbacks_run_where_the_host_wants_them),
  };
  return at_rest(cmocka_run_group_tests_name("transports", tests, NULL, NULL));
}
