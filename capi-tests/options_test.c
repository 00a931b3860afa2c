// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A manager's options: the window's size and place, quota, growth, commit.

#include "child.h"

#include <errno.h>
#include <sys/mman.h>

struct windows {
  size_t count;
  jitmem_layout_item items[64];
};

static void collect_windows(void *ctx, const jitmem_layout_item *item) {
  struct windows *windows = ctx;
  if (item->kind == JITMEM_LAYOUT_WINDOW && windows->count < COUNT(windows->items))
    windows->items[windows->count++] = *item;
}

static struct windows windows_of(const jitmem_manager *manager) {
  struct windows windows = {0};
  OK(jitmem_manager_layout(manager, collect_windows, &windows, error));
  return windows;
}

static int inside(jitmem_layout_item window, uint64_t address) {
  return address >= window.address && address - window.address < window.size;
}

// ---- size ----

// Beside the libraries there is no room for the largest window that may be asked for.
static void the_largest_window_is_what_fits(void **state) {
  (void)state;
  not_under_valgrind(
      "valgrind puts libraries and other mappings where windows are in reach of them");
  jitmem_mapper *mapper = NULL;
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, error));
  const uint64_t sizes[] = {2 * GIB - 2 * MIB, 2 * GIB - 128 * MIB};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    const jitmem_manager_options options = {.struct_size = sizeof options, .window_size = sizes[i]};
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(mapper, &options, &manager, error));
    jitmem_stats stats = stats_of(manager);
    assert_in_range(stats.reserved, 1850 * MIB, sizes[i]);
    assert_true(stats.reserved == sizes[i] ||
                (stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW) != 0);
    // A request that fails says nothing of a larger window, where none was to be had.
    if (stats.reserved < sizes[i]) {
      const jitmem_segment large = segment(stats.reserved / 2 + MIB, 0, RW),
                           both[] = {large, large};
      jitmem_segment_memory memory[2];
      uint64_t handle = 0;
      REFUSED(JITMEM_WINDOW_FULL, "make the manager earlier",
              jitmem_manager_allocate(manager, both, 2, 0, memory, &handle, error));
    }
    jitmem_manager_free(manager);
  }
  jitmem_mapper_free(mapper);
}

static void sizes_of_windows(void **state) {
  struct fixture *fixture = *state;
  const struct {
    uint64_t asked, got;
  } sizes[] = {{0, GIB},
               {64 * KIB, 64 * KIB},
               {8 * MIB + 1, 8 * MIB + page_size()},
               {2 * GIB - 2 * MIB, 2 * GIB - 2 * MIB}};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    // Far from everything: beside the libraries there may be less room.
    jitmem_manager *manager =
        manager_with(fixture, (jitmem_manager_options){.window_size = sizes[i].asked,
                                                       .placement = JITMEM_PLACEMENT_NEAR,
                                                       .address = 0x220000000000});
    struct windows windows = windows_of(manager);
    assert_int_equal(windows.count, 1);
    // A large one may be smaller where that keeps libc in reach, and then says so.
    uint64_t smaller = stats_of(manager).fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW;
    if (smaller)
      assert_in_range(windows.items[0].size, 64 * MIB, sizes[i].got - 1);
    else
      assert_int_equal(windows.items[0].size, sizes[i].got);
    assert_true(!smaller || sizes[i].got >= GIB);
    assert_int_equal(stats_of(manager).reserved, windows.items[0].size);
    struct graph graph = allocate_one(manager, segment(10, 0, RW), 3);
    assert_true(inside(windows.items[0], graph.memory[0].address));
    jitmem_manager_free(manager);
  }
}

// ---- placement ----

static void a_fixed_place(void **state) {
  struct fixture *fixture = *state;
  const uint64_t place = 0x210000000000;
  jitmem_manager *manager = manager_with(
      fixture, (jitmem_manager_options){
                   .window_size = 16 * MIB, .placement = JITMEM_PLACEMENT_FIXED, .address = place});
  assert_int_equal(windows_of(manager).items[0].address, place);

  // Now it is taken.
  jitmem_manager_options options = {.struct_size = sizeof options,
                                    .window_size = 16 * MIB,
                                    .placement = JITMEM_PLACEMENT_FIXED,
                                    .address = place + 8 * MIB};
  jitmem_manager *second = NULL;
  jitmem_error *error = NULL;
  assert_int_not_equal(jitmem_manager_create(fixture->mapper, &options, &second, &error), 0);
  assert_null(second);
  assert_int_equal(jitmem_error_os_code(error), EEXIST);
  assert_non_null(strstr(jitmem_error_message(error), "choose another address"));
  jitmem_error_free(error);

  // Freed, it can be had again.
  jitmem_manager_free(manager);
  OK(jitmem_manager_create(fixture->mapper, &options, &second, error));
  assert_int_equal(windows_of(second).items[0].address, place + 8 * MIB);
  jitmem_manager_free(second);
}

