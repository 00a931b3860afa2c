// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The linked code runs in another process: stock executors of LLVM, alone or with jitmem's library
// loaded, and an executor with jitmem's service linked in.

#include "executors.h"

#include <atomic>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;
using FinalizedAlloc = JITLinkMemoryManager::FinalizedAlloc;
using Ids = std::vector<int>;

namespace {

class Executor : public ::testing::TestWithParam<Setting> {
protected:
  void start(Session::Owner O = Session::Owner::EPC,
             Session::Dispatcher D = Session::Dispatcher::Threads) {
    S = std::make_unique<Session>(GetParam(), O, D);
  }

  // What was not expected to fail has not, and the executor has ended as it should.
  void TearDown() override {
    if (!S)
      return;
    EXPECT_EQ(S->end(), "exit 0");
    EXPECT_EQ(S->takeErrors(), "");
  }

  InFlight allocate(LinkGraph &G) { return must(S->MM->allocate(nullptr, G)); }
  Placed finalize(InFlight Alloc) { return Placed(*S->MM, must(Alloc->finalize())); }
  Placed place(LinkGraph &G) { return finalize(allocate(G)); }

  std::unique_ptr<Session> S;
};
INSTANTIATE_TEST_SUITE_P(Settings, Executor, everySetting(), settingName);

// Code, constants, data and zeros; the code returns Value.
std::unique_ptr<LinkGraph> graphReturning(int Value) {
  auto G = compat::makeGraph("graph");
  addContent(*G, addSection(*G, "text", RX), codeReturning(Value), {16});
  addContent(*G, addSection(*G, "rodata", R), std::string(100, 'r'));
  addContent(*G, addSection(*G, "data", RW), std::string(50, 'd'));
  addZeroFill(*G, addSection(*G, "bss", RW), 1000);
  return G;
}

ExecutorAddr entryOf(LinkGraph &G) {
  return (*G.findSectionByName("text")->blocks().begin())->getAddress();
}

TEST_P(Executor, CodeRunsAndAnswers) {
  start();
  EXPECT_EQ(S->run(S->inside("plusOne"), 41), 42);
  EXPECT_EQ(must(S->epc().runAsMain(S->inside("sumOfArguments"), {"1", "20", "300"})), 321);
  int32_t Product = 0;
  must(S->epc().callSPSWrapper<int32_t(int32_t, int32_t)>(S->inside("multiply"), Product,
                                                          int32_t(6), int32_t(7)));
  EXPECT_EQ(Product, 42);
  S->add("sections.c");
  EXPECT_EQ(S->run(S->find("checkSections")), 5106);
}

TEST_P(Executor, StatsSayWhatWasFallenBackFrom) {
  start();
  jitmem_stats Stats = S->MM->stats();
  EXPECT_EQ(Stats.mapper, mapperOf(GetParam())) << Stats.mapper_name;
  switch (GetParam()) {
  case Setting::StockShared:
    EXPECT_TRUE(mentions(Stats.fallback_reason, {"jitmem_service_open", "LoadExecutorLibrary"}));
    break;
  case Setting::StockSimple:
    EXPECT_TRUE(mentions(Stats.fallback_reason,
                         {"jitmem_service_open", "LLVM's shared memory",
                          LLVM_VERSION_MAJOR >= 16 ? "No space left" : "publishes no"}));
    break;
  default:
    EXPECT_EQ(Stats.fallbacks, 0u) << Stats.fallback_reason;
  }
}

TEST_P(Executor, EverySegmentArrives) {
  start();
  auto G = compat::makeGraph("graph");
  Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(7), {16});
  Block &Const = addContent(*G, addSection(*G, "rodata", R), "constants");
  Block &Data = addContent(*G, addSection(*G, "data", RW), "data", {64});
  Block &Bss = addZeroFill(*G, addSection(*G, "bss", RW), 5000);
  Placed P = place(*G);
  EXPECT_EQ(S->run(Text.getAddress()), 7);
  EXPECT_EQ(S->bytesAt(Const.getAddress(), 9), "constants");
  EXPECT_EQ(S->bytesAt(Data.getAddress(), 4), "data");
  EXPECT_EQ(S->bytesAt(Bss.getAddress(), 5000), std::string(5000, '\0'));
}

