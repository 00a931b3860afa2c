// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A custom mapper that fails or breaks its contract: the requester learns of it, nothing is lost,
// and the manager goes on.

#include "hosted.h"

static void still_works(struct hosted *hosted) {
  memset(hosted->host.fails, 0, sizeof hosted->host.fails);
  struct graph graph = allocate_three(hosted->manager, 9);
  finalize(hosted->manager, graph.handle);
  for (int i = 0; i < 3; i++)
    assert_true(all_bytes_are(host_bytes(&hosted->host, graph.memory[i].address), 64, 9));
  deallocate(hosted->manager, graph.handle);
  assert_int_equal(stats_of(hosted->manager).live, 0);
}

// ---- failing ----

static void statuses_and_messages_come_through(void **state) {
  struct hosted *hosted = *state;
  for (uint32_t status = JITMEM_INVALID_ARGUMENT; status <= JITMEM_SYSTEM; status++) {
    struct graph graph = allocate_three(hosted->manager, 1);
    hosted->host.fails[INITIALIZE] = status;
    FAILS(status, "custom mapper: the host says no",
          jitmem_manager_finalize(hosted->manager, graph.handle, NULL, 0, error));
    hosted->host.fails[INITIALIZE] = JITMEM_OK;
  }
  // No status at all, no message, and one that is no UTF-8.
  const uint32_t unknown[] = {13, 99, UINT32_MAX};
  const char *messages[] = {"what", NULL, "\xff\xfe broken"};
  const char *words[] = {"what", "no message", " broken"};
  for (size_t i = 0; i < COUNT(unknown); i++) {
    struct graph graph = allocate_three(hosted->manager, 1);
    hosted->host.fails[INITIALIZE] = unknown[i];
    hosted->host.message = messages[i];
    FAILS(JITMEM_MAPPER_FAILED, words[i],
          jitmem_manager_finalize(hosted->manager, graph.handle, NULL, 0, error));
  }
  still_works(hosted);
}

// "A defect in jitmem" is not the host's to report, least of all with the consequence of one.
static void a_host_can_not_report_a_defect_of_jitmem(void **state) {
  struct hosted *hosted = *state;
  struct graph graph = allocate_three(hosted->manager, 1);
  hosted->host.fails[INITIALIZE] = JITMEM_INTERNAL;
  FAILS(JITMEM_MAPPER_FAILED, "the host says no",
        jitmem_manager_finalize(hosted->manager, graph.handle, NULL, 0, error));
  still_works(hosted);
}

static void reserve_fails(void **state) {
  struct hosted *hosted = *state;
  hosted->host.fails[RESERVE] = JITMEM_OUT_OF_MEMORY;
  jitmem_manager *manager = NULL;
  REFUSED(JITMEM_OUT_OF_MEMORY, "the host says no",
          jitmem_manager_create(hosted->mapper, NULL, &manager, error));
  assert_null(manager);
  still_works(hosted);
}

static void reserving_another_window_fails(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB,
                                                      .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  jitmem_segment most = segment(0, 6 * MIB, RW);
  struct graph first = allocate(manager, &most, 1), second;
  hosted->host.fails[RESERVE] = JITMEM_DENIED;
  REFUSED(JITMEM_DENIED, "another window",
          jitmem_manager_allocate(manager, &most, 1, 0, second.memory, &second.handle, error));
  assert_int_equal(stats_of(manager).windows, 1);
  assert_int_equal(stats_of(manager).in_flight, 1);
  hosted->host.fails[RESERVE] = JITMEM_OK;
  second = allocate(manager, &most, 1);
  assert_int_equal(stats_of(manager).windows, 2);
  OK(jitmem_manager_abandon(manager, first.handle, error));
  jitmem_manager_free(manager);
}

