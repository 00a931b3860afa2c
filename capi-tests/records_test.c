// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the manager's own records of allocations cost, as the kernel counts it, and that they go.

#include "records.h"

// Under valgrind and sanitizers, which keep memory of their own, only the statistics are looked at.
#define MOST_GRAPHS ((size_t)1000 * 1000)

static size_t graphs(void) { return instrumented() ? MOST_GRAPHS / 50 : MOST_GRAPHS; }

static void add_graphs(jitmem_manager *manager, const jitmem_segment *segments, size_t count,
                       uint64_t *handles, size_t graphs) {
  jitmem_segment_memory memory[3];
  for (size_t i = 0; i < graphs; i++) {
    OK(jitmem_manager_allocate(manager, segments, count, 7, memory, &handles[i], error));
    OK(jitmem_manager_finalize(manager, handles[i], NULL, 0, error));
  }
}

static void at_most_96_bytes_for_a_live_graph(void **state) {
  struct fixture *fixture = *state;
  size_t count = graphs();
  uint64_t *handles = handles_for(count);
  const jitmem_segment segments[] = {segment(32, 0, RX), segment(16, 0, R), segment(16, 0, RW)};
  for (size_t of_each = 1; of_each <= 3; of_each++) {
    jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
    add_graphs(manager, segments, of_each, handles, count);
    jitmem_stats stats = stats_of(manager);
    assert_int_equal(stats.finalized, count);
    print_message("%zu segments: %.2f bytes for a graph\n", of_each,
                  (double)stats.records / (double)count);
    assert_in_range(stats.records / count, 1, 95);
    jitmem_manager_free(manager);
  }
  free(handles);
}

static void a_million_graphs_come_and_go(void **state) {
  struct fixture *fixture = *state;
  size_t count = graphs();
  uint64_t *handles = handles_for(count);
  // Shared pages, which are not private memory.
  const jitmem_segment segments[] = {segment(32, 0, RX), segment(16, 0, R), segment(16, 0, R)};
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
  add_graphs(manager, segments, 3, handles, 1);
  OK(jitmem_manager_deallocate(manager, handles, 1, error));
  uint64_t before = private_bytes(getpid()), records = stats_of(manager).records;
  add_graphs(manager, segments, 3, handles, count);
  uint64_t live = private_bytes(getpid()), live_records = stats_of(manager).records;
  shuffle(handles, count);
  for (size_t i = 0; i < count; i++)
    OK(jitmem_manager_deallocate(manager, &handles[i], 1, error));
  uint64_t after = private_bytes(getpid()), records_after = stats_of(manager).records;
  print_message(
      "private KiB: %llu before, %llu with all, %llu after; of records %llu, %llu, %llu\n",
      (unsigned long long)(before / KIB), (unsigned long long)(live / KIB),
      (unsigned long long)(after / KIB), (unsigned long long)(records / KIB),
      (unsigned long long)(live_records / KIB), (unsigned long long)(records_after / KIB));
  assert_in_range(records_after, 0, records + 2 * MIB);
  if (!instrumented() && fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS) {
    assert_in_range(live - before, 1, 96 * count);
    assert_in_range(after, 0, before + 2 * MIB);
  }
  // An old handle does not come to life when its record's memory went and came back.
  add_graphs(manager, segments, 3, &(uint64_t){0}, 1);
  for (size_t i = 0; i < count; i += count / 1000)
    FAILS(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(manager, &handles[i], 1, error));
  jitmem_manager_free(manager);
  free(handles);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TWO_VIEWS(at_most_96_bytes_for_a_live_graph),
      TWO_VIEWS(a_million_graphs_come_and_go),
  };
  return cmocka_run_group_tests_name("records", tests, NULL, NULL);
}
