// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Arguments that can never be right: sizes of structs, enumerators, reserved fields, alignment of
// pointers, handles of another type.

#include "harness.h"

enum { TAIL = 64 };

// ---- structs that say their size ----

union grown_options {
  jitmem_manager_options options;
  uint8_t bytes[sizeof(jitmem_manager_options) + TAIL];
};

static const size_t wrong_sizes[] = {0, 1, sizeof(size_t), 4097, SIZE_MAX / 2, SIZE_MAX};

static void options_of_a_wrong_size(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  jitmem_manager_options options = {0};
  for (size_t i = 0; i < COUNT(wrong_sizes); i++) {
    options.struct_size = wrong_sizes[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
            jitmem_manager_create(fixture->mapper, &options, &manager, error));
  }
  // The first version ended there.
  options.struct_size = offsetof(jitmem_manager_options, addresses) - 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "sizeof(jitmem_manager_options)",
          jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_null(manager);
}

static void options_of_a_newer_header(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  union grown_options grown = {.bytes = {0}};
  grown.options.struct_size = sizeof grown;
  grown.bytes[sizeof grown - 1] = 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
          jitmem_manager_create(fixture->mapper, &grown.options, &manager, error));
  assert_null(manager);
  grown.bytes[sizeof grown - 1] = 0;
  OK(jitmem_manager_create(fixture->mapper, &grown.options, &manager, error));
  jitmem_manager_free(manager);
}

static void stats_of_another_size(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  union {
    jitmem_stats stats;
    uint8_t bytes[sizeof(jitmem_stats) + TAIL];
  } grown;
  memset(&grown, 0x5a, sizeof grown);
  for (size_t i = 0; i < COUNT(wrong_sizes); i++) {
    grown.stats.struct_size = wrong_sizes[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
            jitmem_manager_stats(manager, &grown.stats, error));
    assert_true(all_bytes_are(grown.bytes + sizeof(size_t), sizeof grown - sizeof(size_t), 0x5a));
  }
  // A newer header: what this library does not know stays as it is.
  grown.stats.struct_size = sizeof grown;
  OK(jitmem_manager_stats(manager, &grown.stats, error));
  assert_int_equal(grown.stats.struct_size, sizeof(jitmem_stats));
  assert_int_equal(grown.stats.windows, 1);
  assert_true(all_bytes_are(grown.bytes + sizeof(jitmem_stats), TAIL, 0x5a));
}

// ---- options ----

static void options_out_of_range(void **state) {
  struct fixture *fixture = *state;
  const struct {
    const char *words;
    jitmem_manager_options options;
  } bad[] = {
      {"placement 3", {.placement = 3}},
      {"placement 4294967295", {.placement = UINT32_MAX}},
      {"growth 2", {.growth = 2}},
      {"fork_policy 2", {.fork_policy = 2}},
      {"huge_pages 2", {.huge_pages = 2}},
      {"commit 2", {.commit = 2}},
      {"close_writers 2", {.close_writers = 2}},
      {"without a placement", {.address = 0x10000}},
      {"window", {.window_size = 1}},
      {"window", {.window_size = 64 * KIB - page_size()}},
      {"window", {.window_size = 2 * GIB}},
      {"window", {.window_size = 2 * GIB - 2 * MIB + 1}},
      {"window", {.window_size = UINT64_MAX}},
  };
  for (size_t i = 0; i < COUNT(bad); i++) {
    jitmem_manager *manager = NULL;
    jitmem_manager_options options = bad[i].options;
    options.struct_size = sizeof options;
    REFUSED(JITMEM_INVALID_ARGUMENT, bad[i].words,
            jitmem_manager_create(fixture->mapper, &options, &manager, error));
    assert_null(manager);
  }
}

static void in_process_kinds(void **state) {
  (void)state;
  const uint32_t unknown[] = {4, 5, UINT32_MAX};
  for (size_t i = 0; i < COUNT(unknown); i++) {
    jitmem_mapper *mapper = NULL;
    REFUSED(JITMEM_INVALID_ARGUMENT, "kind", jitmem_mapper_in_process(unknown[i], &mapper, error));
    assert_null(mapper);
  }
}

// ---- callback tables ----

