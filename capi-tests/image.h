// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Graphs that are stored as an image, by hand.

#ifndef IMAGE_H
#define IMAGE_H

#include "frames.h"

#include <limits.h>

// int answer(int): loads a pointer to an int from data and adds what is there, then what an
// imported variable has.
#if defined(__x86_64__)
// mov rax, [rip + POINTER]; add edi, [rax]; mov rax, [rip + IMPORT]; add edi, [rax]; mov eax, edi;
// ret
static const uint8_t answer_code[] = {0x48, 0x8b, 0x05, 0, 0, 0,    0,    0x03, 0x38, 0x48, 0x8b,
                                      0x05, 0,    0,    0, 0, 0x03, 0x38, 0x89, 0xf8, 0xc3};
enum { POINTER_SLOT = 3, IMPORT_SLOT = 12, RELATIVE = JITMEM_IMAGE_RELATIVE_32 };

static inline void put_distance(uint8_t *code, uint64_t slot, uint64_t target) {
  uint32_t distance = (uint32_t)(target - (slot + 4));
  memcpy(code, &distance, sizeof distance);
}
#else
// adr x2, POINTER (ldr x3, [x2]; add x2, x2, x3; ldr x2, [x2]; ldr w3, [x2]; add w0, w0, w3), the
// same for IMPORT; ret; 4 bytes; two distances of 8 bytes
static const uint8_t answer_code[] = {
    0xc2, 0x01, 0x00, 0x10, 0x43, 0x00, 0x40, 0xf9, 0x42, 0x00, 0x03, 0x8b, 0x42, 0x00,
    0x40, 0xf9, 0x43, 0x00, 0x40, 0xb9, 0x00, 0x00, 0x03, 0x0b, 0x42, 0x01, 0x00, 0x10,
    0x43, 0x00, 0x40, 0xf9, 0x42, 0x00, 0x03, 0x8b, 0x42, 0x00, 0x40, 0xf9, 0x43, 0x00,
    0x40, 0xb9, 0x00, 0x00, 0x03, 0x0b, 0xc0, 0x03, 0x5f, 0xd6, 0,    0,    0,    0,
    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0};
enum { POINTER_SLOT = 56, IMPORT_SLOT = 64, RELATIVE = JITMEM_IMAGE_RELATIVE_64 };

static inline void put_distance(uint8_t *code, uint64_t slot, uint64_t target) {
  uint64_t distance = target - slot;
  memcpy(code, &distance, sizeof distance);
}
#endif

static const jitmem_image_key image_key[] = {{.name = "linker", .value = "these tests"}};

// A file of this process's own.
struct image_file {
  char path[PATH_MAX];
};

static inline struct image_file image_file(const char *test) {
  struct image_file file;
  const char *folder = getenv("TMPDIR");
  snprintf(file.path, sizeof file.path, "%s/jitmem-%s-%d", folder == NULL ? "/tmp" : folder, test,
           (int)getpid());
  return file;
}

// Where a graph of the code, a pointer and a slot for an import, a constant, and frames is.
enum { CODE, DATA, CONSTANT, FRAMES, SEGMENTS };
enum { HOP = (sizeof answer_code + 15) / 16 * 16, CODE_SIZE = HOP + sizeof hop_code };

struct recorded {
  uint64_t handle, id;
};