static void a_fixed_place_that_can_not_be(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  const struct {
    uint64_t address;
    const char *words;
  } bad[] = {{0, "fixed address 0x0"},
             {1, "multiple of the page size"},
             {0x210000000800, "multiple of the page size"}};
  jitmem_manager_options options = {
      .struct_size = sizeof options, .window_size = 16 * MIB, .placement = JITMEM_PLACEMENT_FIXED};
  for (size_t i = 0; i < COUNT(bad); i++) {
    options.address = bad[i].address;
    REFUSED(JITMEM_INVALID_ARGUMENT, bad[i].words,
            jitmem_manager_create(fixture->mapper, &options, &manager, error));
  }
  // Where no process may map anything, and where the end overflows.
  const uint64_t nowhere[] = {(uint64_t)1 << 63, (uint64_t)0 - page_size(), ADDRESSES_END};
  for (size_t i = 0; i < COUNT(nowhere); i++) {
    options.address = nowhere[i];
    assert_int_not_equal(jitmem_manager_create(fixture->mapper, &options, &manager, NULL), 0);
  }
  assert_null(manager);
}

static void near_an_address(void **state) {
  struct fixture *fixture = *state;
  const uint64_t anchors[] = {0x220000000000, (uintptr_t)&fixture, 0x10000};
  for (size_t i = 0; i < COUNT(anchors); i++) {
    jitmem_manager *manager =
        manager_with(fixture, (jitmem_manager_options){.window_size = 64 * MIB,
                                                       .placement = JITMEM_PLACEMENT_NEAR,
                                                       .address = anchors[i]});
    jitmem_layout_item window = windows_of(manager).items[0];
    int64_t to_start = (int64_t)(window.address - anchors[i]);
    int64_t to_end = (int64_t)(window.address + window.size - anchors[i]);
    assert_true(to_start >= INT32_MIN && to_end <= INT32_MAX);
    assert_int_equal(stats_of(manager).fallbacks & JITMEM_FALLBACK_OUT_OF_REACH, 0);
    jitmem_manager_free(manager);
  }
  jitmem_manager_options options = {.struct_size = sizeof options,
                                    .placement = JITMEM_PLACEMENT_NEAR,
                                    .address = (uint64_t)1 << 60};
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_OUT_OF_MEMORY, "within 2 GiB of 0x1000000000000000",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
}

