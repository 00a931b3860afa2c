// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What walking up the stack through linked code costs, and ending what is known of it, by how much
// is linked: this program is linked with jitmem::unwind, so that libgcc asks jitmem's index.
//
//   jitmem-bench-unwind [--most N]    a table, for 1,000 graphs and for N (1,000,000)
#define _GNU_SOURCE

#include "callgrind.h"

#include <inttypes.h>
#include <jitmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unwind.h>
#include <valgrind/callgrind.h>

enum { FEW = 1000, WALKED = 100, ROUNDS = 200, SECTION_ROOM = 80 };

// push rbp; mov rbp, rsp; call rdi; pop rbp; ret, and what an .eh_frame section says of it.
static const uint8_t code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
static const uint8_t common[] = {1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0};
static const uint8_t steps[] = {0, 0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0, 0, 0};

struct graph {
  uint64_t handle, code;
};

static jitmem_manager *manager;
static struct graph *graphs;
static int count;

static void must(jitmem_status status, jitmem_error *error) {
  if (status == JITMEM_OK)
    return;
  fprintf(stderr, "%s\n", jitmem_error_message(error));
  exit(1);
}

static uint8_t *put(uint8_t *out, const void *bytes, size_t size) {
  memcpy(out, bytes, size);
  return out + size;
}

static uint8_t *put_word(uint8_t *out, uint32_t word) { return put(out, &word, sizeof word); }

static struct graph link_one(void) {
  const jitmem_segment segments[] = {
      {.content_size = sizeof code,
       .alignment = 16,
       .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
      {.content_size = SECTION_ROOM, .alignment = 8, .protection = JITMEM_PROT_READ}};
  jitmem_segment_memory memory[2];
  jitmem_error *error = NULL;
  struct graph graph;
  must(jitmem_manager_allocate(manager, segments, 2, 1, memory, &graph.handle, &error), error);
  graph.code = memory[0].address;
  memcpy(memory[0].working_memory, code, sizeof code);
  uint8_t *start = memory[1].working_memory, *out = start;
  out = put_word(out, 4 + sizeof common);
  out = put_word(out, 0);
  out = put(out, common, sizeof common);
  out = put_word(out, 4 + 8 + sizeof steps);
  out = put_word(out, (uint32_t)(out - start));
  out = put_word(out, (uint32_t)(graph.code - (memory[1].address + (uint64_t)(out - start))));
  out = put_word(out, sizeof code);
  out = put(out, steps, sizeof steps);
  memset(out, 0, (size_t)(start + SECTION_ROOM - out));
  uint64_t args[2];
  jitmem_action action;
  must(jitmem_manager_eh_frame_action(manager, memory[1].address, SECTION_ROOM, args, &action,
                                      &error),
       error);
  must(jitmem_manager_finalize(manager, graph.handle, &action, 1, &error), error);
  return graph;
}

static void link_all(int how_many) {
  jitmem_error *error = NULL;
  jitmem_mapper *mapper = NULL;
  must(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error), error);
  must(jitmem_manager_create(mapper, NULL, &manager, &error), error);
  count = how_many;
  graphs = calloc((size_t)count, sizeof *graphs);
  for (int i = 0; i < count; i++)
    graphs[i] = link_one();
}

// ---- a stack of frames, and the way up ----

static int depth;

static _Unwind_Reason_Code see_frame(struct _Unwind_Context *context, void *seen) {
  (void)context;
  ++*(int *)seen;
  return _URC_NO_REASON;
}

__attribute__((noinline)) static int bench_walk(void) {
  int seen = 0;
  _Unwind_Backtrace(see_frame, &seen);
  return seen;
}

static double nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static double least;
static int frames;

static void walk_often(void) {
  frames = bench_walk();
  least = 1e18;
  for (int i = 0; i < ROUNDS; i++) {
    double before = nanoseconds();
    bench_walk();
    double taken = nanoseconds() - before;
    least = taken < least ? taken : least;
  }
}

