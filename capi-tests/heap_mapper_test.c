// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Mappers, transports, services and executors with a heap that is exhausted: see heap_calls.h.

#include "heap_calls.h"

static void make_mappers(void **state) {
  (void)state;
  for (uint32_t kind = JITMEM_IN_PROCESS_AUTO; kind <= JITMEM_IN_PROCESS_MPROTECT; kind++) {
    EACH_FAILURE(round) {
      jitmem_mapper *mapper = NULL;
      TRY(round, jitmem_mapper_in_process(kind, &mapper, error));
      assert_int_equal(round.status == JITMEM_OK, mapper != NULL);
      ALWAYS(round, jitmem_mapper_free(mapper));
    }
  }
}

// ---- custom mappers ----

typedef void reserve_function(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                              jitmem_request request);

static jitmem_mapper_callbacks reserving_with(reserve_function *reserve) {
  return (jitmem_mapper_callbacks){.struct_size = sizeof(jitmem_mapper_callbacks),
                                   .page_size = page_size(),
                                   .granule = 16,
                                   .reserve = reserve,
                                   .prepare = host_prepare,
                                   .initialize = on_initialize,
                                   .deinitialize = on_deinitialize,
                                   .reclaim = host_reclaim,
                                   .release = on_release};
}

static void custom_mappers(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    struct hosted *hosted = NULL;
    // Its own calls are checked; here it is about the mapper alone.
    set_up_shared((void **)&hosted);
    const jitmem_mapper_callbacks callbacks = reserving_with(on_reserve);
    jitmem_mapper *mapper = NULL;
    TRY(round, jitmem_mapper_custom(&callbacks, &mapper, error));
    assert_int_equal(round.status == JITMEM_OK, mapper != NULL);
    jitmem_mapper_free(mapper);
    host_tear_down_all((void **)&hosted);
  }
}

static jitmem_request kept;

static void keep_request(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                         jitmem_request request) {
  (void)ctx, (void)size, (void)placement, (void)address;
  kept = request;
}

// The host's answer arrives even where there is no memory for what it says.
static void answers_of_custom_mappers(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    struct hosted *hosted = NULL;
    set_up_shared((void **)&hosted);
    const jitmem_mapper_callbacks callbacks = reserving_with(keep_request);
    jitmem_mapper *mapper = NULL;
    OK(jitmem_mapper_custom(&callbacks, &mapper, error));
    struct answer answer = ANSWER;
    OK(jitmem_manager_create_async(mapper, NULL, on_created, &answer, NULL, error));
    TRY(round, jitmem_mapper_complete(kept, JITMEM_DENIED, "no", 0, 0, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(answer.counter.count, 1);
    assert_int_equal(answer.status, JITMEM_DENIED);
    jitmem_mapper_free(mapper);
    host_tear_down_all((void **)&hosted);
  }
}

// ---- transports, services, executors ----

static void mappers_over_a_transport(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    EACH_FAILURE(round) {
      struct here here;
      here_set_up(&here, here_call);
      jitmem_mapper *mapper = NULL;
      jitmem_error *object = NULL;
      heap_begin(round.kind, round.skip);
      jitmem_status status = shared ? jitmem_mapper_shared(here.transport, NULL, &mapper, &object)
                                    : jitmem_mapper_remote(here.transport, NULL, &mapper, &object);
      round.failed = heap_end();
      // Both sides are in this process: what the executor's has no memory for is its failure.
      assert_true(status == JITMEM_OK || round.failed > 0);
      assert_int_equal(status == JITMEM_OK, mapper != NULL);
      jitmem_error_free(object);
      jitmem_mapper_free(mapper);
      here_tear_down(&here);
    }
  }
}

static void transports(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    jitmem_transport *transport = NULL;
    const jitmem_transport_callbacks callbacks = {
        .struct_size = sizeof callbacks, .call = here_call, .symbol = here_symbol};
    TRY(round, jitmem_transport_custom(&callbacks, &transport, error));
    assert_int_equal(round.status == JITMEM_OK, transport != NULL);
    ALWAYS(round, jitmem_transport_free(transport));
  }
  struct here here;
  here_set_up(&here, here_call);
  EACH_FAILURE(round) {
    uint64_t address = 0;
    TRY(round, jitmem_transport_symbol(here.transport, "jitmem_service_open", &address, error));
  }
  EACH_FAILURE(round) {
    struct packed result = {.size = 0};
    TRY(round, jitmem_transport_call(here.transport, (uintptr_t)action, "abc", 3, take_packed,
                                     &result, error));
    assert_int_equal(result.size, round.status == JITMEM_OK ? 1 : 0);
  }
  here_tear_down(&here);
}

static jitmem_call kept_call;
static jitmem_task kept_task;
static struct counter calls_kept = COUNTER, tasks_kept = COUNTER;

