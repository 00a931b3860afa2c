// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A custom mapper that does as it should: what the library asks of it, in which order, and what
// comes of it, with content shared and copied, answered at once, later and by another thread.

#include "hosted.h"

static int executor_bytes_are(struct host *host, uint64_t address, uint64_t count, uint8_t byte) {
  return all_bytes_are(host_bytes(host, address), count, byte);
}

static void content_arrives(void **state) {
  struct hosted *hosted = *state;
  jitmem_stats stats = stats_of(hosted->manager);
  assert_int_equal(stats.mapper, JITMEM_MAPPER_CUSTOM);
  assert_string_equal(stats.mapper_name, "custom");
  assert_int_equal(stats.fallbacks, 0);
  const jitmem_segment segments[] = {segment(300, 0, RX), segment(300, 50, R), segment(0, 300, RW)};
  struct graph graph = allocate(hosted->manager, segments, 3);
  memset(graph.memory[0].working_memory, 1, 300);
  memset(graph.memory[1].working_memory, 2, 200);
  uint8_t rest[100];
  memset(rest, 2, sizeof rest);
  OK(jitmem_manager_write(hosted->manager, graph.handle, 1, 200, rest, sizeof rest, error));
  finalize(hosted->manager, graph.handle);
  assert_true(executor_bytes_are(&hosted->host, graph.memory[0].address, 300, 1));
  assert_true(executor_bytes_are(&hosted->host, graph.memory[1].address, 300, 2));
  assert_true(executor_bytes_are(&hosted->host, graph.memory[1].address + 300, 50, 0));
  assert_true(executor_bytes_are(&hosted->host, graph.memory[2].address, 300, 0));
  assert_int_equal(hosted->host.calls[RESERVE], 1);
  assert_int_equal(hosted->host.calls[PREPARE], 3);
  assert_int_equal(hosted->host.calls[INITIALIZE], 1);
  deallocate(hosted->manager, graph.handle);
  // Only a mapper that copied has anything to do then.
  unsigned expected = hosted->host.content == JITMEM_CONTENT_COPIED;
  assert_int_equal(hosted->host.calls[DEINITIALIZE], expected);
}

static void freed_code_traps(void **state) {
  struct hosted *hosted = *state;
  struct graph neighbour = allocate_one(hosted->manager, segment(64, 0, RX), 1);
  finalize(hosted->manager, neighbour.handle);
  struct graph graph = allocate_one(hosted->manager, segment(500, 12, RX), 2);
  finalize(hosted->manager, graph.handle);
  deallocate(hosted->manager, graph.handle);
  assert_true(all_traps(host_bytes(&hosted->host, graph.memory[0].address), 512));
  assert_true(executor_bytes_are(&hosted->host, neighbour.memory[0].address, 64, 1));
}

// Random graphs against what was written into them.
static void every_graph_keeps_its_bytes(void **state) {
  struct hosted *hosted = *state;
  enum { SLOTS = 60, STEPS = 800 };
  struct {
    struct graph graph;
    uint64_t sizes[2], zeros[2];
    uint8_t byte;
    int live;
  } slots[SLOTS] = {0};
  uint64_t random = 4242;
  for (int step = 0; step < STEPS; step++) {
    size_t i = next_random(&random) % SLOTS;
    if (slots[i].live) {
      for (int j = 0; j < 2; j++) {
        uint64_t address = slots[i].graph.memory[j].address;
        assert_true(executor_bytes_are(&hosted->host, address, slots[i].sizes[j], slots[i].byte));
        assert_true(
            executor_bytes_are(&hosted->host, address + slots[i].sizes[j], slots[i].zeros[j], 0));
      }
      deallocate(hosted->manager, slots[i].graph.handle);
      slots[i].live = 0;
      continue;
    }
    const uint32_t protections[] = {RX, R, RW};
    jitmem_segment segments[2];
    slots[i].byte = (uint8_t)next_random(&random);
    for (int j = 0; j < 2; j++) {
      slots[i].sizes[j] = next_random(&random) % 3000;
      slots[i].zeros[j] = next_random(&random) % 3000;
      segments[j] =
          segment(slots[i].sizes[j], slots[i].zeros[j], protections[next_random(&random) % 3]);
    }
    slots[i].graph = allocate(hosted->manager, segments, 2);
    for (int j = 0; j < 2; j++)
      memset(slots[i].graph.memory[j].working_memory, slots[i].byte, slots[i].sizes[j]);
    if (next_random(&random) % 5 == 0) {
      OK(jitmem_manager_abandon(hosted->manager, slots[i].graph.handle, error));
      continue;
    }
    finalize(hosted->manager, slots[i].graph.handle);
    slots[i].live = 1;
  }
}

