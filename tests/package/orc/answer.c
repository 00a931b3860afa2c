// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Linked by the JIT.
static int questions;
const char *const unit = "questions";

int answer(void) { return 42 + questions++; }
