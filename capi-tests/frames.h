// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What tests expect of walks through the hop.

#ifndef FRAMES_H
#define FRAMES_H

#include "harness.h"
#include "hop.h"

static inline void expect_found(uint64_t code) {
  struct walk found = walk_through(code);
  assert_int_equal(found.inside, 1);
  assert_true(found.behind >= 2); // this function, and those that called it
}

#endif
