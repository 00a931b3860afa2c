// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// NULL for every pointer of every function: an error that names it, nothing done, nothing written.
// REFUSED makes each call twice, the second time with error == NULL.

#include "here.h"

enum { UNTOUCHED = 0x5a };

struct calls {
  int ran, destroyed;
};

static void count_created(void *ctx, jitmem_manager *manager, const jitmem_error *error) {
  (void)manager, (void)error;
  ((struct calls *)ctx)->ran++;
}

static void count_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                            size_t count, const jitmem_error *error) {
  (void)allocation, (void)memory, (void)count, (void)error;
  ((struct calls *)ctx)->ran++;
}

static void count_done(void *ctx, const jitmem_error *error) {
  (void)error;
  ((struct calls *)ctx)->ran++;
}

static void destroy(void *ctx) { ((struct calls *)ctx)->destroyed++; }

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

// REFUSED for an asynchronous call: nothing is called back, and each call destroys its context.
#define REFUSED_ASYNC(words, call)                                                                 \
  do {                                                                                             \
    struct calls calls = {0}, *ctx = &calls;                                                       \
    REFUSED(JITMEM_INVALID_ARGUMENT, words, call);                                                 \
    assert_int_equal(calls.ran, 0);                                                                \
    assert_int_equal(calls.destroyed, 2);                                                          \
  } while (0)

static void errors(void **state) {
  (void)state;
  assert_int_equal(jitmem_error_status(NULL), JITMEM_OK);
  assert_string_equal(jitmem_error_message(NULL), "success");
  assert_int_equal(jitmem_error_os_code(NULL), 0);
  jitmem_error_free(NULL);
}

static void versions_and_status_names(void **state) {
  (void)state;
  assert_int_equal(jitmem_version(), JITMEM_VERSION);
  assert_string_equal(jitmem_version_string(), JITMEM_VERSION_STRING);
  assert_string_equal(jitmem_status_name(JITMEM_OK), "JITMEM_OK");
  assert_string_equal(jitmem_status_name(JITMEM_INTERNAL), "JITMEM_INTERNAL");
  assert_string_equal(jitmem_status_name(1000), "unknown status");
  assert_string_equal(jitmem_status_name(UINT32_MAX), "unknown status");
}

static void mappers(void **state) {
  (void)state;
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, NULL, error));
  jitmem_mapper *mapper = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper_callbacks is NULL",
          jitmem_mapper_custom(NULL, &mapper, error));
  assert_null(mapper);
  jitmem_mapper_free(NULL);
  REFUSED(JITMEM_INVALID_HANDLE, "request 0x0",
          jitmem_mapper_complete(0, JITMEM_OK, NULL, 0, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "request 0xffffffffffffffff",
          jitmem_mapper_complete(UINT64_MAX, JITMEM_SYSTEM, "why", 0, 0, error));
}

