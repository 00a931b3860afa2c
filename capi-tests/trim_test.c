// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Memory that is given back: how much stays committed beside what is live, and what the kernel says
// of it. The sizes are those of a query engine's compiled plans, from fixed seeds.

#include "here.h"

#include <inttypes.h>
#include <math.h>
#include <time.h>

enum { LIVE = 500, PEAK = 20000, CYCLES = 100000 };

struct workload {
  jitmem_manager *manager;
  uint64_t random;
  uint64_t handles[PEAK];
};

static const uint64_t seeds[] = {88172645463325252u, 1, 0x9e3779b97f4a7c15u};

// The ratios show with fewer plans too.
static size_t seed_count(void) { return instrumented() ? 1 : COUNT(seeds); }
static unsigned peak_count(void) { return instrumented() ? PEAK / 16 : PEAK; }
static unsigned left_count(void) { return instrumented() ? LIVE / 4 : LIVE; }

static struct workload *workload_of(struct fixture *fixture, uint64_t seed) {
  struct workload *workload = calloc(1, sizeof *workload);
  assert_non_null(workload);
  workload->manager = fixture->manager;
  workload->random = seed;
  return workload;
}

static double uniform(struct workload *workload) {
  return (double)(next_random(&workload->random) >> 11) / 9007199254740992.0;
}

static uint64_t log_normal(struct workload *workload) {
  double radius = sqrt(-2 * log(uniform(workload) + 1e-300));
  double size = exp(9.2 + 1.3 * radius * cos(6.283185307179586 * uniform(workload)));
  return size < 64 ? 64 : size > 8e6 ? 8000000 : (uint64_t)size;
}

// A plan: code, constants a quarter of its size, some data. Pages that are larger hold as many
// plans.
static uint64_t compile(struct workload *workload) {
  uint64_t code = log_normal(workload) * (page_size() / (4 * KIB));
  const jitmem_segment segments[] = {segment(code, 0, RX), segment(code / 4 + 16, 0, R),
                                     segment(code / 16 + 8, code / 16, RW)};
  struct graph graph = allocate(workload->manager, segments, COUNT(segments));
  for (size_t i = 0; i < COUNT(segments); i++)
    memset(graph.memory[i].working_memory, 0x90, segments[i].content_size);
  finalize(workload->manager, graph.handle);
  return graph.handle;
}

// What stays in use beside what was asked for: where allocations have pages of their own, their
// rounding counts as theirs.
static double committed_over_live(struct workload *workload) {
  jitmem_stats stats = stats_of(workload->manager);
  return (double)stats.committed / (double)(stats.live + stats.padding);
}

// Bytes of memory that this process is charged for.
static uint64_t charged(void) {
  FILE *file = fopen("/proc/self/smaps_rollup", "r");
  assert_non_null(file);
  char line[256];
  uint64_t kib = 0;
  while (fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "Pss: %" SCNu64 " kB", &kib) == 1)
      break;
  fclose(file);
  return kib * KIB;
}

// The kernel knows of no more than the statistics do, but for the manager's records and the heap.
static void must_agree(struct workload *workload, uint64_t charged_before, uint64_t records) {
  if (instrumented())
    return;
  jitmem_stats stats = stats_of(workload->manager);
  uint64_t now = charged();
  if (now > charged_before + stats.committed + records)
    fail_msg("%" PRIu64 " bytes more are charged, and %" PRIu64 " committed", now - charged_before,
             (uint64_t)stats.committed);
  // All content was written, so nearly all that is committed is there.
  assert_true(now + stats.committed / 4 + MIB > charged_before + stats.committed);
}

static void pages_must_go(const struct fixture *fixture) {
  if (fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS)
    not_under_valgrind("two views are of memfds then, whose seals keep pages there");
}

// Some die at random, others in their order, and of some kinds many live long.
static unsigned next_to_die(struct workload *workload, int mode, unsigned cycle) {
  if (mode == 0)
    return (unsigned)(uniform(workload) * LIVE);
  return mode == 1 ? cycle % LIVE : (unsigned)(pow(uniform(workload), 4) * LIVE);
}

// Each way of dying with each seed; all cycles with one of them.
static void steady_churn(void **state) {
  struct fixture *fixture = *state;
  pages_must_go(fixture);
  for (size_t run = 0; run < 3 * seed_count(); run++) {
    int mode = (int)(run % 3);
    struct workload *workload = workload_of(fixture, seeds[run / 3]);
    workload->manager = manager_with(fixture, (jitmem_manager_options){0});
    uint64_t before = charged();
    unsigned cycles = rounds(run < 3 ? CYCLES : CYCLES / 5);
    double worst = 0, sum = 0;
    unsigned looks = 0;
    for (unsigned i = 0; i < cycles; i++) {
      uint64_t *handle = &workload->handles[next_to_die(workload, mode, i)];
      if (*handle != 0)
        deallocate(workload->manager, *handle);
      *handle = compile(workload);
      if (i > cycles / 10 && i % 500 == 0) {
        double ratio = committed_over_live(workload);
        worst = ratio > worst ? ratio : worst;
        sum += ratio;
        looks++;
      }
    }
    print_message("mode %d: %.2f on average, %.2f at worst\n", mode, sum / looks, worst);
    assert_true(sum / looks <= 1.25 && worst <= 1.4);
    must_agree(workload, before, 4 * MIB);
    jitmem_manager_free(workload->manager);
    free(workload);
  }
}

