// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What is said of an executor without timing it.
#pragma once

#include "managers.hpp"

#include "llvm/Support/Error.h"

#include <cstdint>
#include <string>
#include <vector>

namespace bench {

/// An executor that has sent its first message and got none.
struct Idle {
  /// The pages that it has, and its share of them. The most of all rounds: whatever else runs and
  /// has the same libraries makes the share smaller.
  double ResidentKB = 0, ProportionalKB = 0;
  /// The pages that it alone has written to; the median.
  double PrivateDirtyKB = 0;
  double Threads = 0;
};

struct ProgramFacts {
  Program Of;
  Idle AtRest;
  uint64_t FileSize = 0;
  /// File names of what it has loaded when it is idle.
  std::string Libraries;
  /// Memory is reserved, initialized, deinitialized and initialized again: empty, or why not.
  std::string Reinitializing;
};

/// Takes turns between the programs.
llvm::Expected<std::vector<ProgramFacts>> findFacts(const std::vector<Program> &Programs,
                                                    unsigned Rounds);

} // namespace bench
