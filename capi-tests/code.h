// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A few functions in machine code of x86-64 and AArch64, as a linker would lay them down. Addresses
// are the executor's; what code refers to must be in reach of it.

#ifndef CODE_H
#define CODE_H

#include <stdint.h>
#include <string.h>

// Returns a value.
static inline void emit_return(void *out, uint32_t value);

// Returns the 32 bits at `constant`.
static inline void emit_load(void *out, uint64_t address, uint64_t constant);

// Returns its argument and a number more.
static inline void emit_add(void *out, int32_t addend);

// Returns 42 after a store to where its first argument points.
static inline void emit_fault(void *out);

// Jumps to where the pointer at `pointer` points.
static inline void emit_jump(void *out, uint64_t address, uint64_t pointer);

// Never returns.
static inline void emit_endless_loop(void *out);

// A wrapper function that answers success.
static inline void emit_wrapper(void *out);

// A wrapper function that adds 1 to a counter and answers success.
static inline void emit_counting_wrapper(void *out, uint64_t address, uint64_t counter);

// Calls the function that is `distance` bytes from here again and again until it returns the
// argument; answers 0, or 1 if it ever returned less than before.
static inline void emit_watch(void *out, int32_t distance);

#if defined(__x86_64__)

enum {
  RETURN_SIZE = 6,
  LOAD_SIZE = 7,
  ADD_SIZE = 7,
  FAULT_SIZE = 8,
  FAULT_LENGTH = 2, // of the load itself
  WRAPPER_SIZE = 6,
  COUNTING_WRAPPER_SIZE = 14,
};

// Whether cores run what is stored without being told.
enum { COHERENT_FETCH = 1 };

// What freed code is filled with: int3.
static const uint8_t trap[] = {0xcc};

static inline void emit_distance(void *field, uint64_t from, uint64_t to) {
  int32_t distance = (int32_t)(to - from);
  memcpy(field, &distance, sizeof distance);
}

static inline void emit_return(void *out, uint32_t value) {
  uint8_t code[RETURN_SIZE] = {0xb8, 0, 0, 0, 0, 0xc3}; // mov eax, value; ret
  memcpy(code + 1, &value, sizeof value);
  memcpy(out, code, sizeof code);
}

static inline void emit_load(void *out, uint64_t address, uint64_t constant) {
  uint8_t code[LOAD_SIZE] = {0x8b, 0x05, 0, 0, 0, 0, 0xc3}; // mov eax, [rip + constant]; ret
  emit_distance(code + 2, address + 6, constant);
  memcpy(out, code, sizeof code);
}

static inline void emit_add(void *out, int32_t addend) {
  uint8_t code[ADD_SIZE] = {0x8d, 0x87, 0, 0, 0, 0, 0xc3}; // lea eax, [rdi + addend]; ret
  memcpy(code + 2, &addend, sizeof addend);
  memcpy(out, code, sizeof code);
}

static inline void emit_fault(void *out) {
  const uint8_t code[FAULT_SIZE] = {0x89, 0x07, 0xb8, 42,
                                    0,    0,    0,    0xc3}; // mov [rdi], eax; mov eax, 42; ret
  memcpy(out, code, sizeof code);
}

static inline void emit_jump(void *out, uint64_t address, uint64_t pointer) {
  uint8_t code[] = {0xff, 0x25, 0, 0, 0, 0}; // jmp [rip + pointer]
  emit_distance(code + 2, address + sizeof code, pointer);
  memcpy(out, code, sizeof code);
}

static inline void emit_endless_loop(void *out) { memcpy(out, "\xeb\xfe", 2); } // jmp to itself

static inline void emit_wrapper(void *out) {
  // xor eax, eax; lea edx, [rax + 1]; ret: one byte, 0
  const uint8_t code[WRAPPER_SIZE] = {0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3};
  memcpy(out, code, sizeof code);
}

static inline void emit_counting_wrapper(void *out, uint64_t address, uint64_t counter) {
  uint8_t code[COUNTING_WRAPPER_SIZE] = {0xff, 0x05}; // inc dword [rip + counter]
  emit_distance(code + 2, address + 6, counter);
  emit_wrapper(code + 6);
  memcpy(out, code, sizeof code);
}

static inline void emit_watch(void *out, int32_t distance) {
  uint8_t code[] = {
      0x31, 0xd2,                  // xor edx, edx
      0xe8, 0,    0,    0, 0,      // call
      0x39, 0xd0,                  // cmp eax, edx
      0x72, 0x09,                  // jb less
      0x89, 0xc2,                  // mov edx, eax
      0x39, 0xf8,                  // cmp eax, edi
      0x75, 0xf1,                  // jne to the call
      0x31, 0xc0, 0xc3,            // xor eax, eax; ret
      0xb8, 0x01, 0,    0, 0, 0xc3 // less: mov eax, 1; ret
  };
  distance -= 7;
  memcpy(code + 3, &distance, sizeof distance);
  memcpy(out, code, sizeof code);
}

#elif defined(__aarch64__)

