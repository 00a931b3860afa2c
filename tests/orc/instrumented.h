// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs where a sanitizer or valgrind makes everything slow.

#ifndef JITMEM_TESTS_ORC_INSTRUMENTED_H
#define JITMEM_TESTS_ORC_INSTRUMENTED_H

#include <cstdint>

#ifdef JITMEM_TEST_INSTRUMENTED
constexpr bool Instrumented = true;
#else
constexpr bool Instrumented = false;
#endif

// Under AddressSanitizer, whose allocator has reserved most of the address space.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool Sanitized = true;
#elif defined(__has_feature)
constexpr bool Sanitized = __has_feature(address_sanitizer);
#else
constexpr bool Sanitized = false;
#endif

// How often to do something, less often there.
constexpr int rounds(int Count) { return Instrumented ? Count / 20 : Count; }

// Milliseconds in which something happens or not, more of them there.
constexpr uint64_t patience(uint64_t Milliseconds) {
  return Instrumented ? Milliseconds * 10 : Milliseconds;
}

#endif // JITMEM_TESTS_ORC_INSTRUMENTED_H
