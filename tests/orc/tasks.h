// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The task dispatcher of the tests' sessions.

#ifndef JITMEM_TESTS_ORC_TASKS_H
#define JITMEM_TESTS_ORC_TASKS_H

#include <llvm/ExecutionEngine/Orc/TaskDispatch.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <system_error>
#include <utility>

// A thread for each task, as DynamicThreadPoolTaskDispatcher has it. LLVM's threads are detached
// when they run already, and one that ends at that very moment may be freed twice by glibc 2.36:
// its descriptor serves another thread by then, and that one's detach() throws. These are born
// detached.
class ThreadPerTask : public llvm::orc::TaskDispatcher {
public:
  ThreadPerTask() {
    pthread_attr_init(&Detached);
    pthread_attr_setdetachstate(&Detached, PTHREAD_CREATE_DETACHED);
  }
  ~ThreadPerTask() override { pthread_attr_destroy(&Detached); }

  void dispatch(std::unique_ptr<llvm::orc::Task> T) override {
    // To the end: pthread_create reads the attributes when the task has run and the session gone.
    std::lock_guard<std::mutex> Lock(M);
    if (Ended)
      return;
    auto W = std::make_unique<Work>(Work{*this, std::move(T)});
    pthread_t Thread;
    if (int Error = pthread_create(&Thread, &Detached, run, W.get()))
      throw std::system_error(Error, std::generic_category(), "pthread_create");
    W.release();
    ++Running;
  }

  void shutdown() override {
    std::unique_lock<std::mutex> Lock(M);
    Ended = true;
    Idle.wait(Lock, [this] { return Running == 0; });
  }

private:
  struct Work {
    ThreadPerTask &Dispatcher;
    std::unique_ptr<llvm::orc::Task> T;
  };

  static void *run(void *Argument) {
    std::unique_ptr<Work> W(static_cast<Work *>(Argument));
    ThreadPerTask &D = W->Dispatcher;
    W->T->run();
    W.reset(); // before it is reported as done
    std::lock_guard<std::mutex> Lock(D.M);
    if (--D.Running == 0)
      D.Idle.notify_all();
    return nullptr;
  }

  pthread_attr_t Detached;
  std::mutex M;
  std::condition_variable Idle;
  size_t Running = 0;
  bool Ended = false;
};

#endif // JITMEM_TESTS_ORC_TASKS_H
