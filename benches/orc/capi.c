// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem through its C API alone: the graphs of workload (a) without LLVM, so that what jitmem
// costs can be told from what LLVM's graphs and the C++ adapter cost.
#define _POSIX_C_SOURCE 200809L

#include "callgrind.h"

#include <jitmem.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GRAPHS = 10000, LIVE = 500, ROUNDS = 21, MOST_GRAPHS = 1000000 };
/// The difference between runs of these sizes is counted: what happens once falls out of it.
enum { FEWER = 2000, MORE = 12000 };

/// As in (a), all graphs belong to one JITDylib.
static const uint64_t dylib = 1;

struct shape {
  jitmem_segment segments[3];
  size_t count;
};
enum { MOST_SEGMENTS = 3 };

static const struct shape three = {
    {{.content_size = 256, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
     {.content_size = 64, .alignment = 16, .protection = JITMEM_PROT_READ},
     {.content_size = 64, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE}},
    3};
/// As many bytes, as managers have them that know one protection.
static const struct shape one = {
    {{.content_size = 384, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC}}, 1};

/// That of the phase that runs.
static const struct shape *shape = &three;

static char content[384];

static void fail(const char *operation, const char *cause) {
  fprintf(stderr, "jitmem-bench-c: %s: %s\n", operation, cause);
  exit(1);
}

static void check(const char *operation, jitmem_status status, const jitmem_error *error) {
  if (status != JITMEM_OK)
    fail(operation, jitmem_error_message(error));
}

static void write_content(const jitmem_segment_memory *memory) {
  for (size_t i = 0; i != shape->count; ++i)
    memcpy(memory[i].working_memory, content, shape->segments[i].content_size);
}

static uint64_t add_sync(jitmem_manager *manager) {
  jitmem_segment_memory memory[MOST_SEGMENTS];
  uint64_t allocation = 0;
  jitmem_error *error = NULL;
  check("allocate",
        jitmem_manager_allocate(manager, shape->segments, shape->count, dylib, memory, &allocation,
                                &error),
        error);
  write_content(memory);
  check("finalize", jitmem_manager_finalize(manager, allocation, NULL, 0, &error), error);
  return allocation;
}

static void remove_sync(jitmem_manager *manager, uint64_t allocation) {
  jitmem_error *error = NULL;
  check("deallocate", jitmem_manager_deallocate(manager, &allocation, 1, &error), error);
}

struct adding {
  jitmem_manager *manager;
  uint64_t allocation;
  bool finalized;
};

static void on_finalized(void *ctx, const jitmem_error *error) {
  check("finalize", jitmem_error_status(error), error);
  ((struct adding *)ctx)->finalized = true;
}

/// As a linker does: the next step begins in the callback of the one before.
static void on_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                         size_t count, const jitmem_error *error) {
  (void)count;
  check("allocate", jitmem_error_status(error), error);
  write_content(memory);
  struct adding *adding = ctx;
  adding->allocation = allocation;
  jitmem_error *refused = NULL;
  check("finalize",
        jitmem_manager_finalize_async(adding->manager, allocation, NULL, 0, on_finalized, adding,
                                      NULL, &refused),
        refused);
}

static uint64_t add_async(jitmem_manager *manager) {
  struct adding adding = {manager, 0, false};
  jitmem_error *error = NULL;
  check("allocate",
        jitmem_manager_allocate_async(manager, shape->segments, shape->count, dylib, on_allocated,
                                      &adding, NULL, &error),
        error);
  if (!adding.finalized)
    fail("finalize", "in process the callback runs inside the call, and it has not run");
  return adding.allocation;
}

static void on_deallocated(void *ctx, const jitmem_error *error) {
  check("deallocate", jitmem_error_status(error), error);
  *(bool *)ctx = true;
}

static void remove_async(jitmem_manager *manager, uint64_t allocation) {
  bool done = false;
  jitmem_error *error = NULL;
  check(
      "deallocate",
      jitmem_manager_deallocate_async(manager, &allocation, 1, on_deallocated, &done, NULL, &error),
      error);
  if (!done)
    fail("deallocate", "in process the callback runs inside the call, and it has not run");
}

/// As the C++ adapter does: without a callback where nothing has to be waited for.
static uint64_t add_try(jitmem_manager *manager) {
  jitmem_segment_memory memory[MOST_SEGMENTS];
  uint64_t allocation = 0;
  jitmem_error *error = NULL;
  jitmem_status status = jitmem_manager_try_allocate(manager, shape->segments, shape->count, dylib,
                                                     memory, &allocation, &error);
  if (status == JITMEM_WOULD_BLOCK)
    return add_async(manager);
  check("allocate", status, error);
  write_content(memory);
  status = jitmem_manager_try_finalize(manager, allocation, &error);
  if (status == JITMEM_WOULD_BLOCK)
    status = jitmem_manager_finalize(manager, allocation, NULL, 0, &error);
  check("finalize", status, error);
  return allocation;
}

