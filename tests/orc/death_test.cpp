// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors that are killed: whatever is pending completes once, with an error that says what
// happened, and the controller goes on with other executors.

#include "executors.h"

#include <llvm/Support/FormatVariadic.h>

#include <functional>
#include <thread>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;
using FinalizedAlloc = JITLinkMemoryManager::FinalizedAlloc;
using jitmem::orc::MemoryError;

namespace {

// What became of requests.
class Requests {
public:
  // What is to happen when so many have completed.
  std::function<void()> AtInstant;
  int Instant = -1;

  int begin() {
    std::lock_guard<std::mutex> Lock(M);
    Times.push_back(0);
    return int(Times.size()) - 1;
  }

  void complete(int Request, Error Err) {
    bool Now;
    {
      std::lock_guard<std::mutex> Lock(M);
      if (++Times[size_t(Request)] != 1)
        Wrong += formatv("request {0} completed again\n", Request);
      handleAllErrors(
          std::move(Err),
          [&](const MemoryError &E) {
            ++Lost;
            if (E.status() != JITMEM_DISCONNECTED || !StringRef(E.message()).contains("gone"))
              Wrong += formatv("{0}: {1}\n", int(E.status()), E.message());
          },
          [&](const ErrorInfoBase &E) { Wrong += E.message() + "\n"; });
      Now = Completed++ == Instant;
    }
    if (Now)
      AtInstant();
    Changed.notify_all();
  }

  // Waits until all that have begun are complete.
  void wait() {
    std::unique_lock<std::mutex> Lock(M);
    bool All = Changed.wait_for(Lock, std::chrono::minutes(1),
                                [&] { return size_t(Completed) >= Times.size(); });
    EXPECT_TRUE(All) << Times.size() << " requests, " << Completed << " completions";
    EXPECT_EQ(Wrong, "");
  }

  // How many ended in the error.
  int lost() {
    std::lock_guard<std::mutex> Lock(M);
    return Lost;
  }

private:
  std::mutex M;
  std::condition_variable Changed;
  std::vector<int> Times;
  std::string Wrong;
  int Completed = 0, Lost = 0;
};

// Code and data, with one action that notes Id, and one that notes -Id when it is deallocated.
std::unique_ptr<LinkGraph> graphNoting(Session &S, int Id, char Behaviour = 'n',
                                       char AtTheEnd = 'n') {
  auto G = compat::makeGraph("graph");
  addContent(*G, addSection(*G, "text", RX), codeReturning(Id), {16});
  addContent(*G, addSection(*G, "data", RW), "data");
  if (Id)
    G->allocActions().push_back({S.note(Id, Behaviour), S.note(-Id, AtTheEnd)});
  return G;
}

class Mortal : public ::testing::Test {
protected:
  explicit Mortal(Setting What) : What(What), Other(std::make_unique<Session>(What)), S(What) {
    Other->inside("note");
    S.inside("note");
  }

  // The other executor has not noticed anything, and one more can be had.
  void TearDown() override {
    for (bool New : {false, true}) {
      if (New)
        Other = std::make_unique<Session>(What);
      auto G = graphNoting(*Other, 1);
      Placed P(*Other->MM, must(must(Other->MM->allocate(nullptr, *G))->finalize()));
      must(P.free());
      EXPECT_EQ(Other->takeNotes(), (std::vector<int>{1, -1}));
      EXPECT_EQ(Other->end(), "exit 0");
      EXPECT_EQ(Other->takeErrors(), "");
    }
  }

  // With requests that tell R.
  void finalize(InFlight Alloc, std::function<void(FinalizedAlloc)> Then) {
    int N = R.begin();
    Alloc->finalize([this, N, Then = std::move(Then)](Expected<FinalizedAlloc> FA) {
      if (FA)
        Then(std::move(*FA));
      R.complete(N, FA.takeError());
    });
  }
  void deallocate(FinalizedAlloc FA) {
    int N = R.begin();
    S.MM->deallocate(std::move(FA), [this, N](Error Err) { R.complete(N, std::move(Err)); });
  }
  void abandon(InFlight Alloc) {
    int N = R.begin();
    Alloc->abandon([this, N](Error Err) { R.complete(N, std::move(Err)); });
  }
  static void leak(FinalizedAlloc FA) { FA.release(); }

  void expectEnded() {
    EXPECT_EQ(S.end(), "signal 9");
    S.takeErrors(); // the session's, of its connection
  }