// ---- actions ----

static char noted[64];

static struct wrapper_result note(const char *args, size_t size) {
  if (size != 1)
    abort();
  noted[strlen(noted)] = *args;
  return succeed();
}

static struct wrapper_result refuse(const char *args, size_t size) {
  note(args, size);
  return fail_with("no");
}

static jitmem_action action(const char *letters) {
  return (jitmem_action){.finalize = call_of(note, letters, 1),
                         .dealloc = call_of(note, letters + 1, 1)};
}

static uint64_t finalized_with(jitmem_manager *manager, const jitmem_action *actions,
                               size_t count) {
  struct graph graph = allocate_three(manager, 1);
  OK(jitmem_manager_finalize(manager, graph.handle, actions, count, error));
  return graph.handle;
}

static void actions_are_the_mappers_to_run(void **state) {
  struct hosted *hosted = *state;
  const jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc"), action("Dd")};
  memset(noted, 0, sizeof noted);
  uint64_t batch[3];
  batch[0] = finalized_with(hosted->manager, actions, 2);
  batch[1] = finalized_with(hosted->manager, NULL, 0);
  batch[2] = finalized_with(hosted->manager, actions + 2, 2);
  assert_string_equal(noted, "ABCD");
  OK(jitmem_manager_deallocate(hosted->manager, batch, COUNT(batch), error));
  assert_string_equal(noted, "ABCDdcba");
}

static void a_failing_action_is_told(void **state) {
  struct hosted *hosted = *state;
  jitmem_action actions[] = {action("Aa"), action("Bb")};
  actions[1].finalize.function = (uintptr_t)refuse;
  memset(noted, 0, sizeof noted);
  struct graph graph = allocate_three(hosted->manager, 1);
  FAILS(JITMEM_ACTION_FAILED, "an action has failed",
        jitmem_manager_finalize(hosted->manager, graph.handle, actions, 2, error));
  assert_string_equal(noted, "ABa");
  assert_int_equal(stats_of(hosted->manager).live, 0);

  actions[1].finalize.function = (uintptr_t)note;
  actions[1].dealloc.function = (uintptr_t)refuse;
  uint64_t handle = finalized_with(hosted->manager, actions, 2);
  FAILS(JITMEM_ACTION_FAILED, "an action has failed",
        jitmem_manager_deallocate(hosted->manager, &handle, 1, error));
  assert_string_equal(noted, "ABaABba");
  assert_int_equal(stats_of(hosted->manager).finalized, 0);
}

static void what_is_left_goes_with_the_manager(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  const jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc")};
  for (int i = 0; i < 3; i++)
    finalized_with(manager, actions + i, 1);
  allocate_three(manager, 1);
  memset(noted, 0, sizeof noted);
  jitmem_manager_free(manager);
  host_wait(&hosted->host);
  assert_string_equal(noted, "cba");
  assert_int_equal(hosted->host.calls[RELEASE], 1);
  assert_int_equal(hosted->host.destroyed, 0);
}

// ---- windows ----

