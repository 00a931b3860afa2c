// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What must not disturb, or be disturbed by, the timed rounds: one manager alone in a child
// process, where its memory is told apart from the others' and its system calls are counted.
#pragma once

#include "managers.hpp"
#include "results.hpp"
#include "workload.hpp"

#include "llvm/Support/Error.h"

#include <string>

namespace bench {

/// Runs W once against M on a new session.
llvm::Error runOnce(const ManagerSpec &M, const Workload &W, Probe &P);

/// Fills in footprints and system calls.
/// Refusal is set to why system calls could not be counted, if so.
llvm::Error measureInChild(const ManagerSpec &M, const Workload &W, Results &R,
                           std::string &Refusal);

} // namespace bench
