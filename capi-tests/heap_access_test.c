// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What is done with managers and allocations besides, with a heap that is exhausted: see
// heap_calls.h.

#include "heap_calls.h"

static void ignore_location(void *ctx, const jitmem_location *location) {
  (void)ctx, (void)location;
}

// Look-ups take no memory.
static void look_ups(void **state) {
  struct subject *subject = *state;
  struct graphs graphs = finalized(subject->manager, 1);
  const uint64_t address = graphs.memory[0].address;
  jitmem_location location = {.struct_size = sizeof location};
  EACH_FAILURE(round) {
    jitmem_lookup_answer answer;
    ALWAYS(round, answer = jitmem_manager_lookup(subject->manager, address, &location));
    assert_int_equal(answer, JITMEM_LOOKUP_FOUND);
    assert_int_equal(location.allocation, graphs.handle);
  }
  EACH_FAILURE(round) {
    jitmem_lookup_answer answer;
    ALWAYS(round, answer = jitmem_lookup(0, &location));
    assert_int_equal(answer, JITMEM_LOOKUP_NOTHING);
  }
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_walk(subject->manager, ignore_location, NULL, error));
  }
  OK(jitmem_manager_deallocate(subject->manager, &graphs.handle, 1, error));
  goes_on_working(subject->manager);
}

// This program's unwinder asks no index, which is no question of memory.
static void frames(void **state) {
  struct subject *subject = *state;
  struct graphs graphs = finalized(subject->manager, 1);
  const uint64_t address = graphs.memory[1].address;
  uint64_t args[2], enter = 0, leave = 0;
  jitmem_action action;
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_eh_frame_action(subject->manager, address, 16, args, &action, error));
  }
  EACH_FAILURE(round) {
    jitmem_status status;
    ALWAYS(round, status = jitmem_eh_frame_functions(&enter, &leave, NULL));
    assert_true(status == JITMEM_UNSUPPORTED ||
                (status == JITMEM_OUT_OF_MEMORY && round.failed > 0));
  }
  EACH_FAILURE(round) {
    const void *found, *bases[3];
    ALWAYS(round, found = jitmem_find_fde(&graphs, bases));
    assert_null(found);
  }
  OK(jitmem_manager_deallocate(subject->manager, &graphs.handle, 1, error));
  goes_on_working(subject->manager);
}

// A section without frames, since unwinders of this program's own end it without memory.
static void frame_actions(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  uint64_t args[2];
  jitmem_action action;
  EACH_FAILURE(round) {
    struct graphs framed = in_flight(manager);
    memset(framed.memory[1].working_memory, 0, 100);
    OK(jitmem_manager_eh_frame_action(manager, framed.memory[1].address, 16, args, &action, error));
    TRY(round, jitmem_manager_finalize(manager, framed.handle, &action, 1, error));
    // What was refused at once is still in flight; what failed later is gone.
    if (round.status == JITMEM_OK)
      OK(jitmem_manager_deallocate(manager, &framed.handle, 1, error));
    else
      jitmem_manager_abandon(manager, framed.handle, NULL);
  }
  EACH_FAILURE(round) {
    struct graphs framed = in_flight(manager);
    memset(framed.memory[1].working_memory, 0, 100);
    OK(jitmem_manager_eh_frame_action(manager, framed.memory[1].address, 16, args, &action, error));
    OK(jitmem_manager_finalize(manager, framed.handle, &action, 1, error));
    TRY(round, jitmem_manager_deallocate(manager, &framed.handle, 1, error));
    // The action has been run.
    assert_true(round.status == JITMEM_OK || executor_is_here);
    goes_on_working(manager);
  }
}

static void count_location(void *ctx, const jitmem_location *location) {
  (void)location;
  ++*(unsigned *)ctx;
}