static void never_reserve(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                          jitmem_request request) {
  (void)ctx, (void)size, (void)placement, (void)address, (void)request;
  abort();
}

static uint32_t never_prepare(void *ctx, uint64_t address, uint64_t size, uint32_t protection,
                              uint32_t lifetime, void **working_memory) {
  (void)ctx, (void)address, (void)size, (void)protection, (void)lifetime, (void)working_memory;
  abort();
}

static void never_initialize(void *ctx, const jitmem_mapper_segment *segments, size_t segment_count,
                             const jitmem_action *actions, size_t action_count,
                             jitmem_request request) {
  (void)ctx, (void)segments, (void)segment_count, (void)actions, (void)action_count, (void)request;
  abort();
}

static void never_deinitialize(void *ctx, const jitmem_mapper_retired *retired, size_t count,
                               jitmem_request request) {
  (void)ctx, (void)retired, (void)count, (void)request;
  abort();
}

static uint32_t never_reclaim(void *ctx, uint64_t address, uint64_t size) {
  (void)ctx, (void)address, (void)size;
  abort();
}

static void never_release(void *ctx, uint64_t address, uint64_t size, jitmem_request request) {
  (void)ctx, (void)address, (void)size, (void)request;
  abort();
}

static void count_destroy(void *ctx) { ++*(int *)ctx; }

static jitmem_mapper_callbacks good_callbacks(int *destroyed) {
  return (jitmem_mapper_callbacks){
      .struct_size = sizeof(jitmem_mapper_callbacks),
      .page_size = page_size(),
      .granule = 16,
      .content = JITMEM_CONTENT_COPIED,
      .ctx = destroyed,
      .destroy = count_destroy,
      .reserve = never_reserve,
      .prepare = never_prepare,
      .initialize = never_initialize,
      .deinitialize = never_deinitialize,
      .reclaim = never_reclaim,
      .release = never_release,
  };
}

// The table is refused, and its context destroyed because of it.
static void check_bad_table(jitmem_mapper_callbacks table, const char *words) {
  jitmem_mapper *mapper = NULL;
  int *destroyed = table.ctx;
  *destroyed = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, words, jitmem_mapper_custom(&table, &mapper, error));
  assert_null(mapper);
  assert_int_equal(*destroyed, 2);
}

static void never_prepared(void *ctx, const jitmem_mapper_chunk *chunk, jitmem_request request) {
  (void)ctx, (void)chunk, (void)request;
  abort();
}

static void callback_tables(void **state) {
  (void)state;
  int destroyed = 0;
  const jitmem_mapper_callbacks good = good_callbacks(&destroyed);
  jitmem_mapper *mapper = NULL;
  OK(jitmem_mapper_custom(&good, &mapper, error));
  assert_int_equal(destroyed, 0);
  jitmem_mapper_free(mapper);
  assert_int_equal(destroyed, 1);

  jitmem_mapper_callbacks bad;
#define BAD(field, value, words)                                                                   \
  bad = good;                                                                                      \
  bad.field = value;                                                                               \
  check_bad_table(bad, words)
  BAD(reserve, NULL, "reserve is NULL");
  BAD(prepare, NULL, "prepare is NULL");
  BAD(initialize, NULL, "initialize is NULL");
  BAD(deinitialize, NULL, "deinitialize is NULL");
  BAD(reclaim, NULL, "reclaim is NULL");
  BAD(release, NULL, "release is NULL");
  BAD(page_size, 0, "page_size 0");
  BAD(page_size, 4095, "page_size 4095");
  BAD(page_size, (uint64_t)1 << 63, "page_size");
  BAD(granule, 0, "granule 0");
  BAD(granule, 24, "granule 24");
  BAD(granule, 2 * page_size(), "granule");
  BAD(content, 2, "content 2");
  BAD(prepare_async, never_prepared, "one of prepare_async and reclaim_async");
#undef BAD

  destroyed = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "mapper is NULL", jitmem_mapper_custom(&good, NULL, error));
  assert_int_equal(destroyed, 2);
}

static void callback_tables_with_reserved_bits(void **state) {
  (void)state;
  int destroyed = 0;
  jitmem_mapper_callbacks bad = good_callbacks(&destroyed);
  bad.reserved = 1;
  check_bad_table(bad, "reserved");
}