static void descend_linked(void) {
  if (depth++ == WALKED)
    return walk_often();
  const struct graph *graph = &graphs[(uint64_t)depth * 7919 % (uint64_t)count];
  ((void (*)(void (*)(void)))(uintptr_t)graph->code)(descend_linked);
  __asm__ volatile("");
}

static void own_hop(void (*next)(void)) {
  next();
  __asm__ volatile("");
}

// By a pointer that the compiler does not look through: there are as many frames as with linked
// code.
static void (*volatile hop_of_own)(void (*)(void)) = own_hop;

static void descend_own(void) {
  if (depth++ == WALKED)
    return walk_often();
  hop_of_own(descend_own);
  __asm__ volatile("");
}

static double time_of(void (*descend)(void)) {
  depth = 0;
  descend();
  return least;
}

// ---- what callgrind counts, each once and in this order ----

static void walk_from_here(void) { bench_walk(); }

static void walk_through(const struct graph *graph) {
  ((void (*)(void (*)(void)))(uintptr_t)graph->code)(walk_from_here);
}

static void first(void) { walk_through(&graphs[count / 2]); }

static void later(void) { walk_through(&graphs[count / 3]); }

static void deallocate(void) {
  jitmem_error *error = NULL;
  for (int i = 0; i < 100; i++)
    must(jitmem_manager_deallocate(manager, &graphs[i * 9 % 900].handle, 1, &error), error);
}

static void counted(void (*phase)(void)) {
  CALLGRIND_TOGGLE_COLLECT;
  phase();
  CALLGRIND_TOGGLE_COLLECT;
  CALLGRIND_DUMP_STATS;
}

static int run_phases(int how_many) {
  link_all(how_many);
  counted(first);
  graphs[count - 1] = link_one();
  counted(later);
  counted(deallocate);
  return 0;
}

static void print_phases(int most) {
  static const char *const phases[] = {"first", "later", "deallocate"};
  enum { PHASES = sizeof phases / sizeof *phases };
  uint64_t totals[2][PHASES];
  const char *why = NULL;
  bool all = true;
  for (int i = 0; i < 2 && all; i++) {
    char graphs_text[16];
    snprintf(graphs_text, sizeof graphs_text, "%d", i == 0 ? FEW : most);
    const char *arguments[] = {"--phases", graphs_text, NULL};
    all = count_parts(PHASES, arguments, totals[i], &why);
  }
  for (int p = 0; p < PHASES; p++)
    if (all)
      printf("| %s | %" PRIu64 " | %" PRIu64 " | %.2f |\n", phases[p], totals[0][p], totals[1][p],
             (double)totals[1][p] / (double)totals[0][p]);
    else
      printf("| %s | – (%s) | | |\n", phases[p], why);
  fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--phases") == 0)
    return run_phases(atoi(argv[2]));
  int most = argc == 3 && strcmp(argv[1], "--most") == 0 ? atoi(argv[2]) : 1000000;
  printf("Instructions (callgrind), in process. first: the first way up through a linked frame; "
         "later: one\n"
         "after another graph was linked; deallocate: 100 graphs.\n\n"
         "| | %d graphs | %d graphs | ratio (to be 1.3 at most) |\n|---|--:|--:|--:|\n",
         FEW, most);
  print_phases(most);
  link_all(most < 100000 ? most : 100000);
  double linked = time_of(descend_linked);
  int frames_with_linked = frames;
  double own = time_of(descend_own);
  if (frames != frames_with_linked)
    abort();
  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_manager_stats(manager, &stats, NULL);
  printf("\nThe way up through %d linked frames and as many of this program's, of %d graphs: %.1f "
         "µs; through\n"
         "frames of this program alone: %.1f µs; ratio %.2f (least of %d). Graphs in the index: "
         "%" PRIu64 ", registered: %" PRIu64 ".\n",
         WALKED, count, linked / 1000, own / 1000, linked / own, ROUNDS, stats.frames_indexed,
         stats.frames_registered);
  return 0;
}
