// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Processes that may do less than others.

#ifndef JITMEM_TESTS_ORC_SANDBOX_H
#define JITMEM_TESTS_ORC_SANDBOX_H

#include <cstdint>

// From now on, Action of seccomp(2) comes of making a file of any kind, for this process and its
// children. Throws if that can't be had.
void onMakingFiles(uint32_t Action);

// What systemd does to a service with MemoryDenyWriteExecute=yes and
// SystemCallFilter=@system-service: no memory is made executable that was or is writable (EPERM),
// and other calls end the process by SIGSYS. Allowed is a part of @system-service: what lives with
// less lives with all of it.
void likeSystemd();

#endif // JITMEM_TESTS_ORC_SANDBOX_H
