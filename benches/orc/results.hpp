// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What was measured: one cell for each phase of a workload and each manager.
#pragma once

#include "workload.hpp"

#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace bench {

/// One timed run of a phase; every figure is per operation.
struct Sample {
  double WallNs = 0;
  /// Of this process, all its threads.
  double ProcessorNs = 0;
  double Faults = 0;
  /// Of the executor, where that is another process.
  double ExecutorProcessorNs = 0;
  double ExecutorFaults = 0;
  /// Sent by the controller over EPC, each of which has an answer, and bytes in both directions.
  double Messages = 0;
  double Bytes = 0;
  /// The same for a channel that the manager has for itself.
  double OwnMessages = 0;
  double OwnBytes = 0;

  Sample &operator+=(const Sample &Other);
  void scale(double Factor);
};

/// Memory a process holds, or the difference of two such states.
struct Footprint {
  /// Lines in /proc/PID/maps.
  int64_t Mappings = 0;
  /// Resident memory that backs neither a file, the heap nor a stack; a page mapped twice counts
  /// once.
  int64_t MappedKB = 0;
  /// Resident memory of the C heap.
  int64_t HeapKB = 0;
};

struct Cell {
  std::string Manager;
  std::vector<Sample> Samples;
  /// One thread does all the work, so its processor time is what the work costs.
  bool ByProcessor = true;
  /// Per operation; threads are those that the executor started.
  std::optional<double> SystemCalls, ExecutorSystemCalls, ExecutorThreads;
  /// While what the phase made is live.
  std::optional<Footprint> Held;
  /// Operations whose result was live when Held was taken.
  uint64_t Live = 0;
  /// Bytes that these asked for; 0: not compared.
  uint64_t Content = 0;
  std::string Note;

  bool timed() const { return !Samples.empty(); }
  double median(double Sample::*Figure = &Sample::WallNs) const;
  /// What ratios compare: processor time, in which waiting for a processor is not counted; where
  /// several threads or processes share the work, the time that passed.
  double cost() const { return median(ByProcessor ? &Sample::ProcessorNs : &Sample::WallNs); }
  double fastest() const;
  double slowest() const;
};

struct Phase {
  const Workload *Of;
  std::string Name;
  std::deque<Cell> Cells;

  Cell &cell(llvm::StringRef Manager);
  /// nullptr if the manager has no cell here.
  const Cell *find(llvm::StringRef Manager) const;
};

/// A manager that could not do a workload.
struct Failure {
  const Workload *Of;
  std::string Manager;
  std::string Message;
  /// The manager says so itself: it is not there on this system, or not yet.
  bool Unsupported;
};

/// Refers to the workloads, which must stay where they are.
class Results {
public:
  /// Finds the phase, or appends it. References stay valid.
  Phase &phase(const Workload &W, llvm::StringRef Name);
  /// nullptr if nothing was measured.
  const Phase *find(llvm::StringRef WorkloadKey, llvm::StringRef Name) const;
  const std::deque<Phase> &phases() const { return Phases; }

  /// Only the first failure of a manager at a workload is kept.
  void fail(const Workload &W, llvm::StringRef Manager, llvm::StringRef Message,
            bool Unsupported = false);
  /// nullptr if it did not fail.
  const Failure *failure(const Workload &W, llvm::StringRef Manager) const;
  const std::vector<Failure> &failures() const { return Failures; }

private:
  std::deque<Phase> Phases;
  std::vector<Failure> Failures;
};

/// How much more A cost than B: the median over rounds of one round's ratio. Managers take turns
/// within a round, so what disturbs the machine for longer than a round falls out of it.
std::optional<double> ratio(const Cell *A, const Cell *B);

/// Adds a phase whose samples are the sums of those of all phases of W.
void addSum(Results &R, const Workload &W, llvm::StringRef Name);

/// The middle of Values, or the mean of the two in the middle; 0 of none.
double medianOf(std::vector<double> Values);

} // namespace bench
