// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Where ORC's tasks run. Starting a thread costs more than most managers do, so a figure means
// nothing without its dispatcher.
#pragma once

#include "llvm/ADT/StringRef.h"
#include "llvm/ExecutionEngine/Orc/TaskDispatch.h"

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bench {

enum class Dispatch {
  /// In the thread that dispatches: with another process, the one that reads its answers.
  InPlace,
  Pool,
  /// What SimpleRemoteEPC's users get by default.
  ThreadPerTask,
};

inline constexpr Dispatch AllDispatches[] = {Dispatch::InPlace, Dispatch::Pool,
                                             Dispatch::ThreadPerTask};

/// As --dispatchers and the tables have it.
llvm::StringLiteral nameOf(Dispatch D);
llvm::StringLiteral summaryOf(Dispatch D);
std::unique_ptr<llvm::orc::TaskDispatcher> makeDispatcher(Dispatch D);

/// A fixed number of threads that live as long as the session. Tasks must not wait for other tasks.
class PoolTaskDispatcher : public llvm::orc::TaskDispatcher {
public:
  explicit PoolTaskDispatcher(unsigned Count);
  ~PoolTaskDispatcher() override { shutdown(); }

  void dispatch(std::unique_ptr<llvm::orc::Task> T) override;
  void shutdown() override;

private:
  void work();

  std::mutex Mutex;
  std::condition_variable Changed;
  std::deque<std::unique_ptr<llvm::orc::Task>> Queue;
  bool Ending = false;
  std::vector<std::thread> Workers;
};

} // namespace bench
