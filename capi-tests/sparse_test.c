// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Chunks of which little is left, in an executor that runs what is left all the time: memory is
// given back under running code, and executors may be killed meanwhile.

#include "code.h"
#include "executor.h"
#include "footprint.h"
#include "here.h"

#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

enum { PLANS = 600, LEFT = 30, KEPT = PLANS / LEFT, CODE = 5000, ROUNDS = 40 };

// What both processes see.
struct meeting {
  _Atomic uint64_t functions[KEPT];
  _Atomic uint64_t calls;
  atomic_int stop, stopped, wrong;
};

static struct meeting *meeting;

static struct meeting *new_meeting(void) {
  void *pages =
      mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_ptr_not_equal(pages, MAP_FAILED);
  return pages;
}

static void *run_all(void *ignored) {
  (void)ignored;
  while (!atomic_load(&meeting->stop)) {
    for (uint32_t i = 0; i < KEPT; i++) {
      uint64_t function = atomic_load(&meeting->functions[i]);
      if (function != 0 && run(function) != i)
        atomic_fetch_add(&meeting->wrong, 1);
      atomic_fetch_add(&meeting->calls, 1);
    }
  }
  atomic_store(&meeting->stopped, 1);
  return NULL;
}

// In the executor: has a thread run what is there, until it is told to stop.
static int32_t start_running(int32_t ignored) {
  (void)ignored;
  pthread_t thread;
  return pthread_create(&thread, NULL, run_all, NULL) == 0 && pthread_detach(thread) == 0;
}

// Pages of sealed memfds that this process has mapped, resident or not in its tables, in KiB: each
// file once.
static int32_t kib_of_code(int32_t ignored) {
  (void)ignored;
  FILE *maps = fopen("/proc/self/maps", "r");
  if (maps == NULL)
    return -1;
  static unsigned char resident[1 << 18];
  char line[512], permissions[8];
  int32_t pages = 0;
  uint64_t start, end;
  while (fgets(line, sizeof line, maps) != NULL) {
    if (strstr(line, "memfd:jitmem-code") == NULL && strstr(line, "memfd:jitmem-constants") == NULL)
      continue;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &start, &end, permissions) != 3 ||
        permissions[1] == 'w')
      continue;
    if (mincore((void *)(uintptr_t)start, end - start, resident) != 0)
      return -1;
    for (uint64_t page = 0; page < (end - start) / page_size(); page++)
      pages += resident[page] & 1;
  }
  fclose(maps);
  return pages * (int32_t)(page_size() / KIB);
}