static void callback_tables_of_a_wrong_size(void **state) {
  (void)state;
  int destroyed = 0;
  jitmem_mapper *mapper = NULL;
  jitmem_mapper_callbacks table = good_callbacks(&destroyed);
  for (size_t i = 0; i < COUNT(wrong_sizes); i++) {
    table.struct_size = wrong_sizes[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size", jitmem_mapper_custom(&table, &mapper, error));
  }
  table.struct_size = offsetof(jitmem_mapper_callbacks, prepare_async) - 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size", jitmem_mapper_custom(&table, &mapper, error));
  // Where the struct ends is not known, so neither is `destroy`.
  assert_int_equal(destroyed, 0);
  assert_null(mapper);
}

// The struct ended with `release` before: what an old host has behind it is not read.
static void callback_tables_of_an_older_header(void **state) {
  (void)state;
  int destroyed = 0;
  jitmem_mapper *mapper = NULL;
  jitmem_mapper_callbacks table = good_callbacks(&destroyed);
  memset(&table.prepare_async, 0x5a, sizeof table.prepare_async + sizeof table.reclaim_async);
  table.struct_size = offsetof(jitmem_mapper_callbacks, prepare_async);
  OK(jitmem_mapper_custom(&table, &mapper, error));
  jitmem_mapper_free(mapper);
  assert_int_equal(destroyed, 1);
}

static void callback_tables_of_a_newer_header(void **state) {
  (void)state;
  int destroyed = 0;
  jitmem_mapper *mapper = NULL;
  union {
    jitmem_mapper_callbacks table;
    uint8_t bytes[sizeof(jitmem_mapper_callbacks) + TAIL];
  } grown = {.bytes = {0}};
  grown.table = good_callbacks(&destroyed);
  grown.table.struct_size = sizeof grown;
  OK(jitmem_mapper_custom(&grown.table, &mapper, error));
  jitmem_mapper_free(mapper);
  assert_int_equal(destroyed, 1);
  grown.bytes[sizeof grown.table] = 1;
  mapper = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
          jitmem_mapper_custom(&grown.table, &mapper, error));
  assert_null(mapper);
  // A struct that can't be read has no destructor.
  assert_int_equal(destroyed, 1);
}

// ---- pointers ----

// A pointer that no object of these types can have.
static void *misaligned(void *pointer) { return (char *)pointer + 1; }

static void misaligned_inputs(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = NULL;
  uint64_t storage[64] = {0};
  void *odd = misaligned(storage);
  jitmem_segment_memory memory;
  uint64_t allocation = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_create(fixture->mapper, odd, &manager, error));
  jitmem_mapper *mapper = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned", jitmem_mapper_custom(odd, &mapper, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_stats(fixture->manager, odd, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_allocate(fixture->manager, odd, 1, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_deallocate(fixture->manager, odd, 1, error));
  struct graph graph = allocate_one(fixture->manager, segment(16, 0, RW), 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_finalize(fixture->manager, graph.handle, odd, 1, error));
  OK(jitmem_manager_abandon(fixture->manager, graph.handle, error));
}