static void near_several_addresses(void **state) {
  struct fixture *fixture = *state;
  const uint64_t low = 0x228000000000, all[] = {low + GIB, low, low + 700 * MIB};
  // With and without the address that was there before there was a list.
  for (size_t with = 0; with < 2; with++) {
    jitmem_manager *manager =
        manager_with(fixture, (jitmem_manager_options){.placement = JITMEM_PLACEMENT_NEAR,
                                                       .address = with ? low - 100 * MIB : 0,
                                                       .addresses = all,
                                                       .address_count = COUNT(all)});
    jitmem_layout_item window = windows_of(manager).items[0];
    const uint64_t lowest = with ? low - 100 * MIB : low;
    for (size_t i = 0; i < COUNT(all); i++) {
      assert_true(all[i] < window.address + 2 * GIB && window.address < all[i] + 2 * GIB);
      assert_true(window.address + window.size <= all[i] + 2 * GIB);
    }
    assert_true(window.address + window.size <= lowest + 2 * GIB);
    finalize(manager, allocate_one(manager, segment(64, 0, RX), 1).handle);
    jitmem_manager_free(manager);
  }
  jitmem_manager *manager = NULL;
  const uint64_t apart[] = {low + 5, low + 2 * GIB, low};
  jitmem_manager_options options = {.struct_size = sizeof options,
                                    .placement = JITMEM_PLACEMENT_NEAR,
                                    .addresses = apart,
                                    .address_count = COUNT(apart)};
  REFUSED(JITMEM_INVALID_ARGUMENT, "near both 0x228000000000 and 0x228080000000",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
  options.addresses = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "addresses is NULL",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
  options.addresses = apart;
  options.placement = JITMEM_PLACEMENT_DEFAULT;
  REFUSED(JITMEM_INVALID_ARGUMENT, "they are for near 1",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_null(manager);
}

// ---- quota ----

static void a_quota_that_changes(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.quota = 64 * KIB});
  const jitmem_segment half = segment(32 * KIB, 0, RW), page = segment(page_size(), 0, RW);
  struct graph graph = {0}, first = allocate_one(manager, half, 1);
  OK(jitmem_manager_set_quota(manager, 256 * KIB, error));
  struct graph others[3] = {allocate_one(manager, half, 2), allocate_one(manager, half, 3),
                            allocate_one(manager, half, 4)};
  // Below what is in use: nothing new until it has sunk, and what there is stays.
  OK(jitmem_manager_set_quota(manager, 64 * KIB, error));
  for (size_t i = 0; i < COUNT(others); i++) {
    REFUSED(JITMEM_QUOTA_EXCEEDED, "jitmem_manager_set_quota",
            jitmem_manager_allocate(manager, &page, 1, 0, graph.memory, &graph.handle, error));
    finalize(manager, others[i].handle);
    assert_true(all_bytes_are(at(others[i].memory[0].address), 32 * KIB, (uint8_t)(2 + i)));
    deallocate(manager, others[i].handle);
  }
  OK(jitmem_manager_abandon(manager, allocate_one(manager, page, 5).handle, error));
  // And none.
  OK(jitmem_manager_set_quota(manager, 0, error));
  OK(jitmem_manager_abandon(manager, allocate_one(manager, segment(MIB, 0, RW), 6).handle, error));
  OK(jitmem_manager_abandon(manager, first.handle, error));
  jitmem_manager_free(manager);
  REFUSED(JITMEM_INVALID_HANDLE, "freed before", jitmem_manager_set_quota(manager, 1, error));
}

static void a_quota(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.quota = 64 * KIB});
  jitmem_segment half = segment(32 * KIB, 0, RW), more = segment(32 * KIB + 1, 0, RW);
  jitmem_segment rest = segment(32 * KIB - 16, 16, RX);
  struct graph first = allocate_one(manager, half, 1), refused;
  jitmem_stats before = stats_of(manager);
  REFUSED(JITMEM_QUOTA_EXCEEDED, "quota of 65536",
          jitmem_manager_allocate(manager, &more, 1, 0, refused.memory, &refused.handle, error));
  assert_int_equal(stats_of(manager).live, before.live);
  assert_int_equal(stats_of(manager).committed, before.committed);
  // To the last byte, whatever the group; then not one more.
  struct graph second = allocate_one(manager, rest, 2);
  jitmem_segment byte = segment(1, 0, R);
  REFUSED(JITMEM_QUOTA_EXCEEDED, "65536 of a quota",
          jitmem_manager_allocate(manager, &byte, 1, 0, refused.memory, &refused.handle, error));
  finalize(manager, second.handle);
  deallocate(manager, second.handle);
  struct graph third = allocate_one(manager, byte, 3);
  OK(jitmem_manager_abandon(manager, third.handle, error));
  OK(jitmem_manager_abandon(manager, first.handle, error));
  // No quota helps a request that is larger; none at all is no limit of 0.
  jitmem_segment large = segment(64 * KIB + 1, 0, RW);
  REFUSED(JITMEM_QUOTA_EXCEEDED, "raise the quota",
          jitmem_manager_allocate(manager, &large, 1, 0, refused.memory, &refused.handle, error));
  allocate_one(fixture->manager, large, 4);
  jitmem_manager_free(manager);
}

// ---- growth ----

// Fills a manager with segments until the window is full; the number of graphs.
static size_t fill(jitmem_manager *manager, jitmem_segment one, uint64_t dylib,
                   struct graph *graphs, size_t most) {
  for (size_t count = 0; count < most; count++) {
    struct graph *graph = &graphs[count];
    jitmem_status status =
        jitmem_manager_allocate(manager, &one, 1, dylib, graph->memory, &graph->handle, NULL);
    if (status == JITMEM_WINDOW_FULL)
      return count;
    assert_int_equal(status, JITMEM_OK);
    memset(graph->memory[0].working_memory, (int)count, one.content_size);
    finalize(manager, graph->handle);
  }
  fail_msg("the window took %zu graphs and is not full", most);
  return 0;
}

