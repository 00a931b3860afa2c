// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Allocation actions: order, failure, roll-back.

#include "kit.h"

using namespace llvm;
using namespace llvm::jitlink;

namespace {

using Ids = std::vector<int>;

class Actions : public ManagerTest {
protected:
  // A graph with memory of every protection, so that a failure has something to give back.
  std::unique_ptr<LinkGraph> makeGraph() {
    auto G = compat::makeGraph("actions");
    addContent(*G, addSection(*G, "text", RX), codeReturning(1), {16});
    addContent(*G, addSection(*G, "data", RW), "data");
    addContent(*G, addSection(*G, "init", {R, MemLifetime::Finalize}), "once");
    return G;
  }
  Journal J;
};
INSTANTIATE_TEST_SUITE_P(Managers, Actions, everyKind(), kindName);

class JitmemActions : public Actions {};
INSTANTIATE_TEST_SUITE_P(Managers, JitmemActions, jitmemKinds(), kindName);

TEST_P(Actions, FinalizeRunsForwardAndDeallocateBackward) {
  auto G = makeGraph();
  for (int I = 1; I <= 4; ++I)
    G->allocActions().push_back({J.note(I), J.note(-I)});
  Placed P = place(*G);
  EXPECT_EQ(J.ids(), (Ids{1, 2, 3, 4}));
  must(P.free());
  EXPECT_EQ(J.ids(), (Ids{1, 2, 3, 4, -4, -3, -2, -1}));
}

TEST_P(Actions, NoneRunsBeforeFinalize) {
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.note(-1)});
  InFlight Alloc = allocate(*G);
  EXPECT_EQ(J.ids(), Ids());
  Placed P = finalize(std::move(Alloc));
  EXPECT_EQ(J.ids(), Ids{1});
}

TEST_P(Actions, AddedBetweenAllocateAndFinalizeCount) {
  // ORC's plugins add most of theirs after memory was allocated, when addresses are known.
  auto G = makeGraph();
  InFlight Alloc = allocate(*G);
  G->allocActions().push_back({J.note(1), J.note(-1)});
  Placed P = finalize(std::move(Alloc));
  must(P.free());
  EXPECT_EQ(J.ids(), (Ids{1, -1}));
}

TEST_P(Actions, NullCalleesAreSkipped) {
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.none()});
  G->allocActions().push_back({J.none(), J.note(-2)});
  G->allocActions().push_back({J.none(), J.none()});
  G->allocActions().push_back({J.note(4), J.note(-4)});
  Placed P = place(*G);
  EXPECT_EQ(J.ids(), (Ids{1, 4}));
  must(P.free());
  EXPECT_EQ(J.ids(), (Ids{1, 4, -4, -2}));
}

TEST_P(Actions, SeeTheFinalMemory) {
  struct Seen {
    std::string Const, TextPerms, ConstPerms;
    int CodeReturned = 0;
  };
  static Seen S;
  static ExecutorAddr Text, Const;
  S = {};
  auto G = compat::makeGraph("graph");
  Block &TextBlock = addContent(*G, addSection(*G, "text", RX), codeReturning(33), {16});
  Block &ConstBlock = addContent(*G, addSection(*G, "rodata", R), "constant");
  InFlight Alloc = allocate(*G);
  Text = TextBlock.getAddress();
  Const = ConstBlock.getAddress();
  auto Look = [](const char *, size_t) -> compat::ActionResult {
    S = {std::string(bytesAt(Const), 8), mappingAt(Text).Perms, mappingAt(Const).Perms, call(Text)};
    char Success = 0;
    return compat::ActionBuffer::copyFrom(&Success, 1).release();
  };
  G->allocActions().push_back({{ExecutorAddr::fromPtr(+Look), {}}, {}});
  Placed P = finalize(std::move(Alloc));
  EXPECT_EQ(S.Const, "constant");
  EXPECT_EQ(S.CodeReturned, 33);
  EXPECT_EQ(S.TextPerms.substr(0, 3), "r-x");
  EXPECT_EQ(S.ConstPerms.substr(0, 3), "r--");
}

TEST_P(Actions, LongArgumentsArriveWhole) {
  static std::string Arrived;
  Arrived.clear();
  auto Take = [](const char *Data, size_t Size) -> compat::ActionResult {
    Arrived.assign(Data, Size);
    char Success = 0;
    return compat::ActionBuffer::copyFrom(&Success, 1).release();
  };
  std::string Long;
  for (int I = 0; I != 10000; ++I)
    Long.push_back(char(I * 7));
  auto G = makeGraph();
  G->allocActions().push_back(
      {J.none(),
       {ExecutorAddr::fromPtr(+Take),
        orc::shared::WrapperFunctionCall::ArgDataBufferType(Long.begin(), Long.end())}});
  Placed P = place(*G);
  must(P.free());
  EXPECT_EQ(Arrived, Long);
}

TEST_P(Actions, FailedFinalizeUndoesTheOnesBefore) {
  for (int Fails = 1; Fails <= 4; ++Fails) {
    Journal J;
    Ids Expected;
    auto G = makeGraph();
    for (int I = 1; I <= 4; ++I)
      G->allocActions().push_back({I == Fails ? J.failing(I) : J.note(I), J.note(-I)});
    for (int I = 1; I <= Fails; ++I)
      Expected.push_back(I);
    for (int I = Fails - 1; I >= 1; --I)
      Expected.push_back(-I);
    std::string Number = "action " + std::to_string(Fails) + " failed";
    EXPECT_TRUE(mentions(messageOf(allocate(*G)->finalize()), {Number.c_str()}));
    EXPECT_EQ(J.ids(), Expected) << "action " << Fails << " of 4 failed";
  }
}

