// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Structs that later versions may extend: hosts of version 0.1 keep working, and hosts of a later
// version learn that this library does not know their fields.

#include "wrapper.h"

#include <sys/socket.h>
#include <unistd.h>

// ---- version 0.1 ----
//
// What hosts were compiled against, never to be changed: a library that grew serves them still.

struct old_segment {
  uint64_t content_size, zero_fill_size, alignment;
  uint32_t protection, lifetime;
  uint64_t reserved[2];
};

struct old_segment_memory {
  uint64_t address;
  void *working_memory;
  uint64_t reserved[2];
};

struct old_wrapper_call {
  uint64_t function;
  const void *args;
  size_t args_size;
};

struct old_action {
  struct old_wrapper_call finalize, dealloc;
  uint64_t reserved[2];
};

struct old_layout_item {
  uint64_t address, size;
  uint32_t kind, protection, lifetime;
  uint32_t reserved[5];
};

struct old_mapper_segment {
  uint64_t address, size;
  const void *content;
  uint64_t content_size;
  uint32_t protection, lifetime, zeroed;
  uint32_t reserved[5];
};

struct old_mapper_retired {
  uint64_t key;
  const struct old_mapper_segment *segments;
  size_t segment_count;
  uint64_t reserved[2];
};

struct old_bootstrap_symbol {
  const char *name;
  uint64_t address;
  uint64_t reserved[2];
};

struct old_manager_options {
  size_t struct_size;
  uint64_t window_size, address, quota;
  uint32_t placement, growth, commit, reserved;
};

struct old_serve_options {
  size_t struct_size;
  const struct old_bootstrap_symbol *symbols;
  size_t symbol_count;
  const void *service;
  uint32_t llvm_version, c_only;
};

struct old_stats {
  size_t struct_size;
  uint64_t figures[17];
  uint32_t mapper, fallbacks;
  const char *mapper_name, *fallback_reason;
  uint64_t unmap_failures, messages, message_bytes;
};