static void keep_call(void *ctx, uint64_t function, const void *args, size_t size,
                      jitmem_call call) {
  (void)ctx, (void)function, (void)args, (void)size;
  kept_call = call;
  count(&calls_kept);
}

static void keep_task(void *ctx, jitmem_task task) {
  (void)ctx;
  kept_task = task;
  count(&tasks_kept);
}

static void *call_it(void *transport) {
  jitmem_transport_call(transport, 1, "abc", 3, NULL, NULL, NULL);
  return NULL;
}

static void answers_of_transports(void **state) {
  (void)state;
  const jitmem_transport_callbacks callbacks = {
      .struct_size = sizeof callbacks, .call = keep_call, .dispatch = keep_task};
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  EACH_FAILURE(round) {
    pthread_t caller;
    calls_kept.count = 0;
    assert_int_equal(pthread_create(&caller, NULL, call_it, transport), 0);
    assert_int_equal(counted(&calls_kept, 1), 1);
    char bytes[100] = {0};
    TRY(round, jitmem_transport_answer(kept_call, JITMEM_OK, NULL, bytes, sizeof bytes, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(pthread_join(caller, NULL), 0);
  }
  jitmem_transport_free(transport);
}

static void on_called(void *ctx, const void *bytes, size_t size, const jitmem_error *error) {
  (void)bytes, (void)size;
  on_done(ctx, error);
}

static void calls_that_are_given_up(void **state) {
  (void)state;
  const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks, .call = keep_call};
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    uint64_t call = 0;
    TRY(round,
        jitmem_transport_start(transport, 1, "abc", 3, 0, on_called, &answer, NULL, &call, error));
    // One that has no number can't be given up.
    if (call != 0)
      OK(jitmem_transport_cancel(call, error));
    else if (round.status == JITMEM_OK)
      OK(jitmem_transport_answer(kept_call, JITMEM_OK, NULL, "", 0, error));
    assert_int_equal(answer.counter.count, round.status == JITMEM_OK);
  }
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    uint64_t call = 0;
    OK(jitmem_transport_start(transport, 1, "abc", 3, 0, on_called, &answer, NULL, &call, error));
    TRY(round, jitmem_transport_cancel(call, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(answer.counter.count, 1);
  }
  jitmem_transport_free(transport);
}

// A task runs its callbacks once, whatever there is no memory for.
static void tasks_of_transports(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks,
                                                .ctx = &here,
                                                .call = here_call,
                                                .symbol = here_symbol,
                                                .dispatch = keep_task};
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, 0, &mapper);
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    const jitmem_action actions[] = {{.finalize = call_of(action, "a", 1)}};
    struct answer answer = ANSWER;
    tasks_kept.count = 0;
    OK(jitmem_manager_finalize_async(manager, graphs.handle, actions, 1, on_done, &answer, NULL,
                                     error));
    assert_int_equal(counted(&tasks_kept, 1), 1);
    TRY(round, jitmem_task_run(kept_task, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(answer.counter.count, 1);
    assert_int_equal(answer.status, JITMEM_OK);
    OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  here_tear_down(&here);
}

// This process has no services of LLVM's, which is found out with little memory as well.
static void mappers_of_llvm(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  for (int shared = 0; shared < 2; shared++) {
    EACH_FAILURE(round) {
      jitmem_mapper *mapper = NULL;
      jitmem_error *object = NULL;
      heap_begin(round.kind, round.skip);
      jitmem_status status =
          shared ? jitmem_mapper_llvm_shared(here.transport, "why", &mapper, &object)
                 : jitmem_mapper_llvm_simple(here.transport, "why", &mapper, &object);
      round.failed = heap_end();
      assert_true(status == JITMEM_UNSUPPORTED || status == JITMEM_OUT_OF_MEMORY);
      assert_int_equal(jitmem_error_status(object), status);
      jitmem_error_free(object);
    }
  }
  here_tear_down(&here);
}

static void ignore_executor(void *ctx, const jitmem_group_executor *executor) {
  (void)ctx;
  (void)executor;
}

static void ignore_change(void *ctx, const jitmem_group_event *event) {
  (void)ctx;
  (void)event;
}

// Both sides are in this process: what the executor's has no memory for is its failure. Several of
// this process are possible before they have a window.
static void groups(void **state) {
  (void)state;
  const jitmem_group_observer observer = {.struct_size = sizeof observer, .fn = ignore_change};
  EACH_FAILURE(round) {
    struct here here, there;
    here_set_up(&here, here_call);
    here_set_up(&there, here_call);
    const jitmem_new_executor one = {.transport = here.transport, .name = "here"};
    const jitmem_new_executor other = {.transport = there.transport, .name = "there"};
    jitmem_mapper *mapper = NULL;
    uint64_t number = 0;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_mapper_group(&one, 1, &observer, &mapper, NULL);
    if (status == JITMEM_OK)
      status = jitmem_mapper_add_executor(mapper, &other, &number, NULL);
    if (status == JITMEM_OK)
      status = jitmem_mapper_executors(mapper, ignore_executor, NULL, NULL);
    if (status == JITMEM_OK)
      status = jitmem_mapper_remove_executor(mapper, number, NULL);
    round.failed = heap_end();
    assert_true(status == JITMEM_OK || round.failed > 0);
    jitmem_mapper_free(mapper);
    here_tear_down(&there);
    here_tear_down(&here);
  }
}

static void *serve(void *fd) {
  jitmem_executor_serve(*(int *)fd, *(int *)fd, NULL, NULL);
  close(*(int *)fd);
  return NULL;
}

static void connections(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    int ends[2];
    pthread_t server;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, &ends[1]), 0);
    jitmem_transport *transport = NULL;
    TRY(round, jitmem_transport_socket(ends[0], &transport, error));
    if (transport == NULL)
      close(ends[0]);
    jitmem_transport_free(transport);
    assert_int_equal(pthread_join(server, NULL), 0);
  }
  EACH_FAILURE(round) {
    int ends[2];
    pthread_t server;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, &ends[1]), 0);
    const jitmem_limits limits = {.struct_size = sizeof limits, .session = 100000};
    jitmem_transport *transport = NULL;
    TRY(round, jitmem_transport_connect(ends[0], &limits, &transport, error));
    if (transport == NULL)
      close(ends[0]);
    jitmem_transport_free(transport);
    assert_int_equal(pthread_join(server, NULL), 0);
  }
}