TEST_P(Actions, FailedFinalizeReportsFailuresOfTheUndoingToo) {
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.failing(-1)});
  G->allocActions().push_back({J.note(2), J.refusing(-2)});
  G->allocActions().push_back({J.note(3), J.note(-3)});
  G->allocActions().push_back({J.failing(4), J.note(-4)});
  EXPECT_TRUE(mentions(messageOf(allocate(*G)->finalize()),
                       {"action 4 failed", "action -2 refused", "action -1 failed"}));
  EXPECT_EQ(J.ids(), (Ids{1, 2, 3, 4, -3, -2, -1}));
}

TEST_P(Actions, OutOfBandErrorFailsFinalize) {
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.note(-1)});
  G->allocActions().push_back({J.refusing(2), J.note(-2)});
  G->allocActions().push_back({J.note(3), J.note(-3)});
  EXPECT_TRUE(mentions(messageOf(allocate(*G)->finalize()), {"action 2 refused"}));
  EXPECT_EQ(J.ids(), (Ids{1, 2, -1}));
}

TEST_P(Actions, ResultThatIsNoErrorValueFailsFinalize) {
  auto Garbage = [](const char *, size_t) -> compat::ActionResult {
    return compat::ActionBuffer().release(); // no bytes at all: not even the SPS form of success
  };
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.note(-1)});
  G->allocActions().push_back({{ExecutorAddr::fromPtr(+Garbage), {}}, {}});
  EXPECT_NE(messageOf(allocate(*G)->finalize()), "");
  EXPECT_EQ(J.ids(), (Ids{1, -1}));
}

TEST_P(JitmemActions, FailedFinalizeFreesTheMemory) {
  Piece Other = piece(RW, 64);
  jitmem_stats Before = statsOf(*MM);
  for (int Fails = 1; Fails <= 3; ++Fails) {
    auto G = makeGraph();
    for (int I = 1; I <= 3; ++I)
      G->allocActions().push_back({I == Fails ? J.failing(I) : J.note(I), J.failing(-I)});
    EXPECT_NE(messageOf(allocate(*G)->finalize()), "");
    jitmem_stats After = statsOf(*MM);
    EXPECT_EQ(After.live, Before.live);
    EXPECT_EQ(After.in_flight, 0u);
    EXPECT_EQ(After.finalized, 1u);
    EXPECT_EQ(After.failures, Before.failures + Fails);
  }
}

TEST_P(Actions, FailedDeallocationActionDoesNotStopTheOthers) {
  auto G = makeGraph();
  G->allocActions().push_back({J.note(1), J.failing(-1)});
  G->allocActions().push_back({J.note(2), J.note(-2)});
  G->allocActions().push_back({J.note(3), J.refusing(-3)});
  G->allocActions().push_back({J.note(4), J.note(-4)});
  Placed P = place(*G);
  EXPECT_TRUE(mentions(messageOf(P.free()), {"action -1 failed", "action -3 refused"}));
  EXPECT_EQ(J.ids(), (Ids{1, 2, 3, 4, -4, -3, -2, -1}));
  // TearDown asks whether the memory was freed all the same.
}

TEST_P(Actions, BatchIsDeallocatedLastToFirst) {
  std::vector<Placed> All;
  for (int I = 1; I <= 3; ++I) {
    auto G = makeGraph();
    G->allocActions().push_back({J.none(), J.note(10 * I + 1)});
    G->allocActions().push_back({J.none(), J.note(10 * I + 2)});
    All.push_back(place(*G));
  }
  must(freeAll(*MM, All));
  EXPECT_EQ(J.ids(), (Ids{32, 31, 22, 21, 12, 11}));
}

TEST_P(Actions, FailureInABatchDoesNotStopTheOthers) {
  std::vector<Placed> All;
  for (int I = 1; I <= 3; ++I) {
    auto G = makeGraph();
    G->allocActions().push_back({J.none(), I == 1 ? J.note(I) : J.failing(I)});
    All.push_back(place(*G));
  }
  EXPECT_TRUE(mentions(messageOf(freeAll(*MM, All)), {"action 3 failed", "action 2 failed"}));
  EXPECT_EQ(J.ids(), (Ids{3, 2, 1}));
}

TEST_P(Actions, DeallocationActionsSeeTheMemory) {
  static ExecutorAddr Text;
  static int Returned;
  Returned = 0;
  auto CallIt = [](const char *, size_t) -> compat::ActionResult {
    Returned = call(Text);
    char Success = 0;
    return compat::ActionBuffer::copyFrom(&Success, 1).release();
  };
  std::vector<Placed> All;
  auto Code = compat::makeGraph("code");
  Text = ExecutorAddr();
  Block &B = addContent(*Code, addSection(*Code, "text", RX), codeReturning(5), {16});
  All.push_back(place(*Code));
  Text = B.getAddress();
  // The action of a later allocation calls code of an earlier one of the same batch.
  auto Caller = compat::makeGraph("caller");
  Caller->allocActions().push_back({{}, {ExecutorAddr::fromPtr(+CallIt), {}}});
  All.push_back(place(*Caller));
  must(freeAll(*MM, All));
  EXPECT_EQ(Returned, 5);
}

} // namespace
