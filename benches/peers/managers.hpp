// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a host would have instead of jitmem, behind one interface.
#pragma once

#include "trace.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace peers {

/// The graphs of workload (a).
constexpr Plan SmallGraph = {256, 64, 64};

struct Graph {
  Plan Size;
  /// Where code runs, and where constants and data lie, if the manager needs that to remove them.
  void *Code = nullptr, *Constants = nullptr, *Data = nullptr;
  uint64_t Handle = 0;
};

/// Each failure is a std::runtime_error.
class Manager {
public:
  virtual ~Manager() = default;

  /// Allocates a graph, writes its content (each segment from the beginning of Content) and makes
  /// code executable.
  virtual Graph add(const Plan &P, const char *Content) = 0;

  virtual void remove(const Graph &G) = 0;

  /// Puts what it has into huge pages.
  virtual void collapse() {}
};

struct Kind {
  const char *Key;
  /// What is not the same work as jitmem's; empty if it is.
  const char *Differs;
  std::unique_ptr<Manager> (*Make)();
  /// Each thread has a manager of its own.
  bool PerThread = false;
  /// Graphs that it can make before it has to be replaced as a whole, by one thread; 0: any number.
  unsigned MostGraphs = 0;
};

/// All peers; jitmem is the first, the floor the last.
const std::vector<Kind> &kinds();

/// For running code only: a page for each function, as LLVM's managers place them, in one mapping.
const Kind &pageForEach();

} // namespace peers
