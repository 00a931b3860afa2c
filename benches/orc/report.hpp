// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "managers.hpp"
#include "results.hpp"
#include "workload.hpp"

#include "llvm/Support/raw_ostream.h"

#include <string>
#include <vector>

namespace bench {

struct RunInfo {
  std::vector<ManagerSpec> Managers;
  /// Of the time of all timed phases, how much the process had a processor.
  double ProcessorShare = 0;
  /// Why system calls were not counted; empty if they were.
  std::string TraceRefusal;
  double Seconds = 0;
};

void printHeader(llvm::raw_ostream &OS, const RunInfo &Info);
void printWorkload(llvm::raw_ostream &OS, const RunInfo &Info, const Workload &W, const Results &R);
void printFooter(llvm::raw_ostream &OS, const RunInfo &Info);
void writeJson(llvm::raw_ostream &OS, const RunInfo &Info, const Results &R);

/// The reference manager that was faster in this phase; nullptr if none was measured.
const Cell *fasterReference(const Phase &P, const RunInfo &Info);
const Cell *floorCell(const Phase &P, const RunInfo &Info);

/// "431 ns", "17.32 µs"
std::string timeText(double Nanoseconds);

/// What the project has set itself to reach, and what was measured here.
void printTargets(llvm::raw_ostream &OS, const RunInfo &Info, const Results &R);

} // namespace bench