// Arrays can only be walked by both sides if every entry keeps its size and its fields their place.
#define SAME_SIZE(name)                                                                            \
  _Static_assert(sizeof(struct old_##name) == sizeof(jitmem_##name), #name " changed its size")
#define SAME_PLACE(name, field)                                                                    \
  _Static_assert(offsetof(struct old_##name, field) == offsetof(jitmem_##name, field),             \
                 #name "." #field " moved")
SAME_SIZE(segment);
SAME_PLACE(segment, alignment);
SAME_PLACE(segment, lifetime);
SAME_SIZE(segment_memory);
SAME_PLACE(segment_memory, working_memory);
SAME_SIZE(wrapper_call);
SAME_PLACE(wrapper_call, args_size);
SAME_SIZE(action);
SAME_PLACE(action, dealloc);
SAME_SIZE(layout_item);
SAME_PLACE(layout_item, lifetime);
SAME_SIZE(mapper_segment);
SAME_PLACE(mapper_segment, zeroed);
SAME_SIZE(mapper_retired);
SAME_PLACE(mapper_retired, segment_count);
SAME_SIZE(bootstrap_symbol);
SAME_PLACE(bootstrap_symbol, address);
SAME_PLACE(manager_options, commit);
SAME_PLACE(serve_options, c_only);
SAME_PLACE(stats, message_bytes);

// ---- an old host ----

static int finalized, deallocated;

static struct wrapper_result count_finalize(const char *args, size_t size) {
  finalized += size == 3 && memcmp(args, "abc", 3) == 0;
  return succeed();
}

static struct wrapper_result count_dealloc(const char *args, size_t size) {
  deallocated += size == 2 && memcmp(args, "de", 2) == 0;
  return succeed();
}

struct old_picture {
  const struct old_segment_memory *memory;
  int windows, found;
};

static void see_item(void *ctx, const jitmem_layout_item *given) {
  struct old_picture *picture = ctx;
  struct old_layout_item item;
  memcpy(&item, given, sizeof item);
  picture->windows += item.kind == JITMEM_LAYOUT_WINDOW;
  for (int i = 0; i < 2; i++)
    picture->found +=
        item.kind == JITMEM_LAYOUT_RANGE && item.address == picture->memory[i].address;
}

static void old_segments_actions_and_layout(void **state) {
  jitmem_mapper *mapper = ((struct fixture *)*state)->mapper;
  struct old_manager_options options = {.struct_size = sizeof options, .window_size = 64 * MIB};
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(mapper, (void *)&options, &manager, error));
  const struct old_segment segments[] = {
      {.content_size = 100, .alignment = 64, .protection = RX},
      {.content_size = 20, .zero_fill_size = 30, .alignment = 16, .protection = RW},
  };
  struct {
    struct old_segment_memory memory[2];
    uint8_t behind[64];
  } given;
  memset(&given, 0x5a, sizeof given);
  uint64_t allocation = 0;
  OK(jitmem_manager_allocate(manager, (const void *)segments, 2, 0, (void *)given.memory,
                             &allocation, error));
  // Nothing is written behind the array.
  assert_true(all_bytes_are(given.behind, sizeof given.behind, 0x5a));
  memset(given.memory[0].working_memory, 1, 100);
  memset(given.memory[1].working_memory, 2, 20);

  finalized = deallocated = 0;
  const struct old_wrapper_call up = {(uintptr_t)count_finalize, "abc", 3};
  const struct old_wrapper_call down = {(uintptr_t)count_dealloc, "de", 2};
  const struct old_action actions[] = {{.finalize = up, .dealloc = down},
                                       {.finalize = up, .dealloc = down}};
  OK(jitmem_manager_finalize(manager, allocation, (const void *)actions, 2, error));
  assert_int_equal(finalized, 2);
  assert_true(all_bytes_are(at(given.memory[0].address), 100, 1));
  assert_true(all_bytes_are(at(given.memory[1].address), 20, 2));
  assert_true(all_bytes_are(at(given.memory[1].address + 20), 30, 0));

  struct old_picture picture = {.memory = given.memory};
  OK(jitmem_manager_layout(manager, see_item, &picture, error));
  assert_int_equal(picture.windows, 1);
  assert_int_equal(picture.found, 2);

  struct {
    struct old_stats stats;
    uint8_t behind[64];
  } figures;
  memset(&figures, 0x5a, sizeof figures);
  figures.stats.struct_size = sizeof figures.stats;
  OK(jitmem_manager_stats(manager, (void *)&figures.stats, error));
  assert_int_equal(figures.stats.struct_size, sizeof figures.stats);
  assert_true(all_bytes_are(figures.behind, sizeof figures.behind, 0x5a));

  deallocate(manager, allocation);
  assert_int_equal(deallocated, 2);
  jitmem_manager_free(manager);
}

// ---- an old host's mapper ----

struct old_mapper {
  uint8_t *window;
  int initialized, deinitialized;
};

static void old_reserve(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                        jitmem_request request) {
  struct old_mapper *mapper = ctx;
  (void)placement, (void)address;
  mapper->window = aligned_alloc(page_size(), size);
  assert_non_null(mapper->window);
  jitmem_mapper_complete(request, JITMEM_OK, NULL, (uintptr_t)mapper->window, size, NULL);
}

static uint32_t old_prepare(void *ctx, uint64_t address, uint64_t size, uint32_t protection,
                            uint32_t lifetime, void **working_memory) {
  (void)ctx, (void)protection, (void)lifetime, (void)working_memory;
  memset(at(address), 0, size);
  return JITMEM_OK;
}

static void old_initialize(void *ctx, const jitmem_mapper_segment *given, size_t segment_count,
                           const jitmem_action *given_actions, size_t action_count,
                           jitmem_request request) {
  const struct old_mapper_segment *segments = (const void *)given;
  const struct old_action *actions = (const void *)given_actions;
  for (size_t i = 0; i < segment_count; i++) {
    memcpy(at(segments[i].address), segments[i].content, segments[i].content_size);
    ((struct old_mapper *)ctx)->initialized += segments[i].reserved[0] == 0;
  }
  for (size_t i = 0; i < action_count; i++) {
    wrapper_function *function = (wrapper_function *)(uintptr_t)actions[i].finalize.function;
    function(actions[i].finalize.args, actions[i].finalize.args_size);
    assert_true(actions[i].reserved[0] == 0 && actions[i].reserved[1] == 0);
  }
  jitmem_mapper_complete(request, JITMEM_OK, NULL, 4711, 0, NULL);
}

static void old_deinitialize(void *ctx, const jitmem_mapper_retired *given, size_t count,
                             jitmem_request request) {
  const struct old_mapper_retired *retired = (const void *)given;
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(retired[i].key, 4711);
    assert_true(retired[i].reserved[0] == 0 && retired[i].reserved[1] == 0);
    for (size_t j = 0; j < retired[i].segment_count; j++)
      ((struct old_mapper *)ctx)->deinitialized += retired[i].segments[j].size != 0;
  }
  jitmem_mapper_complete(request, JITMEM_OK, NULL, 0, 0, NULL);
}

static uint32_t old_reclaim(void *ctx, uint64_t address, uint64_t size) {
  (void)ctx, (void)address, (void)size;
  return JITMEM_OK;
}

static void old_release(void *ctx, uint64_t address, uint64_t size, jitmem_request request) {
  (void)address, (void)size;
  free(((struct old_mapper *)ctx)->window);
  jitmem_mapper_complete(request, JITMEM_OK, NULL, 0, 0, NULL);
}

static void old_mapper_walks_its_arrays(void **state) {
  (void)state;
  struct old_mapper here = {0};
  const jitmem_mapper_callbacks table = {.struct_size = sizeof table,
                                         .page_size = page_size(),
                                         .granule = 16,
                                         .content = JITMEM_CONTENT_COPIED,
                                         .ctx = &here,
                                         .reserve = old_reserve,
                                         .prepare = old_prepare,
                                         .initialize = old_initialize,
                                         .deinitialize = old_deinitialize,
                                         .reclaim = old_reclaim,
                                         .release = old_release};
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_mapper_custom(&table, &mapper, error));
  struct old_manager_options options = {.struct_size = sizeof options, .window_size = 8 * MIB};
  OK(jitmem_manager_create(mapper, (void *)&options, &manager, error));
  uint64_t allocations[2];
  finalized = 0;
  for (int i = 0; i < 2; i++) {
    struct graph graph = allocate_three(manager, 3);
    const struct old_wrapper_call up = {(uintptr_t)count_finalize, "abc", 3};
    const struct old_action actions[] = {{.finalize = up}, {.finalize = up}, {.finalize = up}};
    OK(jitmem_manager_finalize(manager, graph.handle, (const void *)actions, 3, error));
    for (int j = 0; j < 3; j++)
      assert_true(all_bytes_are(at(graph.memory[j].address), 64, 3));
    allocations[i] = graph.handle;
  }
  assert_int_equal(finalized, 6);
  assert_int_equal(here.initialized, 6);
  OK(jitmem_manager_deallocate(manager, allocations, 2, error));
  assert_int_equal(here.deinitialized, 6);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
}

// ---- a new host ----

static void never_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                            size_t count, const jitmem_error *error) {
  (void)ctx, (void)allocation, (void)memory, (void)count, (void)error;
  fail();
}

