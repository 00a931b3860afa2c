// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Sizes of graphs, and the order in which they come and go in recorded programs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace peers {

/// Bytes of code, of constants, and of data that linked code writes.
struct Plan {
  uint32_t Code, Constants, Data;

  uint64_t bytes() const { return uint64_t(Code) + Constants + Data; }
};

/// A graph comes, or one that has come goes.
struct Step {
  bool Adds;
  Plan Size;
  /// Which of the graphs that have come.
  uint32_t Number;
};

struct Trace {
  std::string Name;
  std::vector<Step> Steps;
};

/// The recorded programs of a folder, and a stream of so many small queries. Each failure is an
/// exception.
std::vector<Trace> allTraces(const std::string &Folder, uint32_t GraphsOfStream);

} // namespace peers
