// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Serving a controller, in a thread of this process: what a host may choose, and controllers that
// break the protocol.

#include "executor.h"
#include "here.h"
#include "notes.h"

struct server {
  pthread_t thread;
  int fd;
  const jitmem_serve_options *options;
  jitmem_status status;
  jitmem_error *error;
};

static void *serve(void *argument) {
  struct server *server = argument;
  server->status = jitmem_executor_serve(server->fd, server->fd, server->options, &server->error);
  // Both are the host's, and its copies are closed by now.
  close(server->fd);
  return NULL;
}

// Starts a server; gives the controller's end.
static int start_server(struct server *server, const jitmem_serve_options *options) {
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  *server = (struct server){.fd = ends[1], .options = options};
  assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
  return ends[0];
}

static jitmem_transport *connect_server(struct server *server,
                                        const jitmem_serve_options *options) {
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_socket(start_server(server, options), &transport, error));
  return transport;
}

static void end_server(struct server *server, jitmem_status status, const char *words) {
  assert_int_equal(pthread_join(server->thread, NULL), 0);
  assert_int_equal(server->status, status);
  assert_non_null(strstr(jitmem_error_message(server->error), words));
  jitmem_error_free(server->error);
}

// ---- choices ----

static void choices_that_can_never_be_right(void **state) {
  (void)state;
  const jitmem_bootstrap_symbol nameless = {.name = NULL, .address = 1};
  struct {
    jitmem_serve_options options;
    uint64_t more;
  } grown = {.options = {.struct_size = sizeof grown.options}};
  const size_t wrong[] = {0, 8, offsetof(jitmem_serve_options, unread_bytes) - 1, 4097};
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  for (size_t i = 0; i < COUNT(wrong); i++) {
    grown.options.struct_size = wrong[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
            jitmem_executor_serve(ends[1], ends[1], &grown.options, error));
  }
  grown.options.struct_size = sizeof grown;
  grown.more = 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
          jitmem_executor_serve(ends[1], ends[1], &grown.options, error));
  jitmem_serve_options options = {.struct_size = sizeof options, .llvm_version = 13};
  REFUSED(JITMEM_INVALID_ARGUMENT, "llvm_version 13",
          jitmem_executor_serve(ends[1], ends[1], &options, error));
  options = (jitmem_serve_options){.struct_size = sizeof options, .llvm_version = 23};
  REFUSED(JITMEM_INVALID_ARGUMENT, "llvm_version 23",
          jitmem_executor_serve(ends[1], ends[1], &options, error));
  options = (jitmem_serve_options){.struct_size = sizeof options, .c_only = 2};
  REFUSED(JITMEM_INVALID_ARGUMENT, "c_only 2",
          jitmem_executor_serve(ends[1], ends[1], &options, error));
  options = (jitmem_serve_options){
      .struct_size = sizeof options, .symbols = &nameless, .symbol_count = 1};
  REFUSED(JITMEM_INVALID_ARGUMENT, "symbols[0].name is NULL",
          jitmem_executor_serve(ends[1], ends[1], &options, error));
  jitmem_service *gone = NULL;
  OK(jitmem_service_create(&gone, error));
  jitmem_service_free(gone);
  options = (jitmem_serve_options){.struct_size = sizeof options, .service = gone};
  REFUSED(JITMEM_INVALID_HANDLE, "jitmem_service",
          jitmem_executor_serve(ends[1], ends[1], &options, error));
  close(ends[0]);
  close(ends[1]);
}

static void names_of_the_hosts_own(void **state) {
  (void)state;
  const jitmem_bootstrap_symbol symbols[] = {{.name = "mine", .address = 4711},
                                             {.name = "jitmem_service_instance", .address = 12}};
  const uint32_t versions[] = {0, 14, 16, 17, 22};
  for (size_t i = 0; i < COUNT(versions); i++) {
    const jitmem_serve_options options = {.struct_size = sizeof options,
                                          .symbols = symbols,
                                          .symbol_count = COUNT(symbols),
                                          .llvm_version = versions[i],
                                          .c_only = 1};
    struct server server;
    jitmem_transport *transport = connect_server(&server, &options);
    uint64_t address = 0;
    OK(jitmem_transport_symbol(transport, "mine", &address, error));
    assert_int_equal(address, 4711);
    // They come before what it publishes by itself.
    OK(jitmem_transport_symbol(transport, "jitmem_service_instance", &address, error));
    assert_int_equal(address, 12);
    OK(jitmem_transport_symbol(transport, "jitmem_service_open", &address, error));
    assert_true(address == (uintptr_t)jitmem_service_open);
    jitmem_transport_free(transport);
    end_server(&server, JITMEM_OK, "success");
  }
}

