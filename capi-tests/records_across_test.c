// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What controller and executor keep of graphs that are gone. JITMEM_TEST_GRAPHS says how many there
// are; each has an allocation action, so each is one message there and one back.

#include "executor.h"
#include "records.h"

#include <sys/prctl.h>

struct session {
  struct executor executor;
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
  // A wrapper function in the executor that succeeds.
  uint64_t succeeds;
};

static size_t graphs(void) {
  const char *count = getenv("JITMEM_TEST_GRAPHS");
  return count != NULL ? strtoul(count, NULL, 10) : rounds(20000);
}

static void add_graph(struct session *session, uint64_t *handle) {
  const jitmem_segment segments[] = {segment(32, 0, RX), segment(16, 0, R), segment(16, 0, RW)};
  jitmem_segment_memory memory[3];
  OK(jitmem_manager_allocate(session->manager, segments, 3, 7, memory, handle, error));
  for (int i = 0; i < 3; i++)
    memset(memory[i].working_memory, 0x90, segments[i].content_size);
  const jitmem_wrapper_call call = {.function = session->succeeds};
  const jitmem_action action = {.finalize = call, .dealloc = call};
  OK(jitmem_manager_finalize(session->manager, *handle, &action, 1, error));
}

static void deallocate_graph(struct session *session, uint64_t handle) {
  OK(jitmem_manager_deallocate(session->manager, &handle, 1, error));
}

static int set_up_session(void **state, int shared) {
  struct session *session = calloc(1, sizeof *session);
  assert_non_null(session);
  *state = session;
  const char *program = getenv("JITMEM_EXECUTOR");
  assert_non_null(program);
  session->executor = start_program(program);
  OK(jitmem_transport_socket(session->executor.socket, &session->transport, error));
  OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(session->transport, NULL,
                                                            &session->mapper, error));
  OK(jitmem_manager_create(session->mapper, NULL, &session->manager, error));
  const jitmem_segment one = segment(WRAPPER_SIZE, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle;
  OK(jitmem_manager_allocate(session->manager, &one, 1, 7, &memory, &handle, error));
  emit_wrapper(memory.working_memory);
  OK(jitmem_manager_finalize(session->manager, handle, NULL, 0, error));
  session->succeeds = memory.address;
  return 0;
}

static int set_up_shared(void **state) { return set_up_session(state, 1); }

static int set_up_remote(void **state) { return set_up_session(state, 0); }

static int tear_down_session(void **state) {
  struct session *session = *state;
  jitmem_manager_free(session->manager);
  jitmem_mapper_free(session->mapper);
  jitmem_transport_free(session->transport);
  assert_int_equal(status_of_executor(session->executor), 0);
  free(session);
  return 0;
}

struct both {
  uint64_t controller, executor, shared;
  // Threads, each of which has a stack and a part of the heap.
  long controllers, executors;
};

// Once there are no more threads than `threads` has: how many a burst needs depends on what else
// the machine does, and those that are idle end by themselves.
static struct both memory_of(const struct session *session, const struct both *threads) {
  pid_t executor = session->executor.process;
  char tasks[64];
  snprintf(tasks, sizeof tasks, "/proc/%d/task", (int)executor);
  if (threads != NULL) {
    wait_for_threads(threads->controllers);
    wait_for_threads_of(tasks, threads->executors);
  }
  return (struct both){private_bytes(getpid()), private_bytes(executor),
                       status_bytes(executor, "RssShmem"), entries("/proc/self/task"),
                       entries(tasks)};
}

static void print_memory(const char *when, struct both memory) {
  // Two entries of each folder are no threads.
  print_message("%s: KiB of the controller %llu (%ld threads), of the executor %llu (%ld threads), "
                "shared %llu\n",
                when, (unsigned long long)(memory.controller / KIB), memory.controllers - 2,
                (unsigned long long)(memory.executor / KIB), memory.executors - 2,
                (unsigned long long)(memory.shared / KIB));
}

static void graphs_leave_nothing(void **state) {
  struct session *session = *state;
  size_t count = graphs();
  uint64_t *handles = handles_for(count);
  // What first use takes for good.
  for (int i = 0; i < 1000; i++) {
    add_graph(session, handles);
    deallocate_graph(session, *handles);
  }
  struct both before = memory_of(session, NULL);
  uint64_t records = stats_of(session->manager).records;
  for (size_t i = 0; i < count; i++)
    add_graph(session, &handles[i]);
  print_memory("with all", memory_of(session, NULL));
  shuffle(handles, count);
  for (size_t i = 0; i < count; i++)
    deallocate_graph(session, handles[i]);
  OK(jitmem_manager_trim(session->manager, NULL, error));
  // Chunks are mapped there after those before have been unmapped.
  add_graph(session, handles);
  deallocate_graph(session, *handles);
  struct both after = memory_of(session, &before);
  print_memory("before", before);
  print_memory("after", after);
  assert_in_range(stats_of(session->manager).records, 0, records + 2 * MIB);
  assert_in_range(after.executor, 0, before.executor + 2 * MIB);
  assert_in_range(after.shared, 0, before.shared + 2 * MIB);
  // Under valgrind and sanitizers this process's memory is theirs.
  if (!instrumented())
    assert_in_range(after.controller, 0, before.controller + 2 * MIB);
  free(handles);
}

int main(void) {
  // A huge page that a stack or the heap happens to get would count, here and in executors.
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  const struct CMUnitTest tests[] = {
      {"graphs_leave_nothing (shared)", graphs_leave_nothing, set_up_shared, tear_down_session,
       NULL},
      {"graphs_leave_nothing (remote)", graphs_leave_nothing, set_up_remote, tear_down_session,
       NULL},
  };
  return at_rest(cmocka_run_group_tests_name("records across processes", tests, NULL, NULL));
}
