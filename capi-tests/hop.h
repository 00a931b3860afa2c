// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A function with a frame and its unwind information, by hand, and walks through it.

#ifndef HOP_H
#define HOP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unwind.h>

// Code that keeps a frame and calls its first argument, and what an .eh_frame section says of it.
#if defined(__x86_64__)
// push rbp; mov rbp, rsp; call rdi; pop rbp; ret
static const uint8_t hop_code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
// CFA: rsp + 8; return address (16): CFA - 8.
static const uint8_t common[] = {1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0};
// Behind the push, CFA: rsp + 16, rbp: CFA - 16; behind the mov, CFA: rbp + 16.
static const uint8_t steps[] = {0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6};
#else
// stp x29, x30, [sp, -16]!; mov x29, sp; blr x0; ldp x29, x30, [sp], 16; ret
static const uint8_t hop_code[] = {0xfd, 0x7b, 0xbf, 0xa9, 0xfd, 0x03, 0x00, 0x91, 0x00, 0x00,
                                   0x3f, 0xd6, 0xfd, 0x7b, 0xc1, 0xa8, 0xc0, 0x03, 0x5f, 0xd6};
// CFA: sp.
static const uint8_t common[] = {1, 'z', 'R', 0, 1, 0x78, 30, 1, 0x1b, 0x0c, 31, 0, 0, 0, 0, 0};
// Behind the stp, CFA: sp + 16, x29: CFA - 16, x30: CFA - 8.
static const uint8_t steps[] = {0x44, 0x0e, 16, 0x9d, 2, 0x9e, 1, 0};
#endif

// ---- sections ----

struct section {
  uint8_t bytes[128];
  size_t size;
  // Where the address of the function is, relative to itself in 4 bytes.
  size_t function;
};

static inline void append(struct section *section, const void *bytes, size_t size) {
  memcpy(section->bytes + section->size, bytes, size);
  section->size += size;
}

static inline void append_word(struct section *section, uint32_t word) {
  append(section, &word, sizeof word);
}

// Of a section at `start`, for the hop's code at `code`.
static inline struct section section_for(uint64_t start, uint64_t code) {
  struct section section = {.size = 0};
  append_word(&section, 4 + sizeof common);
  append_word(&section, 0);
  append(&section, common, sizeof common);
  append_word(&section, 4 + 8 + 4 + sizeof steps);
  append_word(&section, (uint32_t)section.size); // back to the common part
  section.function = section.size;
  append_word(&section, (uint32_t)(code - (start + section.size)));
  append_word(&section, sizeof hop_code);
  const uint8_t none[4] = {0}; // no augmentation, and three no-operations
  append(&section, none, 1);
  append(&section, steps, sizeof steps);
  append(&section, none, 3);
  append_word(&section, 0);
  return section;
}

enum { SECTION_ROOM = 96 };

// ---- walking ----

struct walk {
  uint64_t code;
  // Frames inside of the hop, and behind it.
  int inside, behind;
};

static _Thread_local struct walk walk;

static inline _Unwind_Reason_Code see_frame(struct _Unwind_Context *context, void *ctx) {
  (void)ctx;
  uint64_t address = (uint64_t)_Unwind_GetIP(context) - 1;
  if (address - walk.code < sizeof hop_code)
    walk.inside++;
  else if (walk.inside > 0)
    walk.behind++;
  return _URC_NO_REASON;
}

static inline void walk_from_here(void) { _Unwind_Backtrace(see_frame, NULL); }

// Calls through the hop and walks up from there.
static inline struct walk walk_through(uint64_t code) {
  walk = (struct walk){.code = code};
  ((void (*)(void (*)(void)))(uintptr_t)code)(walk_from_here);
  return walk;
}

#endif