static void more_elements_than_memory(void **state) {
  struct fixture *fixture = *state;
  jitmem_segment one = segment(16, 0, RW);
  jitmem_segment_memory memory;
  uint64_t allocation = 0;
  REFUSED(
      JITMEM_INVALID_ARGUMENT, "longer than memory",
      jitmem_manager_allocate(fixture->manager, &one, SIZE_MAX, 0, &memory, &allocation, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "longer than memory",
          jitmem_manager_deallocate(fixture->manager, &allocation, SIZE_MAX / 4, error));
  struct graph graph = allocate_one(fixture->manager, segment(16, 0, RW), 0);
  jitmem_action action = {.finalize = {.function = 0}};
  REFUSED(JITMEM_INVALID_ARGUMENT, "longer than memory",
          jitmem_manager_finalize(fixture->manager, graph.handle, &action, SIZE_MAX / 2, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "longer than memory",
          jitmem_manager_write(fixture->manager, graph.handle, 0, 0, "a", SIZE_MAX, error));
  OK(jitmem_manager_abandon(fixture->manager, graph.handle, error));
}

static void misaligned_outputs_of_allocate(void **state) {
  struct fixture *fixture = *state;
  jitmem_segment one = segment(16, 0, RW);
  uint64_t storage[4], allocation = 0;
  jitmem_segment_memory memory;
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_allocate(fixture->manager, &one, 1, 0, misaligned(storage), &allocation,
                                  error));
  REFUSED(
      JITMEM_INVALID_ARGUMENT, "misaligned",
      jitmem_manager_allocate(fixture->manager, &one, 1, 0, &memory, misaligned(storage), error));
  assert_int_equal(stats_of(fixture->manager).in_flight, 0);
}

// Nothing was done, nor is anything written there.
static void misaligned_outputs_that_may_be_left_out(void **state) {
  struct fixture *fixture = *state;
  uint64_t storage[2] = {0};
  uint64_t *odd = misaligned(storage);
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes at", jitmem_manager_trim(fixture->manager, odd, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes at",
          jitmem_manager_collapse(fixture->manager, odd, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "bytes at",
          jitmem_manager_reclaim(fixture->manager, 0, odd, error));
  assert_int_equal(storage[0] | storage[1], 0);
}

static void misaligned_outputs_of_creation(void **state) {
  struct fixture *fixture = *state;
  uint64_t storage[2];
  int destroyed = 0;
  jitmem_mapper_callbacks table = good_callbacks(&destroyed);
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_mapper_in_process(fixture->kind, misaligned(storage), error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_mapper_custom(&table, misaligned(storage), error));
  assert_int_equal(destroyed, 2);
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_manager_create(fixture->mapper, NULL, misaligned(storage), error));
}

// ---- handles ----

static void handles_that_are_none(void **state) {
  struct fixture *fixture = *state;
  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_manager *odd_manager = misaligned(fixture->manager), *manager = NULL;
  jitmem_mapper *odd_mapper = misaligned(fixture->mapper);
  REFUSED(JITMEM_INVALID_HANDLE, "is no jitmem_manager",
          jitmem_manager_stats(odd_manager, &stats, error));
  REFUSED(JITMEM_INVALID_HANDLE, "is no jitmem_mapper",
          jitmem_manager_create(odd_mapper, NULL, &manager, error));
  jitmem_manager_free(odd_manager);
  jitmem_mapper_free(odd_mapper);

  // Live, but of another type.
  void *mapper_as_manager = fixture->mapper, *manager_as_mapper = fixture->manager;
  REFUSED(JITMEM_INVALID_HANDLE, "never was one",
          jitmem_manager_stats(mapper_as_manager, &stats, error));
  REFUSED(JITMEM_INVALID_HANDLE, "never was one",
          jitmem_manager_create(manager_as_mapper, NULL, &manager, error));
  assert_int_equal(jitmem_error_status(mapper_as_manager), JITMEM_INVALID_HANDLE);
  jitmem_manager_free(mapper_as_manager);
  jitmem_mapper_free(manager_as_mapper);
  jitmem_error_free(mapper_as_manager);

  // Both are as they were.
  OK(jitmem_manager_create(fixture->mapper, NULL, &manager, error));
  jitmem_manager_free(manager);
  stats_of(fixture->manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(options_of_a_wrong_size),
      EACH(options_of_a_newer_header),
      EACH(stats_of_another_size),
      EACH(options_out_of_range),
      cmocka_unit_test(in_process_kinds),
      cmocka_unit_test(callback_tables),
      cmocka_unit_test(callback_tables_with_reserved_bits),
      cmocka_unit_test(callback_tables_of_a_wrong_size),
      cmocka_unit_test(callback_tables_of_an_older_header),
      cmocka_unit_test(callback_tables_of_a_newer_header),
      EACH(misaligned_inputs),
      EACH(more_elements_than_memory),
      EACH(misaligned_outputs_of_allocate),
      EACH(misaligned_outputs_of_creation),
      EACH(misaligned_outputs_that_may_be_left_out),
      EACH(handles_that_are_none),
  };
  return cmocka_run_group_tests_name("arguments", tests, NULL, NULL);
}
