// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What may be asked for and what one gets: sizes, alignment, protection, lifetime, zero-fill.

#include "here.h"

#include <unistd.h>

#define WINDOW (64 * MIB)

static void refuse(jitmem_manager *manager, jitmem_segment bad, jitmem_status status,
                   const char *words) {
  // The bad one is last, so that all or nothing can be seen.
  const jitmem_segment segments[] = {segment(256, 0, RX), segment(64, 64, RW), bad};
  jitmem_segment_memory memory[3];
  memset(memory, 0x5a, sizeof memory);
  uint64_t allocation = 0x5a;
  jitmem_stats before = stats_of(manager);
  REFUSED(
      status, words,
      jitmem_manager_allocate(manager, segments, COUNT(segments), 0, memory, &allocation, error));
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.live, before.live);
  assert_int_equal(after.padding, before.padding);
  assert_int_equal(after.in_flight, before.in_flight);
  assert_int_equal(after.windows, before.windows);
  assert_int_equal(allocation, 0x5a);
  assert_true(all_bytes_are((uint8_t *)memory, sizeof memory, 0x5a));
}

static void still_works(jitmem_manager *manager) {
  struct graph graph = allocate_three(manager, 9);
  finalize(manager, graph.handle);
  for (int i = 0; i < 3; i++)
    assert_true(all_bytes_are(at(graph.memory[i].address), 64, 9));
  deallocate(manager, graph.handle);
}

// ---- what is refused ----

static void sizes_that_overflow(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  refuse(manager, segment(UINT64_MAX, 1, RW), JITMEM_INVALID_ARGUMENT, "overflow");
  refuse(manager, segment(1, UINT64_MAX, RW), JITMEM_INVALID_ARGUMENT, "overflow");
  refuse(manager, segment((uint64_t)1 << 63, (uint64_t)1 << 63, RX), JITMEM_INVALID_ARGUMENT,
         "overflow");
  still_works(manager);
}

static void sizes_larger_than_any_window(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){.window_size = WINDOW});
  const uint64_t sizes[] = {WINDOW + 1,        2 * GIB,           4 * GIB,
                            (uint64_t)1 << 47, (uint64_t)1 << 63, UINT64_MAX - 4095,
                            UINT64_MAX - 15,   UINT64_MAX};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    refuse(manager, segment(0, sizes[i], RW), JITMEM_WINDOW_FULL, "segment 2");
    refuse(manager, segment(sizes[i], 0, RX), JITMEM_WINDOW_FULL, "segment 2");
  }
  // Each fits alone, together they overflow.
  const jitmem_segment halves[] = {segment(0, (uint64_t)1 << 63, RW),
                                   segment(0, (uint64_t)1 << 63, R)};
  struct graph graph;
  REFUSED(JITMEM_WINDOW_FULL, "larger",
          jitmem_manager_allocate(manager, halves, 2, 0, graph.memory, &graph.handle, error));
  still_works(manager);
  jitmem_manager_free(manager);
}

static void alignments(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment bad = segment(16, 0, RW);
  const uint64_t no_powers[] = {0, 3, 12, 4097, UINT64_MAX, ((uint64_t)1 << 63) + 1};
  for (size_t i = 0; i < COUNT(no_powers); i++) {
    bad.alignment = no_powers[i];
    refuse(manager, bad, JITMEM_INVALID_ARGUMENT, "not a power of two");
  }
  // Powers of two that no window can honour.
  const uint64_t too_large[] = {(uint64_t)1 << 31, (uint64_t)1 << 32, (uint64_t)1 << 63};
  for (size_t i = 0; i < COUNT(too_large); i++) {
    bad.alignment = too_large[i];
    refuse(manager, bad, JITMEM_WINDOW_FULL, "alignment");
  }
  still_works(manager);
}

