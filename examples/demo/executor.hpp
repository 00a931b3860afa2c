// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_EXECUTOR_HPP
#define JITMEM_DEMO_EXECUTOR_HPP

#include "llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <sys/types.h>
#include <unordered_set>

namespace demo {

/// What crossed a channel.
struct Traffic {
  uint64_t Messages = 0; ///< from the linking process; each has an answer
  uint64_t Bytes = 0;    ///< of messages and answers

  Traffic &operator+=(Traffic T) {
    Messages += T.Messages;
    Bytes += T.Bytes;
    return *this;
  }
  Traffic operator-(Traffic T) const { return {Messages - T.Messages, Bytes - T.Bytes}; }
};

/// Another process for linked code to run in.
class Executor {
public:
  static llvm::Expected<std::unique_ptr<Executor>> Start(const std::string &Program);

  /// Kills the process unless its end was waited for.
  ~Executor();

  /// The EPC must not outlive this. May be called once.
  llvm::Expected<std::unique_ptr<llvm::orc::ExecutorProcessControl>>
  connect(std::unique_ptr<llvm::orc::TaskDispatcher> D);

  /// Waits for the process to end by itself, as it does once it is disconnected.
  llvm::Error waitForEnd();

  pid_t pid() const { return Pid; }
  /// EPC's messages so far, but for those that look symbols up.
  Traffic traffic() const;
  /// EPC's messages so far that look symbols up, which is no manager's doing.
  Traffic lookups() const;

private:
  class CountingTransport;

  Executor(std::string Program, pid_t Pid, int In, int Out)
      : Program(std::move(Program)), Pid(Pid), In(In), Out(Out) {}

  void sent(uint64_t Sequence, llvm::orc::ExecutorAddr Function, size_t Size);
  void received(uint64_t Sequence, size_t Size);

  const std::string Program;
  const pid_t Pid;
  const int In, Out; ///< the transport closes them
  bool HasEnded = false;

  mutable std::mutex Mutex;
  Traffic Lookups, Others;
  llvm::orc::ExecutorAddr LookupFunction;
  std::unordered_set<uint64_t> UnansweredLookups; ///< sequence numbers
};

} // namespace demo

#endif