// ---- the end ----

static void finalize_with(jitmem_manager *manager, const char *letters) {
  const jitmem_action action = {.finalize = call_of(note, letters, 1),
                                .dealloc = call_of(note, letters + 1, 1)};
  OK(jitmem_manager_finalize(manager, allocate_three(manager, 1).handle, &action, 1, error));
}

static void what_is_left_ends_with_its_service(void **state) {
  (void)state;
  for (int own = 0; own < 2; own++)
    for (int shared = 0; shared < 2; shared++) {
      jitmem_service *service = NULL;
      OK(jitmem_service_create(&service, error));
      const jitmem_serve_options options = {.struct_size = sizeof options,
                                            .service = own ? NULL : service};
      struct server server;
      forget_notes();
      int end = start_server(&server, &options);
      jitmem_transport *transport = NULL;
      jitmem_mapper *mapper = NULL;
      OK(jitmem_transport_socket(end, &transport, error));
      jitmem_manager *manager = manager_over(transport, shared, &mapper);
      finalize_with(manager, "Aa");
      finalize_with(manager, "Bb");
      // As if the controller were gone, with all that it has.
      shutdown(end, SHUT_RDWR);
      end_server(&server, JITMEM_OK, "success");
      assert_string_equal(noted, own ? "ABba" : "AB");
      jitmem_service_free(service);
      assert_string_equal(noted, "ABba");
      jitmem_manager_free(manager);
      jitmem_mapper_free(mapper);
      jitmem_transport_free(transport);
      assert_string_equal(noted, "ABba");
    }
}

static void several_controllers_of_one_service(void **state) {
  (void)state;
  jitmem_service *service = NULL;
  OK(jitmem_service_create(&service, error));
  const jitmem_serve_options options = {.struct_size = sizeof options, .service = service};
  struct server servers[4];
  jitmem_transport *transports[4];
  jitmem_mapper *mappers[4];
  jitmem_manager *managers[4];
  for (int i = 0; i < 4; i++) {
    transports[i] = connect_server(&servers[i], &options);
    managers[i] = manager_over(transports[i], i % 2, &mappers[i]);
  }
  for (int i = 0; i < 400; i++) {
    const jitmem_segment code = segment(ADD_SIZE, 0, RX);
    struct graph graph = allocate(managers[i % 4], &code, 1);
    emit_add(graph.memory[0].working_memory, i);
    finalize(managers[i % 4], graph.handle);
    int32_t answer = 0;
    OK(call_int(transports[(i + 1) % 4], graph.memory[0].address, 1, &answer, error));
    assert_int_equal(answer, i + 1);
    deallocate(managers[i % 4], graph.handle);
  }
  for (int i = 0; i < 4; i++) {
    jitmem_manager_free(managers[i]);
    jitmem_mapper_free(mappers[i]);
    jitmem_transport_free(transports[i]);
    end_server(&servers[i], JITMEM_OK, "success");
  }
  jitmem_service_free(service);
}

// ---- controllers that break the protocol ----

static void controllers_that_break_the_protocol(void **state) {
  (void)state;
  const struct {
    char bytes[40];
    size_t size;
    const char *words;
  } cases[] = {
      {{31}, 32, "Message size too small"},
      {{32, [8] = 4}, 32, "Unexpected opcode"},
      {{32, [8] = 0}, 32, "Unexpected Setup opcode"},
      {{32, [8] = 2, [16] = 5}, 32, "No call for sequence number 5"},
      {{36, [8] = 3}, 33, "Unexpected end-of-file"},
      {{32, [8] = 3}, 7, "Unexpected end-of-file"},
      {{0, [5] = 1, [8] = 3}, 32, "Unexpected end-of-file"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct server server;
    int end = start_server(&server, NULL);
    assert_int_equal(send(end, cases[i].bytes, cases[i].size, 0), cases[i].size);
    shutdown(end, SHUT_WR);
    end_server(&server, JITMEM_DISCONNECTED, cases[i].words);
    close(end);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(choices_that_can_never_be_right),
      cmocka_unit_test(names_of_the_hosts_own),
      cmocka_unit_test(what_is_left_ends_with_its_service),
      cmocka_unit_test(several_controllers_of_one_service),
      cmocka_unit_test(controllers_that_break_the_protocol),
  };
  return at_rest(cmocka_run_group_tests_name("serving", tests, NULL, NULL));
}