static void never_done(void *ctx, const jitmem_error *error) {
  (void)ctx, (void)error;
  fail();
}

static void new_fields_of_segments_are_refused(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  for (int field = 0; field < 2; field++) {
    jitmem_segment segments[] = {segment(64, 0, RX), segment(64, 0, R), segment(64, 0, RW)};
    segments[1].reserved[field] = 1;
    jitmem_segment_memory memory[3];
    uint64_t allocation = 0;
    const char *words = "segment 1: jitmem_segment.reserved";
    REFUSED(JITMEM_INVALID_ARGUMENT, words,
            jitmem_manager_allocate(manager, segments, 3, 0, memory, &allocation, error));
    REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
            jitmem_manager_try_allocate(manager, segments, 3, 0, memory, &allocation, error));
    REFUSED(
        JITMEM_INVALID_ARGUMENT, words,
        jitmem_manager_allocate_async(manager, segments, 3, 0, never_allocated, NULL, NULL, error));
    assert_int_equal(allocation, 0);
  }
  assert_int_equal(stats_of(manager).in_flight, 0);
}

static void new_fields_of_actions_are_refused(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 1);
  for (int field = 0; field < 2; field++) {
    jitmem_action actions[] = {{.finalize = call_of(count_finalize, "abc", 3)}, {.reserved = {0}}};
    actions[1].reserved[field] = UINT64_MAX;
    finalized = 0;
    REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_action.reserved",
            jitmem_manager_finalize(manager, graph.handle, actions, 2, error));
    REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
            jitmem_manager_finalize_async(manager, graph.handle, actions, 2, never_done, NULL, NULL,
                                          error));
    assert_int_equal(finalized, 0);
  }
  finalize(manager, graph.handle);
  deallocate(manager, graph.handle);
}