// A walk takes some allocations at once, for which there is room in reserve.
static void walks_over_many_segments(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  enum { GRAPHS = 20, EACH = 256, SEGMENTS = GRAPHS * EACH };
  static jitmem_segment segments[EACH];
  static jitmem_segment_memory memory[EACH];
  uint64_t handles[GRAPHS] = {0};
  unsigned shown = 0;
  for (size_t i = 0; i < EACH; i++)
    segments[i] = segment(16, 0, RX);
  const struct graphs small = finalized(manager, 1);
  OK(jitmem_manager_walk(manager, count_location, &shown, error));
  const unsigned few = shown;
  for (int i = 0; i < GRAPHS; i++)
    OK(jitmem_manager_allocate(manager, segments, EACH, 0, memory, &handles[i], error));
  EACH_FAILURE(round) {
    shown = 0;
    ALWAYS(round, jitmem_manager_walk(manager, count_location, &shown, NULL));
    assert_int_equal(shown, few + SEGMENTS);
  }
  for (int i = 0; i < GRAPHS; i++)
    OK(jitmem_manager_abandon(manager, handles[i], error));
  OK(jitmem_manager_deallocate(manager, &small.handle, 1, error));
  goes_on_working(manager);
}

// A scope opens or does not; where finalized memory can't be written it never does.
static void write_scopes(void **state) {
  struct subject *subject = *state;
  struct graphs graphs = finalized(subject->manager, 1);
  const uint64_t address = graphs.memory[2].address;
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    TRY(round, jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    assert_int_equal(round.status == JITMEM_OK, scope != NULL);
    OK(jitmem_write_scope_end(scope, error));
  }
  const uint64_t value = 7;
  void *pointer = NULL;
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    TRY(round, jitmem_write_scope_store(scope, address, &value, sizeof value, error));
    OK(jitmem_write_scope_end(scope, error));
  }
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    TRY(round, jitmem_write_scope_pointer(scope, address, 8, &pointer, error));
    OK(jitmem_write_scope_end(scope, error));
  }
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    OK(jitmem_write_scope_store(scope, address, &value, sizeof value, error));
    TRY(round, jitmem_write_scope_end(scope, error));
    assert_int_equal(round.status, JITMEM_OK);
  }
  OK(jitmem_manager_deallocate(subject->manager, &graphs.handle, 1, error));
  goes_on_working(subject->manager);
}

// What a deallocation refuses for want of memory is there as before; what waits can be reclaimed.
static void epochs(void **state) {
  struct subject *subject = *state;
  const jitmem_manager_options options = {.struct_size = sizeof options, .defer_reclamation = 1};
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(subject->mapper, &options, &manager, error));
  EACH_FAILURE(round) {
    struct graphs graphs = finalized(manager, 1);
    TRY(round, jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    if (round.status == JITMEM_OUT_OF_MEMORY)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    goes_on_working(manager);
  }
  uint64_t epoch = 0;
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_advance_epoch(manager, &epoch, error));
    assert_int_equal(round.status, JITMEM_OK);
  }
  EACH_FAILURE(round) {
    goes_on_working(manager);
    OK(jitmem_manager_advance_epoch(manager, &epoch, error));
    TRY(round, jitmem_manager_reclaim(manager, epoch, NULL, error));
    if (round.status != JITMEM_OK)
      OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
    assert_int_equal(stats_of(manager).waiting, 0);
  }
  EACH_FAILURE(round) {
    goes_on_working(manager);
    OK(jitmem_manager_advance_epoch(manager, &epoch, error));
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_reclaim_async(manager, epoch, on_done, &answer, NULL, error));
    answered(&round, &answer);
    OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
    assert_int_equal(stats_of(manager).waiting, 0);
  }
  jitmem_manager_free(manager);
}

// ---- labels ----

static void ignore_event(void *ctx, const jitmem_event *event) { (void)ctx, (void)event; }

static void ignore_allocation(void *ctx, const jitmem_allocation *allocation) {
  (void)ctx, (void)allocation;
}

static void ignore_usage(void *ctx, const jitmem_usage *usage) { (void)ctx, (void)usage; }