static void remove_try(jitmem_manager *manager, uint64_t allocation) {
  jitmem_error *error = NULL;
  jitmem_status status = jitmem_manager_try_deallocate(manager, &allocation, 1, &error);
  if (status == JITMEM_WOULD_BLOCK)
    remove_async(manager, allocation);
  else
    check("deallocate", status, error);
}

struct calls {
  const char *name;
  uint64_t (*add)(jitmem_manager *manager);
  void (*remove)(jitmem_manager *manager, uint64_t allocation);
};

static const struct calls all_calls[] = {
    {"sync", add_sync, remove_sync},
    {"async", add_async, remove_async},
    {"try", add_try, remove_try},
};
enum { CALLS = sizeof all_calls / sizeof *all_calls };

struct run {
  const struct calls *calls;
  jitmem_manager *manager;
  size_t graphs;
  uint64_t *live;
  size_t live_count;
  uint64_t random;
};

static size_t random_below(struct run *run, size_t bound) {
  run->random ^= run->random << 13;
  run->random ^= run->random >> 7;
  run->random ^= run->random << 17;
  return run->random % bound;
}

static void add_up_to(struct run *run, size_t count) {
  while (run->live_count != count)
    run->live[run->live_count++] = run->calls->add(run->manager);
}

static void add_all(struct run *run) { add_up_to(run, run->graphs); }

static void remove_all(struct run *run) {
  for (size_t i = 0; i != run->live_count; ++i)
    run->calls->remove(run->manager, run->live[i]);
  run->live_count = 0;
}

static void nothing(struct run *run) { (void)run; }

static void shuffle_all(struct run *run) {
  add_all(run);
  for (size_t i = run->live_count; i > 1; --i) {
    size_t other = random_below(run, i);
    uint64_t swapped = run->live[i - 1];
    run->live[i - 1] = run->live[other];
    run->live[other] = swapped;
  }
}

static void churn(struct run *run) {
  for (size_t i = 0; i != run->graphs; ++i) {
    uint64_t *victim = &run->live[random_below(run, LIVE)];
    run->calls->remove(run->manager, *victim);
    *victim = run->calls->add(run->manager);
  }
}

/// Steady churn: what only the first steps do is not its cost.
static void begin_churn(struct run *run) {
  add_up_to(run, LIVE);
  size_t graphs = run->graphs;
  run->graphs = 2 * LIVE;
  churn(run);
  run->graphs = graphs;
}

struct phase {
  const char *key;
  const char *title;
  void (*begin)(struct run *run);
  void (*measured)(struct run *run);
  const struct shape *shape;
};

static const struct phase all_phases[] = {
    {"allocate", "allocate + finalize, content written", nothing, add_all, &three},
    {"deallocate", "deallocate one by one, oldest first", add_all, remove_all, &three},
    {"deallocate-random", "deallocate one by one, random order", shuffle_all, remove_all, &three},
    {"churn", "churn at 500 live", begin_churn, churn, &three},
    {"churn-one", "churn at 500 live, one segment of 384 B", begin_churn, churn, &one},
};
enum { PHASES = sizeof all_phases / sizeof *all_phases };

/// Not static and never inlined: callgrind finds it by its name.
__attribute__((noinline)) void run_measured(const struct phase *phase, struct run *run) {
  phase->measured(run);
}

/// Of processor time: waiting for a processor is not jitmem's cost.
static double nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static jitmem_stats stats_of(const jitmem_manager *manager) {
  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_error *error = NULL;
  check("stats", jitmem_manager_stats(manager, &stats, &error), error);
  return stats;
}

struct sample {
  double time;
  double system_calls;
};

/// Runs one phase on a new manager; both figures are per graph.
static struct sample run_phase(const struct phase *phase, const struct calls *calls,
                               size_t graphs) {
  jitmem_error *error = NULL;
  jitmem_mapper *mapper = NULL;
  struct run run = {calls, NULL, graphs, NULL, 0, 0x9e3779b97f4a7c15};
  check("make a mapper", jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, &error),
        error);
  check("make a manager", jitmem_manager_create(mapper, NULL, &run.manager, &error), error);
  jitmem_mapper_free(mapper);
  shape = phase->shape;
  // Touched beforehand: its page faults are not jitmem's.
  size_t bytes = (graphs > LIVE ? graphs : LIVE) * sizeof *run.live;
  run.live = malloc(bytes);
  if (!run.live)
    fail("list of live graphs", "the heap has no room for it");
  memset(run.live, 0xff, bytes);
  phase->begin(&run);

  struct sample sample;
  uint64_t system_calls = stats_of(run.manager).system_calls;
  sample.time = nanoseconds();
  run_measured(phase, &run);
  sample.time = (nanoseconds() - sample.time) / (double)graphs;
  sample.system_calls =
      (double)(stats_of(run.manager).system_calls - system_calls) / (double)graphs;

  remove_all(&run);
  jitmem_stats stats = stats_of(run.manager);
  if (stats.finalized || stats.in_flight || stats.live)
    fail("deallocate", "something is left in the manager");
  free(run.live);
  jitmem_manager_free(run.manager);
  return sample;
}