static void a_full_window(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.window_size = 8 * MIB});
  struct graph graphs[64];
  jitmem_segment one = segment(256 * KIB, 0, RX);
  for (int round = 0; round < 3; round++) {
    size_t count = fill(manager, one, 0, graphs, COUNT(graphs));
    // Room for no more than 32, and nearly all of them found it.
    assert_in_range(count, 28, 32);
    struct graph refused;
    REFUSED(JITMEM_WINDOW_FULL, "deallocate something",
            jitmem_manager_allocate(manager, &one, 1, 0, refused.memory, &refused.handle, error));
    // What is there is whole, and one freed makes room for one.
    for (size_t i = 0; i < count; i++)
      assert_true(all_bytes_are(at(graphs[i].memory[0].address), 256 * KIB, (uint8_t)i));
    deallocate(manager, graphs[0].handle);
    graphs[0] = allocate_one(manager, one, 0);
    finalize(manager, graphs[0].handle);
    for (size_t i = 0; i < count; i++)
      deallocate(manager, graphs[i].handle);
    assert_int_equal(stats_of(manager).live, 0);
    // Pages that one group gave back serve another.
    one.protection = round == 0 ? RW : R;
  }
  jitmem_manager_free(manager);
}

static uint32_t kind_in_child;

// The first segment of a request gets the last free run, and there is none for the second.
static void half_a_request_fits(void *unused) {
  (void)unused;
  jitmem_manager *manager =
      child_manager(kind_in_child, (jitmem_manager_options){.window_size = 8 * MIB});
  jitmem_segment block = segment(0, 64 * KIB, RW);
  jitmem_segment_memory memory[2];
  uint64_t handles[256] = {0}, handle = 0;
  size_t count = 0;
  while (count < COUNT(handles) &&
         jitmem_manager_allocate(manager, &block, 1, 0, memory, &handles[count], NULL) == JITMEM_OK)
    count++;
  MUST(count > 100 && count < COUNT(handles));
  // Chunks of the filling group go back when they are empty, until a run is free.
  uint64_t committed = child_stats(manager).committed;
  while (count > 0 && child_stats(manager).committed == committed)
    MUST_OK(jitmem_manager_abandon(manager, handles[--count], error));
  const jitmem_segment two[] = {segment(0, 40 * KIB, RX), segment(0, 7 * MIB, R)};
  MUST_FAIL(JITMEM_WINDOW_FULL, "2 segment(s)", "full",
            jitmem_manager_allocate(manager, two, 2, 0, memory, &handle, error));
  while (count > 0)
    MUST_OK(jitmem_manager_abandon(manager, handles[--count], error));
  // Now the first one alone would fill the window.
  const jitmem_segment both[] = {segment(0, 8 * MIB - page_size(), RX),
                                 segment(0, page_size(), RX)};
  MUST_FAIL(JITMEM_WINDOW_FULL, "2 segment(s)", "full",
            jitmem_manager_allocate(manager, both, 2, 0, memory, &handle, error));
  child_graph(manager);
  jitmem_manager_free(manager);
}

static void a_window_that_is_full_for_half_a_request(void **state) {
  kind_in_child = ((struct fixture *)*state)->kind;
  in_child(half_a_request_fits, NULL);
}