static void prepare_fails(void **state) {
  struct hosted *hosted = *state;
  jitmem_stats before = stats_of(hosted->manager);
  const jitmem_segment segments[] = {segment(64, 0, RX), segment(64, 0, R)};
  struct graph graph;
  const int later = hosted->host.chunks_later;
  hosted->host.fails[PREPARE] = JITMEM_OUT_OF_MEMORY;
  REFUSED(
      JITMEM_OUT_OF_MEMORY, later ? "the host says no" : "prepare answered status 5",
      jitmem_manager_allocate(hosted->manager, segments, 2, 0, graph.memory, &graph.handle, error));
  hosted->host.fails[PREPARE] = 99;
  REFUSED(
      JITMEM_MAPPER_FAILED, later ? "the host says no" : "prepare answered status 99",
      jitmem_manager_allocate(hosted->manager, segments, 2, 0, graph.memory, &graph.handle, error));
  jitmem_stats after = stats_of(hosted->manager);
  assert_int_equal(after.chunks, before.chunks);
  assert_int_equal(after.chunk_bytes, before.chunk_bytes);
  assert_int_equal(after.live + after.padding + after.in_flight, 0);
  assert_int_equal(after.failures, 4);
  // All of the window is there still.
  hosted->host.fails[PREPARE] = JITMEM_OK;
  jitmem_segment all = segment(0, 64 * MIB, RW);
  graph = allocate(hosted->manager, &all, 1);
  OK(jitmem_manager_abandon(hosted->manager, graph.handle, error));
}

static void prepare_gives_no_memory(void **state) {
  struct hosted *hosted = *state;
  hosted->host.gives_no_memory = 1;
  jitmem_segment one = segment(64, 0, RW);
  struct graph graph;
  REFUSED(JITMEM_MAPPER_FAILED, "no working memory",
          jitmem_manager_allocate(hosted->manager, &one, 1, 0, graph.memory, &graph.handle, error));
  hosted->host.gives_no_memory = 0;
  still_works(hosted);
}

