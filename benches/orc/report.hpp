// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "alone.hpp"
#include "machine.hpp"
#include "managers.hpp"
#include "results.hpp"
#include "workload.hpp"

#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/raw_ostream.h"

#include <optional>
#include <string>
#include <vector>

namespace bench {

struct TargetOutcome {
  std::string Measured;
  /// No value: one side of the comparison was not measured.
  std::optional<bool> Reached;
};

struct TargetRow {
  std::string What, Must;
  TargetOutcome Outcome;
};

/// What the project has set itself to reach, and what was measured here.
struct TargetTable {
  std::string Title, Against;
  std::vector<TargetRow> Rows;
};

struct RunInfo {
  Machine On;
  std::vector<Contender> OneProcess, Across, OnExecutors, Executors;
  /// The executor where executors are not compared.
  Program Other;
  /// Of the executors that are compared, if they are.
  std::vector<ProgramFacts> Facts;
  /// Of the time of all timed phases in one thread, how much that had a processor.
  double ProcessorShare = 0;
  /// Of the time of all processors during the run, what other programs took.
  double OthersShare = 0;
  /// Why system calls were not counted; empty if they were.
  std::string TraceRefusal;
  double Seconds = 0;

  const std::vector<Contender> &contenders(const Workload &W) const {
    switch (W.Compares) {
    case Contest::InOneProcess:
      return OneProcess;
    case Contest::AcrossProcesses:
      return Across;
    case Contest::OnExecutors:
      return OnExecutors;
    case Contest::Executors:
      return Executors;
    }
    llvm_unreachable("no such contest");
  }
};

void printHeader(llvm::raw_ostream &OS, const RunInfo &Info);
void printWorkload(llvm::raw_ostream &OS, const RunInfo &Info, const Workload &W, const Results &R);
void printFooter(llvm::raw_ostream &OS, const RunInfo &Info);
void writeJson(llvm::raw_ostream &OS, const RunInfo &Info, const Results &R,
               llvm::ArrayRef<TargetTable> Targets);

/// The reference manager that was faster in this phase; nullptr if none was measured.
const Cell *fasterReference(const Phase &P, const RunInfo &Info);
const Cell *floorCell(const Phase &P, const RunInfo &Info);

/// "431 ns", "17.32 µs"
std::string timeText(double Nanoseconds);
/// So that a figure which is small but not nothing doesn't read as nothing.
std::string countText(double Count);
/// One line fits into a table; the JSON has them all.
llvm::StringRef firstLine(llvm::StringRef Text);
std::string ratioText(const Cell *Over, const Cell *Under);

/// A phase of a workload across processes.
void printAcross(llvm::raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R);

/// A phase of a workload that compares executors, or managers on them.
void printExecutors(llvm::raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R);
void printOnExecutors(llvm::raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R);
void printFacts(llvm::raw_ostream &OS, llvm::ArrayRef<ProgramFacts> Facts);

TargetTable targetsInOneProcess(const RunInfo &Info, const Results &R);
TargetTable targetsAcross(const Results &R);
TargetTable targetsOfExecutor(const RunInfo &Info, const Results &R);
void printTargets(llvm::raw_ostream &OS, const TargetTable &T);

} // namespace bench