static void new_fields_of_symbols_are_refused(void **state) {
  (void)state;
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  for (int field = 0; field < 2; field++) {
    jitmem_bootstrap_symbol symbols[] = {{.name = "a"}, {.name = "b"}};
    symbols[1].reserved[field] = 1;
    const jitmem_serve_options options = {
        .struct_size = sizeof options, .symbols = symbols, .symbol_count = 2};
    REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_bootstrap_symbol.reserved",
            jitmem_executor_serve(ends[1], ends[1], &options, error));
  }
  close(ends[0]);
  close(ends[1]);
}

// A field that this library does not know reads as 0, whatever was there before.
static void no_fields(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                      size_t count, const jitmem_error *error) {
  assert_null(error);
  for (size_t i = 0; i < count; i++)
    assert_true(memory[i].reserved[0] == 0 && memory[i].reserved[1] == 0);
  *(uint64_t *)ctx = allocation;
}

static void no_items(void *ctx, const jitmem_layout_item *item) {
  for (size_t i = 0; i < COUNT(item->reserved); i++)
    assert_int_equal(item->reserved[i], 0);
  ++*(int *)ctx;
}

static void new_fields_of_results_are_zero(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment segments[] = {segment(64, 0, RX), segment(64, 0, RW)};
  uint64_t allocations[3];
  jitmem_segment_memory memory[2];
  for (int i = 0; i < 2; i++) {
    memset(memory, 0xff, sizeof memory);
    if (i == 0)
      OK(jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocations[i], error));
    else
      OK(jitmem_manager_try_allocate(manager, segments, 2, 0, memory, &allocations[i], error));
    for (int j = 0; j < 2; j++)
      assert_true(memory[j].reserved[0] == 0 && memory[j].reserved[1] == 0);
  }
  OK(jitmem_manager_allocate_async(manager, segments, 2, 0, no_fields, &allocations[2], NULL,
                                   error));
  int items = 0;
  OK(jitmem_manager_layout(manager, no_items, &items, error));
  assert_true(items > 6);
  for (int i = 0; i < 3; i++)
    OK(jitmem_manager_abandon(manager, allocations[i], error));
}

#define IN_PROCESS(test) cmocka_unit_test_setup_teardown(test, set_up_two_views, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_PROCESS(old_segments_actions_and_layout),
      cmocka_unit_test(old_mapper_walks_its_arrays),
      IN_PROCESS(new_fields_of_segments_are_refused),
      IN_PROCESS(new_fields_of_actions_are_refused),
      cmocka_unit_test(new_fields_of_symbols_are_refused),
      IN_PROCESS(new_fields_of_results_are_zero),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