static void initialize_fails(void **state) {
  struct hosted *hosted = *state;
  jitmem_segment brief = segment(64, 0, RX);
  brief.lifetime = JITMEM_LIFETIME_FINALIZE;
  const jitmem_segment segments[] = {brief, segment(64, 0, RW)};
  struct graph graph = allocate(hosted->manager, segments, 2);
  hosted->host.fails[INITIALIZE] = JITMEM_MAPPER_FAILED;
  FAILS(JITMEM_MAPPER_FAILED, "the host says no",
        jitmem_manager_finalize(hosted->manager, graph.handle, NULL, 0, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(hosted->manager, &graph.handle, 1, error));
  jitmem_stats stats = stats_of(hosted->manager);
  assert_int_equal(stats.live + stats.padding + stats.in_flight + stats.finalized, 0);
  still_works(hosted);
}

static struct wrapper_result do_nothing(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static void deinitialize_fails(void **state) {
  struct hosted *hosted = *state;
  const jitmem_action action = {.dealloc = call_of(do_nothing, NULL, 0)};
  struct graph graph = allocate_three(hosted->manager, 1);
  OK(jitmem_manager_finalize(hosted->manager, graph.handle, &action, 1, error));
  hosted->host.fails[DEINITIALIZE] = JITMEM_DISCONNECTED;
  FAILS(JITMEM_DISCONNECTED, "the host says no",
        jitmem_manager_deallocate(hosted->manager, &graph.handle, 1, error));
  // The memory is free in either case; the host forgets what it failed at.
  jitmem_stats stats = stats_of(hosted->manager);
  assert_int_equal(stats.live + stats.padding + stats.finalized, 0);
  assert_int_equal(stats.failures, 1);
  memset(hosted->host.teardowns, 0, sizeof hosted->host.teardowns);
  still_works(hosted);
}

// Segments that end with finalize can't be taken leave of: whatever finalize answers must be true.
static void deinitialize_fails_after_finalize(void **state) {
  struct hosted *hosted = *state;
  jitmem_segment brief = segment(64, 0, RX);
  brief.lifetime = JITMEM_LIFETIME_FINALIZE;
  const jitmem_segment segments[] = {brief, segment(64, 0, RW)};
  struct graph graph = allocate(hosted->manager, segments, 2);
  hosted->host.fails[DEINITIALIZE] = JITMEM_MAPPER_FAILED;
  jitmem_status status = jitmem_manager_finalize(hosted->manager, graph.handle, NULL, 0, NULL);
  hosted->host.fails[DEINITIALIZE] = JITMEM_OK;
  if (status == JITMEM_OK) {
    assert_int_equal(stats_of(hosted->manager).finalized, 1);
    deallocate(hosted->manager, graph.handle);
  } else {
    // "The memory is free again and the allocation gone."
    REFUSED(JITMEM_INVALID_HANDLE, "not live",
            jitmem_manager_deallocate(hosted->manager, &graph.handle, 1, error));
  }
  jitmem_stats stats = stats_of(hosted->manager);
  assert_int_equal(stats.live + stats.padding + stats.finalized, 0);
}

static void reclaim_fails(void **state) {
  struct hosted *hosted = *state;
  uint64_t handles[100];
  for (size_t i = 0; i < COUNT(handles); i++) {
    handles[i] = allocate_one(hosted->manager, segment(20000, 0, RW), 0xee).handle;
    finalize(hosted->manager, handles[i]);
  }
  jitmem_stats full = stats_of(hosted->manager);
  hosted->host.fails[RECLAIM] = JITMEM_SYSTEM;
  OK(jitmem_manager_deallocate(hosted->manager, handles, COUNT(handles), error));
  assert_true(hosted->host.calls[RECLAIM] > 0);
  jitmem_stats empty = stats_of(hosted->manager);
  assert_int_equal(empty.chunks, full.chunks);
  assert_int_equal(empty.chunk_bytes, full.chunk_bytes);
  assert_int_equal(empty.live + empty.padding, 0);
  // They serve again, zero where they must be.
  hosted->host.fails[RECLAIM] = JITMEM_OK;
  unsigned prepared = hosted->host.calls[PREPARE];
  for (size_t i = 0; i < COUNT(handles); i++) {
    struct graph graph =
        allocate(hosted->manager,
                 &(jitmem_segment){.zero_fill_size = 20000, .alignment = 16, .protection = RW}, 1);
    finalize(hosted->manager, graph.handle);
    assert_true(all_bytes_are(host_bytes(&hosted->host, graph.memory[0].address), 20000, 0));
    handles[i] = graph.handle;
  }
  assert_int_equal(hosted->host.calls[PREPARE], prepared);
  OK(jitmem_manager_deallocate(hosted->manager, handles, COUNT(handles), error));
}

// A full window in which an empty chunk can't be reclaimed: an answer, not an endless try.
static void reclaim_fails_when_it_matters(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  // An empty chunk is kept if it is small; with it, the window has no room for the other.
  jitmem_segment spare = segment(0, 512 * KIB, RW), code = segment(0, 7 * MIB + 768 * KIB, RX);
  struct graph graph = allocate(manager, &spare, 1);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
  hosted->host.fails[RECLAIM] = JITMEM_SYSTEM;
  REFUSED(JITMEM_SYSTEM, "reclaim",
          jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  hosted->host.fails[RECLAIM] = JITMEM_OK;
  graph = allocate(manager, &code, 1);
  jitmem_manager_free(manager);
}

static void release_fails(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  hosted->host.fails[RELEASE] = JITMEM_DISCONNECTED;
  jitmem_manager_free(manager);
  host_wait(&hosted->host);
  assert_int_equal(hosted->host.calls[RELEASE], 1);
  hosted->host.fails[RELEASE] = JITMEM_OK;
  // The host keeps what it could not release; here it is the test that gives it back.
  for (size_t i = 0; i < COUNT(hosted->host.windows); i++)
    if (hosted->host.windows[i].size == 8 * MIB) {
      munmap(hosted->host.windows[i].bytes, 8 * MIB);
      hosted->host.windows[i].size = 0;
    }
  still_works(hosted);
}

// ---- breaking the contract ----

static void the_second_answer_is_refused(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  host->answers_twice = 1;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  host_wait(host);
  assert_int_equal(host->second_answer, JITMEM_INVALID_HANDLE);
  const jitmem_action action = {.dealloc = call_of(do_nothing, NULL, 0)};
  struct graph graph = allocate_three(manager, 1);
  host->second_answer = JITMEM_OK;
  OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  host_wait(host);
  assert_int_equal(host->second_answer, JITMEM_INVALID_HANDLE);
  host->second_answer = JITMEM_OK;
  deallocate(manager, graph.handle);
  host_wait(host);
  assert_int_equal(host->second_answer, JITMEM_INVALID_HANDLE);
  host->second_answer = JITMEM_OK;
  jitmem_manager_free(manager);
  host_wait(host);
  assert_int_equal(host->second_answer, JITMEM_INVALID_HANDLE);
  host->answers_twice = 0;
  still_works(hosted);
}

static void count_ended(void *ctx, const jitmem_error *error) {
  (void)error;
  ++*(int *)ctx;
}

static void numbers_that_are_no_requests(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  struct graph graph = allocate_three(hosted->manager, 1);
  int ended = 0;
  host->timing = WHEN_TOLD;
  OK(jitmem_manager_finalize_async(hosted->manager, graph.handle, NULL, 0, count_ended, &ended,
                                   NULL, error));
  assert_int_equal(host->held_count, 1);
  int taken_for_it = -1;
  for (int bit = 0; bit < 64; bit++) {
    jitmem_request wrong = host->held[0].request ^ ((uint64_t)1 << bit);
    if (jitmem_mapper_complete(wrong, JITMEM_OK, NULL, 0, 0, NULL) != JITMEM_INVALID_HANDLE)
      taken_for_it = bit;
  }
  if (taken_for_it >= 0) {
    // It is answered now, and what the host was lent is gone.
    host->timing = AT_ONCE;
    host->held_count = 0;
    fail_msg("bit %d of a request makes no difference", taken_for_it);
  }
  assert_int_equal(ended, 0);
  host_tell(host);
  assert_int_equal(ended, 1);
}

static void windows_that_can_not_be(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  jitmem_layout_item first = {0};
  for (size_t i = 0; i < COUNT(host->windows); i++)
    if (host->windows[i].size > 0)
      first =
          (jitmem_layout_item){.address = host->windows[i].address, .size = host->windows[i].size};
  const uint64_t place = 0x500000000000, size = 8 * MIB;
  const struct {
    uint64_t address, size;
  } lies[] = {
      {0, size},                   // no address
      {place, 0},                  // no bytes
      {place + 1, size},           // misaligned
      {place + 2048, size},        //
      {place, size - 1},           // no whole pages
      {place, size + page_size()}, // larger than asked for
      {place, -page_size()},       // much larger
      {-page_size(), size},        // the end overflows
      {first.address, size},       // another window's place
      {first.address + first.size - page_size(), size},
      {first.address - size + page_size(), size},
  };
  host->lies_about_windows = 1;
  for (size_t i = 0; i < COUNT(lies); i++) {
    host->lie_address = lies[i].address;
    host->lie_size = lies[i].size;
    unsigned released = host->calls[RELEASE];
    jitmem_manager *manager = NULL;
    jitmem_manager_options options = {.struct_size = sizeof options, .window_size = size};
    REFUSED(JITMEM_MAPPER_FAILED, "custom mapper",
            jitmem_manager_create(hosted->mapper, &options, &manager, error));
    assert_null(manager);
    // Given back at most once for each answer, and never what is another window's.
    unsigned most = i < COUNT(lies) - 3 ? 2 : 0;
    assert_in_range(host->calls[RELEASE] - released, 0, most);
  }
  host->lies_about_windows = 0;
  still_works(hosted);
}

static void another_window_that_overlaps(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB,
                                                      .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  jitmem_segment most = segment(0, 6 * MIB, RW);
  struct graph graph = allocate(manager, &most, 1), refused;
  host->lies_about_windows = 1;
  host->lie_address = graph.memory[0].address & ~(uint64_t)4095;
  host->lie_size = MIB;
  REFUSED(JITMEM_MAPPER_FAILED, "overlaps",
          jitmem_manager_allocate(manager, &most, 1, 0, refused.memory, &refused.handle, error));
  host->lies_about_windows = 0;
  assert_int_equal(stats_of(manager).windows, 1);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
  graph = allocate(manager, &most, 1);
  jitmem_manager_free(manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH_HOST(statuses_and_messages_come_through),
      BOTH_CONTENTS(a_host_can_not_report_a_defect_of_jitmem),
      EACH_HOST(reserve_fails),
      EACH_HOST(reserving_another_window_fails),
      EACH_HOST(prepare_fails),
      {"prepare_gives_no_memory (shared)", prepare_gives_no_memory, set_up_shared,
       host_tear_down_all, NULL},
      EACH_HOST(initialize_fails),
      EACH_HOST(deinitialize_fails),
      BOTH_CONTENTS(deinitialize_fails_after_finalize),
      BOTH_CONTENTS(reclaim_fails),
      BOTH_CONTENTS(reclaim_fails_when_it_matters),
      EACH_HOST(release_fails),
      EACH_HOST(the_second_answer_is_refused),
      BOTH_CONTENTS(numbers_that_are_no_requests),
      BOTH_CONTENTS(windows_that_can_not_be),
      BOTH_CONTENTS(another_window_that_overlaps),
  };
  return cmocka_run_group_tests_name("custom mapper that fails", tests, NULL, NULL);
}