// Compiles a peak of plans and drops all but `kept` of them, at random. Gives what was committed.
static uint64_t peak(struct workload *workload, unsigned kept) {
  for (unsigned i = 0; i < peak_count(); i++)
    workload->handles[i] = compile(workload);
  uint64_t committed = stats_of(workload->manager).committed;
  for (unsigned left = peak_count(); left > kept; left--) {
    unsigned gone = (unsigned)(uniform(workload) * left);
    deallocate(workload->manager, workload->handles[gone]);
    workload->handles[gone] = workload->handles[left - 1];
  }
  return committed;
}

static void after_a_peak(void **state) {
  struct fixture *fixture = *state;
  pages_must_go(fixture);
  jitmem_manager_options options = {0};
  // A sanitizer's own memory leaves no window in reach that the peak fits into.
  if (instrumented())
    options.growth = JITMEM_GROWTH_ANOTHER_WINDOW;
  for (size_t i = 0; i < seed_count(); i++) {
    struct workload *workload = workload_of(fixture, seeds[i]);
    workload->manager = manager_with(fixture, options);
    uint64_t before = charged();
    peak(workload, left_count());
    double by_itself = committed_over_live(workload);
    uint64_t committed = stats_of(workload->manager).committed, bytes = 0;
    OK(jitmem_manager_trim(workload->manager, &bytes, error));
    double trimmed = committed_over_live(workload);
    print_message("%.2f by itself, %.2f after a trim\n", by_itself, trimmed);
    assert_true(by_itself <= 2.0 && trimmed <= 1.5);
    assert_int_equal(stats_of(workload->manager).committed, committed - bytes);
    must_agree(workload, before, 12 * MIB);
    // There is nothing more to give back.
    OK(jitmem_manager_trim(workload->manager, &bytes, error));
    assert_int_equal(bytes, 0);
    jitmem_manager_free(workload->manager);
    free(workload);
  }
}

// Committed over live, once what is being given back by itself is at most `wanted`, or does not get
// there.
static double ratio_by_itself(struct workload *workload, double wanted) {
  for (int i = 0; i < 30000; i++) {
    if (committed_over_live(workload) <= wanted)
      break;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  return committed_over_live(workload);
}

// Code and constants in another process go by whole chunks, of which what is in use is copied. It
// is used again.
static void after_a_peak_across(void **state) {
  struct fixture *fixture = *state;
  for (size_t i = 0; i < seed_count(); i++) {
    struct workload *workload = workload_of(fixture, seeds[i]);
    jitmem_manager *manager = workload->manager =
        manager_with(fixture, (jitmem_manager_options){.growth = JITMEM_GROWTH_ANOTHER_WINDOW});
    peak(workload, left_count());
    double by_itself = ratio_by_itself(workload, 2.0);
    OK(jitmem_manager_trim(manager, NULL, error));
    double trimmed = committed_over_live(workload);
    print_message("%.2f by itself, %.2f after a trim\n", by_itself, trimmed);
    assert_true(by_itself <= 2.0 && trimmed <= 1.5);
    jitmem_manager_free(manager);
    free(workload);
  }
  struct workload *workload = workload_of(fixture, seeds[0]);
  uint64_t committed = peak(workload, left_count());
  OK(jitmem_manager_trim(workload->manager, NULL, error));
  for (unsigned i = left_count(); i < peak_count() / 2; i++)
    workload->handles[i] = compile(workload);
  assert_true(stats_of(workload->manager).committed <= committed);
  for (unsigned i = 0; i < peak_count() / 2; i++)
    deallocate(workload->manager, workload->handles[i]);
  OK(jitmem_manager_trim(workload->manager, NULL, error));
  assert_int_equal(stats_of(workload->manager).committed, 0);
  free(workload);
}

static void one_of_many_left(void **state) {
  struct fixture *fixture = *state;
  pages_must_go(fixture);
  struct workload *workload = workload_of(fixture, seeds[0]);
  peak(workload, PEAK / 2000);
  jitmem_stats stats = stats_of(workload->manager);
  uint64_t most = stats.live + 4 * MIB;
  ratio_by_itself(workload, (double)most / (double)(stats.live + stats.padding));
  assert_true(stats_of(workload->manager).committed <= most);
  free(workload);
}

// What is live keeps its bytes, and what is handed out again is zero where it must be.
static void content_outlives_a_trim(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  enum { GRAPHS = 300, ZEROS = 9000 };
  const uint32_t protections[] = {RX, R, RW};
  struct graph graphs[GRAPHS];
  uint64_t content[GRAPHS];
  for (int round = 0; round < 4; round++) {
    // At first all of them, then those that were dropped.
    for (int i = 0; i < GRAPHS; i++) {
      if (round > 0 && i % 4 != round - 1)
        continue;
      content[i] = 3000 + 100 * (uint64_t)i;
      graphs[i] =
          allocate_one(manager, segment(content[i], ZEROS, protections[i % 3]), (uint8_t)(i + 1));
      finalize(manager, graphs[i].handle);
    }
    for (int i = 0; i < GRAPHS; i++) {
      const uint8_t *bytes = at(graphs[i].memory[0].address);
      assert_true(all_bytes_are(bytes, content[i], (uint8_t)(i + 1)));
      assert_true(all_bytes_are(bytes + content[i], ZEROS, 0));
    }
    for (int i = 0; i < GRAPHS; i++)
      if (i % 4 == round || round == 3)
        deallocate(manager, graphs[i].handle);
    OK(jitmem_manager_trim(manager, NULL, error));
  }
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.committed + stats.chunk_bytes + stats.chunks, 0);
}