static void another_window(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager =
      manager_with(fixture, (jitmem_manager_options){.window_size = 8 * MIB,
                                                     .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  jitmem_segment one = segment(256 * KIB, 0, RX);
  struct graph first[64], second[64], other;
  const uint64_t first_dylib = 0x1111, second_dylib = 0x2222;

  // The first JITDylib fills its window and must not leave it.
  size_t count = fill(manager, one, first_dylib, first, COUNT(first));
  assert_int_equal(stats_of(manager).windows, 1);
  REFUSED(
      JITMEM_WINDOW_FULL, "0x1111",
      jitmem_manager_allocate(manager, &one, 1, first_dylib, other.memory, &other.handle, error));
  assert_int_equal(stats_of(manager).windows, 1);
  jitmem_layout_item home = windows_of(manager).items[0];
  for (size_t i = 0; i < count; i++)
    assert_true(inside(home, first[i].memory[0].address) &&
                inside(home, first[i].memory[0].address + one.content_size - 1));

  // The second one gets a window of its own, all of it.
  size_t others = fill(manager, one, second_dylib, second, COUNT(second));
  assert_int_equal(stats_of(manager).windows, 2);
  assert_int_equal(stats_of(manager).reserved, 16 * MIB);
  jitmem_layout_item next = windows_of(manager).items[0].address == home.address
                                ? windows_of(manager).items[1]
                                : windows_of(manager).items[0];
  for (size_t i = 0; i < others; i++)
    assert_true(inside(next, second[i].memory[0].address));

  // Once the first is gone altogether it is free to live elsewhere.
  for (size_t i = 0; i < count; i++)
    deallocate(manager, first[i].handle);
  struct graph none[64];
  count = fill(manager, one, second_dylib + 1, none, COUNT(none));
  assert_true(inside(home, none[0].memory[0].address));
  assert_int_equal(stats_of(manager).windows, 2);
  OK(jitmem_manager_allocate(manager, &one, 1, first_dylib, other.memory, &other.handle, error));
  assert_int_equal(stats_of(manager).windows, 3);
  assert_false(inside(home, other.memory[0].address) || inside(next, other.memory[0].address));
  // The second stays where it lives.
  deallocate(manager, second[0].handle);
  OK(jitmem_manager_allocate(manager, &one, 1, second_dylib, other.memory, &other.handle, error));
  assert_true(inside(next, other.memory[0].address));
  jitmem_manager_free(manager);
}

static void no_window_for_what_fits_none(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager =
      manager_with(fixture, (jitmem_manager_options){.window_size = 8 * MIB,
                                                     .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  struct graph graph;
  // Larger than a window; no room to align in an empty one, for code keeps off its first bytes.
  jitmem_segment larger = segment(0, 8 * MIB + 1, RW), aligned = segment(0, 8 * KIB, RX);
  aligned.alignment = 8 * MIB;
  for (int i = 0; i < 3; i++) {
    REFUSED(JITMEM_WINDOW_FULL, "",
            jitmem_manager_allocate(manager, &larger, 1, 0, graph.memory, &graph.handle, error));
    REFUSED(JITMEM_WINDOW_FULL, "",
            jitmem_manager_allocate(manager, &aligned, 1, 0, graph.memory, &graph.handle, error));
  }
  // A request that is refused leaves nothing behind, no windows either.
  assert_int_equal(stats_of(manager).windows, 1);
  assert_int_equal(stats_of(manager).reserved, 8 * MIB);
  jitmem_manager_free(manager);
}

// ---- commit ----

// Pages of private memory that are there although they were not touched.
static size_t resident(uint64_t address, size_t pages) {
  unsigned char there[64] = {0};
  size_t count = 0;
  assert_true(pages <= sizeof there);
  assert_int_equal(mincore(at(address), pages * page_size(), there), 0);
  for (size_t i = 0; i < pages; i++)
    count += there[i] & 1;
  return count;
}

static void check_commit(struct fixture *fixture, uint32_t protection) {
  for (uint32_t commit = 0; commit < 2; commit++) {
    jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.commit = commit});
    jitmem_segment one = segment(64 * page_size(), 0, protection);
    one.alignment = page_size();
    struct graph graph = allocate(manager, &one, 1);
    assert_int_equal(resident(graph.memory[0].address, 64), commit ? 64 : 0);
    memset(graph.memory[0].working_memory, 1, 64 * page_size());
    finalize(manager, graph.handle);
    assert_int_equal(resident(graph.memory[0].address, 64), 64);
    jitmem_manager_free(manager);
  }
}

static void commit_takes_the_pages_of_data(void **state) { check_commit(*state, RW); }

// Shared pages do not show before they are touched; memory_limits_test.c sees them run out.
static void commit_takes_the_pages_of_code(void **state) { check_commit(*state, RX); }

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(sizes_of_windows),
      cmocka_unit_test(the_largest_window_is_what_fits),
      EACH(a_fixed_place),
      EACH(a_fixed_place_that_can_not_be),
      EACH(near_an_address),
      EACH(near_several_addresses),
      EACH(a_quota),
      EACH(a_quota_that_changes),
      EACH(a_full_window),
      EACH(a_window_that_is_full_for_half_a_request),
      EACH(another_window),
      EACH(no_window_for_what_fits_none),
      EACH(commit_takes_the_pages_of_data),
      {"commit_takes_the_pages_of_code (mprotect)", commit_takes_the_pages_of_code, set_up_mprotect,
       tear_down, NULL},
  };
  return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