static int compare(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

static double median(double *values, size_t count) {
  qsort(values, count, sizeof *values, compare);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void print_calls(void) {
  for (int c = 0; c != CALLS; ++c)
    printf(" %s |", all_calls[c].name);
}

static void print_times(void) {
  static double times[PHASES][CALLS][ROUNDS];
  double system_calls[PHASES];
  // Interleaved, and round 0 warms up.
  for (int round = 0; round != ROUNDS + 1; ++round)
    for (int p = 0; p != PHASES; ++p)
      for (int c = 0; c != CALLS; ++c) {
        struct sample sample = run_phase(&all_phases[p], &all_calls[c], GRAPHS);
        if (round)
          times[p][c][round - 1] = sample.time;
        system_calls[p] = sample.system_calls;
      }
  printf("\n| ns of processor time per graph, median (min) |");
  print_calls();
  printf(" system calls |\n|---|--:|--:|--:|--:|\n");
  for (int p = 0; p != PHASES; ++p) {
    printf("| %s |", all_phases[p].title);
    for (int c = 0; c != CALLS; ++c) {
      double middle = median(times[p][c], ROUNDS);
      printf(" %.0f (%.0f) |", middle, times[p][c][0]);
    }
    printf(" %.4f |\n", system_calls[p]);
  }
  fflush(stdout);
}

static bool count_one(const struct phase *phase, const struct calls *calls, int graphs,
                      uint64_t *instructions, const char **why) {
  char size[16];
  snprintf(size, sizeof size, "%d", graphs);
  const char *arguments[] = {"--graphs", size, "--phase", phase->key, "--calls", calls->name, NULL};
  return count_instructions("run_measured", arguments, instructions, why);
}

static void print_instructions(void) {
  double instructions[PHASES][CALLS];
  for (int p = 0; p != PHASES; ++p)
    for (int c = 0; c != CALLS; ++c) {
      uint64_t fewer = 0, more = 0;
      const char *why = NULL;
      if (!count_one(&all_phases[p], &all_calls[c], FEWER, &fewer, &why) ||
          !count_one(&all_phases[p], &all_calls[c], MORE, &more, &why)) {
        printf("\nInstructions: not measured: %s\n", why);
        return;
      }
      instructions[p][c] = (double)(more - fewer) / (MORE - FEWER);
    }
  printf("\nInstructions: callgrind's count of a run of %d graphs less one of %d, divided.\n\n"
         "| instructions per graph |",
         MORE, FEWER);
  print_calls();
  printf("\n|---|--:|--:|--:|\n");
  for (int p = 0; p != PHASES; ++p) {
    printf("| %s |", all_phases[p].title);
    for (int c = 0; c != CALLS; ++c)
      printf(" %.0f |", instructions[p][c]);
    printf("\n");
  }
}

static void usage(void) {
  fprintf(stderr, "usage: jitmem-bench-c                    times, then instructions\n"
                  "       jitmem-bench-c --graphs N --phase "
                  "allocate|deallocate|deallocate-random|churn|churn-one [--calls sync|async|try]\n"
                  "                                         one phase, for a profiler\n");
  exit(2);
}

int main(int argc, char **argv) {
  memset(content, 0xcc, sizeof content);
  if (argc == 1) {
    printf("# jitmem through its C API alone\n\n"
           "jitmem %s, no LLVM. The graphs of workload (a): R-X 256 B, R-- 64 B, RW- 64 B; %d "
           "graphs a round, %d rounds, interleaved, a new manager for each. \"sync\" is the call "
           "that waits, \"async\" the one with a callback, \"try\" the one that the C++ adapter "
           "makes first. System calls are jitmem's own count.\n",
           jitmem_version_string(), GRAPHS, ROUNDS);
    print_times();
    print_instructions();
    return 0;
  }

  const struct phase *phase = NULL;
  const struct calls *calls = argc == 5 ? &all_calls[0] : NULL;
  size_t graphs = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const char *value = argv[i + 1];
    if (!strcmp(argv[i], "--graphs"))
      graphs = strtoul(value, NULL, 10);
    for (int p = 0; p != PHASES; ++p)
      if (!strcmp(argv[i], "--phase") && !strcmp(value, all_phases[p].key))
        phase = &all_phases[p];
    for (int c = 0; c != CALLS; ++c)
      if (!strcmp(argv[i], "--calls") && !strcmp(value, all_calls[c].name))
        calls = &all_calls[c];
  }
  if (argc > 7 || !phase || !calls || graphs == 0 || graphs > MOST_GRAPHS)
    usage();
  run_phase(phase, calls, graphs);
  return 0;
}