static void sections(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = NULL;
  void *memory = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_section_group_create(NULL, 0, &group, error));
  assert_null(group);
  REFUSED(JITMEM_INVALID_ARGUMENT, "section_group is NULL",
          jitmem_section_group_create(fixture->manager, 0, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_section_group is NULL",
          jitmem_section_group_allocate(NULL, 0, 1, 1, NULL, &memory, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_section_group_allocate(NULL, 0, 1, 1, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "section is NULL",
          jitmem_section_group_register_eh_frame(NULL, NULL, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_section_group is NULL",
          jitmem_section_group_register_eh_frame(NULL, &memory, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_section_group is NULL",
          jitmem_section_group_finalize(NULL, error));
  jitmem_section_group_free(NULL);
}

static void frames(void **state) {
  struct fixture *fixture = *state;
  uint64_t args[2], function = UNTOUCHED;
  jitmem_action action;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_eh_frame_action(NULL, 16, 16, args, &action, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "args is NULL",
          jitmem_manager_eh_frame_action(fixture->manager, 16, 16, NULL, &action, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "action is NULL",
          jitmem_manager_eh_frame_action(fixture->manager, 16, 16, args, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "register_ is NULL",
          jitmem_eh_frame_functions(NULL, &function, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "deregister is NULL",
          jitmem_eh_frame_functions(&function, NULL, error));
  assert_int_equal(function, UNTOUCHED);
  void *bases[3] = {0};
  assert_null(jitmem_find_fde(NULL, bases));
  assert_null(jitmem_find_fde(&function, NULL));
  assert_null(jitmem_find_fde(&function, bases));
}

// LLVM's callbacks have no error objects: finalize has the words.
static void rtdyld_callbacks(void **state) {
  (void)state;
  void *context = jitmem_rtdyld_create_context(NULL);
  assert_non_null(context);
  assert_non_null(jitmem_rtdyld_allocate_code_section(context, 8, 16, 1, NULL));
  assert_non_null(jitmem_rtdyld_allocate_data_section(context, 8, 16, 1, NULL, 1));
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, NULL), 1);
  char *message = NULL;
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, &message), 1);
  assert_non_null(strstr(message, "jitmem_manager is NULL"));
  free(message);
  jitmem_rtdyld_destroy(context);
  jitmem_rtdyld_notify_terminating(NULL);
  assert_null(jitmem_rtdyld_allocate_code_section(NULL, 8, 16, 1, NULL));
  assert_null(jitmem_rtdyld_allocate_data_section(NULL, 8, 16, 1, NULL, 0));
  assert_int_equal(jitmem_rtdyld_finalize_memory(NULL, NULL), 1);
  jitmem_rtdyld_destroy(NULL);
}

static void never_called(void *ctx, uint64_t function, const void *args, size_t size,
                         jitmem_call call) {
  (void)ctx, (void)function, (void)args, (void)size, (void)call;
  abort();
}

static void transports(void **state) {
  (void)state;
  jitmem_transport *transport = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport_callbacks is NULL",
          jitmem_transport_custom(NULL, &transport, error));
  struct calls calls = {0};
  jitmem_transport_callbacks callbacks = {
      .struct_size = sizeof callbacks, .ctx = &calls, .destroy = destroy};
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport_callbacks.call is NULL",
          jitmem_transport_custom(&callbacks, &transport, error));
  callbacks.call = never_called;
  REFUSED(JITMEM_INVALID_ARGUMENT, "transport is NULL",
          jitmem_transport_custom(&callbacks, NULL, error));
  const jitmem_limits wrong = {.struct_size = 8};
  callbacks.limits = &wrong;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_limits.struct_size",
          jitmem_transport_custom(&callbacks, &transport, error));
  callbacks.limits = NULL;
  assert_int_equal(calls.destroyed, 6);
  REFUSED(JITMEM_INVALID_ARGUMENT, "transport is NULL", jitmem_transport_socket(0, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_limits.struct_size",
          jitmem_transport_connect(0, &wrong, &transport, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "transport is NULL",
          jitmem_transport_connect(0, NULL, NULL, error));
  assert_null(transport);
  REFUSED(JITMEM_INVALID_ARGUMENT, "token is NULL",
          jitmem_transport_send_token(0, NULL, 16, error));

  REFUSED(JITMEM_INVALID_HANDLE, "call 0x0",
          jitmem_transport_answer(0, JITMEM_OK, NULL, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "call 0xffffffffffffffff",
          jitmem_transport_answer(UINT64_MAX, JITMEM_DISCONNECTED, "why", NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "task 0x0", jitmem_task_run(0, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes is NULL",
          jitmem_transport_answer(1, JITMEM_OK, NULL, NULL, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_transport_call(NULL, 1, "", 1, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_transport_start(NULL, 1, "", 1, 0, NULL, NULL, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_HANDLE, "call 0x0", jitmem_transport_cancel(0, error));
  uint64_t address = UNTOUCHED;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_transport_symbol(NULL, "name", &address, error));
  // No destructor, and no names.
  callbacks.destroy = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "args is NULL",
          jitmem_transport_call(transport, 1, NULL, 1, NULL, NULL, error));
  calls.destroyed = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "fn is NULL",
          jitmem_transport_start(transport, 1, "", 1, 0, NULL, &calls, destroy, NULL, error));
  assert_int_equal(calls.destroyed, 2);
  REFUSED(JITMEM_INVALID_ARGUMENT, "name is NULL",
          jitmem_transport_symbol(transport, NULL, &address, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "address is NULL",
          jitmem_transport_symbol(transport, "name", NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "no symbol name",
          jitmem_transport_symbol(transport, "name", &address, error));
  assert_int_equal(address, UNTOUCHED);
  jitmem_transport_free(transport);
  jitmem_transport_free(NULL);
}

static void mappers_of_an_executor(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  jitmem_mapper *mapper = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_mapper_shared(NULL, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_shared(here.transport, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_mapper_remote(NULL, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_remote(here.transport, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_mapper_llvm_shared(NULL, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_llvm_shared(here.transport, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_mapper_llvm_simple(NULL, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_llvm_simple(here.transport, NULL, NULL, error));
  assert_null(mapper);
  here_tear_down(&here);
}

static void ignore_executor(void *ctx, const jitmem_group_executor *executor) {
  (void)ctx;
  (void)executor;
}

static void groups(void **state) {
  const jitmem_mapper *plain = ((struct fixture *)*state)->mapper;
  struct here here;
  here_set_up(&here, here_call);
  jitmem_mapper *mapper = NULL;
  const jitmem_new_executor none = {0}, one = {.transport = here.transport};
  const jitmem_group_observer small = {.struct_size = 8};
  REFUSED(JITMEM_INVALID_ARGUMENT, "executors is NULL",
          jitmem_mapper_group(NULL, 1, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "no executors",
          jitmem_mapper_group(NULL, 0, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_transport is NULL",
          jitmem_mapper_group(&none, 1, NULL, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
          jitmem_mapper_group(&one, 1, &small, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL",
          jitmem_mapper_group(&one, 1, NULL, NULL, error));
  assert_null(mapper);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
          jitmem_mapper_add_executor(NULL, &one, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "executor is NULL",
          jitmem_mapper_add_executor(plain, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
          jitmem_mapper_remove_executor(NULL, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
          jitmem_mapper_executors(NULL, ignore_executor, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "see is NULL",
          jitmem_mapper_executors(plain, NULL, NULL, error));
  here_tear_down(&here);
}

static void write_scopes(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 1);
  finalize(fixture->manager, graph.handle);
  jitmem_write_scope *scope = NULL;
  void *pointer = NULL;
  uint64_t address = graph.memory[2].address;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_write_scope_begin(NULL, graph.handle, &scope, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "write_scope is NULL",
          jitmem_write_scope_begin(fixture->manager, graph.handle, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_write_scope is NULL",
          jitmem_write_scope_store(NULL, address, &address, 8, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_write_scope is NULL",
          jitmem_write_scope_pointer(NULL, address, 8, &pointer, error));
  OK(jitmem_write_scope_begin(fixture->manager, graph.handle, &scope, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "value is NULL",
          jitmem_write_scope_store(scope, address, NULL, 8, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "pointer is NULL",
          jitmem_write_scope_pointer(scope, address, 8, NULL, error));
  assert_null(pointer);
  OK(jitmem_write_scope_end(scope, error));
  OK(jitmem_write_scope_end(NULL, error));
  deallocate(fixture->manager, graph.handle);
}

static void epochs(void **state) {
  struct fixture *fixture = *state;
  uint64_t epoch = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_advance_epoch(NULL, &epoch, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "epoch is NULL",
          jitmem_manager_advance_epoch(fixture->manager, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_reclaim(NULL, 0, NULL, error));
  OK(jitmem_manager_reclaim(fixture->manager, 0, NULL, error));
  REFUSED_ASYNC("jitmem_manager is NULL",
                jitmem_manager_reclaim_async(NULL, 0, count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_reclaim_async(fixture->manager, 0, NULL, ctx, destroy, error));
}

static void ignore_symbol(void *ctx, const char *name, uint64_t address) {
  (void)ctx, (void)name, (void)address;
}

static void services(void **state) {
  (void)state;
  REFUSED(JITMEM_INVALID_ARGUMENT, "service is NULL", jitmem_service_create(NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_service is NULL",
          jitmem_service_symbols(NULL, ignore_symbol, NULL, error));
  jitmem_service *service = NULL;
  OK(jitmem_service_create(&service, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "visit is NULL",
          jitmem_service_symbols(service, NULL, NULL, error));
  OK(jitmem_service_symbols(service, ignore_symbol, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_service is NULL",
          jitmem_service_session_symbols(NULL, ignore_symbol, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "visit is NULL",
          jitmem_service_session_symbols(service, NULL, NULL, error));
  OK(jitmem_service_session_symbols(service, ignore_symbol, NULL, error));
  jitmem_service_free(service);
  jitmem_service_free(NULL);
  // A controller that says nothing is told so, in more than 8 bytes.
  jitmem_wrapper_result result = jitmem_service_open(NULL, 0);
  assert_true(result.size > 8);
  free((void *)(uintptr_t)result.data);
  jitmem_service_open_by_session(NULL, (jitmem_wrapper_result){0}, NULL, 0);
}

static void serving(void **state) {
  (void)state;
  REFUSED(JITMEM_INVALID_ARGUMENT, "in_fd -1 is no open descriptor",
          jitmem_executor_serve(-1, 0, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "out_fd 1000000 is no open descriptor",
          jitmem_executor_serve(0, 1000000, NULL, error));
  jitmem_bootstrap_symbol nameless = {.address = 1};
  jitmem_serve_options options = {.struct_size = sizeof options, .symbol_count = 1};
  REFUSED(JITMEM_INVALID_ARGUMENT, "symbols is NULL", jitmem_executor_serve(0, 0, &options, error));
  options.symbols = &nameless;
  REFUSED(JITMEM_INVALID_ARGUMENT, "symbols[0].name is NULL",
          jitmem_executor_serve(0, 0, &options, error));
  options.symbol_count = 0;
  options.llvm_version = 13;
  REFUSED(JITMEM_INVALID_ARGUMENT, "llvm_version 13", jitmem_executor_serve(0, 0, &options, error));
  options.llvm_version = 16;
  options.c_only = 2;
  REFUSED(JITMEM_INVALID_ARGUMENT, "c_only 2", jitmem_executor_serve(0, 0, &options, error));
  options.struct_size = 8;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_serve_options.struct_size is 8",
          jitmem_executor_serve(0, 0, &options, error));
}

static void containing(void **state) {
  (void)state;
  const jitmem_containment none = {.struct_size = sizeof none};
  jitmem_containment bounds = none;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_containment is NULL",
          jitmem_executor_contain(NULL, NULL, error));
  bounds.struct_size = 8;
  REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size is 8",
          jitmem_executor_contain(&bounds, NULL, error));
  bounds = none;
  bounds.profile = 4;
  REFUSED(JITMEM_INVALID_ARGUMENT, "profile 4", jitmem_executor_contain(&bounds, NULL, error));
  bounds = none;
  bounds.audit = 2;
  REFUSED(JITMEM_INVALID_ARGUMENT, "audit 2", jitmem_executor_contain(&bounds, NULL, error));
  bounds = none;
  bounds.readable_count = 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "readable is NULL",
          jitmem_executor_contain(&bounds, NULL, error));
  bounds.readable_count = 0;
  OK(jitmem_executor_contain(&bounds, NULL, error));
}

static void creating_a_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
          jitmem_manager_create(NULL, NULL, &manager, error));
  assert_null(manager);
  REFUSED(JITMEM_INVALID_ARGUMENT, "manager is NULL",
          jitmem_manager_create(fixture->mapper, NULL, NULL, error));
  REFUSED_ASYNC("jitmem_mapper is NULL",
                jitmem_manager_create_async(NULL, NULL, count_created, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_create_async(fixture->mapper, NULL, NULL, ctx, destroy, error));
  // No destructor, and no context either.
  REFUSED(JITMEM_INVALID_ARGUMENT, "fn is NULL",
          jitmem_manager_create_async(fixture->mapper, NULL, NULL, NULL, NULL, error));
  jitmem_manager_free(NULL);
}

static void allocating(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment one = segment(16, 0, RW);
  jitmem_segment_memory memory;
  memset(&memory, UNTOUCHED, sizeof memory);
  uint64_t allocation = UNTOUCHED;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_allocate(NULL, &one, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "segments is NULL",
          jitmem_manager_allocate(manager, NULL, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_allocate(manager, &one, 1, 0, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_allocate(manager, &one, 1, 0, &memory, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_allocate(NULL, &one, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "segments is NULL",
          jitmem_manager_try_allocate(manager, NULL, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_try_allocate(manager, &one, 1, 0, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_try_allocate(manager, &one, 1, 0, &memory, NULL, error));
  assert_int_equal(allocation, UNTOUCHED);
  assert_true(all_bytes_are((uint8_t *)&memory, sizeof memory, UNTOUCHED));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_allocate_async(NULL, &one, 1, 0, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("segments is NULL", jitmem_manager_allocate_async(
                                        manager, NULL, 1, 0, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_allocate_async(manager, &one, 1, 0, NULL, ctx, destroy, error));
  assert_int_equal(stats_of(manager).in_flight, 0);
  assert_int_equal(stats_of(manager).live, 0);

  // With a count of 0 there is nothing to point to.
  OK(jitmem_manager_allocate(manager, NULL, 0, 0, NULL, &allocation, error));
  OK(jitmem_manager_abandon(manager, allocation, error));
}

static void writing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), UNTOUCHED);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_write(NULL, graph.handle, 0, 0, "a", 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes is NULL",
          jitmem_manager_write(manager, graph.handle, 0, 0, NULL, 1, error));
  OK(jitmem_manager_write(manager, graph.handle, 0, 0, NULL, 0, error));
  finalize(manager, graph.handle);
  assert_true(all_bytes_are(at(graph.memory[0].address), 16, UNTOUCHED));
  deallocate(manager, graph.handle);
}

static void finalizing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), UNTOUCHED);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_finalize(NULL, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_finalize(NULL, graph.handle, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "actions is NULL",
          jitmem_manager_finalize(manager, graph.handle, NULL, 1, error));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_finalize_async(NULL, graph.handle, NULL, 0, count_done, ctx, destroy, error));
  REFUSED_ASYNC("actions is NULL", jitmem_manager_finalize_async(manager, graph.handle, NULL, 1,
                                                                 count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL", jitmem_manager_finalize_async(manager, graph.handle, NULL, 0, NULL,
                                                            ctx, destroy, error));
  jitmem_action action = {.finalize = {.function = 1, .args = NULL, .args_size = 1}};
  REFUSED(JITMEM_INVALID_ARGUMENT, "args is NULL",
          jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  action = (jitmem_action){.dealloc = {.function = 1, .args = NULL, .args_size = 1}};
  REFUSED_ASYNC("args is NULL", jitmem_manager_finalize_async(manager, graph.handle, &action, 1,
                                                              count_done, ctx, destroy, error));
  // It is in flight still.
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
}

static void abandoning(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_abandon(NULL, graph.handle, error));
  REFUSED_ASYNC("jitmem_manager is NULL",
                jitmem_manager_abandon_async(NULL, graph.handle, count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_abandon_async(manager, graph.handle, NULL, ctx, destroy, error));
  assert_int_equal(stats_of(manager).in_flight, 1);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

static void deallocating(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(16, 0, RW), 0);
  finalize(manager, graph.handle);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_deallocate(NULL, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocations is NULL",
          jitmem_manager_deallocate(manager, NULL, 1, error));
  REFUSED_ASYNC(
      "jitmem_manager is NULL",
      jitmem_manager_deallocate_async(NULL, &graph.handle, 1, count_done, ctx, destroy, error));
  REFUSED_ASYNC("allocations is NULL",
                jitmem_manager_deallocate_async(manager, NULL, 1, count_done, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL", jitmem_manager_deallocate_async(manager, &graph.handle, 1, NULL, ctx,
                                                              destroy, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_deallocate(NULL, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocations is NULL",
          jitmem_manager_try_deallocate(manager, NULL, 1, error));
  OK(jitmem_manager_deallocate(manager, NULL, 0, error));
  assert_int_equal(stats_of(manager).finalized, 1);
  deallocate(manager, graph.handle);
}

static void looking(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_stats stats;
  memset(&stats, UNTOUCHED, sizeof stats);
  stats.struct_size = sizeof stats;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_stats(NULL, &stats, error));
  assert_true(all_bytes_are((uint8_t *)&stats.reserved, sizeof stats - sizeof stats.struct_size,
                            UNTOUCHED));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_set_quota(NULL, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "stats is NULL", jitmem_manager_stats(manager, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_layout(NULL, ignore_item, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "visit is NULL",
          jitmem_manager_layout(manager, NULL, NULL, error));
  OK(jitmem_manager_layout(manager, ignore_item, NULL, error));
}

static void ignore_allocation(void *ctx, const jitmem_allocation *allocation) {
  (void)ctx, (void)allocation;
}

static void ignore_usage(void *ctx, const jitmem_usage *usage) { (void)ctx, (void)usage; }

static void requesting(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment one = segment(16, 0, RW);
  jitmem_allocation_request request = {
      .struct_size = sizeof request, .segments = &one, .segment_count = 1};
  jitmem_segment_memory memory;
  memset(&memory, UNTOUCHED, sizeof memory);
  uint64_t allocation = UNTOUCHED;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_request(NULL, &request, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_allocation_request is NULL",
          jitmem_manager_request(manager, NULL, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_request(manager, &request, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_request(manager, &request, &memory, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_try_request(NULL, &request, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_allocation_request is NULL",
          jitmem_manager_try_request(manager, NULL, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "memory is NULL",
          jitmem_manager_try_request(manager, &request, NULL, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_manager_try_request(manager, &request, &memory, NULL, error));
  REFUSED_ASYNC("jitmem_manager is NULL",
                jitmem_manager_request_async(NULL, &request, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("jitmem_allocation_request is NULL",
                jitmem_manager_request_async(manager, NULL, count_allocated, ctx, destroy, error));
  REFUSED_ASYNC("fn is NULL",
                jitmem_manager_request_async(manager, &request, NULL, ctx, destroy, error));
  request.segments = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "segments is NULL",
          jitmem_manager_request(manager, &request, &memory, &allocation, error));
  assert_int_equal(allocation, UNTOUCHED);
  assert_true(all_bytes_are((uint8_t *)&memory, sizeof memory, UNTOUCHED));
  assert_int_equal(stats_of(manager).in_flight, 0);
  request.segment_count = 0;
  OK(jitmem_manager_request(manager, &request, NULL, &allocation, error));
  OK(jitmem_manager_abandon(manager, allocation, error));
}

static void describing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_usage usage = {.struct_size = sizeof usage};
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_describe(NULL, 1, ignore_allocation, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "see is NULL",
          jitmem_manager_describe(manager, 1, NULL, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_usage(NULL, JITMEM_USAGE_BY_TAG, 1, &usage, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "usage is NULL",
          jitmem_manager_usage(manager, JITMEM_USAGE_BY_TAG, 1, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_all_usage(NULL, JITMEM_USAGE_BY_TAG, ignore_usage, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "see is NULL",
          jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_TAG, NULL, NULL, error));
}

static void ignore_location(void *ctx, const jitmem_location *location) {
  (void)ctx, (void)location;
}

static void looking_up(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_location location = {.struct_size = sizeof location};
  assert_int_equal(jitmem_lookup(0, NULL), JITMEM_LOOKUP_REFUSED);
  assert_int_equal(jitmem_manager_lookup(manager, 0, NULL), JITMEM_LOOKUP_REFUSED);
  assert_int_equal(jitmem_manager_lookup(NULL, 0, &location), JITMEM_LOOKUP_REFUSED);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_walk(NULL, ignore_location, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "see is NULL", jitmem_manager_walk(manager, NULL, NULL, error));
}

static void trimming(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  uint64_t bytes = 7;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_trim(NULL, &bytes, error));
  assert_int_equal(bytes, 7);
  OK(jitmem_manager_trim(manager, NULL, error));
}

static void huge_pages(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  uint64_t bytes = 7;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_manager_collapse(NULL, &bytes, error));
  assert_int_equal(bytes, 7);
  OK(jitmem_manager_collapse(manager, NULL, error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(errors),
      cmocka_unit_test(versions_and_status_names),
      cmocka_unit_test(mappers),
      cmocka_unit_test(transports),
      cmocka_unit_test(mappers_of_an_executor),
      TWO_VIEWS(groups),
      TWO_VIEWS(sections),
      TWO_VIEWS(frames),
      cmocka_unit_test(rtdyld_callbacks),
      TWO_VIEWS(write_scopes),
      EVERYWHERE(epochs),
      cmocka_unit_test(services),
      cmocka_unit_test(serving),
      cmocka_unit_test(containing),
      EVERYWHERE(creating_a_manager),
      EVERYWHERE(allocating),
      EVERYWHERE(writing),
      EVERYWHERE(finalizing),
      EVERYWHERE(abandoning),
      EVERYWHERE(deallocating),
      EVERYWHERE(looking),
      EVERYWHERE(requesting),
      EVERYWHERE(describing),
      EVERYWHERE(looking_up),
      EVERYWHERE(trimming),
      EVERYWHERE(huge_pages),
  };
  return at_rest(cmocka_run_group_tests_name("NULL", tests, NULL, NULL));
}