static void placement_is_passed_on(void **state) {
  struct hosted *hosted = *state;
  assert_int_equal(hosted->host.placement, JITMEM_PLACEMENT_DEFAULT);
  assert_int_equal(hosted->host.wanted_address, 0);
  jitmem_manager_free(
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB,
                                                      .placement = JITMEM_PLACEMENT_NEAR,
                                                      .address = 0x123456789}));
  assert_int_equal(hosted->host.placement, JITMEM_PLACEMENT_NEAR);
  assert_int_equal(hosted->host.wanted_address, 0x123456789);
  jitmem_manager_free(hosted_manager(
      hosted, (jitmem_manager_options){
                  .window_size = 8 * MIB, .placement = JITMEM_PLACEMENT_FIXED, .address = 0x7000}));
  assert_int_equal(hosted->host.placement, JITMEM_PLACEMENT_FIXED);
  assert_int_equal(hosted->host.wanted_address, 0x7000);
}

static void a_smaller_window_will_do(void **state) {
  struct hosted *hosted = *state;
  hosted->host.smaller = 256 * KIB;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.reserved, 256 * KIB);
  assert_int_equal(stats.fallbacks, JITMEM_FALLBACK_SMALLER_WINDOW);
  struct graph graph = allocate_three(manager, 1);
  finalize(manager, graph.handle);
  jitmem_segment large = segment(0, MIB, RW);
  REFUSED(JITMEM_WINDOW_FULL, "262144 bytes",
          jitmem_manager_allocate(manager, &large, 1, 0, graph.memory, &graph.handle, error));
  jitmem_manager_free(manager);
}

static void chunks_are_reclaimed(void **state) {
  struct hosted *hosted = *state;
  uint64_t handles[400];
  for (size_t i = 0; i < COUNT(handles); i++) {
    handles[i] = allocate_one(hosted->manager, segment(20000, 0, RW), 1).handle;
    finalize(hosted->manager, handles[i]);
  }
  unsigned prepared = hosted->host.calls[PREPARE];
  assert_true(prepared > 3);
  for (size_t i = 0; i < COUNT(handles); i++)
    deallocate(hosted->manager, handles[i]);
  // What is taken back later is free for others when that is done.
  host_wait(&hosted->host);
  // Up to 2 MiB stay for what comes next, and something does.
  jitmem_stats stats = stats_of(hosted->manager);
  assert_in_range(stats.committed, 1, 2 * MIB);
  assert_in_range(stats.chunks, 1, prepared - 1);
  assert_int_equal(hosted->host.calls[RECLAIM], prepared - stats.chunks);
}

// ---- much later ----

struct ending {
  int called, destroyed;
  jitmem_status status;
  uint64_t allocation;
};

static void ended(void *ctx, const jitmem_error *error) {
  struct ending *ending = ctx;
  ending->called++;
  ending->status = jitmem_error_status(error);
}

static void ended_with_memory(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                              size_t count, const jitmem_error *error) {
  (void)memory, (void)count;
  ((struct ending *)ctx)->allocation = allocation;
  ended(ctx, error);
}

static void ended_destroyed(void *ctx) { ((struct ending *)ctx)->destroyed++; }