TEST_P(Executor, ExceptionsAcrossFrames) {
  start();
  EXPECT_EQ(S->run(S->addProblem(), 9), 1009);
  EXPECT_EQ(S->run(S->find("framesUnwound")), 1);
}

TEST_P(Executor, RemovalFrees) {
  start();
  S->inside("plusOne");
  jitmem_stats Before = S->MM->stats();
  auto Tracker = S->J->getMainJITDylib().createResourceTracker();
  must(S->J->addObjectFile(Tracker, objectFile("sections.c")));
  EXPECT_EQ(S->run(S->find("checkSections")), 5106);
  EXPECT_GT(S->MM->stats().live, Before.live + 2000000) << "there are 2 MB of zeros";
  must(Tracker->remove());
  EXPECT_EQ(S->MM->stats().live, Before.live);
  EXPECT_EQ(S->MM->stats().finalized, Before.finalized);
  // What was freed is used again.
  for (int Round = 0; Round != 20; ++Round) {
    must(S->J->addObjectFile(Tracker = S->J->getMainJITDylib().createResourceTracker(),
                             objectFile("sections.c")));
    EXPECT_EQ(S->run(S->find("checkSections")), 5106);
    must(Tracker->remove());
  }
  EXPECT_LT(S->MM->stats().committed, 16 * MiB);
  EXPECT_EQ(S->run(S->inside("plusOne"), 1), 2);
}

TEST_P(Executor, ActionsRunForwardAndBackward) {
  start();
  auto G = graphReturning(1);
  for (int I = 1; I <= 4; ++I)
    G->allocActions().push_back({S->note(I), S->note(-I)});
  InFlight Alloc = allocate(*G);
  EXPECT_EQ(S->takeNotes(), Ids());
  Placed P = finalize(std::move(Alloc));
  EXPECT_EQ(S->takeNotes(), (Ids{1, 2, 3, 4}));
  must(P.free());
  EXPECT_EQ(S->takeNotes(), (Ids{-4, -3, -2, -1}));
}

TEST_P(Executor, OfABatchTheLastGoesFirst) {
  start();
  std::vector<Placed> All;
  for (int I = 1; I <= 3; ++I) {
    auto G = graphReturning(I);
    G->allocActions().push_back({S->note(I), S->note(-I)});
    G->allocActions().push_back({S->note(10 * I), S->note(-10 * I)});
    All.push_back(place(*G));
  }
  EXPECT_EQ(S->takeNotes(), (Ids{1, 10, 2, 20, 3, 30}));
  must(freeAll(*S->MM, All));
  EXPECT_EQ(S->takeNotes(), (Ids{-30, -3, -20, -2, -10, -1}));
}

TEST_P(Executor, FailedFinalizeIsRolledBackThere) {
  start();
  S->inside("plusOne");
  for (auto [Behaviour, Said] :
       {std::pair('f', "action failed"), std::pair('r', "action refused")}) {
    uint64_t Live = S->MM->stats().live;
    auto G = graphReturning(1);
    G->allocActions().push_back({S->note(1), S->note(-1)});
    G->allocActions().push_back({S->note(2), S->note(-2)});
    G->allocActions().push_back({S->note(3, Behaviour), S->note(-3)});
    G->allocActions().push_back({S->note(4), S->note(-4)});
    EXPECT_TRUE(mentions(messageOf(allocate(*G)->finalize()), {Said}));
    EXPECT_EQ(S->takeNotes(), (Ids{1, 2, 3, -2, -1}));
    EXPECT_EQ(S->MM->stats().live, Live);
    EXPECT_EQ(S->MM->stats().in_flight, 0u);
  }
  EXPECT_EQ(S->run(S->inside("plusOne"), 1), 2);
}

TEST_P(Executor, FailedDeallocationRunsTheRest) {
  start();
  uint64_t Live = (S->inside("plusOne"), S->MM->stats().live);
  auto G = graphReturning(1);
  G->allocActions().push_back({S->note(1), S->note(-1)});
  G->allocActions().push_back({S->note(2), S->note(-2, 'f')});
  Placed P = place(*G);
  EXPECT_TRUE(mentions(messageOf(P.free()), {"action failed"}));
  EXPECT_EQ(S->takeNotes(), (Ids{1, 2, -2, -1}));
  EXPECT_EQ(S->MM->stats().live, Live);
}

