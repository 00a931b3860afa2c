// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// How long an executor may take: limits of each kind, calls that are given up, and an executor that
// is stopped for a while, which is not dead. The other process is our program.

#include "code.h"
#include "executor.h"
#include "here.h"
#include "limits.h"

#include <inttypes.h>
#include <stdatomic.h>

// What an executor that lives answers within, in milliseconds.
#define SHORT patience(300)
#define SESSION patience(1000)

// Words of the error when such a limit has passed.
static const char *within(uint64_t limit) {
  static char words[64];
  snprintf(words, sizeof words, "within %" PRIu64 " ms", limit);
  return words;
}

// Seconds for which an executor is stopped: longer than anything in the library ever waited by
// itself.
static unsigned seconds_stopped(void) {
  const char *chosen = getenv("JITMEM_TEST_STOPPED_SECONDS");
  return chosen != NULL ? (unsigned)atoi(chosen) : 11;
}

static struct executor start(void) {
  const char *program = getenv("JITMEM_EXECUTOR");
  assert_non_null(program);
  return start_program(program);
}

static jitmem_transport *connect_within(struct executor executor, jitmem_limits limits) {
  limits.struct_size = sizeof limits;
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_connect(executor.socket, &limits, &transport, error));
  return transport;
}

static void end(struct executor executor, jitmem_transport *transport) {
  jitmem_transport_free(transport);
  assert_int_equal(status_of_executor(executor), 0);
}

// Of an executor in which a program still spins, before its memory goes.
static void kill_executor(struct executor executor) {
  assert_int_equal(kill(executor.process, SIGKILL), 0);
  int status = status_of_executor(executor);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

// ---- linked code ----

// A wrapper function that answers success at once, or never.
static uint64_t link_wrapper(jitmem_manager *manager, int ends) {
  struct graph graph = allocate_one(manager, segment(64, 0, RX), 0xcc);
  if (ends) {
    emit_wrapper(graph.memory[0].working_memory);
  } else {
    emit_endless_loop(graph.memory[0].working_memory);
  }
  finalize(manager, graph.handle);
  return graph.memory[0].address;
}

// ---- calls ----

struct outcome {
  struct counter counter;
  jitmem_status status;
  size_t size;
};

static void on_called(void *ctx, const void *bytes, size_t size, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  (void)bytes;
  outcome->status = jitmem_error_status(error);
  outcome->size = size;
  count(&outcome->counter);
}

static void a_call_has_a_limit(void **state) {
  (void)state;
  struct executor executor = start();
  jitmem_transport *transport = connect_within(executor, (jitmem_limits){.code = SHORT});
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, 1, &mapper);
  uint64_t ends = link_wrapper(manager, 1), spins = link_wrapper(manager, 0);
  struct packed result = {.size = 0};
  REFUSED(JITMEM_TIMED_OUT, within(SHORT),
          jitmem_transport_call(transport, spins, "", 0, take_packed, &result, error));
  assert_int_equal(result.size, 0);
  // Others are answered, before and after.
  OK(jitmem_transport_call(transport, ends, "", 0, take_packed, &result, error));
  assert_int_equal(result.size, 1);
  // So is one with a limit of its own.
  struct outcome outcome = {.counter = COUNTER};
  OK(jitmem_transport_start(transport, spins, "", 0, 100, on_called, &outcome, NULL, NULL, error));
  assert_int_equal(counted(&outcome.counter, 1), 1);
  assert_int_equal(outcome.status, JITMEM_TIMED_OUT);
  kill_executor(executor);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
}

static void a_call_can_be_given_up(void **state) {
  (void)state;
  struct executor executor = start();
  jitmem_transport *transport = connect_within(executor, (jitmem_limits){0});
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, 1, &mapper);
  uint64_t spins = link_wrapper(manager, 0), ends = link_wrapper(manager, 1);
  struct outcome outcome = {.counter = COUNTER};
  uint64_t call = 0;
  OK(jitmem_transport_start(transport, spins, "", 0, 0, on_called, &outcome, NULL, &call, error));
  assert_int_not_equal(call, 0);
  OK(jitmem_transport_cancel(call, error));
  assert_int_equal(outcome.counter.count, 1);
  assert_int_equal(outcome.status, JITMEM_CANCELLED);
  REFUSED(JITMEM_INVALID_HANDLE, "answered before", jitmem_transport_cancel(call, error));
  struct outcome answered = {.counter = COUNTER};
  OK(jitmem_transport_start(transport, ends, "", 0, 0, on_called, &answered, NULL, &call, error));
  assert_int_equal(counted(&answered.counter, 1), 1);
  assert_int_equal(answered.status, JITMEM_OK);
  assert_int_equal(answered.size, 1);
  REFUSED(JITMEM_INVALID_HANDLE, "answered before", jitmem_transport_cancel(call, error));
  kill_executor(executor);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
}

// ---- connections and sessions ----

static void a_peer_that_says_nothing(void **state) {
  (void)state;
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const jitmem_limits limits = {.struct_size = sizeof limits, .set_up = SHORT};
  jitmem_transport *transport = NULL;
  FAILS(JITMEM_TIMED_OUT, within(SHORT),
        jitmem_transport_connect(ends[0], &limits, &transport, error));
  assert_null(transport);
  close(ends[0]);
  close(ends[1]);
}