static void nothing_is_reported_before_the_answer(void **state) {
  struct hosted *hosted = *state;
  struct ending ending = {0};
  struct graph graph = allocate_three(hosted->manager, 1);
  hosted->host.timing = WHEN_TOLD;
  OK(jitmem_manager_finalize_async(hosted->manager, graph.handle, NULL, 0, ended, &ending,
                                   ended_destroyed, error));
  assert_int_equal(ending.called + ending.destroyed, 0);
  // Neither in flight nor finalized: nothing else can be done with it.
  REFUSED(JITMEM_INVALID_HANDLE, "being finalized",
          jitmem_manager_abandon(hosted->manager, graph.handle, error));
  REFUSED(JITMEM_INVALID_HANDLE, "being finalized",
          jitmem_manager_deallocate(hosted->manager, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_HANDLE, "being finalized",
          jitmem_manager_write(hosted->manager, graph.handle, 0, 0, "a", 1, error));
  // Others are served meanwhile.
  struct graph other = allocate_three(hosted->manager, 2);
  OK(jitmem_manager_abandon(hosted->manager, other.handle, error));
  host_tell(&hosted->host);
  assert_int_equal(ending.called, 1);
  assert_int_equal(ending.destroyed, 1);
  assert_int_equal(ending.status, JITMEM_OK);
  deallocate(hosted->manager, graph.handle);
}

static void a_manager_freed_before_the_answer(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB});
  const jitmem_action actions[] = {action("Aa"), action("Bb")};
  struct ending finalizing = {0}, deallocating = {0};
  memset(noted, 0, sizeof noted);
  uint64_t old = finalized_with(manager, actions, 1);
  struct graph graph = allocate_three(manager, 2);
  hosted->host.timing = WHEN_TOLD;
  OK(jitmem_manager_finalize_async(manager, graph.handle, actions + 1, 1, ended, &finalizing,
                                   ended_destroyed, error));
  OK(jitmem_manager_deallocate_async(manager, &old, 1, ended, &deallocating, ended_destroyed,
                                     error));
  jitmem_manager_free(manager);
  assert_int_equal(finalizing.called + deallocating.called, 0);
  assert_int_equal(hosted->host.calls[RELEASE], 0);
  host_tell(&hosted->host);
  assert_int_equal(finalizing.called, 1);
  assert_int_equal(finalizing.destroyed, 1);
  assert_int_equal(deallocating.called, 1);
  assert_int_equal(deallocating.destroyed, 1);
  // What was finalized after all has been taken leave of as well, and the window is gone.
  assert_string_equal(noted, "ABab");
  assert_int_equal(hosted->host.calls[RELEASE], 1);
}

static void requests_wait_for_a_window(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 8 * MIB,
                                                      .growth = JITMEM_GROWTH_ANOTHER_WINDOW});
  jitmem_segment most = segment(0, 6 * MIB, RW);
  allocate(manager, &most, 1);
  hosted->host.timing = WHEN_TOLD;
  struct ending endings[2] = {{0}, {0}};
  for (int i = 0; i < 2; i++)
    OK(jitmem_manager_allocate_async(manager, &most, 1, 0, ended_with_memory, &endings[i],
                                     ended_destroyed, error));
  assert_int_equal(endings[0].called + endings[1].called, 0);
  // One window is under way; a request that finds no room in it either asks for the next.
  while (hosted->host.held_count > 0)
    host_tell(&hosted->host);
  assert_int_equal(stats_of(manager).windows, 3);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(endings[i].called, 1);
    assert_int_equal(endings[i].destroyed, 1);
    assert_int_equal(endings[i].status, JITMEM_OK);
    OK(jitmem_manager_abandon(manager, endings[i].allocation, error));
  }
  // One of the two that are empty now is kept for what may come.
  assert_int_equal(stats_of(manager).windows, 2);
  jitmem_manager_free(manager);
}

// Chunks whose answers come much later: requests wait, and nothing else does.
static void requests_wait_for_chunks(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  const jitmem_segment segments[] = {segment(64, 0, RX), segment(64, 0, RW)};
  host->timing = WHEN_TOLD;
  struct ending endings[3] = {{0}, {0}, {0}};
  for (size_t i = 0; i < COUNT(endings); i++)
    OK(jitmem_manager_allocate_async(hosted->manager, segments, 2, 0, ended_with_memory,
                                     &endings[i], ended_destroyed, error));
  struct graph graph;
  jitmem_error *error = NULL;
  assert_int_equal(jitmem_manager_try_allocate(hosted->manager, segments, 2, 0, graph.memory,
                                               &graph.handle, &error),
                   JITMEM_WOULD_BLOCK);
  assert_null(error);
  assert_int_equal(endings[0].called + endings[1].called + endings[2].called, 0);
  while (host->held_count > 0)
    host_tell(host);
  for (size_t i = 0; i < COUNT(endings); i++) {
    assert_int_equal(endings[i].called, 1);
    assert_int_equal(endings[i].destroyed, 1);
    assert_int_equal(endings[i].status, JITMEM_OK);
    OK(jitmem_manager_abandon(hosted->manager, endings[i].allocation, error));
  }
  // What is there already takes no waiting.
  OK(jitmem_manager_try_allocate(hosted->manager, segments, 2, 0, graph.memory, &graph.handle,
                                 error));
  OK(jitmem_manager_abandon(hosted->manager, graph.handle, error));
  assert_int_equal(stats_of(hosted->manager).live, 0);
}