// Links such a graph, whose constant is `constant`, and has it recorded.
static inline jitmem_status record_graph(const jitmem_manager *manager,
                                         const jitmem_image_recorder *recorder, int32_t constant,
                                         const int32_t *imported, struct recorded *recorded,
                                         jitmem_error **error) {
  jitmem_segment segments[SEGMENTS] = {segment(CODE_SIZE, 0, RX), segment(16, 100, RW),
                                       segment(4, 0, R), segment(SECTION_ROOM, 0, R)};
  jitmem_segment_memory memory[SEGMENTS];
  jitmem_status status =
      jitmem_manager_allocate(manager, segments, SEGMENTS, 1, memory, &recorded->handle, error);
  if (status != JITMEM_OK)
    return status;
  const uint64_t code = memory[CODE].address, data = memory[DATA].address;
  uint8_t text[CODE_SIZE] = {0};
  memcpy(text, answer_code, sizeof answer_code);
  memcpy(text + HOP, hop_code, sizeof hop_code);
  put_distance(text + POINTER_SLOT, code + POINTER_SLOT, data);
  put_distance(text + IMPORT_SLOT, code + IMPORT_SLOT, data + 8);
  const uint64_t pointers[2] = {memory[CONSTANT].address, (uintptr_t)imported};
  struct section section = section_for(memory[FRAMES].address, code + HOP);
  memcpy(memory[CODE].working_memory, text, sizeof text);
  memcpy(memory[DATA].working_memory, pointers, sizeof pointers);
  memcpy(memory[CONSTANT].working_memory, &constant, sizeof constant);
  memset(memory[FRAMES].working_memory, 0, SECTION_ROOM);
  memcpy(memory[FRAMES].working_memory, section.bytes, section.size);

  const void *contents[SEGMENTS] = {text, pointers, &constant, section.bytes};
  jitmem_image_segment described[SEGMENTS] = {0};
  for (size_t i = 0; i < SEGMENTS; i++)
    described[i] = (jitmem_image_segment){
        .address = memory[i].address, .content = contents[i], .segment = segments[i]};
  const uint64_t frames = memory[FRAMES].address;
  const jitmem_image_import import = {
      .slot = data + 8, .symbol = "imported", .kind = JITMEM_IMAGE_ABSOLUTE_64};
  const jitmem_image_reference references[] = {
      {.slot = code + POINTER_SLOT, .target = data, .kind = RELATIVE},
      {.slot = code + IMPORT_SLOT, .target = data, .kind = RELATIVE},
      {.slot = data, .target = memory[CONSTANT].address, .kind = JITMEM_IMAGE_ABSOLUTE_64},
      {.slot = frames + section.function, .target = code, .kind = JITMEM_IMAGE_RELATIVE_32}};
  const jitmem_image_export exports[] = {{.symbol = "answer", .address = code, .flags = 5},
                                         {.symbol = "hop", .address = code + HOP}};
  const jitmem_image_frames unwind = {.start = frames, .size = section.size};
  const jitmem_image_graph graph = {.struct_size = sizeof graph,
                                    .name = "answer.o",
                                    .segments = described,
                                    .segment_count = SEGMENTS,
                                    .imports = &import,
                                    .import_count = 1,
                                    .references = references,
                                    .reference_count = COUNT(references),
                                    .exports = exports,
                                    .export_count = COUNT(exports),
                                    .frames = &unwind,
                                    .frames_count = 1};
  status = jitmem_image_recorder_record(recorder, &graph, &recorded->id, error);
  if (status != JITMEM_OK)
    jitmem_manager_abandon(manager, recorded->handle, NULL);
  return status;
}

// Stores one such graph.
static inline void store_image(const jitmem_manager *manager, const char *path, int32_t constant) {
  static const int32_t imported = 1;
  jitmem_image_recorder *recorder = NULL;
  struct recorded recorded;
  OK(jitmem_image_recorder_create(&recorder, error));
  OK(record_graph(manager, recorder, constant, &imported, &recorded, error));
  finalize(manager, recorded.handle);
  deallocate(manager, recorded.handle);
  OK(jitmem_image_recorder_store(recorder, path, image_key, COUNT(image_key), error));
  jitmem_image_recorder_free(recorder);
}

static inline jitmem_image *open_image(const char *path) {
  jitmem_image *image = NULL;
  OK(jitmem_image_open(path, image_key, COUNT(image_key), &image, error));
  assert_non_null(image);
  return image;
}

#endif