static void an_executor_that_is_stopped_at_the_beginning(void **state) {
  (void)state;
  struct executor executor = start();
  jitmem_transport *transport =
      connect_within(executor, (jitmem_limits){.set_up = SHORT, .close = SHORT});
  assert_int_equal(kill(executor.process, SIGSTOP), 0);
  jitmem_mapper *mapper = NULL;
  FAILS(JITMEM_TIMED_OUT, within(SHORT), jitmem_mapper_shared(transport, NULL, &mapper, error));
  FAILS(JITMEM_TIMED_OUT, within(SHORT), jitmem_mapper_remote(transport, NULL, &mapper, error));
  assert_int_equal(kill(executor.process, SIGCONT), 0);
  jitmem_manager *manager = manager_over(transport, 1, &mapper);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  end(executor, transport);
}

static void a_session_has_a_limit(void **state) {
  (void)state;
  struct executor executor = start();
  jitmem_transport *transport = connect_within(executor, (jitmem_limits){.session = SESSION});
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, 1, &mapper);
  uint64_t spins = link_wrapper(manager, 0);
  FAILS(JITMEM_TIMED_OUT, within(SESSION),
        jitmem_transport_call(transport, spins, "", 0, NULL, NULL, error));
  // It has ended, whatever the executor does.
  jitmem_error *problem = NULL;
  assert_int_not_equal(jitmem_transport_call(transport, spins, "", 0, NULL, NULL, &problem),
                       JITMEM_OK);
  jitmem_error_free(problem);
  kill_executor(executor);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
}

// ---- stopped is not dead ----

struct load {
  struct counter finalized, called;
  atomic_int failed;
};

static void on_finalized(void *ctx, const jitmem_error *error) {
  struct load *load = ctx;
  load->failed += error != NULL;
  count(&load->finalized);
}

static void on_answer(void *ctx, const void *bytes, size_t size, const jitmem_error *error) {
  struct load *load = ctx;
  (void)bytes;
  load->failed += error != NULL || size != 1;
  count(&load->called);
}

static void goes_on_when_continued(struct executor executor, int shared, const char *name) {
  jitmem_transport *transport = connect_within(executor, (jitmem_limits){0});
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, shared, &mapper);
  assert_non_null(strstr(stats_of(manager).mapper_name, name));
  uint64_t ends = link_wrapper(manager, 1);
  static struct load load;
  load = (struct load){.finalized = COUNTER, .called = COUNTER};
  enum { MOST_IN_FLIGHT = 600 };
  const int in_flight = (int)rounds(MOST_IN_FLIGHT);
  struct graph graphs[MOST_IN_FLIGHT];
  for (int i = 0; i < in_flight; i++)
    graphs[i] = allocate_three(manager, 1);
  assert_int_equal(kill(executor.process, SIGSTOP), 0);
  const jitmem_action action = {.finalize = {.function = ends}, .dealloc = {.function = ends}};
  for (int i = 0; i < in_flight; i++) {
    OK(jitmem_manager_finalize_async(manager, graphs[i].handle, &action, 1, on_finalized, &load,
                                     NULL, error));
    OK(jitmem_transport_start(transport, ends, "", 0, 0, on_answer, &load, NULL, NULL, error));
  }
  // It is the time itself that is tried.
  sleep(seconds_stopped());
  assert_int_equal(load.failed, 0);
  assert_int_equal(kill(executor.process, SIGCONT), 0);
  assert_int_equal(counted(&load.finalized, in_flight), in_flight);
  assert_int_equal(counted(&load.called, in_flight), in_flight);
  assert_int_equal(load.failed, 0);
  for (int i = 0; i < in_flight; i++)
    deallocate(manager, graphs[i].handle);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  end(executor, transport);
}

static void stopped_with_shared_pages(void **state) {
  (void)state;
  goes_on_when_continued(start(), 1, "memfds over a socket");
}

static void stopped_with_content_in_messages(void **state) {
  (void)state;
  goes_on_when_continued(start(), 0, "messages");
}

static void no_channel(void) {
  alarm(60 + seconds_stopped());
  deny(SYS_connect, EPERM);
}

static void stopped_without_a_channel(void **state) {
  (void)state;
  goes_on_when_continued(start_far_executor(no_channel), 1, "/proc/PID/fd");
}

// Each of them alone may take 2 seconds; together they must not take 32.
static void free_all_of_a_stopped_executor(void *argument) {
  (void)argument;
  enum { MAPPERS = 16 };
  struct executor executor = start();
  jitmem_transport *transport = connect_within(executor, (jitmem_limits){.close = 2000});
  jitmem_mapper *mappers[MAPPERS];
  jitmem_manager *managers[MAPPERS];
  for (int i = 0; i < MAPPERS; i++) {
    managers[i] = manager_over(transport, i % 2, &mappers[i]);
    finalize(managers[i], allocate_three(managers[i], 1).handle);
  }
  MUST(kill(executor.process, SIGSTOP) == 0);
  alarm(20);
  for (int i = 0; i < MAPPERS; i++) {
    jitmem_manager_free(managers[i]);
    jitmem_mapper_free(mappers[i]);
  }
  jitmem_transport_free(transport);
  alarm(0);
  kill_executor(executor);
}

static void what_is_freed_is_waited_for_once(void **state) {
  (void)state;
  in_child(free_all_of_a_stopped_executor, NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_call_has_a_limit),
      cmocka_unit_test(a_call_can_be_given_up),
      cmocka_unit_test(a_peer_that_says_nothing),
      cmocka_unit_test(an_executor_that_is_stopped_at_the_beginning),
      cmocka_unit_test(a_session_has_a_limit),
      cmocka_unit_test(stopped_with_shared_pages),
      cmocka_unit_test(stopped_with_content_in_messages),
      cmocka_unit_test(stopped_without_a_channel),
      cmocka_unit_test(what_is_freed_is_waited_for_once),
  };
  return at_rest(cmocka_run_group_tests_name("deadlines", tests, NULL, NULL));
}
