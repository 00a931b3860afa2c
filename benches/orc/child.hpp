// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What must not disturb, or be disturbed by, the timed rounds: one manager alone in a child
// process, where its memory is told apart from the others' and its system calls are counted. Where
// the executor is another process, the child starts that, and it is traced too.
#pragma once

#include "managers.hpp"
#include "results.hpp"
#include "workload.hpp"

#include "llvm/Support/Error.h"

#include <string>

namespace bench {

/// Runs W once against C on a new session, with a new executor if that is another process.
llvm::Error runOnce(const Contender &C, const Workload &W, Probe &P);

/// Fills in footprints and system calls. Call it before this process has its second thread:
/// what that thread allocated would be in the child's memory, apart from the C heap.
/// Refusal is set to why system calls could not be counted, if so.
llvm::Error measureInChild(const Contender &C, const Workload &W, Results &R, std::string &Refusal);

/// Keeps the failure in R, with what it says about itself.
void recordFailure(Results &R, const Workload &W, const Contender &C, llvm::Error Err);

} // namespace bench