static void labelled_allocations(void **state) {
  struct subject *subject = *state;
  const jitmem_observer observer = {.struct_size = sizeof observer, .fn = ignore_event};
  const jitmem_manager_options options = {
      .struct_size = sizeof options, .observer = &observer, .usage = 1};
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(subject->mapper, &options, &manager, error));
  const jitmem_allocation_request request = {.struct_size = sizeof request,
                                             .segments = segments,
                                             .segment_count = COUNT(segments),
                                             .dylib = 3,
                                             .tag = 4,
                                             .name = "a function",
                                             .dylib_name = "a library"};
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_request(manager, &request, graphs.memory, &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_try_request(manager, &request, graphs.memory, &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_request_async(manager, &request, on_allocated, &answer, NULL, error));
    answered(&round, &answer);
    if (answer.status == JITMEM_OK)
      OK(jitmem_manager_abandon(manager, answer.handle, error));
    goes_on_working(manager);
  }
  struct graphs graphs;
  OK(jitmem_manager_request(manager, &request, graphs.memory, &graphs.handle, error));
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_describe(manager, graphs.handle, ignore_allocation, NULL, error));
  }
  EACH_FAILURE(round) {
    jitmem_usage usage = {.struct_size = sizeof usage};
    TRY(round, jitmem_manager_usage(manager, JITMEM_USAGE_BY_TAG, 4, &usage, error));
  }
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_TAG, ignore_usage, NULL, error));
  }
  OK(jitmem_manager_abandon(manager, graphs.handle, error));
  EACH_FAILURE(round) { TRY(round, jitmem_manager_set_quota(manager, MIB, error)); }
  goes_on_working(manager);
  jitmem_manager_free(manager);
}

static void trims(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  static uint64_t handles[300];
  EACH_FAILURE(round) {
    for (size_t i = 0; i < COUNT(handles); i++)
      handles[i] = in_flight(manager).handle;
    for (size_t i = 0; i < COUNT(handles); i++)
      OK(jitmem_manager_abandon(manager, handles[i], error));
    uint64_t bytes = 0;
    TRY(round, jitmem_manager_trim(manager, &bytes, error));
    goes_on_working(manager);
  }
}

static void collapses(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  const jitmem_segment large = segment(5 << 20, 0, RX);
  EACH_FAILURE(round) {
    jitmem_segment_memory memory;
    uint64_t handle, bytes = 0;
    OK(jitmem_manager_allocate(manager, &large, 1, 0, &memory, &handle, error));
    TRY(round, jitmem_manager_collapse(manager, &bytes, error));
    OK(jitmem_manager_abandon(manager, handle, error));
    goes_on_working(manager);
  }
}

// ---- looking and writing ----

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

static void looks(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  struct graphs graphs = in_flight(manager);
  EACH_FAILURE(round) {
    jitmem_stats stats = {.struct_size = sizeof stats};
    TRY(round, jitmem_manager_stats(manager, &stats, error));
  }
  EACH_FAILURE(round) { TRY(round, jitmem_manager_layout(manager, ignore_item, NULL, error)); }
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_write(manager, graphs.handle, 0, 0, "abc", 3, error));
  }
  OK(jitmem_manager_abandon(manager, graphs.handle, error));
  goes_on_working(manager);
}

// Errors that have nothing to do with memory keep their status.
static void errors(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_abandon(manager, 12345, &object);
    assert_int_equal(jitmem_error_status(object), JITMEM_INVALID_HANDLE);
    assert_true(strlen(jitmem_error_message(object)) > 0);
    assert_int_equal(jitmem_error_os_code(object), 0);
    assert_string_equal(jitmem_status_name(status), "JITMEM_INVALID_HANDLE");
    jitmem_error_free(object);
    jitmem_error_free(object);
    round.failed = heap_end();
    assert_int_equal(status, JITMEM_INVALID_HANDLE);
  }
  // Many at a time, until no more of them can be described.
  enum { MANY = 20000 };
  static jitmem_error *objects[MANY];
  EACH_FAILURE(round) {
    heap_begin(ALL_HERE, round.skip * 1000);
    for (int i = 0; i < MANY; i++)
      jitmem_manager_abandon(manager, 12345, &objects[i]);
    round.failed = heap_end();
    for (int i = 0; i < MANY; i++) {
      assert_int_equal(jitmem_error_status(objects[i]), JITMEM_INVALID_HANDLE);
      assert_true(strlen(jitmem_error_message(objects[i])) > 0);
      jitmem_error_free(objects[i]);
    }
    goes_on_working(manager);
    if (round.skip == 10)
      break;
  }
}

