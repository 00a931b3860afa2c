// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Forked children of a controller: the session and its connection are the parent's alone.

#include "executor.h"
#include "here.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdatomic.h>

// ---- controllers ----

struct controller {
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
  struct graph finalized, in_flight;
};

// lea eax, [rdi + 40]; ret
static struct graph with_code(jitmem_manager *manager) {
  const jitmem_segment segments[] = {segment(ADD_SIZE, 0, RX), segment(100, 100, RW)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  emit_add(graph.memory[0].working_memory, 40);
  return graph;
}

static void set_up_controller(struct controller *controller, int shared) {
  controller->manager = manager_over(controller->transport, shared, &controller->mapper);
  controller->finalized = with_code(controller->manager);
  finalize(controller->manager, controller->finalized.handle);
  controller->in_flight = with_code(controller->manager);
}

static void tear_down_controller(struct controller *controller) {
  jitmem_manager_free(controller->manager);
  jitmem_mapper_free(controller->mapper);
  jitmem_transport_free(controller->transport);
}

// ---- what a child does ----

static void ignore_result(void *ctx, const void *bytes, size_t size) {
  (void)ctx, (void)bytes, (void)size;
}

static void use_manager(struct controller *controller) {
  jitmem_manager *manager = controller->manager;
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle = 0;
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_finalize(manager, controller->in_flight.handle, NULL, 0, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_deallocate(manager, &controller->finalized.handle, 1, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_trim(manager, NULL, error));
}

static void use_connection(struct controller *controller) {
  jitmem_mapper *mapper = NULL;
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_transport_call(controller->transport, 1, "", 0, ignore_result, NULL, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_mapper_shared(controller->transport, NULL, &mapper, error));
}

static void use_and_leave(void *argument) {
  use_manager(argument);
  use_connection(argument);
}

static void use_and_free(void *argument) {
  use_and_leave(argument);
  tear_down_controller(argument);
}

// ---- over a connection ----

static void open_unix(int ends[2]) {
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
}

static void open_tcp(int ends[2]) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
  assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
  assert_int_equal(listen(listener, 1), 0);
  ends[0] = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(connect(ends[0], (struct sockaddr *)&address, size), 0);
  ends[1] = accept(listener, NULL, NULL);
  assert_true(ends[1] >= 0);
  close(listener);
}

// The session goes on, and the executor sees its end though children are still there.
static void check_session(struct controller *controller, struct executor executor) {
  int32_t answer = 0;
  finalize(controller->manager, controller->in_flight.handle);
  struct graph later = with_code(controller->manager);
  finalize(controller->manager, later.handle);
  const struct graph *graphs[] = {&controller->finalized, &controller->in_flight, &later};
  for (size_t i = 0; i < COUNT(graphs); i++) {
    OK(call_int(controller->transport, graphs[i]->memory[0].address, 2, &answer, error));
    assert_int_equal(answer, 42);
    deallocate(controller->manager, graphs[i]->handle);
  }
  assert_int_equal(stats_of(controller->manager).live, 0);
  tear_down_controller(controller);
  assert_int_equal(status_of_executor(executor), 0);
}

static void over_a_connection(void (*open_ends)(int[2]), int shared) {
  int ends[2];
  struct controller controller = {.transport = NULL};
  open_ends(ends);
  struct executor executor = start_executor_at(ends, NULL);
  OK(jitmem_transport_socket(executor.socket, &controller.transport, error));
  set_up_controller(&controller, shared);
  in_child(use_and_leave, &controller);
  in_child(use_and_free, &controller);
  // One outlives the session.
  struct waiting_child child = start_waiting_child(use_and_free, &controller);
  check_session(&controller, executor);
  have_run(child);
}

static void children_over_a_unix_socket(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++)
    over_a_connection(open_unix, shared);
}

static void children_over_tcp(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++)
    over_a_connection(open_tcp, shared);
}

// An executor in the test's hands, which hears nothing of children, neither calls nor their end.
static void children_send_nothing(void **state) {
  (void)state;
  void (*const kinds[])(int[2]) = {open_unix, open_tcp};
  for (size_t i = 0; i < COUNT(kinds); i++) {
    int ends[2];
    struct packed body = {.size = 0}, setup = {.size = 0};
    pack_text(&body, "x86_64-pc-linux-gnu");
    pack_number(&body, 4096);
    pack_number(&body, 0);
    pack_number(&body, 0);
    const uint64_t header[] = {32 + body.size, 0, 0, 0};
    pack(&setup, header, sizeof header);
    pack(&setup, body.bytes, body.size);
    kinds[i](ends);
    assert_int_equal(send(ends[1], setup.bytes, setup.size, MSG_NOSIGNAL), setup.size);
    jitmem_transport *transport = NULL;
    OK(jitmem_transport_socket(ends[0], &transport, error));
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
                jitmem_transport_call(transport, 1, "", 0, ignore_result, NULL, error));
      jitmem_transport_free(transport);
      _exit(CHILD_PASSED);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, CHILD_PASSED);
    char byte;
    assert_int_equal(recv(ends[1], &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EAGAIN);
    jitmem_transport_free(transport);
    assert_true(recv(ends[1], &byte, 1, 0) >= 0);
    close(ends[1]);
  }
}

// ---- over a host's callbacks ----

static atomic_int calls;

static void count_and_call(void *ctx, uint64_t function, const void *args, size_t size,
                           jitmem_call call) {
  calls++;
  here_call(ctx, function, args, size, call);
}

static void use_and_free_without_a_call(void *argument) {
  int before = calls;
  use_manager(argument);
  tear_down_controller(argument);
  MUST(calls == before);
}

static void children_over_callbacks(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct here here;
    here_set_up(&here, count_and_call);
    struct controller controller = {.transport = here.transport};
    set_up_controller(&controller, shared);
    assert_true(calls > 0);
    in_child(use_and_free_without_a_call, &controller);
    finalize(controller.manager, controller.in_flight.handle);
    deallocate(controller.manager, controller.in_flight.handle);
    deallocate(controller.manager, controller.finalized.handle);
    jitmem_manager_free(controller.manager);
    jitmem_mapper_free(controller.mapper);
    here_tear_down(&here);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(children_over_a_unix_socket),
      cmocka_unit_test(children_over_tcp),
      cmocka_unit_test(children_send_nothing),
      cmocka_unit_test(children_over_callbacks),
  };
  return at_rest(cmocka_run_group_tests_name("controller_forks", tests, NULL, NULL));
}
