// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// How long executors may take, calls that are given up, and executors that are stopped for a while,
// which are not dead.

#include "executors.h"
#include "tasks.h"

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <future>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;
using FinalizedAlloc = JITLinkMemoryManager::FinalizedAlloc;
using jitmem::orc::Calls;
using jitmem::orc::MemoryError;

namespace {

// Milliseconds: longer than anything in an executor takes, without which nothing is waited for.
constexpr uint64_t Short = patience(300);

jitmem::orc::Options within(const jitmem_limits &Limits) {
  jitmem::orc::Options O;
  O.Limits = Limits;
  return O;
}

jitmem_status statusOf(Error Err) {
  jitmem_status Status = JITMEM_OK;
  handleAllErrors(
      std::move(Err), [&](const MemoryError &E) { Status = E.status(); },
      [&](const ErrorInfoBase &E) { ADD_FAILURE() << E.message(); });
  return Status;
}
template <typename T> jitmem_status statusOf(Expected<T> Value) {
  return statusOf(Value ? Error::success() : Value.takeError());
}

std::unique_ptr<LinkGraph> graph() {
  auto G = compat::makeGraph("graph");
  addContent(*G, addSection(*G, "text", RX), codeReturning(1), {16});
  return G;
}

// ---- Limits ----

class Limits : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Limits, everySetting(), settingName);

TEST_P(Limits, OfWhatRunsLinkedCode) {
  Session S(GetParam());
  jitmem_limits L = {};
  L.code = Short;
  auto MM = must(createManager(GetParam(), S.epc(), within(L)));
  auto Late = graph(), InTime = graph();
  Late->allocActions().push_back({S.note(1, 'w'), S.note(-1)});
  InTime->allocActions().push_back({S.note(2), S.note(-2)});
  EXPECT_EQ(statusOf(must(MM->allocate(nullptr, *Late))->finalize()), JITMEM_TIMED_OUT);
  Placed P(*MM, must(must(MM->allocate(nullptr, *InTime))->finalize()));
  must(P.free());
  S.Child->kill();
  MM.reset();
  EXPECT_EQ(S.end(), "signal 9");
}

TEST_P(Limits, OfASession) {
  Session S(GetParam());
  jitmem_limits L = {};
  L.session = patience(2000);
  auto MM = must(createManager(GetParam(), S.epc(), within(L)));
  auto Late = graph(), After = graph();
  Late->allocActions().push_back({S.note(1, 'w'), S.note(-1)});
  After->allocActions().push_back({S.note(2), S.note(-2)});
  InFlight Waiting = must(MM->allocate(nullptr, *Late)), Next = must(MM->allocate(nullptr, *After));
  EXPECT_EQ(statusOf(Waiting->finalize()), JITMEM_TIMED_OUT);
  EXPECT_NE(statusOf(Next->finalize()), JITMEM_OK);
  S.Child->kill();
  MM.reset();
  EXPECT_EQ(S.end(), "signal 9");
}

// The callback is a task, which the session's end waits for: nothing of ORC's runs in threads that
// it knows nothing of.
TEST_P(Limits, AreToldByTheDispatcher) {
  struct Counting : ThreadPerTask {
    void dispatch(std::unique_ptr<Task> T) override {
      ++Tasks;
      ThreadPerTask::dispatch(std::move(T));
    }
    std::atomic<int> Tasks{0};
  };
  auto Owned = std::make_unique<Counting>();
  Counting &Tasks = *Owned;
  Session S(GetParam(), Session::Owner::EPC, std::move(Owned));
  jitmem_limits L = {};
  L.code = Short;
  auto MM = must(createManager(GetParam(), S.epc(), within(L)));
  auto Late = graph();
  Late->allocActions().push_back({S.note(1, 'w'), S.note(-1)});
  InFlight Waiting = must(MM->allocate(nullptr, *Late));
  int Before = 0;
  std::promise<int> Told;
  // Stopped, it answers nothing: the only task is the one that tells.
  ::kill(S.Child->id(), SIGSTOP);
  Before = Tasks.Tasks;
  Waiting->finalize([&](Expected<FinalizedAlloc> FA) {
    EXPECT_EQ(statusOf(std::move(FA)), JITMEM_TIMED_OUT);
    Told.set_value(Tasks.Tasks);
  });
  EXPECT_EQ(Told.get_future().get(), Before + 1);
  S.Child->kill();
  MM.reset();
  EXPECT_EQ(S.end(), "signal 9");
}

