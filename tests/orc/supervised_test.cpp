// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors whose linked code crashes, and goes on in another process.

#include "executors.h"

using namespace llvm;
using namespace llvm::orc;

namespace {

constexpr auto NoFunction = 0x40;

class Supervised : public ::testing::TestWithParam<Setting> {};

TEST_P(Supervised, ASessionGoesOnAfterACrash) {
  Session S(GetParam());
  S.add("counting.c");
  ExecutorAddr Catch = S.addProblem();
  auto Tracker = S.J->getMainJITDylib().createResourceTracker();
  must(S.J->addObjectFile(Tracker, objectFile("replaced.c")));
  ExecutorAddr Count = S.find("countOn"), Process = S.find("whoRunsThis"),
               Replaced = S.find("replaced");
  EXPECT_EQ(S.run(Count, 2), 42);
  EXPECT_EQ(S.run(Replaced, 1), 8);
  EXPECT_EQ(S.run(Catch, 5), 1005);

  int Last = S.run(Process);
  for (unsigned Crashes = 1; Crashes <= 3; ++Crashes) {
    EXPECT_TRUE(errorToBool(S.tryRun(ExecutorAddr(NoFunction), 0).takeError()));
    // The same addresses, in another process, with data as it was when it was finalized.
    int Now = S.run(Process);
    EXPECT_NE(Now, Last);
    Last = Now;
    EXPECT_EQ(S.run(Count, 1), 41);
    EXPECT_EQ(S.run(Catch, 6), 1006);
    EXPECT_TRUE(eventually([&] { return S.MM->stats().executor_restarts == Crashes; }));

    // What was linked before is removed, and what is new takes its place.
    EXPECT_EQ(S.run(Replaced, 1), 8);
    must(Tracker->remove());
    Tracker = S.J->getMainJITDylib().createResourceTracker();
    must(S.J->addObjectFile(Tracker, objectFile("replaced.c")));
    Replaced = S.find("replaced");
    EXPECT_EQ(S.run(Replaced, 2), 9);
  }
  Tracker.reset(); // before the session ends
  EXPECT_EQ(S.end(), "exit 0");
  EXPECT_EQ(S.takeErrors(), "");
}

INSTANTIATE_TEST_SUITE_P(Executors, Supervised,
                         ::testing::Values(Setting::SupervisedShared, Setting::LinkedSupervised),
                         settingName);

TEST(SupervisedHost, IsToldWhatHasEndedTooOften) {
  Session S(Setting::LinkedSupervised);
  ExecutorAddr IsPrepared;
  must(S.epc().getBootstrapSymbols({{IsPrepared, "isPrepared"}}));
  for (unsigned Crashes = 1; Crashes <= 3; ++Crashes) {
    EXPECT_EQ(S.run(IsPrepared, 0), 1);
    EXPECT_TRUE(errorToBool(S.tryRun(ExecutorAddr(NoFunction), 0).takeError()));
  }
  EXPECT_EQ(S.run(IsPrepared, 0), 1);
  EXPECT_TRUE(errorToBool(S.tryRun(ExecutorAddr(NoFunction), 0).takeError()));
  // Its error is the program's.
  EXPECT_EQ(S.end(), "exit 1");
}

} // namespace
