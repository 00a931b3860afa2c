// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images with a heap that is exhausted: see heap_calls.h.

#include "heap_calls.h"

#include "image.h"

static const int32_t elsewhere = 30;

static void recorders(void **state) {
  struct subject *subject = *state;
  struct image_file file = image_file("heap-recorder");
  EACH_FAILURE(round) {
    jitmem_image_recorder *recorder = NULL;
    TRY(round, jitmem_image_recorder_create(&recorder, error));
    assert_int_equal(round.status == JITMEM_OK, recorder != NULL);
    ALWAYS(round, jitmem_image_recorder_free(recorder));
  }
  jitmem_image_recorder *recorder = NULL;
  OK(jitmem_image_recorder_create(&recorder, error));
  int32_t constant = 10;
  // More of them than the reserve for what must not fail has bytes.
  enum { POINTERS = 1000 };
  static uint64_t table[POINTERS];
  static jitmem_image_reference references[POINTERS];
  for (uint64_t i = 0; i < POINTERS; i++) {
    table[i] = 0x10000;
    references[i] = (jitmem_image_reference){
        .slot = 0x20000 + i * 8, .target = 0x10000, .kind = JITMEM_IMAGE_ABSOLUTE_64};
  }
  const jitmem_image_segment described[] = {
      {.address = 0x10000, .content = &constant, .segment = segment(sizeof constant, 0, R)},
      {.address = 0x20000, .content = table, .segment = segment(sizeof table, 0, R)}};
  const jitmem_image_export export = {.symbol = "constant", .address = 0x10000};
  const jitmem_image_graph graph = {.struct_size = sizeof graph,
                                    .name = "constant.o",
                                    .segments = described,
                                    .segment_count = COUNT(described),
                                    .references = references,
                                    .reference_count = POINTERS,
                                    .exports = &export,
                                    .export_count = 1};
  EACH_FAILURE(round) {
    uint64_t id = 0;
    TRY(round, jitmem_image_recorder_record(recorder, &graph, &id, error));
    assert_int_equal(round.status == JITMEM_OK, id != 0);
    if (id != 0) {
      jitmem_status status;
      ALWAYS(round, status = jitmem_image_recorder_forget(recorder, id, NULL));
      assert_true(status == JITMEM_OK);
    }
  }
  OK(jitmem_image_recorder_record(recorder, &graph, NULL, error));
  // More names than the reserve has blocks.
  enum { NAMES = 5000 };
  static char names[NAMES][16];
  static uint64_t places[NAMES];
  static jitmem_image_import imports[NAMES];
  static jitmem_image_export exports[NAMES];
  for (uint64_t i = 0; i < NAMES; i++) {
    snprintf(names[i], sizeof names[i], "name%u", (unsigned)i);
    const uint64_t address = 0x100000 + i * 8;
    imports[i] = (jitmem_image_import){
        .slot = address, .symbol = names[i], .kind = JITMEM_IMAGE_ABSOLUTE_64};
    exports[i] = (jitmem_image_export){.symbol = names[i], .address = address};
  }
  const jitmem_image_segment large = {
      .address = 0x100000, .content = places, .segment = segment(sizeof places, 0, RW)};
  const jitmem_image_graph named = {.struct_size = sizeof named,
                                    .name = "named.o",
                                    .segments = &large,
                                    .segment_count = 1,
                                    .imports = imports,
                                    .import_count = NAMES,
                                    .exports = exports,
                                    .export_count = NAMES};
  OK(jitmem_image_recorder_record(recorder, &named, NULL, error));
  EACH_FAILURE(round) {
    TRY(round,
        jitmem_image_recorder_store(recorder, file.path, image_key, COUNT(image_key), error));
  }
  OK(jitmem_image_recorder_store(recorder, file.path, image_key, COUNT(image_key), error));
  jitmem_image_free(open_image(file.path));
  unlink(file.path);
  jitmem_image_recorder_free(recorder);
  goes_on_working(subject->manager);
}

static void referred_to(void **state) {
  struct subject *subject = *state;
  struct image_file file = image_file("heap-referred");
  jitmem_image_recorder *recorder = NULL;
  OK(jitmem_image_recorder_create(&recorder, error));
  const uint64_t pointer = 0x10000;
  const jitmem_image_segment segments[] = {
      {.address = 0x20000, .content = &pointer, .segment = segment(sizeof pointer, 0, R)},
      {.address = 0x10000, .content = &pointer, .segment = segment(sizeof pointer, 0, R)}};
  const jitmem_image_reference reference = {
      .slot = 0x20000, .target = 0x10000, .kind = JITMEM_IMAGE_ABSOLUTE_64};
  const jitmem_image_graph refers = {.struct_size = sizeof refers,
                                     .segments = &segments[0],
                                     .segment_count = 1,
                                     .references = &reference,
                                     .reference_count = 1};
  const jitmem_image_graph graph = {
      .struct_size = sizeof graph, .segments = &segments[1], .segment_count = 1};
  OK(jitmem_image_recorder_record(recorder, &refers, NULL, error));
  // One that was not recorded is none that was forgotten.
  uint64_t id = 0;
  EACH_FAILURE(round) {
    TRY(round, jitmem_image_recorder_record(recorder, &graph, &id, error));
    if (id != 0)
      break;
  }
  OK(jitmem_image_recorder_store(recorder, file.path, NULL, 0, error));
  unlink(file.path);
  jitmem_image_recorder_free(recorder);
  goes_on_working(subject->manager);
}

static void images(void **state) {
  struct subject *subject = *state;
  struct image_file file = image_file("heap-image");
  store_image(subject->manager, file.path, 10);
  EACH_FAILURE(round) {
    jitmem_image *image = NULL;
    TRY(round, jitmem_image_open(file.path, image_key, COUNT(image_key), &image, error));
    assert_int_equal(round.status == JITMEM_OK, image != NULL);
    ALWAYS(round, jitmem_image_free(image));
  }
  jitmem_image *image = open_image(file.path);
  unlink(file.path);
  size_t count = 0;
  const char *symbol = NULL;
  jitmem_image_export exports[2];
  EACH_FAILURE(round) {
    TRY(round, jitmem_image_imports(image, &symbol, 1, &count, error));
    TRY(round, jitmem_image_exports(image, exports, COUNT(exports), &count, error));
  }
  const uint64_t address = (uintptr_t)&elsewhere;
  const jitmem_image_link_request request = {.struct_size = sizeof request,
                                             .addresses = &address,
                                             .address_count = 1,
                                             .dylib = 1,
                                             .name = "an image",
                                             // Where the unwinder gets memory is its own affair.
                                             .without_frames = 1};
  EACH_FAILURE(round) {
    TRY(round, jitmem_image_link(image, subject->manager, &request, error));
    assert_int_equal(stats_of(subject->manager).in_flight, round.status == JITMEM_OK);
  }
  EACH_FAILURE(round) {
    uint64_t allocation = 0;
    OK(jitmem_image_link(image, subject->manager, &request, error));
    TRY(round, jitmem_image_finalize(image, NULL, 0, &allocation, error));
    if (allocation != 0)
      OK(jitmem_manager_deallocate(subject->manager, &allocation, 1, error));
  }
  jitmem_image_free(image);
  goes_on_working(subject->manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      MODE(recorders, two_views), MODE(referred_to, two_views), MODE(images, two_views),
      MODE(images, mprotected),   MODE(images, shared),         MODE(images, remote),
  };
  return at_rest(cmocka_run_group_tests_name("heap-image", tests, NULL, NULL));
}