TEST_P(Executor, AThousandGraphsFromEightThreads) {
  start();
  uint64_t Live = (S->inside("note"), S->MM->stats().live);
  constexpr int Threads = 8, PerThread = 125;
  std::vector<std::string> Errors(Threads);
  std::vector<std::vector<std::pair<ExecutorAddr, Placed>>> All(Threads);
  std::vector<std::thread> Running;
  for (int T = 0; T != Threads; ++T)
    Running.emplace_back([&, T] {
      for (int I = 0; I != PerThread; ++I) {
        int Value = T * PerThread + I;
        auto G = graphReturning(Value);
        if (I % 2)
          G->allocActions().push_back({S->note(Value), S->note(Value)});
        auto Alloc = S->MM->allocate(nullptr, *G);
        if (!Alloc) {
          Errors[T] += toString(Alloc.takeError());
          continue;
        }
        if (I % 8 == 7) {
          if (Error Err = abandon(std::move(*Alloc)))
            Errors[T] += toString(std::move(Err));
          continue;
        }
        auto FA = (*Alloc)->finalize();
        if (!FA) {
          Errors[T] += toString(FA.takeError());
          continue;
        }
        All[T].emplace_back(entryOf(*G), Placed(*S->MM, std::move(*FA)));
        if (I % 3 == 0)
          if (Error Err = std::exchange(All[T].front().second, Placed()).free())
            Errors[T] += toString(std::move(Err));
      }
    });
  for (std::thread &T : Running)
    T.join();
  EXPECT_EQ(Errors, std::vector<std::string>(Threads));
  int Called = 0;
  for (auto &OfThread : All)
    for (auto &[Entry, Alloc] : OfThread) {
      if (!Alloc || Called++ % 7)
        continue;
      std::string Code = S->bytesAt(Entry, 6);
      int32_t Value;
      memcpy(&Value, Code.data() + 1, sizeof(Value));
      EXPECT_EQ(Code, codeReturning(Value));
      EXPECT_EQ(S->run(Entry), Value);
    }
  All.clear();
  EXPECT_EQ(S->MM->stats().live, Live);
}

TEST_P(Executor, NestedAllocateInsideCallbacks) {
  start();
  Session &Own = *S;
  auto Outer = graphReturning(1), Inner = graphReturning(2);
  Outer->allocActions().push_back({Own.note(1), Own.note(-1)});
  Inner->allocActions().push_back({Own.note(2), Own.note(-2)});
  InFlight Alloc = allocate(*Outer);
  Countdown Done(1);
  std::string Message;
  std::vector<FinalizedAlloc> Allocs;
  Alloc->finalize([&](Expected<FinalizedAlloc> Finished) {
    // Blocks in the callback, as a nested lookup does.
    auto Nested = Own.MM->allocate(nullptr, *Inner);
    auto FA = Nested ? (*Nested)->finalize() : Expected<FinalizedAlloc>(Nested.takeError());
    for (auto *Each : {&Finished, &FA}) {
      if (*Each)
        Allocs.push_back(std::move(**Each));
      else
        Message += toString(Each->takeError());
    }
    Done.arrive();
  });
  ASSERT_TRUE(Done.wait());
  EXPECT_EQ(Message, "");
  EXPECT_EQ(Own.takeNotes(), (Ids{1, 2}));
  must(Own.MM->deallocate(std::move(Allocs)));
  EXPECT_EQ(Own.takeNotes(), (Ids{-2, -1}));
}

TEST_P(Executor, CallbacksMayWaitForEachOther) {
  // As a nested lookup in one does for what another one of the same message makes ready.
  start();
  constexpr int N = 40;
  S->inside("plusOne");
  Countdown Begun(N), Done(N);
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  std::vector<InFlight> InFlights;
  std::mutex M;
  std::vector<FinalizedAlloc> Allocs;
  std::string Errors;
  std::atomic<int> InVain{0};
  for (int I = 0; I != N; ++I) {
    Graphs.push_back(graphReturning(I));
    Graphs.back()->allocActions().push_back({S->note(I), {}});
    InFlights.push_back(allocate(*Graphs.back()));
  }
  for (auto &Alloc : InFlights)
    Alloc->finalize([&](Expected<FinalizedAlloc> FA) {
      Begun.arrive();
      if (!Begun.wait(std::chrono::seconds(20)))
        ++InVain;
      {
        std::lock_guard<std::mutex> Lock(M);
        if (FA)
          Allocs.push_back(std::move(*FA));
        else
          Errors += toString(FA.takeError()) + "\n";
      }
      Done.arrive(); // after which all of this may be gone
    });
  EXPECT_TRUE(Done.wait(std::chrono::seconds(20 * N + 60)));
  EXPECT_EQ(Errors, "");
  EXPECT_EQ(InVain, 0) << "callbacks wait for the one before";
  must(S->MM->deallocate(std::move(Allocs)));
}

