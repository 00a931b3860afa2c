// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the statistics and the layout say, against what was asked for and what the kernel says.

#include "code.h"
#include "harness.h"

#include <sys/mman.h>

// ---- counts ----

// Whether shared memory can be mapped a second time, which valgrind does not know.
static int can_map_again(void) {
  void *first = mmap(NULL, page_size(), PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(first != MAP_FAILED);
  void *second = mremap(first, 0, page_size(), MREMAP_MAYMOVE);
  if (second != MAP_FAILED)
    assert_int_equal(munmap(second, page_size()), 0);
  assert_int_equal(munmap(first, page_size()), 0);
  return second != MAP_FAILED;
}

static void a_new_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_stats stats = stats_of(fixture->manager);
  assert_int_equal(stats.reserved, GIB);
  assert_int_equal(stats.windows, 1);
  assert_int_equal(stats.chunk_bytes + stats.live + stats.padding + stats.free + stats.chunks, 0);
  assert_int_equal(stats.in_flight + stats.finalized + stats.failures + stats.span, 0);
  assert_int_equal(stats.allocate_calls + stats.finalize_calls + stats.abandon_calls +
                       stats.deallocate_calls,
                   0);
  assert_int_equal(stats.mappings, 1);
  assert_int_equal(stats.unmap_failures, 0);
  assert_true(stats.system_calls > 0);
  int two_views = fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS;
  if (two_views && !can_map_again()) {
    assert_int_equal(stats.fallbacks, JITMEM_FALLBACK_SECOND_BEST);
    assert_non_null(strstr(stats.fallback_reason, "mremap"));
    assert_string_equal(stats.mapper_name, "in-process, two views of memfds");
    return;
  }
  // Chosen, not fallen back to.
  assert_int_equal(stats.fallbacks, 0);
  assert_null(stats.fallback_reason);
  assert_int_equal(stats.mapper, two_views ? JITMEM_MAPPER_TWO_VIEWS : JITMEM_MAPPER_MPROTECT);
  assert_string_equal(stats.mapper_name,
                      two_views ? "in-process, two views" : "in-process, mprotect");
}

static void every_step_counts(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 1);
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.live, 256 + 64 + 128);
  assert_int_equal(stats.allocate_calls, 1);
  assert_int_equal(stats.in_flight, 1);
  assert_int_equal(stats.chunks, 3);
  assert_true(stats.span >= stats.live);

  finalize(manager, graph.handle);
  stats = stats_of(manager);
  assert_int_equal(stats.in_flight, 0);
  assert_int_equal(stats.finalized, 1);
  assert_int_equal(stats.finalize_calls, 1);

  struct graph abandoned = allocate_three(manager, 2);
  OK(jitmem_manager_abandon(manager, abandoned.handle, error));
  deallocate(manager, graph.handle);
  FAILS(JITMEM_INVALID_HANDLE, "", jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  stats = stats_of(manager);
  assert_int_equal(stats.live + stats.padding + stats.in_flight + stats.finalized, 0);
  assert_int_equal(stats.span, 0);
  assert_int_equal(stats.abandon_calls, 1);
  assert_int_equal(stats.deallocate_calls, 1);
  assert_int_equal(stats.allocate_calls, 2);
  assert_int_equal(stats.failures, 1);
}

static void padding_is_what_rounding_costs(void **state) {
  struct fixture *fixture = *state;
  uint64_t granule = fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS ? 16 : page_size();
  struct graph graph = allocate_one(fixture->manager, segment(1, 0, RW), 1);
  jitmem_stats stats = stats_of(fixture->manager);
  assert_int_equal(stats.live, 1);
  assert_int_equal(stats.padding, granule - 1);
  OK(jitmem_manager_abandon(fixture->manager, graph.handle, error));
}

static void empty_chunks_go_back(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  enum { GRAPHS = 400 };
  struct graph graphs[GRAPHS];
  for (int i = 0; i < GRAPHS; i++) {
    graphs[i] = allocate_one(manager, segment(20000, 0, i % 2 ? RX : RW), 1);
    finalize(manager, graphs[i].handle);
  }
  jitmem_stats full = stats_of(manager);
  for (int i = 0; i < GRAPHS; i++)
    deallocate(manager, graphs[i].handle);
  jitmem_stats empty = stats_of(manager);
  assert_true(full.chunks > 4 && full.chunk_bytes > full.committed);
  assert_true(full.committed >= GRAPHS * 20000);
  // Of each of the two groups up to 2 MiB are kept for what comes next, and something is.
  assert_in_range(empty.chunks, 2, full.chunks - 2);
  assert_in_range(empty.chunk_bytes, 1, 2 * 2 * MIB);
  assert_in_range(empty.committed, 0, empty.chunk_bytes);
}

