// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What is measured. A workload runs against any manager and says through a probe where its phases
// begin and end; the probe decides what is measured there.
#pragma once

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/ExecutionEngine/Orc/Core.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace bench {

struct Host;

class Probe {
public:
  virtual ~Probe() = default;
  /// Called before the workload, which runs on H.
  virtual void begin(const Host &) {}
  /// Runs Body, which performs Operations operations.
  virtual llvm::Error measure(llvm::StringRef Phase, uint64_t Operations,
                              llvm::function_ref<llvm::Error()> Body) = 0;
  /// Called while the results of Live operations of Phase are live.
  /// Content is how many bytes they asked for, where that is compared.
  virtual void hold(llvm::StringRef Phase, uint64_t Live, llvm::StringRef Note = "",
                    uint64_t Content = 0) = 0;
};

/// What a workload compares.
enum class Contest {
  /// Managers of this process.
  InOneProcess,
  /// Managers of other processes and their dispatchers, beside some of this process.
  AcrossProcesses,
  /// The same managers on two executors.
  OnExecutors,
  /// Two executors, without any manager.
  Executors,
};

struct Workload {
  /// As --only has it.
  std::string Key;
  std::string Title;
  std::string Operation;
  /// Timed rounds; 0: only what a child process can say about it.
  unsigned Rounds = 0;
  Contest Compares = Contest::InOneProcess;
  /// Whether the child counts system calls. It then does the work once beforehand, so that what
  /// only a process's first run does isn't counted.
  bool CountSystemCalls = true;
  /// Processes that the workload starts share the work, so the time that passes is compared.
  bool InChildren = false;
  /// The phases are the parts of one thing, whose cost in all is shown too.
  bool HasSum = false;
  /// Leaves in Alive what tasks that have not ended yet may use. It outlives the session.
  std::function<llvm::Error(const Host &, llvm::orc::ExecutionSession &, Probe &,
                            std::shared_ptr<void> &Alive)>
      Run;
  /// In place of Run where executors are compared: starts the program and drives it.
  std::function<llvm::Error(const std::string &Program, Probe &)> RunAlone;
};

struct Settings {
  bool Quick = false;
  /// 0: each workload's own choice.
  unsigned Rounds = 0;
  /// Rounds a workload should take, out of those that it takes by default.
  unsigned rounds(unsigned Default) const {
    if (Rounds)
      return Rounds;
    return Quick ? (Default + 2) / 3 : Default;
  }
};

/// (a) The manager alone, through SimpleSegmentAlloc.
Workload segments(const Settings &S);
Workload churn(const Settings &S);
/// (b) Tiny objects through ObjectLinkingLayer.
llvm::Expected<Workload> tinyObjects(const Settings &S);
/// (c) All members of four static libraries through ObjectLinkingLayer.
llvm::Expected<Workload> archives(const Settings &S);
/// (d) Calls of Functions tiny functions in random order.
llvm::Expected<Workload> calls(const Settings &S, unsigned Functions);
/// (e) How many small graphs can be live.
Workload capacity();
/// (f) Memory that stays in use in churn and after a peak.
Workload memory();
/// (g) Forks of a process with many small graphs.
Workload forks(const Settings &S);
/// (h) Linked code that is redirected, and changed.
Workload redirects(const Settings &S);
/// (t) Recorded programs' graphs.
llvm::Expected<Workload> traces(const Settings &S);
/// (oop-a) As (a), but fewer graphs, and never memory that was given back: LLVM's executor of
/// version 22 makes none of that writable again, which crashes it under SimpleRemoteMemoryMapper.
Workload segmentsAcross();
/// (executor) How an executor starts, and what a call of it costs.
Workload executorStart(const Settings &S);
Workload executorCalls(const Settings &S);

/// The names of phases that the table of targets looks up.
inline constexpr llvm::StringLiteral AllocatePhase = "allocate + finalize";
inline constexpr llvm::StringLiteral DeallocateOldestPhase = "deallocate one by one, oldest first";
inline constexpr llvm::StringLiteral DeallocateRandomPhase = "deallocate one by one, random order";
inline constexpr llvm::StringLiteral ChurnPhase = "churn at 500 live";
inline constexpr llvm::StringLiteral LinkPhase = "add + look up";
inline constexpr llvm::StringLiteral RemovePhase = "remove";
inline constexpr llvm::StringLiteral SumPhase = "in all";
inline constexpr llvm::StringLiteral CapacityPhase = "live graphs";
inline constexpr llvm::StringLiteral SpawnPhase = "spawn to Setup received";
inline constexpr llvm::StringLiteral FirstCallPhase = "Setup received to first answer";
std::string callPhase(unsigned Functions);
std::string emptyCallPhase(unsigned InFlight);

} // namespace bench