  Setting What;
  std::unique_ptr<Session> Other;
  Requests R;
  Session S;
};

class Death : public Mortal, public ::testing::WithParamInterface<Setting> {
protected:
  Death() : Mortal(GetParam()) {}
};
INSTANTIATE_TEST_SUITE_P(Settings, Death, everySetting(), settingName);

TEST_P(Death, WhileIdle) {
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  auto Allocate = [&](int Id) {
    Graphs.push_back(graphNoting(S, Id));
    return must(S.MM->allocate(nullptr, *Graphs.back()));
  };
  FinalizedAlloc Placed = must(Allocate(1)->finalize());
  InFlight ToFinalize = Allocate(2), ToAbandon = Allocate(3), ToDrop = Allocate(4);
  S.Child->kill();
  EXPECT_EQ(S.Child->wait(), "signal 9");
  deallocate(std::move(Placed));
  finalize(std::move(ToFinalize), leak);
  abandon(std::move(ToAbandon));
  ToDrop.reset();
  R.wait();
  int Lost = R.lost();
  EXPECT_GE(Lost, 2) << "no action can have run";
  auto G = graphNoting(S, 5);
  auto Alloc = S.MM->allocate(nullptr, *G);
  int N = R.begin();
  if (Alloc)
    finalize(std::move(*Alloc), leak);
  R.complete(N, Alloc.takeError());
  R.wait();
  EXPECT_EQ(R.lost(), Lost + 1) << "and so is what comes later";
  expectEnded();
}

TEST_P(Death, BeforeAnotherManagerIsMade) {
  S.Child->kill();
  EXPECT_EQ(S.Child->wait(), "signal 9");
  // The first call finds that it has gone.
  auto G = graphNoting(S, 1);
  if (auto Alloc = S.MM->allocate(nullptr, *G)) {
    int N = R.begin();
    finalize(std::move(*Alloc), leak);
    R.complete(N, Error::success());
  } else {
    consumeError(Alloc.takeError());
  }
  R.wait();
  // Not that it lacks jitmem's service, with which hosts would choose other memory.
  for (auto Create : {jitmem::orc::MemoryManager::Create, jitmem::orc::MemoryManager::CreateShared,
                      jitmem::orc::MemoryManager::CreateRemote}) {
    auto Another = Create(S.epc(), {});
    ASSERT_FALSE(bool(Another));
    handleAllErrors(Another.takeError(), [](const MemoryError &E) {
      EXPECT_EQ(E.status(), JITMEM_DISCONNECTED) << E.message();
    });
  }
  expectEnded();
}

TEST_P(Death, WithActionsUnderWay) {
  // None of these comes back. What is at work when the executor dies, and what waits for it:
  constexpr int N = 20;
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  std::vector<InFlight> Allocs;
  std::vector<FinalizedAlloc> Placed;
  for (int I = 1; I <= N; ++I) {
    Graphs.push_back(graphNoting(S, I, 'w'));
    Allocs.push_back(must(S.MM->allocate(nullptr, *Graphs.back())));
    Graphs.push_back(graphNoting(S, 100 + I, 'n', 'w'));
    Placed.push_back(must(must(S.MM->allocate(nullptr, *Graphs.back()))->finalize()));
  }
  for (InFlight &Alloc : Allocs)
    finalize(std::move(Alloc), leak);
  for (FinalizedAlloc &FA : Placed)
    deallocate(std::move(FA));
  EXPECT_GE(S.run(S.inside("waitForNotes"), N + 2), N + 2);
  EXPECT_EQ(R.lost(), 0);
  S.Child->kill();
  R.wait();
  EXPECT_EQ(R.lost(), 2 * N);
  expectEnded();
}

TEST_P(Death, DuringACall) {
  ExecutorAddr WaitForever = S.inside("waitForever");
  auto Kept = graphNoting(S, 1);
  Placed P(*S.MM, must(must(S.MM->allocate(nullptr, *Kept))->finalize()));
  std::string Message;
  std::thread Calling([&] {
    auto Result = S.tryRun(WaitForever, 2);
    Message = Result ? "it returned" : toString(Result.takeError());
  });
  EXPECT_GE(S.run(S.inside("waitForNotes"), 2), 2);
  S.Child->kill();
  Calling.join();
  EXPECT_TRUE(mentions(Message, {"disconnect"}));
  deallocate(P.release());
  R.wait();
  EXPECT_EQ(R.lost(), 1);
  expectEnded();
}

// How many requests have completed when the executor is killed.
class DeathAfter : public Mortal, public ::testing::WithParamInterface<std::tuple<Setting, int>> {
protected:
  DeathAfter() : Mortal(std::get<0>(GetParam())) {
    R.Instant = std::get<1>(GetParam());
    R.AtInstant = [this] { S.Child->kill(); };
  }

  // Graphs in and out, with and without actions.
  void work(int First) {
    std::mutex M;
    std::vector<FinalizedAlloc> Kept;
    auto Keep = [&](FinalizedAlloc FA) {
      std::lock_guard<std::mutex> Lock(M);
      Kept.push_back(std::move(FA));
    };
    std::vector<std::unique_ptr<LinkGraph>> Graphs;
    for (int I = 0; I != 200 && !R.lost(); ++I) {
      Graphs.push_back(graphNoting(S, I % 3 ? First + I : 0));
      int N = R.begin();
      auto Alloc = S.MM->allocate(nullptr, *Graphs.back());
      if (Alloc && I % 10 == 9)
        abandon(std::move(*Alloc));
      else if (Alloc)
        finalize(std::move(*Alloc), Keep);
      R.complete(N, Alloc.takeError());
      FinalizedAlloc Taken;
      if (std::lock_guard<std::mutex> Lock(M); I % 2 && !Kept.empty()) {
        Taken = std::move(Kept.back());
        Kept.pop_back();
      }
      if (Taken)
        deallocate(std::move(Taken));
    }
    R.wait();
    std::lock_guard<std::mutex> Lock(M);
    for (FinalizedAlloc &FA : Kept)
      deallocate(std::move(FA));
    R.wait();
  }
};
INSTANTIATE_TEST_SUITE_P(Settings, DeathAfter,
                         ::testing::Combine(everySetting(),
                                            ::testing::Values(1, 2, 3, 5, 8, 13, 21, 34, 55, 89,
                                                              144, 233, 377)),
                         [](const auto &Info) {
                           return nameOf(std::get<0>(Info.param)) +
                                  ("_" + std::to_string(std::get<1>(Info.param)));
                         });

TEST_P(DeathAfter, Requests) {
  std::vector<std::thread> Threads;
  for (int T = 0; T != 4; ++T)
    Threads.emplace_back([this, T] { work(1 + 1000 * T); });
  for (std::thread &T : Threads)
    T.join();
  EXPECT_EQ(S.Child->wait(), "signal 9");
  EXPECT_GT(R.lost(), 0);
  expectEnded();
}

} // namespace
