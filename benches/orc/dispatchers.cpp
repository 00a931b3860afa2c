// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dispatchers.hpp"

#include "llvm/Support/ErrorHandling.h"

#include <optional>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned PoolWorkers = 2;

StringLiteral nameOf(Dispatch D) {
  switch (D) {
  case Dispatch::InPlace:
    return "in-place";
  case Dispatch::Pool:
    return "pool";
  case Dispatch::ThreadPerTask:
    return "threads";
  }
  llvm_unreachable("no such dispatcher");
}

StringLiteral summaryOf(Dispatch D) {
  switch (D) {
  case Dispatch::InPlace:
    return "InPlaceTaskDispatcher: tasks run where they arise; in the thread that reads the "
           "executor's answers, if another process is the executor";
  case Dispatch::Pool:
    return "two threads that live as long as the session";
  case Dispatch::ThreadPerTask:
    return "DynamicThreadPoolTaskDispatcher without a limit, the usual one with SimpleRemoteEPC: "
           "a new thread per task";
  }
  llvm_unreachable("no such dispatcher");
}

std::unique_ptr<TaskDispatcher> makeDispatcher(Dispatch D) {
  switch (D) {
  case Dispatch::InPlace:
    return std::make_unique<InPlaceTaskDispatcher>();
  case Dispatch::Pool:
    return std::make_unique<PoolTaskDispatcher>(PoolWorkers);
  case Dispatch::ThreadPerTask:
    return std::make_unique<DynamicThreadPoolTaskDispatcher>(std::nullopt);
  }
  llvm_unreachable("no such dispatcher");
}

PoolTaskDispatcher::PoolTaskDispatcher(unsigned Count) {
  for (unsigned I = 0; I != Count; ++I)
    Workers.emplace_back([this] { work(); });
}

void PoolTaskDispatcher::dispatch(std::unique_ptr<Task> T) {
  {
    std::lock_guard<std::mutex> Lock(Mutex);
    if (!Ending) {
      Queue.push_back(std::move(T));
      Changed.notify_one();
      return;
    }
  }
  // The workers may be gone, but a caller that waits for what the task completes must get its
  // answer.
  T->run();
}

void PoolTaskDispatcher::shutdown() {
  std::vector<std::thread> Ended;
  {
    std::lock_guard<std::mutex> Lock(Mutex);
    Ending = true;
    Ended.swap(Workers);
    Changed.notify_all();
  }
  for (std::thread &Worker : Ended)
    Worker.join();
}

void PoolTaskDispatcher::work() {
  std::unique_lock<std::mutex> Lock(Mutex);
  for (;;) {
    Changed.wait(Lock, [this] { return Ending || !Queue.empty(); });
    if (Queue.empty())
      return;
    std::unique_ptr<Task> T = std::move(Queue.front());
    Queue.pop_front();
    Lock.unlock();
    T->run();
    T.reset();
    Lock.lock();
  }
}

} // namespace bench
