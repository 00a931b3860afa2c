// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Another process as the executor: started, connected through counted pipes, watched, and ended.
#pragma once

#include "results.hpp"

#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h"
#include "llvm/Support/Error.h"
#include <jitmem/orc.hpp>

#include <atomic>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <sys/types.h>

namespace bench {

/// What crossed a channel since it was opened.
struct Traffic {
  /// Messages that the controller sent; each has an answer.
  uint64_t Messages = 0;
  /// In both directions.
  uint64_t Bytes = 0;
};

class Executor {
public:
  using CreateManager =
      llvm::unique_function<llvm::Expected<std::unique_ptr<llvm::jitlink::JITLinkMemoryManager>>(
          llvm::orc::SimpleRemoteEPC &)>;

  static llvm::Expected<std::unique_ptr<Executor>> Start(const std::string &Program);
  /// Kills the process unless waitForEnd() has seen its end.
  ~Executor();

  Executor(const Executor &) = delete;
  Executor &operator=(const Executor &) = delete;

  /// May be called once.
  llvm::Expected<std::unique_ptr<llvm::orc::SimpleRemoteEPC>>
  connect(std::unique_ptr<llvm::orc::TaskDispatcher> D, CreateManager Create);

  /// Waits for the process to end by itself, as it must once it is disconnected.
  llvm::Error waitForEnd();

  pid_t pid() const { return Pid; }
  /// This side's ends of the pipes, for a caller that speaks to the executor without connect(); the
  /// caller closes them.
  int in() const { return In; }
  int out() const { return Out; }
  /// Before the memory manager was made.
  const Footprint &baseline() const { return Baseline; }
  /// All its threads, also those that have ended.
  double processorSeconds() const;
  llvm::Expected<uint64_t> minorFaults() const;
  Traffic traffic() const { return {Messages, Bytes}; }

private:
  class CountingTransport;

  Executor(std::string Name, pid_t Pid, int In, int Out)
      : Name(std::move(Name)), Pid(Pid), In(In), Out(Out) {}

  const std::string Name;
  const pid_t Pid;
  bool HasEnded = false;
  /// The transport, or the caller of in() and out(), closes them.
  const int In, Out;
  clockid_t Clock = CLOCK_MONOTONIC;
  Footprint Baseline;
  std::atomic<uint64_t> Messages{0}, Bytes{0};
};

/// Where a manager's linked code runs.
struct Host {
  /// nullptr: this process.
  std::unique_ptr<Executor> Other;
  std::unique_ptr<llvm::orc::ExecutorProcessControl> EPC;
  /// What the manager sent by a channel of its own; empty if it has none.
  std::function<Traffic()> OwnTraffic;
  /// The manager, if it is jitmem's for this process.
  jitmem::orc::MemoryManager *Jitmem = nullptr;
};

} // namespace bench