TEST_P(Executor, AbandonLeavesNothing) {
  start();
  S->inside("plusOne");
  jitmem_stats Before = S->MM->stats();
  for (int I = 0; I != 50; ++I) {
    auto G = graphReturning(I);
    G->allocActions().push_back({S->note(1), S->note(-1)});
    must(abandon(allocate(*G)));
    auto Dropped = graphReturning(I);
    allocate(*Dropped); // and its destructor does the same, but waits for nothing
  }
  EXPECT_EQ(S->takeNotes(), Ids());
  EXPECT_TRUE(eventually([&] { return S->MM->stats().in_flight == 0; }));
  EXPECT_EQ(S->MM->stats().live, Before.live);
  // Pages of a chunk may have been touched by more that were in flight at once; no chunk was added.
  EXPECT_EQ(S->MM->stats().chunk_bytes, Before.chunk_bytes);
}

TEST_P(Executor, WhatIsLeftIsDeallocatedAtTheEnd) {
  using Owner = Session::Owner;
  for (Owner O : {Owner::EPC, Owner::Layer, Owner::Session}) {
    start(O);
    EXPECT_EQ(S->run(S->inside("plusOne"), 1), 2);
    // No session knows of this one. Its deallocation action is its own code: exit_group(7).
    auto G = compat::makeGraph("last");
    Block &Code = addContent(*G, addSection(*G, "text", RX),
                             StringRef("\xbf\7\0\0\0\xb8\xe7\0\0\0\x0f\5", 12), {16});
    InFlight Alloc = allocate(*G);
    G->allocActions().push_back({{}, {Code.getAddress(), {}}});
    must(Alloc->finalize()).release();
    EXPECT_EQ(S->end(), "exit 7");
    EXPECT_EQ(S->takeErrors(), "");
    S.reset();
  }
}

#if LLVM_VERSION_MAJOR >=                                                                          \
    16 // before, a function is called by one that is linked, which takes other threads
TEST_P(Executor, UnderADispatcherThatRunsTasksInPlace) {
  start(Session::Owner::EPC, Session::Dispatcher::InPlace);
  std::vector<Placed> All;
  for (int I = 0; I != 100; ++I) {
    auto G = graphReturning(I);
    All.push_back(place(*G));
    EXPECT_EQ(S->run(entryOf(*G)), I);
  }
  must(freeAll(*S->MM, All));
  EXPECT_EQ(S->MM->stats().live, 0u);
}
#endif

TEST_P(Executor, ASessionEndsWhileItsLastCallbackReturns) {
  // A thread that waits for a symbol goes on before the callback that made it ready has returned.
  for (int Round = 0; Round != 20; ++Round) {
    start();
    must(S->J->addIRModule(functionReturning("f", Round)));
    EXPECT_EQ(S->run(S->find("f")), Round);
    EXPECT_EQ(S->end(), "exit 0");
    EXPECT_EQ(S->takeErrors(), "");
    S.reset();
  }
}

TEST(Token, GoesAheadAndIsRefusedWhereItIsTooShort) {
  int Ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, Ends), 0);
  EXPECT_EQ(toString(jitmem::orc::sendToken(Ends[0], "0123456789abcdef")), "");
  char Sent[32];
  EXPECT_EQ(recv(Ends[1], Sent, sizeof Sent, 0), 24);
  EXPECT_EQ(StringRef(Sent, 24), StringRef("\x10\0\0\0\0\0\0\0"
                                           "0123456789abcdef",
                                           24));
  std::string Refused = toString(jitmem::orc::sendToken(Ends[0], "short"));
  EXPECT_NE(Refused.find("a token of 5 bytes"), std::string::npos) << Refused;
  close(Ends[0]);
  close(Ends[1]);
}

} // namespace