struct session {
  struct executor executor;
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static struct session begin(int shared) {
  struct session session = {.executor = start_executor(NULL)};
  OK(jitmem_transport_socket(session.executor.socket, &session.transport, error));
  session.manager = manager_over(session.transport, shared, &session.mapper);
  return session;
}

static void end(struct session *session) {
  jitmem_manager_free(session->manager);
  jitmem_mapper_free(session->mapper);
  jitmem_transport_free(session->transport);
}

static int32_t ask(const struct session *session, int32_t (*function)(int32_t)) {
  int32_t answer = 0;
  OK(call_int(session->transport, (uint64_t)(uintptr_t)function, 0, &answer, error));
  return answer;
}

// Gives the end of the session, if it has ended.
static jitmem_status link_plan(jitmem_manager *manager, uint32_t value, uint64_t *handle,
                               uint64_t *address) {
  const jitmem_segment segments[] = {segment(CODE, 0, RX), segment(1200, 0, R)};
  jitmem_segment_memory memory[2];
  jitmem_status status = jitmem_manager_allocate(manager, segments, 2, 0, memory, handle, NULL);
  if (status != JITMEM_OK)
    return status;
  memset(memory[1].working_memory, 1, 1200);
  memset(memory[0].working_memory, 0x90, CODE);
  emit_return(memory[0].working_memory, value);
  *address = memory[0].address;
  return jitmem_manager_finalize(manager, *handle, NULL, 0, NULL);
}

// A peak, of which one of so many stays in each round.
static jitmem_status peak(jitmem_manager *manager, uint64_t *kept, uint64_t *functions) {
  uint64_t handles[PLANS], address;
  jitmem_status status = JITMEM_OK;
  for (uint32_t i = 0; i < PLANS && status == JITMEM_OK; i++) {
    status = link_plan(manager, i / LEFT, &handles[i], &address);
    if (status == JITMEM_OK && i % LEFT == 0)
      kept[i / LEFT] = handles[i], functions[i / LEFT] = address;
  }
  for (uint32_t i = 0; i < PLANS && status == JITMEM_OK; i++)
    if (i % LEFT != 0)
      status = jitmem_manager_deallocate(manager, &handles[i], 1, NULL);
  return status;
}

// ---- under running code ----

static void code_runs_meanwhile(int shared) {
  meeting = new_meeting();
  struct session session = begin(shared);
  int32_t before = ask(&session, kib_of_code);
  assert_int_equal(ask(&session, start_running), 1);
  uint64_t kept[KEPT], functions[KEPT], before_last[KEPT];
  for (int round = 0; round < (int)rounds(ROUNDS); round++) {
    if (round > 0)
      memcpy(before_last, kept, sizeof kept);
    assert_int_equal(peak(session.manager, kept, functions), JITMEM_OK);
    for (int i = 0; i < KEPT; i++)
      atomic_store(&meeting->functions[i], functions[i]);
    OK(jitmem_manager_trim(session.manager, NULL, error));
    // None of those before is being run any more once all of these have been.
    uint64_t calls = atomic_load(&meeting->calls);
    while (atomic_load(&meeting->calls) < calls + 2 * KEPT)
      sched_yield();
    if (round > 0)
      OK(jitmem_manager_deallocate(session.manager, before_last, KEPT, error));
  }
  OK(jitmem_manager_trim(session.manager, NULL, error));
  // Where the session has no channel of its own, a trim does not wait for the executor.
  const uint64_t most = KEPT * 5 * page_size() + 64 * KIB;
  for (int i = 0; i < 30000 && stats_of(session.manager).committed > most; i++)
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  jitmem_stats stats = stats_of(session.manager);
  int32_t there = ask(&session, kib_of_code) - before;
  print_message("%" PRIu64 " live, %" PRIu64 " committed, %d KiB of memfds\n", (uint64_t)stats.live,
                (uint64_t)stats.committed, there);
  // Each segment is alone on its pages: at most three of code, and two of constants.
  assert_true(stats.committed <= most);
  assert_true((uint64_t)there * KIB <= stats.committed);
  uint64_t calls = atomic_load(&meeting->calls);
  while (atomic_load(&meeting->calls) < calls + 2 * KEPT)
    sched_yield();
  atomic_store(&meeting->stop, 1);
  while (!atomic_load(&meeting->stopped))
    sched_yield();
  assert_int_equal(atomic_load(&meeting->wrong), 0);
  end(&session);
  assert_int_equal(status_of_executor(session.executor), 0);
  munmap(meeting, sizeof *meeting);
}

static void code_runs_meanwhile_shared(void **state) {
  (void)state;
  code_runs_meanwhile(1);
}

static void code_runs_meanwhile_remote(void **state) {
  (void)state;
  code_runs_meanwhile(0);
}

// ---- write scopes meanwhile ----

static int32_t read_there(int32_t ignored) {
  (void)ignored;
  return *(volatile int32_t *)(uintptr_t)atomic_load(&meeting->functions[0]);
}

static void *trim_all_the_time(void *argument) {
  const struct session *session = argument;
  uint64_t kept[KEPT], functions[KEPT];
  for (int i = 0; i < (int)rounds(ROUNDS) / 4; i++) {
    assert_int_equal(peak(session->manager, kept, functions), JITMEM_OK);
    OK(jitmem_manager_trim(session->manager, NULL, error));
    OK(jitmem_manager_deallocate(session->manager, kept, KEPT, error));
  }
  atomic_store(&meeting->stop, 1);
  return NULL;
}

// What is stored is there when the scope has ended, whichever memory the chunk has by then.
static void scopes_meanwhile(void **state) {
  (void)state;
  meeting = new_meeting();
  struct session session = begin(1);
  const jitmem_segment constants = segment(64, 0, R);
  struct graph graph = allocate_one(session.manager, constants, 0);
  finalize(session.manager, graph.handle);
  atomic_store(&meeting->functions[0], graph.memory[0].address);
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, trim_all_the_time, &session), 0);
  for (int32_t value = 1; !atomic_load(&meeting->stop); value++) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(session.manager, graph.handle, &scope, error));
    OK(jitmem_write_scope_store(scope, graph.memory[0].address, &value, 4, error));
    OK(jitmem_write_scope_end(scope, error));
    assert_int_equal(ask(&session, read_there), value);
  }
  assert_int_equal(pthread_join(thread, NULL), 0);
  end(&session);
  assert_int_equal(status_of_executor(session.executor), 0);
  munmap(meeting, sizeof *meeting);
}

// ---- killed meanwhile ----

static void *kill_soon(void *argument) {
  const struct session *session = argument;
  while (atomic_load(&meeting->calls) == 0)
    sched_yield();
  struct timespec moment = {.tv_nsec = (long)atomic_load(&meeting->calls) * 10000};
  nanosleep(&moment, NULL);
  kill(session->executor.process, SIGKILL);
  return NULL;
}

static void killed_while_trimming(int shared) {
  meeting = new_meeting();
  struct footprint before = {0};
  for (unsigned life = 0; life < rounds(ROUNDS); life++) {
    struct session session = begin(shared);
    atomic_store(&meeting->calls, 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, kill_soon, &session), 0);
    uint64_t kept[KEPT], functions[KEPT];
    jitmem_status status = JITMEM_OK;
    while (status == JITMEM_OK) {
      status = peak(session.manager, kept, functions);
      atomic_store(&meeting->calls, life % 20 + 1);
      for (int i = 0; i < 20 && status == JITMEM_OK; i++) {
        uint64_t handle, address;
        status = jitmem_manager_trim(session.manager, NULL, NULL);
        if (status == JITMEM_OK)
          status = link_plan(session.manager, 1, &handle, &address);
      }
    }
    assert_int_equal(status, JITMEM_DISCONNECTED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(WIFSIGNALED(status_of_executor(session.executor)));
    end(&session);
    if (life == 1)
      before = footprint();
  }
  struct footprint after = footprint_as(before);
  assert_in_range(after.descriptors, 0, before.descriptors);
  assert_in_range(after.mappings, 0, before.mappings + 8);
  munmap(meeting, sizeof *meeting);
}

static void killed_while_trimming_shared(void **state) {
  (void)state;
  killed_while_trimming(1);
}

static void killed_while_trimming_remote(void **state) {
  (void)state;
  killed_while_trimming(0);
}

int main(void) {
  // Else threads that are started at the same time leave arenas, of two mappings each.
  mallopt(M_ARENA_MAX, 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(code_runs_meanwhile_shared),
      cmocka_unit_test(code_runs_meanwhile_remote),
      cmocka_unit_test(scopes_meanwhile),
      cmocka_unit_test(killed_while_trimming_shared),
      cmocka_unit_test(killed_while_trimming_remote),
  };
  return at_rest(cmocka_run_group_tests_name("sparse chunks", tests, NULL, NULL));
}