// ---- Calls ----

class Calling : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Calling,
                         ::testing::Values(Setting::LinkedShared, LLVM_VERSION_MAJOR >= 16
                                                                      ? Setting::StockShared
                                                                      : Setting::StockSimple),
                         settingName);

// The result of a call, in any thread.
struct Result {
  Calls::AnsweredFunction receive() {
    return [this](Expected<std::vector<char>> Answer) {
      if (Answer)
        Bytes = std::string(Answer->begin(), Answer->end());
      Status.set_value(statusOf(std::move(Answer)));
    };
  }
  jitmem_status get() { return Status.get_future().get(); }

  std::promise<jitmem_status> Status;
  std::string Bytes;
};

TEST_P(Calling, EndsInTimeOrWhenItIsGivenUp) {
  Session S(GetParam());
  ExecutorAddr Note = S.inside("note");
  const std::string Waits("\1\0\0\0w", 5), Ends("\2\0\0\0n", 5);
  jitmem_limits L = {};
  L.code = Short;
  auto C = must(Calls::Create(S.epc(), L));
  Result Over, Longer, Given, Answered;
  C->start(Note, ArrayRef<char>(Waits.data(), Waits.size()), Over.receive());
  EXPECT_EQ(Over.get(), JITMEM_TIMED_OUT);
  C->start(Note, ArrayRef<char>(Waits.data(), Waits.size()), Longer.receive(), Short);
  EXPECT_EQ(Longer.get(), JITMEM_TIMED_OUT);
  uint64_t Call =
      C->start(Note, ArrayRef<char>(Waits.data(), Waits.size()), Given.receive(), UINT64_MAX);
  must(Calls::cancel(Call));
  EXPECT_EQ(Given.get(), JITMEM_CANCELLED);
  EXPECT_EQ(statusOf(Calls::cancel(Call)), JITMEM_INVALID_HANDLE);
  Call = C->start(Note, ArrayRef<char>(Ends.data(), Ends.size()), Answered.receive(), UINT64_MAX);
  EXPECT_EQ(Answered.get(), JITMEM_OK);
  EXPECT_EQ(Answered.Bytes, std::string(1, '\0'));
  EXPECT_EQ(statusOf(Calls::cancel(Call)), JITMEM_INVALID_HANDLE);
  // What is not answered when its calls go is answered by the end of the EPC.
  Result Left;
  C->start(Note, ArrayRef<char>(Waits.data(), Waits.size()), Left.receive(), UINT64_MAX);
  C.reset();
  S.Child->kill();
  EXPECT_EQ(Left.get(), JITMEM_DISCONNECTED);
  EXPECT_EQ(S.end(), "signal 9");
}

// ---- Connecting ----

struct Sockets {
  Sockets() {
    int Ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, Ends) != 0)
      throw std::runtime_error("socketpair");
    Here.Number = Ends[0];
    There.Number = Ends[1];
  }
  Descriptor Here, There;
};

Expected<std::unique_ptr<SimpleRemoteEPC>> connect(std::chrono::milliseconds Limit, int Socket) {
  return jitmem::orc::connectWithin(Limit, Socket, [&] {
    SimpleRemoteEPC::Setup Setup;
    Setup.CreateMemoryManager = [](SimpleRemoteEPC &) {
      return jitlink::InProcessMemoryManager::Create(); // unused
    };
    return SimpleRemoteEPC::Create<FDSimpleRemoteEPCTransport>(std::make_unique<ThreadPerTask>(),
                                                               std::move(Setup), Socket, Socket);
  });
}

TEST(Connecting, ToWhatSaysNothingOrTooLittle) {
  for (StringRef Said : {"", "\x40\0\0\0\0\0\0\0", "\x40"}) {
    Sockets Pair;
    ASSERT_EQ(write(Pair.There.Number, Said.data(), Said.size()), ssize_t(Said.size()));
    auto EPC = connect(std::chrono::milliseconds(Short), Pair.Here.release());
    EXPECT_EQ(statusOf(std::move(EPC)), JITMEM_TIMED_OUT);
  }
}