static void protections_lifetimes_and_hints(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment bad = segment(16, 0, RW);
  const struct {
    uint32_t protection;
    const char *words;
  } protections[] = {
      {7, "writable and executable"}, {6, "writable and executable"},  {8, "bits other than"},
      {0x101, "bits other than"},     {UINT32_MAX, "bits other than"},
  };
  for (size_t i = 0; i < COUNT(protections); i++) {
    bad.protection = protections[i].protection;
    refuse(manager, bad, JITMEM_INVALID_ARGUMENT, protections[i].words);
    // A segment that gets no memory is checked all the same.
    bad.lifetime = JITMEM_LIFETIME_NO_ALLOC;
    refuse(manager, bad, JITMEM_INVALID_ARGUMENT, "segment 2");
    bad.lifetime = JITMEM_LIFETIME_STANDARD;
  }
  bad.protection = RW;
  const uint32_t lifetimes[] = {3, 4, UINT32_MAX};
  for (size_t i = 0; i < COUNT(lifetimes); i++) {
    bad.lifetime = lifetimes[i];
    refuse(manager, bad, JITMEM_INVALID_ARGUMENT, "lifetime");
  }
  bad.lifetime = JITMEM_LIFETIME_STANDARD;
  const uint32_t hints[] = {4, UINT32_MAX};
  for (size_t i = 0; i < COUNT(hints); i++) {
    bad.code_hint = hints[i];
    refuse(manager, bad, JITMEM_INVALID_ARGUMENT, "none of normal 0, hot 1, cold 2 and stub 3");
  }
  still_works(manager);
}

