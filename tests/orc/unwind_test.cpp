// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Frames that the executor's unwinder finds in an index: no graph takes a message, and whatever
// walks up the stack finds its way.

#include "executors.h"

using namespace llvm;
using namespace llvm::orc;

namespace {

// hopN goes through a frame of its own each.
ThreadSafeModule hopNumber(int N, int Last) {
  std::string Here = N == 0 ? "hop" : "hop" + std::to_string(N);
  std::string Text = "define i32 @" + Here + "(ptr %leaf, i32 %value) uwtable {\n";
  std::string Next = "hop" + std::to_string(N + 1);
  if (N == Last)
    Text += "  %below = call i32 %leaf(i32 %value)\n";
  else
    Text += "  %below = call i32 @" + Next + "(ptr %leaf, i32 %value)\n";
  // So that no call is the last thing.
  Text += "  %sum = add i32 %below, 1\n  %same = sub i32 %sum, 1\n"
          "  call void asm sideeffect \"\", \"\"()\n  ret i32 %same\n}\n";
  if (N != Last)
    Text += "declare i32 @" + Next + "(ptr, i32)\n";
  return parseIR(Text);
}

class Unwinding : public ::testing::Test {
protected:
  explicit Unwinding(Setting Of = Setting::SealedShared) : S(Of) {}

  static constexpr int Hops = 60;

  void addHops(ResourceTrackerSP Tracker) {
    // From the last one on, so that each is linked by itself.
    for (int N = Hops - 1; N >= 0; --N) {
      must(S.J->addIRModule(Tracker, hopNumber(N, Hops - 1)));
      S.find(N == 0 ? "hop" : "hop" + std::to_string(N));
    }
  }

  void addAll(ResourceTrackerSP Tracker) {
    addHops(Tracker);
    must(S.J->addObjectFile(Tracker, objectFile("unwinding.cpp")));
    S.find("catchFromHops");
  }

  void expectUnwinding() {
    EXPECT_EQ(S.run(S.find("catchFromHops"), 7), 1007);
    EXPECT_EQ(S.run(S.find("catchThrownAgain"), 8), 2008);
    EXPECT_EQ(S.run(S.find("framesOfHops")), Hops);
    EXPECT_EQ(S.run(S.find("cancelBehindHops")), 2);
  }

  Session S;
};

TEST_F(Unwinding, ThroughManyGraphsThatTookNoMessage) {
  S.addProblem();
  EXPECT_EQ(S.run(S.find("catchProblem"), 9), 1009);
  jitmem_stats Before = S.MM->stats();
  EXPECT_EQ(Before.frames_found_by, uint64_t(JITMEM_FRAMES_INDEX));
  // Before LLVM 16 a session runs functions by one that it links.
  EXPECT_GE(Before.frames_indexed, 3u);
  EXPECT_EQ(Before.frames_registered, 0u);
  auto Tracker = S.J->getMainJITDylib().createResourceTracker();
  addAll(Tracker);
  jitmem_stats After = S.MM->stats();
  EXPECT_EQ(After.frames_indexed - Before.frames_indexed, Hops + 1u);
  EXPECT_EQ(After.frames_registered, 0u);
  EXPECT_EQ(After.finalize_calls - Before.finalize_calls, Hops + 1u);
  EXPECT_EQ(After.messages, Before.messages);
  expectUnwinding();
  EXPECT_EQ(S.run(S.find("catchProblem"), 9), 1009);

  // What is linked in the place of what went is found as itself.
  for (int Round = 0; Round != 3; ++Round) {
    must(Tracker->remove());
    Tracker = S.J->getMainJITDylib().createResourceTracker();
    addAll(Tracker);
    expectUnwinding();
  }
  jitmem_stats Last = S.MM->stats();
  EXPECT_EQ(Last.frames_registered, 0u);
  EXPECT_EQ(Last.messages, Before.messages);
  Tracker = nullptr; // it needs the session
  EXPECT_EQ(S.end(), "exit 0");
  EXPECT_EQ(S.takeErrors(), "");
}

TEST_F(Unwinding, OthersThrowWhileCodeComesAndGoes) {
  auto Staying = S.J->getMainJITDylib().createResourceTracker();
  addAll(Staying);
  auto StopThrowing = S.find("stopThrowing");
  EXPECT_EQ(S.run(S.find("startThrowing")), 0);
  for (int Round = 0; Round != 50; ++Round) {
    auto Passing = S.J->getMainJITDylib().createResourceTracker();
    S.addProblem(Passing);
    EXPECT_EQ(S.run(S.find("catchProblem"), Round), 1000 + Round);
    must(Passing->remove());
  }
  EXPECT_EQ(S.run(StopThrowing), 1);
  EXPECT_EQ(S.MM->stats().frames_registered, 0u);
  Staying = nullptr;
  EXPECT_EQ(S.end(), "exit 0");
}

// Where content travels in messages, actions go along with it and enter an index there.
class UnwindingRemotely : public Unwinding {
protected:
  UnwindingRemotely() : Unwinding(Setting::ProgramRemote) {}
};

TEST_F(UnwindingRemotely, AsksAnIndexToo) {
  auto Tracker = S.J->getMainJITDylib().createResourceTracker();
  addAll(Tracker);
  jitmem_stats Stats = S.MM->stats();
  EXPECT_EQ(Stats.frames_found_by, uint64_t(JITMEM_FRAMES_INDEX));
  EXPECT_EQ(Stats.frames_indexed, Hops + 1u);
  expectUnwinding();
  must(Tracker->remove());
  Tracker = nullptr;
  EXPECT_EQ(S.end(), "exit 0");
}

// The profile of the other tests has no children.
class UnwindingInAChild : public Unwinding {
protected:
  UnwindingInAChild() : Unwinding(Setting::ProgramShared) {}
};

TEST_F(UnwindingInAChild, HasTheFramesOfTheFork) {
  auto Tracker = S.J->getMainJITDylib().createResourceTracker();
  addHops(Tracker);
  S.add("unwinding.cpp");
  auto EndChild = S.find("endChild");
  EXPECT_GT(S.run(S.find("startChild"), 5), 0);
  // The parent has them no more when the child throws.
  must(Tracker->remove());
  EXPECT_EQ(S.run(EndChild), 7);
  Tracker = nullptr;
  EXPECT_EQ(S.end(), "exit 0");
}

} // namespace