TEST(Connecting, ToAnExecutor) {
  Sockets Pair;
  ChildProcess Child(commandOf(Setting::LinkedShared), Pair.There.Number, Pair.There.Number);
  Pair.There.close();
  Descriptor Same(dup(Pair.Here.Number));
  auto EPC = must(connect(std::chrono::milliseconds::max(), Pair.Here.release()));
  ExecutionSession ES(std::move(EPC));
  must(jitmem::orc::MemoryManager::CreateShared(ES.getExecutorProcessControl())).reset();
  // LLVM's transport reads its socket while it closes it, which the other side does not see.
  ::shutdown(Same.Number, SHUT_WR);
  must(ES.endSession());
  EXPECT_EQ(Child.wait(), "exit 0");
}

// ---- Stopped is not dead ----

class Stopped : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Stopped, everySetting(), settingName);

// Longer than anything in the library ever waited by itself.
std::chrono::seconds timeStopped() {
  const char *Chosen = getenv("JITMEM_TEST_STOPPED_SECONDS");
  return std::chrono::seconds(Chosen ? atoi(Chosen) : 11);
}

// An executor that is stopped while many finalizes and calls are under way.
class StoppedExecutor {
public:
  static constexpr int Count = rounds(300);

  explicit StoppedExecutor(Setting What)
      : What(What), S(What), C(must(Calls::Create(S.epc()))), Note(S.inside("note")) {
    for (int I = 0; I != Count; ++I) {
      Graphs.push_back(graph());
      Graphs.back()->allocActions().push_back({S.note(1), S.note(-1)});
      Allocations.push_back(must(S.MM->allocate(nullptr, *Graphs.back())));
    }
    ::kill(S.Child->id(), SIGSTOP);
    // LLVM's transport writes in the thread that calls, which waits while its pipe is full.
    Asking = std::thread([this] { ask(); });
  }

  void goOn() {
    SCOPED_TRACE(nameOf(What));
    ::kill(S.Child->id(), SIGCONT);
    Asking.join();
    EXPECT_TRUE(Done.wait());
    EXPECT_EQ(Failures, "");
    EXPECT_EQ(Finalized.size(), size_t(Count));
    must(S.MM->deallocate(std::move(Finalized)));
    EXPECT_EQ(S.takeNotes().size(), size_t(3 * Count));
    C.reset();
    EXPECT_EQ(S.end(), "exit 0");
    EXPECT_EQ(S.takeErrors(), "");
  }

private:
  void ask() {
    for (InFlight &Alloc : Allocations) {
      Alloc->finalize([this](Expected<FinalizedAlloc> FA) {
        std::lock_guard<std::mutex> Lock(M);
        if (FA)
          Finalized.push_back(std::move(*FA));
        else
          Failures += toString(FA.takeError());
        Done.arrive();
      });
      const char Ends[] = {2, 0, 0, 0, 'n'};
      C->start(Note, Ends, [this](Expected<std::vector<char>> Answer) {
        std::lock_guard<std::mutex> Lock(M);
        if (!Answer)
          Failures += toString(Answer.takeError());
        Done.arrive();
      });
    }
  }

  Setting What;
  Session S;
  std::unique_ptr<Calls> C;
  ExecutorAddr Note;
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  std::vector<InFlight> Allocations;
  std::mutex M;
  std::vector<FinalizedAlloc> Finalized;
  std::string Failures;
  Countdown Done{2 * Count};
  std::thread Asking;
};

// All settings at the same time, for the time is long.
TEST(StoppedExecutors, GoOnWhenTheyAreContinued) {
  std::vector<std::unique_ptr<StoppedExecutor>> All;
  for (Setting What : allSettings())
    All.push_back(std::make_unique<StoppedExecutor>(What));
  // It is the time itself that is tried.
  std::this_thread::sleep_for(timeStopped());
  for (auto &Executor : All)
    Executor->goOn();
}

// Each alone may take two seconds; together they must not take 32.
TEST_P(Stopped, WhatIsFreedIsWaitedForOnce) {
  Session S(GetParam());
  jitmem_limits L = {};
  L.close = 2000;
  std::vector<std::unique_ptr<jitmem::orc::MemoryManager>> Managers;
  for (int I = 0; I != 16; ++I) {
    Managers.push_back(must(createManager(GetParam(), S.epc(), within(L))));
    auto G = graph();
    must(must(Managers.back()->allocate(nullptr, *G))->finalize()).release();
  }
  ::kill(S.Child->id(), SIGSTOP);
  alarm(20);
  Managers.clear();
  alarm(0);
  S.Child->kill();
  EXPECT_EQ(S.end(), "signal 9");
}

} // namespace