static void tokens(void **state) {
  (void)state;
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  EACH_FAILURE(round) {
    TRY(round, jitmem_transport_send_token(ends[0], "0123456789abcdef", 16, error));
  }
  close(ends[0]);
  close(ends[1]);
}

static void take_address(void *ctx, const char *name, uint64_t address) {
  (void)ctx, (void)name, (void)address;
}

static void take_reply(void *session, jitmem_wrapper_result answer, uint64_t call) {
  (void)call;
  memcpy(session, &answer, sizeof answer);
}

static void services(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    jitmem_service *service = NULL;
    TRY(round, jitmem_service_create(&service, error));
    assert_int_equal(round.status == JITMEM_OK, service != NULL);
    ALWAYS(round, jitmem_service_free(service));
  }
  jitmem_service *service = NULL;
  OK(jitmem_service_create(&service, error));
  EACH_FAILURE(round) { TRY(round, jitmem_service_symbols(service, take_address, NULL, error)); }
  EACH_FAILURE(round) {
    jitmem_wrapper_result result;
    ALWAYS(round, result = jitmem_service_open(NULL, 0));
    if (result.size > 8)
      free((void *)(uintptr_t)result.data);
  }
  EACH_FAILURE(round) {
    TRY(round, jitmem_service_session_symbols(service, take_address, NULL, error));
  }
  EACH_FAILURE(round) {
    const jitmem_wrapper_result no_arguments = {.size = 0};
    jitmem_wrapper_result reply = {.size = 7};
    ALWAYS(round, jitmem_service_open_by_session(&reply, no_arguments, take_reply, 1));
    assert_int_not_equal(reply.size, 7);
    if (reply.size == 0 || reply.size > 8)
      free((void *)(uintptr_t)reply.data);
  }
  jitmem_service_free(service);
}

// Serves a controller that hangs up at once.
static void serving(void **state) {
  (void)state;
  const jitmem_containment unbounded = {.struct_size = sizeof unbounded};
  EACH_FAILURE(round) {
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(shutdown(ends[0], SHUT_WR), 0);
    TRY(round, jitmem_executor_contain(&unbounded, NULL, error));
    TRY(round, jitmem_executor_serve(ends[1], ends[1], NULL, error));
    close(ends[0]);
    close(ends[1]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(make_mappers),
      cmocka_unit_test(custom_mappers),
      cmocka_unit_test(answers_of_custom_mappers),
      cmocka_unit_test(mappers_over_a_transport),
      cmocka_unit_test(mappers_of_llvm),
      cmocka_unit_test(groups),
      cmocka_unit_test(transports),
      cmocka_unit_test(answers_of_transports),
      cmocka_unit_test(calls_that_are_given_up),
      cmocka_unit_test(tasks_of_transports),
      cmocka_unit_test(services),
      cmocka_unit_test(connections),
      cmocka_unit_test(tokens),
      cmocka_unit_test(serving),
  };
  return at_rest(cmocka_run_group_tests_name("heap-mapper", tests, NULL, NULL));
}