// ---- layout ----

struct picture {
  jitmem_layout_item window, chunk;
  uint64_t windows, chunks, ranges, window_bytes, chunk_bytes, range_bytes, last_end;
  const char *wrong;
};

static int within(const jitmem_layout_item *inner, const jitmem_layout_item *outer) {
  return inner->address >= outer->address &&
         inner->address + inner->size <= outer->address + outer->size;
}

static void visit(void *ctx, const jitmem_layout_item *item) {
  struct picture *picture = ctx;
  const char *wrong = NULL;
  if (item->size == 0)
    wrong = "something is empty";
  switch (item->kind) {
  case JITMEM_LAYOUT_WINDOW:
    if (item->protection != 0 || item->lifetime != 0)
      wrong = "a window has a group";
    if (item->address < picture->last_end)
      wrong = "windows overlap or are out of order";
    picture->window = *item;
    picture->chunk = (jitmem_layout_item){0};
    picture->windows++;
    picture->window_bytes += item->size;
    picture->last_end = item->address;
    break;
  case JITMEM_LAYOUT_CHUNK:
    if (!within(item, &picture->window))
      wrong = "a chunk is outside its window";
    if (item->address < picture->last_end ||
        (picture->chunk.size && item->address < picture->chunk.address + picture->chunk.size))
      wrong = "chunks overlap or are out of order";
    picture->chunk = *item;
    picture->chunks++;
    picture->chunk_bytes += item->size;
    picture->last_end = item->address;
    break;
  case JITMEM_LAYOUT_RANGE:
    if (!within(item, &picture->chunk))
      wrong = "a range is outside its chunk";
    if (item->address < picture->last_end)
      wrong = "ranges overlap or are out of order";
    if (item->protection != picture->chunk.protection || item->lifetime != picture->chunk.lifetime)
      wrong = "a range is in a chunk of another group";
    picture->ranges++;
    picture->range_bytes += item->size;
    picture->last_end = item->address + item->size;
    break;
  default:
    wrong = "an unknown kind of item";
  }
  if (picture->wrong == NULL)
    picture->wrong = wrong;
}

static void check_layout(jitmem_manager *manager) {
  struct picture picture = {0};
  OK(jitmem_manager_layout(manager, visit, &picture, error));
  if (picture.wrong != NULL)
    fail_msg("%s", picture.wrong);
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(picture.windows, stats.windows);
  assert_int_equal(picture.window_bytes, stats.reserved);
  assert_int_equal(picture.chunks, stats.chunks);
  assert_int_equal(picture.chunk_bytes, stats.chunk_bytes);
  assert_int_equal(picture.range_bytes, stats.live + stats.padding);
  // What is neither handed out nor free is the guard in front of code.
  uint64_t guards = stats.chunk_bytes - stats.live - stats.padding - stats.free;
  assert_true(guards <= stats.chunks * page_size());
}

