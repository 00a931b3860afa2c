// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the workloads share of ORC: a linking layer that registers unwind info, the set of names
// that objects define, and waiting for a completion.
#pragma once

#include "llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/MemoryBuffer.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace bench {

/// Waits for one call of a completion. Where that comes before the wait, as it does in process, a
/// lock without contention is all it costs; std::promise would cost as much as the floor's work.
template <class T> class Completion {
public:
  auto callback() {
    return [this](T Value) {
      std::lock_guard<std::mutex> Lock(Mutex);
      Result.emplace(std::move(Value));
      // Inside the lock: the waiter may destroy this object as soon as it gets it.
      Arrived.notify_one();
    };
  }

  T wait() {
    std::unique_lock<std::mutex> Lock(Mutex);
    Arrived.wait(Lock, [this] { return Result.has_value(); });
    return std::move(*Result);
  }

private:
  std::mutex Mutex;
  std::condition_variable Arrived;
  std::optional<T> Result;
};

/// An object file in memory, parsed once, added in every round.
struct Object {
  std::unique_ptr<llvm::MemoryBuffer> Buffer;
  std::vector<std::string> Defines;
  /// What others define: the process, or another object.
  std::vector<std::string> Needs;
  /// Bytes of the sections that are loaded.
  uint64_t Content = 0;
};

llvm::Expected<Object> readObject(std::unique_ptr<llvm::MemoryBuffer> Buffer);

/// ObjectLinkingLayer with eh-frames registered, and JITDylibs to link into. Must live until the
/// session has ended: a look-up is answered before the last task of a link has left the layer.
class LinkSession {
public:
  static llvm::Expected<std::shared_ptr<LinkSession>> Create(llvm::orc::ExecutionSession &ES);

  llvm::Expected<llvm::orc::JITDylib &> addDylib(llvm::StringRef Name);
  /// Defines what Objects need of the executor's process, all at once and before they are added.
  /// LLVM's generator defines a symbol twice, and fails, if two threads find at a time that it is
  /// missing.
  llvm::Error defineProcessSymbols(llvm::orc::JITDylib &JD, const std::vector<Object> &Objects);
  llvm::Error add(llvm::orc::JITDylib &JD, const Object &O);
  /// Links everything that Objects define.
  llvm::Expected<llvm::orc::SymbolMap> lookUp(llvm::orc::JITDylib &JD,
                                              const std::vector<Object> &Objects);
  /// Removes everything that was linked, one JITDylib after the other.
  llvm::Error removeAll();

private:
  explicit LinkSession(llvm::orc::ExecutionSession &ES) : ES(ES), Layer(ES) {}

  llvm::orc::ExecutionSession &ES;
  llvm::orc::ObjectLinkingLayer Layer;
  std::vector<llvm::orc::JITDylib *> Dylibs;
};

/// Calls the int(int) function at Address in the executor.
llvm::Error expectCall(llvm::orc::ExecutionSession &ES, llvm::orc::ExecutorAddr Address,
                       llvm::StringRef Name, int Argument, int Expected);

} // namespace bench