// A group that is refused memory is as before, but for what finalize was to make of its sections.
static void section_groups(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    jitmem_section_group *group = NULL;
    TRY(round, jitmem_section_group_create(manager, 1, &group, error));
    ALWAYS(round, jitmem_section_group_free(group));
  }
  EACH_FAILURE(round) {
    jitmem_section_group *group = NULL;
    void *memory = NULL;
    OK(jitmem_section_group_create(manager, 1, &group, error));
    TRY(round, jitmem_section_group_allocate(group, 0, 100, 16, ".text", &memory, error));
    jitmem_section_group_free(group);
  }
  EACH_FAILURE(round) {
    jitmem_section_group *group = NULL;
    void *memory = NULL;
    OK(jitmem_section_group_create(manager, 1, &group, error));
    OK(jitmem_section_group_allocate(group, 1, 64, 16, ".eh_frame", &memory, error));
    TRY(round, jitmem_section_group_register_eh_frame(group, memory, 64, error));
    jitmem_section_group_free(group);
  }
  EACH_FAILURE(round) {
    jitmem_section_group *group = NULL;
    void *memory = NULL;
    OK(jitmem_section_group_create(manager, 1, &group, error));
    OK(jitmem_section_group_allocate(group, 0, 64, 16, ".text", &memory, error));
    OK(jitmem_section_group_allocate(group, 2, 64, 16, ".data", &memory, error));
    TRY(round, jitmem_section_group_finalize(group, error));
    ALWAYS(round, jitmem_section_group_free(group));
  }
  goes_on_working(manager);
}

static void rtdyld_callbacks(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    void *context = NULL;
    int failed = 0;
    char *message = NULL;
    heap_begin(round.kind, round.skip);
    context = jitmem_rtdyld_create_context(manager);
    uint8_t *code = jitmem_rtdyld_allocate_code_section(context, 64, 16, 1, ".text");
    uint8_t *data = jitmem_rtdyld_allocate_data_section(context, 64, 16, 2, ".data", 0);
    failed = jitmem_rtdyld_finalize_memory(context, &message);
    jitmem_rtdyld_destroy(context);
    jitmem_rtdyld_notify_terminating(manager);
    round.failed = heap_end();
    free(message);
    assert_true(failed || (code != NULL && data != NULL));
    assert_true(!failed || round.failed > 0);
  }
  goes_on_working(manager);
}

static void what_takes_no_heap(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    heap_begin(round.kind, round.skip);
    jitmem_version();
    jitmem_version_string();
    jitmem_status_name(3);
    round.failed = heap_end();
    assert_int_equal(round.failed, 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      MODES(epochs),
      MODES(looks),
      MODES(trims),
      MODE(collapses, two_views),
      MODE(collapses, mprotected),
      MODE(collapses, shared),
      MODE(collapses, remote),
      MODE(labelled_allocations, two_views),
      MODE(labelled_allocations, mprotected),
      MODE(look_ups, two_views),
      MODE(look_ups, remote),
      MODE(frames, two_views),
      MODE(frames, shared),
      MODE(frames, remote),
      MODE(frame_actions, two_views),
      MODE(frame_actions, mprotected),
      MODE(frame_actions, shared),
      MODE(frame_actions, remote),
      MODE(walks_over_many_segments, two_views),
      MODE(write_scopes, two_views),
      MODE(write_scopes, mprotected),
      MODE(write_scopes, shared),
      MODE(section_groups, in_place),
      MODE(rtdyld_callbacks, in_place),
      MODES(errors),
      cmocka_unit_test(what_takes_no_heap),
  };
  return at_rest(cmocka_run_group_tests_name("heap-access", tests, NULL, NULL));
}