static void the_layout_agrees_with_the_stats(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager =
      manager_with(fixture, (jitmem_manager_options){.window_size = 128 * MIB,
                                                     .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  check_layout(manager);
  // Two large graphs that fit no window together, then many small ones.
  uint64_t large[2];
  for (int i = 0; i < 2; i++) {
    large[i] = allocate_one(manager, segment(0, 100 * MIB, RW), 0).handle;
    finalize(manager, large[i]);
  }
  assert_int_equal(stats_of(manager).windows, 2);
  enum { GRAPHS = 600 };
  uint64_t handles[GRAPHS] = {0}, random = 7;
  for (int step = 0; step < 3000; step++) {
    uint64_t *handle = &handles[next_random(&random) % GRAPHS];
    if (*handle != 0) {
      deallocate(manager, *handle);
      *handle = 0;
    } else {
      const uint32_t protections[] = {RX, R, RW};
      jitmem_segment segments[2];
      for (int i = 0; i < 2; i++) {
        segments[i] = segment(next_random(&random) % 6000, 0, protections[random % 3]);
        segments[i].alignment = (uint64_t)1 << next_random(&random) % 13;
      }
      segments[1].lifetime = next_random(&random) % 2;
      struct graph graph = allocate(manager, segments, 2);
      *handle = graph.handle;
      if (step % 100 == 0)
        check_layout(manager);
      finalize(manager, graph.handle);
    }
    if (step % 50 == 0)
      check_layout(manager);
  }
  OK(jitmem_manager_deallocate(manager, large, 2, error));
  for (int i = 0; i < GRAPHS; i++)
    if (handles[i] != 0)
      deallocate(manager, handles[i]);
  check_layout(manager);
  assert_int_equal(stats_of(manager).live + stats_of(manager).padding, 0);
  jitmem_manager_free(manager);
}

// ---- the promise of two views ----

static void the_hot_path_makes_no_system_calls(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  // Something alive in each group, so that no chunk comes or goes.
  struct graph warm = allocate_three(manager, 1);
  finalize(manager, warm.handle);
  uint64_t before = stats_of(manager).system_calls;
  for (int i = 0; i < 1000; i++) {
    struct graph graph = allocate_three(manager, (uint8_t)i);
    finalize(manager, graph.handle);
    deallocate(manager, graph.handle);
  }
  // Where other cores must be told of code, each finalize does.
  assert_int_equal(stats_of(manager).system_calls - before, COHERENT_FETCH ? 0 : 1000);
  deallocate(manager, warm.handle);
}

static void keep_window(void *ctx, const jitmem_layout_item *item) {
  if (item->kind == JITMEM_LAYOUT_WINDOW)
    *(jitmem_layout_item *)ctx = *item;
}

// Mappings in the manager's one window, and writer views elsewhere.
static uint64_t mappings_of(jitmem_manager *manager) {
  jitmem_layout_item window = {0};
  OK(jitmem_manager_layout(manager, keep_window, &window, error));
  FILE *maps = fopen("/proc/self/maps", "r");
  assert_non_null(maps);
  char line[512];
  uint64_t count = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long long start = 0;
    assert_int_equal(sscanf(line, "%llx-", &start), 1);
    count += start - window.address < window.size || strstr(line, "/dev/zero") != NULL ||
             strstr(line, "/memfd:jitmem") != NULL;
  }
  fclose(maps);
  return count;
}

static void many_graphs_take_few_mappings(void **state) {
  struct fixture *fixture = *state;
  // Whole pages per segment where protection changes: fewer graphs fill the memory.
  unsigned count = rounds(fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS ? 100000 : 20000);
  uint64_t *handles = calloc(count, sizeof *handles);
  assert_non_null(handles);
  long before = line_count("/proc/self/maps");
  const jitmem_segment segments[] = {segment(256, 0, RX), segment(64, 0, R), segment(64, 0, RW)};
  for (unsigned i = 0; i < count; i++) {
    struct graph graph = allocate(fixture->manager, segments, 3);
    for (int j = 0; j < 3; j++)
      memset(graph.memory[j].working_memory, (int)i, segments[j].content_size);
    finalize(fixture->manager, graph.handle);
    handles[i] = graph.handle;
  }
  jitmem_stats stats = stats_of(fixture->manager);
  assert_int_equal(stats.finalized, count);
  uint64_t mappings = mappings_of(fixture->manager);
  long lines = line_count("/proc/self/maps") - before;
  printf("%u graphs: %llu mappings, the stats say at most %llu; %ld more lines in the maps\n",
         count, (unsigned long long)mappings, (unsigned long long)stats.mappings, lines);
  assert_in_range(stats.mappings, 1, 64);
  assert_in_range(mappings, 1, stats.mappings);
  // The bookkeeping's heap included; sanitizers and valgrind add mappings of their own.
  assert_true(lines <= (instrumented() ? 256 : 64));
  OK(jitmem_manager_deallocate(fixture->manager, handles, count, error));
  assert_int_equal(stats_of(fixture->manager).live, 0);
  free(handles);
}

static void graphs_in_flight_between_others_take_few_mappings(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  enum { GRAPHS = 1000 };
  uint64_t handles[GRAPHS];
  for (int i = 0; i < GRAPHS; i++)
    handles[i] = allocate_three(manager, 1).handle;
  // Every second one becomes visible; the others stay as they are.
  for (int i = 0; i < GRAPHS; i += 2)
    finalize(manager, handles[i]);
  assert_in_range(mappings_of(manager), 1, 64);
  assert_in_range(mappings_of(manager), 1, stats_of(manager).mappings);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(a_new_manager),
      EACH(every_step_counts),
      EACH(padding_is_what_rounding_costs),
      EACH(empty_chunks_go_back),
      EACH(the_layout_agrees_with_the_stats),
      TWO_VIEWS(the_hot_path_makes_no_system_calls),
      EACH(many_graphs_take_few_mappings),
      EACH(graphs_in_flight_between_others_take_few_mappings),
  };
  return cmocka_run_group_tests_name("statistics", tests, NULL, NULL);
}