// ---- what was never touched ----

static void must_be_charged_less_than(uint64_t before, uint64_t bytes) {
  uint64_t now = charged();
  if (!instrumented() && now > before + bytes)
    fail_msg("%" PRIu64 " bytes were touched", now - before);
}

// Code that nothing was written into is not made to trap: that would take memory for it.
static void untouched_code_stays_untouched(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  // So that the chunk stays.
  finalize(manager, allocate_one(manager, segment(16, 0, RX), 0xc3).handle);
  for (int i = 0; i < 10; i++) {
    jitmem_segment code = segment(400 * KIB, 0, RX);
    struct graph graph = allocate(manager, &code, 1);
    uint64_t before = charged();
    OK(jitmem_manager_abandon(manager, graph.handle, error));
    must_be_charged_less_than(before, 64 * KIB);
  }
  struct graph graph = allocate_one(manager, segment(16, 1500 * KIB, RX), 0xc3);
  uint64_t before = charged();
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
  must_be_charged_less_than(before, 64 * KIB);
}

// In whatever order segments come, and though an attempt has failed before the chunk was made.
static void untouched_zero_fill_stays_untouched(void **state) {
  struct fixture *fixture = *state;
  const jitmem_segment data = segment(16, 50 * MIB, RW), code = segment(16, 0, RX);
  for (int order = 0; order < 2; order++) {
    jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
    uint64_t before = charged();
    const jitmem_segment segments[] = {order ? code : data, order ? data : code};
    struct graph graph = allocate(manager, segments, 2);
    finalize(manager, graph.handle);
    // The pages in front were used once; those behind were not.
    deallocate(manager, graph.handle);
    graph = allocate(manager, segments, 2);
    finalize(manager, graph.handle);
    must_be_charged_less_than(before, MIB);
    jitmem_manager_free(manager);
  }
}

// ---- windows ----

// Opens windows of 8 MiB until there are that many; the handles of what fills them.
static size_t open_windows(jitmem_manager *manager, uint64_t count, uint64_t *handles) {
  size_t graphs = 0;
  while (stats_of(manager).windows < count) {
    const jitmem_segment segments[] = {segment(MIB, 0, RX), segment(128 * KIB, 0, RW)};
    struct graph graph = allocate(manager, segments, COUNT(segments));
    finalize(manager, graph.handle);
    handles[graphs++] = graph.handle;
  }
  return graphs;
}

static void windows_go_when_they_are_empty(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager =
      manager_with(fixture, (jitmem_manager_options){.window_size = 8 * MIB,
                                                     .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  enum { WINDOWS = 20 };
  uint64_t handles[WINDOWS * 8];
  size_t count = open_windows(manager, WINDOWS, handles);
  assert_true(count <= COUNT(handles));
  uint64_t reserved = stats_of(manager).reserved;
  for (size_t i = 1; i < count; i++)
    deallocate(manager, handles[i]);
  // The one that is in use, and one for what may come.
  assert_int_equal(windows_at_most(manager, 2), 2);
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.reserved, reserved / WINDOWS * 2);
  OK(jitmem_manager_trim(manager, NULL, error));
  assert_int_equal(stats_of(manager).windows, 1);
  deallocate(manager, handles[0]);
  // The last one stays.
  OK(jitmem_manager_trim(manager, NULL, error));
  stats = stats_of(manager);
  assert_int_equal(stats.windows, 1);
  assert_int_equal(stats.committed + stats.unmap_failures, 0);
  // Everything can be had again.
  count = open_windows(manager, 3, handles);
  assert_true(count > 8);
  jitmem_manager_free(manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(steady_churn),
      EACH(after_a_peak),
      ACROSS(after_a_peak_across),
      EVERYWHERE(one_of_many_left),
      EACH(content_outlives_a_trim),
      ACROSS(content_outlives_a_trim),
      TWO_VIEWS(untouched_code_stays_untouched),
      EACH(untouched_zero_fill_stays_untouched),
      EACH(windows_go_when_they_are_empty),
      ACROSS(windows_go_when_they_are_empty),
  };
  return at_rest(cmocka_run_group_tests_name("trim", tests, NULL, NULL));
}