// A request that needs the pages of empty chunks waits until the mapper has taken them back, and
// fails with the mapper's reason if it takes none.
static void requests_wait_for_reclaimed_chunks(void **state) {
  struct hosted *hosted = *state;
  struct host *host = &hosted->host;
  jitmem_manager *manager =
      hosted_manager(hosted, (jitmem_manager_options){.window_size = 4 * MIB});
  const jitmem_segment data = segment(0, MIB, RW), code = segment(3 * MIB + 512 * KIB, 0, RX);
  OK(jitmem_manager_abandon(manager, allocate(manager, &data, 1).handle, error));
  host->fails[RECLAIM] = JITMEM_SYSTEM;
  struct graph graph;
  FAILS(JITMEM_SYSTEM, "the host says no",
        jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  host->fails[RECLAIM] = JITMEM_OK;
  host->timing = WHEN_TOLD;
  struct ending ending = {0};
  OK(jitmem_manager_allocate_async(manager, &code, 1, 0, ended_with_memory, &ending,
                                   ended_destroyed, error));
  assert_int_equal(ending.called, 0);
  assert_true(host->held_count > 0);
  while (host->held_count > 0)
    host_tell(host);
  assert_int_equal(ending.status, JITMEM_OK);
  assert_int_equal(ending.called, 1);
  OK(jitmem_manager_abandon(manager, ending.allocation, error));
  jitmem_manager_free(manager);
}

static void a_manager_freed_before_its_chunk_comes(void **state) {
  struct hosted *hosted = *state;
  jitmem_manager *manager = hosted_manager(hosted, (jitmem_manager_options){.commit = 1});
  const jitmem_segment one = segment(64, 0, RW);
  hosted->host.timing = WHEN_TOLD;
  struct ending ending = {0};
  OK(jitmem_manager_allocate_async(manager, &one, 1, 0, ended_with_memory, &ending, ended_destroyed,
                                   error));
  assert_int_equal(hosted->host.commit, 1);
  jitmem_manager_free(manager);
  while (hosted->host.held_count > 0)
    host_tell(&hosted->host);
  assert_int_equal(ending.called, 1);
  assert_int_equal(ending.destroyed, 1);
  assert_int_equal(ending.status, JITMEM_INVALID_HANDLE);
}

#define ASYNC_CHUNKS(test) {#test, test, set_up_async_chunks, host_tear_down_all, NULL}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH_HOST(content_arrives),
      BOTH_CONTENTS(freed_code_traps),
      EACH_HOST(every_graph_keeps_its_bytes),
      EACH_HOST(actions_are_the_mappers_to_run),
      EACH_HOST(a_failing_action_is_told),
      EACH_HOST(what_is_left_goes_with_the_manager),
      EACH_HOST(placement_is_passed_on),
      EACH_HOST(a_smaller_window_will_do),
      EACH_HOST(chunks_are_reclaimed),
      BOTH_CONTENTS(nothing_is_reported_before_the_answer),
      BOTH_CONTENTS(a_manager_freed_before_the_answer),
      BOTH_CONTENTS(requests_wait_for_a_window),
      ASYNC_CHUNKS(requests_wait_for_chunks),
      ASYNC_CHUNKS(requests_wait_for_reclaimed_chunks),
      ASYNC_CHUNKS(a_manager_freed_before_its_chunk_comes),
  };
  return cmocka_run_group_tests_name("custom mapper", tests, NULL, NULL);
}
