// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A controller that does nothing but speak the executors' protocol over two pipes, in one thread:
// beside LLVM's, which starts a thread for each answer, an executor's own cost would not show.
#pragma once

#include "executor.hpp"

#include "llvm/ADT/StringRef.h"
#include "llvm/ExecutionEngine/Orc/Shared/SimplePackedSerialization.h"
#include "llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h"
#include "llvm/Support/Error.h"

#include <array>
#include <memory>
#include <string>

namespace bench {

class Client {
public:
  /// Waits for the executor's first message. Takes the ends of its pipes.
  static llvm::Expected<std::unique_ptr<Client>> Connect(const Executor &E);
  /// Disconnects, which ends the executor.
  ~Client();

  Client(const Client &) = delete;
  Client &operator=(const Client &) = delete;

  /// The value of a bootstrap symbol.
  llvm::Expected<llvm::orc::ExecutorAddr> symbol(llvm::StringRef Name) const;
  /// Calls a wrapper function and waits for its answer.
  llvm::Expected<std::string> call(llvm::orc::ExecutorAddr Function, llvm::StringRef Args);
  /// Makes Count such calls, of which up to InFlight are unanswered at a time. The answers are
  /// taken in whatever order they come.
  llvm::Error callOften(llvm::orc::ExecutorAddr Function, llvm::StringRef Args, unsigned Count,
                        unsigned InFlight);

private:
  Client(int In, int Out) : In(In), Out(Out) {}

  void append(std::string &Messages, llvm::orc::ExecutorAddr Function, llvm::StringRef Args);
  llvm::Error send(llvm::StringRef Messages);
  /// Reads until a whole message is there, whose body is given back.
  llvm::Expected<llvm::StringRef> receive(llvm::orc::SimpleRemoteEPCOpcode Opcode);
  bool hasMessage() const;

  const int In, Out;
  uint64_t NextSequence = 0;
  /// Room for what is read at once: all answers that are there. The first message is the longest.
  std::array<char, 64 << 10> Buffer;
  size_t Taken = 0, Filled = 0;
  llvm::orc::SimpleRemoteEPCExecutorInfo Info;
};

/// Arguments or a result as they travel.
template <class... SPSTags, class... Values> std::string encode(const Values &...V) {
  using List = llvm::orc::shared::SPSArgList<SPSTags...>;
  std::string Bytes(List::size(V...), 0);
  llvm::orc::shared::SPSOutputBuffer Out(Bytes.data(), Bytes.size());
  if (!List::serialize(Out, V...))
    llvm::report_fatal_error("jitmem-bench: arguments do not fit their own size");
  return Bytes;
}

} // namespace bench
