// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_EXECUTOR_HPP
#define JITMEM_DEMO_EXECUTOR_HPP

#include "llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <sys/types.h>

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
  enum class Stderr {
    Shared,  ///< this process's
    Captured ///< kept until takeStderr
  };

  static llvm::Expected<std::unique_ptr<Executor>> Start(const std::string &Program,
                                                         Stderr Errors = Stderr::Shared);

  /// Kills the process unless its end was waited for.
  ~Executor();

  /// The EPC must not outlive this. May be called once.
  llvm::Expected<std::unique_ptr<llvm::orc::ExecutorProcessControl>>
  connect(std::unique_ptr<llvm::orc::TaskDispatcher> D);

  /// Waits for the process to end by itself, as it does once it is disconnected. Returns its status
  /// as waitpid does.
  llvm::Expected<int> waitForStatus();

  /// The same; fails unless the status is 0.
  llvm::Error waitForEnd();

  /// What the process wrote to its captured stderr. Waits until the process has ended.
  llvm::Expected<std::string> takeStderr();

  pid_t pid() const { return Pid; }
  /// EPC's messages so far.
  Traffic traffic() const { return {Messages, Bytes}; }

private:
  class CountingTransport;

  Executor(std::string Program, pid_t Pid, int In, int Out, int Captured)
      : Program(std::move(Program)), Pid(Pid), In(In), Out(Out), Captured(Captured) {}

  const std::string Program;
  const pid_t Pid;
  const int In, Out;  ///< the transport closes them
  const int Captured; ///< the reading end of its stderr, or -1
  bool HasEnded = false;
  std::atomic<uint64_t> Messages{0}, Bytes{0};
};

} // namespace demo

#endif