static void writes_outside_the_content(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment segments[] = {segment(16, 16, R), segment(0, 16, RW)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  OK(jitmem_manager_write(manager, graph.handle, 0, 0, "0123456789abcdef", 16, error));
  OK(jitmem_manager_write(manager, graph.handle, 0, 15, "F", 1, error));
  OK(jitmem_manager_write(manager, graph.handle, 0, 16, "", 0, error));
  const struct {
    size_t segment;
    uint64_t offset;
    size_t size;
  } outside[] = {{0, 0, 17}, {0, 16, 1}, {0, UINT64_MAX, 1}, {0, UINT64_MAX - 15, 16}, {1, 0, 1},
                 {2, 0, 1},  {2, 0, 0},  {SIZE_MAX, 0, 1},   {0, (uint64_t)1 << 32, 1}};
  char bytes[32] = {0};
  for (size_t i = 0; i < COUNT(outside); i++)
    REFUSED(JITMEM_INVALID_ARGUMENT, "outside",
            jitmem_manager_write(manager, graph.handle, outside[i].segment, outside[i].offset,
                                 bytes, outside[i].size, error));
  finalize(manager, graph.handle);
  assert_memory_equal(at(graph.memory[0].address), "0123456789abcdeF", 16);
  assert_true(all_bytes_are(at(graph.memory[0].address) + 16, 16, 0));
  deallocate(manager, graph.handle);
}

// ---- what is given ----

static void no_segments_at_all(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate(manager, NULL, 0), other = allocate(manager, NULL, 0);
  assert_int_not_equal(graph.handle, other.handle);
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
  OK(jitmem_manager_abandon(manager, other.handle, error));
}

static void segments_of_no_bytes(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment segments[] = {segment(0, 0, RX), segment(0, 0, R), segment(0, 0, RW),
                                     segment(1, 0, RW)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  *(uint8_t *)graph.memory[3].working_memory = 5;
  for (size_t i = 0; i < 3; i++)
    for (size_t j = i + 1; j < COUNT(segments); j++)
      assert_int_not_equal(graph.memory[i].address, graph.memory[j].address);
  finalize(manager, graph.handle);
  assert_int_equal(*at(graph.memory[3].address), 5);
  assert_int_equal(stats_of(manager).live, 1);
  deallocate(manager, graph.handle);
}

static void no_alloc_segments_get_nothing(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment none = segment((uint64_t)1 << 40, 5, RX);
  none.lifetime = JITMEM_LIFETIME_NO_ALLOC;
  const jitmem_segment segments[] = {none, segment(8, 0, R), none};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  for (int i = 0; i < 3; i += 2) {
    assert_int_equal(graph.memory[i].address, 0);
    assert_null(graph.memory[i].working_memory);
    REFUSED(JITMEM_INVALID_ARGUMENT, "outside",
            jitmem_manager_write(manager, graph.handle, i, 0, "a", 1, error));
  }
  OK(jitmem_manager_write(manager, graph.handle, 1, 0, "constant", 8, error));
  assert_int_equal(stats_of(manager).live, 8);
  finalize(manager, graph.handle);
  assert_memory_equal(at(graph.memory[1].address), "constant", 8);
  deallocate(manager, graph.handle);

  // Nothing else in the graph at all.
  graph = allocate(manager, &none, 1);
  assert_int_equal(graph.memory[0].address, 0);
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
}

static void every_protection(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const uint32_t readable[] = {R, RW, RX};
  for (size_t i = 0; i < COUNT(readable); i++) {
    struct graph graph = allocate_one(manager, segment(100, 100, readable[i]), 0x11);
    finalize(manager, graph.handle);
    assert_true(all_bytes_are(at(graph.memory[0].address), 100, 0x11));
    assert_true(all_bytes_are(at(graph.memory[0].address) + 100, 100, 0));
    deallocate(manager, graph.handle);
  }
  // Legal, though one can't look at it: none, write only, execute only.
  const uint32_t others[] = {0, JITMEM_PROT_WRITE, JITMEM_PROT_EXEC};
  for (size_t i = 0; i < COUNT(others); i++) {
    struct graph graph = allocate_one(manager, segment(100, 100, others[i]), 0x11);
    finalize(manager, graph.handle);
    deallocate(manager, graph.handle);
  }
}

static void alignment_is_kept(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const uint64_t wanted[] = {1, 8, 64, 4 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 16 * MIB, 128 * MIB};
  const uint32_t protections[] = {RX, R, RW};
  for (size_t p = 0; p < COUNT(protections); p++) {
    uint64_t handles[COUNT(wanted)];
    for (size_t i = 0; i < COUNT(wanted); i++) {
      jitmem_segment one = segment(100, 28, protections[p]);
      one.alignment = wanted[i];
      struct graph graph = allocate_one(manager, one, (uint8_t)i);
      handles[i] = graph.handle;
      assert_int_equal(graph.memory[0].address % wanted[i], 0);
      const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
      const uint64_t least = wanted[i] < page ? wanted[i] : page;
      assert_int_equal((uint64_t)graph.memory[0].working_memory % least, 0);
      finalize(manager, graph.handle);
      assert_true(all_bytes_are(at(graph.memory[0].address), 100, (uint8_t)i));
      assert_true(all_bytes_are(at(graph.memory[0].address) + 100, 28, 0));
    }
    OK(jitmem_manager_deallocate(manager, handles, COUNT(handles), error));
  }
  assert_int_equal(stats_of(manager).live, 0);
}

static void segments_do_not_overlap(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  enum { GRAPHS = 200 };
  struct graph graphs[GRAPHS];
  uint64_t random = 20251122;
  uint64_t sizes[GRAPHS][3];
  for (int i = 0; i < GRAPHS; i++) {
    jitmem_segment segments[3];
    const uint32_t protections[] = {RX, R, RW};
    for (int j = 0; j < 3; j++) {
      sizes[i][j] = next_random(&random) % 5000 + 1;
      segments[j] = segment(sizes[i][j], 0, protections[j]);
      segments[j].alignment = (uint64_t)1 << next_random(&random) % 10;
    }
    graphs[i] = allocate(manager, segments, 3);
    for (int j = 0; j < 3; j++)
      memset(graphs[i].memory[j].working_memory, i, sizes[i][j]);
    // Half of them become visible while their neighbours are still being written.
    if (i % 2 == 0)
      finalize(manager, graphs[i].handle);
  }
  for (int i = 1; i < GRAPHS; i += 2)
    finalize(manager, graphs[i].handle);
  for (int i = 0; i < GRAPHS; i++)
    for (int j = 0; j < 3; j++)
      assert_true(all_bytes_are(at(graphs[i].memory[j].address), sizes[i][j], (uint8_t)i));
  for (int i = 0; i < GRAPHS; i++)
    deallocate(manager, graphs[i].handle);
}

static void zero_fill_is_zero_in_used_memory(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const uint32_t protections[] = {RX, R, RW};
  for (size_t p = 0; p < COUNT(protections); p++) {
    // A neighbour keeps the chunk and with it the dirt.
    struct graph neighbour = allocate_one(manager, segment(16, 0, protections[p]), 1);
    struct graph dirty = allocate_one(manager, segment(20000, 0, protections[p]), 0xee);
    finalize(manager, dirty.handle);
    if (protections[p] & JITMEM_PROT_WRITE)
      memset(at(dirty.memory[0].address), 0xdd, 20000);
    deallocate(manager, dirty.handle);
    // Dirty again, this time without ever being finalized.
    struct graph abandoned = allocate_one(manager, segment(15000, 0, protections[p]), 0xcd);
    OK(jitmem_manager_abandon(manager, abandoned.handle, error));

    struct graph clean = allocate_one(manager, segment(100, 19900, protections[p]), 0x22);
    assert_int_equal(clean.memory[0].address, dirty.memory[0].address);
    finalize(manager, clean.handle);
    assert_true(all_bytes_are(at(clean.memory[0].address), 100, 0x22));
    assert_true(all_bytes_are(at(clean.memory[0].address) + 100, 19900, 0));
    deallocate(manager, clean.handle);
    OK(jitmem_manager_abandon(manager, neighbour.handle, error));
  }
}

static void finalize_lifetime_ends_with_finalize(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_segment brief = segment(1000, 24, RW);
  brief.lifetime = JITMEM_LIFETIME_FINALIZE;
  const jitmem_segment segments[] = {segment(100, 0, RW), brief};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  memset(graph.memory[0].working_memory, 1, 100);
  memset(graph.memory[1].working_memory, 2, 1000);
  assert_int_equal(stats_of(manager).live, 1124);
  finalize(manager, graph.handle);
  assert_int_equal(stats_of(manager).live, 100);
  assert_true(all_bytes_are(at(graph.memory[0].address), 100, 1));

  // What comes next has its place, and is zero where it must be.
  struct graph next = allocate_one(manager, brief, 3);
  assert_int_equal(next.memory[0].address, graph.memory[1].address);
  OK(jitmem_manager_abandon(manager, next.handle, error));
  deallocate(manager, graph.handle);

  // A graph of nothing else is an allocation all the same.
  struct graph all_brief = allocate_one(manager, brief, 4);
  finalize(manager, all_brief.handle);
  assert_int_equal(stats_of(manager).live, 0);
  assert_int_equal(stats_of(manager).finalized, 1);
  deallocate(manager, all_brief.handle);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(sizes_that_overflow),
      EVERYWHERE(sizes_larger_than_any_window),
      EVERYWHERE(alignments),
      EVERYWHERE(protections_lifetimes_and_hints),
      EVERYWHERE(writes_outside_the_content),
      EVERYWHERE(no_segments_at_all),
      EVERYWHERE(segments_of_no_bytes),
      EVERYWHERE(no_alloc_segments_get_nothing),
      EVERYWHERE(every_protection),
      EVERYWHERE(alignment_is_kept),
      EVERYWHERE(segments_do_not_overlap),
      EVERYWHERE(zero_fill_is_zero_in_used_memory),
      EVERYWHERE(finalize_lifetime_ends_with_finalize),
  };
  return at_rest(cmocka_run_group_tests_name("segments", tests, NULL, NULL));
}