enum {
  RETURN_SIZE = 12,
  LOAD_SIZE = 12,
  ADD_SIZE = 16,
  FAULT_SIZE = 12,
  FAULT_LENGTH = 4, // of the load itself
  WRAPPER_SIZE = 12,
  COUNTING_WRAPPER_SIZE = 28,
};

// Whether cores run what is stored without being told.
enum { COHERENT_FETCH = 0 };

// What freed code is filled with: brk #0.
static const uint8_t trap[] = {0x00, 0x00, 0x20, 0xd4};

// Instructions. Registers are numbers; distances are in bytes.
static inline uint32_t movz(uint32_t to, uint32_t value) {
  return 0x52800000 | (value & 0xffff) << 5 | to;
}
static inline uint32_t movk_high(uint32_t to, uint32_t value) {
  return 0x72a00000 | (value >> 16) << 5 | to;
}
static inline uint32_t adrp(uint32_t to, uint64_t address, uint64_t target) {
  uint32_t pages = (uint32_t)((target >> 12) - (address >> 12));
  return 0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7ffff) << 5 | to;
}
static inline uint32_t ldr32(uint32_t to, uint32_t base, uint64_t target) {
  return 0xb9400000 | (uint32_t)(target & 0xfff) / 4 << 10 | base << 5 | to;
}
static inline uint32_t str32(uint32_t from, uint32_t base, uint64_t target) {
  return 0xb9000000 | (uint32_t)(target & 0xfff) / 4 << 10 | base << 5 | from;
}
static inline uint32_t ldr64(uint32_t to, uint32_t base, uint64_t target) {
  return 0xf9400000 | (uint32_t)(target & 0xfff) / 8 << 10 | base << 5 | to;
}
static inline uint32_t branch(int32_t distance) {
  return 0x14000000 | ((uint32_t)distance / 4 & 0x3ffffff);
}
#define RET 0xd65f03c0u

static inline void emit_return(void *out, uint32_t value) {
  const uint32_t code[] = {movz(0, value), movk_high(0, value), RET};
  memcpy(out, code, sizeof code);
}

static inline void emit_load(void *out, uint64_t address, uint64_t constant) {
  const uint32_t code[] = {adrp(8, address, constant), ldr32(0, 8, constant), RET};
  memcpy(out, code, sizeof code);
}

static inline void emit_add(void *out, int32_t addend) {
  const uint32_t code[] = {movz(8, (uint32_t)addend), movk_high(8, (uint32_t)addend),
                           0x0b080000, // add w0, w0, w8
                           RET};
  memcpy(out, code, sizeof code);
}

static inline void emit_fault(void *out) {
  const uint32_t code[] = {str32(0, 0, 0), movz(0, 42), RET};
  memcpy(out, code, sizeof code);
}

static inline void emit_jump(void *out, uint64_t address, uint64_t pointer) {
  const uint32_t code[] = {adrp(16, address, pointer), ldr64(16, 16, pointer),
                           0xd61f0200}; // br x16
  memcpy(out, code, sizeof code);
}

static inline void emit_endless_loop(void *out) {
  const uint32_t code = branch(0);
  memcpy(out, &code, sizeof code);
}

static inline void emit_wrapper(void *out) {
  const uint32_t code[] = {movz(0, 0), movz(1, 1), RET}; // one byte, 0
  memcpy(out, code, sizeof code);
}

static inline void emit_counting_wrapper(void *out, uint64_t address, uint64_t counter) {
  const uint32_t code[] = {adrp(8, address, counter), ldr32(9, 8, counter),
                           0x11000529, // add w9, w9, #1
                           str32(9, 8, counter)};
  memcpy(out, code, sizeof code);
  emit_wrapper((char *)out + sizeof code);
}

static inline void emit_watch(void *out, int32_t distance) {
  const uint32_t code[] = {
      0xa9be7bfd,                             // stp x29, x30, [sp, #-32]!
      0xa90153f3,                             // stp x19, x20, [sp, #16]
      0x2a0003f3,                             // mov w19, w0
      movz(20, 0),                            //
      branch(distance - 4 * 4) | 0x80000000u, // bl
      0x6b14001f,                             // cmp w0, w20
      0x540000c3,                             // b.lo less
      0x2a0003f4,                             // mov w20, w0
      0x6b13001f,                             // cmp w0, w19
      0x54ffff61,                             // b.ne to the call
      movz(0, 0),                             //
      branch(2 * 4),                          //
      movz(0, 1),                             // less
      0xa94153f3,                             // ldp x19, x20, [sp, #16]
      0xa8c27bfd,                             // ldp x29, x30, [sp], #32
      RET,
  };
  memcpy(out, code, sizeof code);
}

#else
#error "there is no machine code for this processor here"
#endif

// Whether freed code from a multiple of 16 on traps.
static inline int all_traps(const uint8_t *code, uint64_t size) {
  for (uint64_t i = 0; i < size; i++)
    if (code[i] != trap[i % sizeof trap])
      return 0;
  return 1;
}

// Runs a function that takes nothing and returns 32 bits.
static inline uint32_t run(uint64_t address) { return ((uint32_t (*)(void))(uintptr_t)address)(); }

#endif
