// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Processes that can make no files.

#ifndef JITMEM_TESTS_ORC_SANDBOX_H
#define JITMEM_TESTS_ORC_SANDBOX_H

#include <cstdint>

// From now on, Action of seccomp(2) comes of making a file of any kind, for this process and its
// children. Throws if that can't be had.
void onMakingFiles(uint32_t Action);

#endif // JITMEM_TESTS_ORC_SANDBOX_H
