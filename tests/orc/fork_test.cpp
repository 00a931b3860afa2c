// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors whose linked code forks.

#include "executors.h"

#include <csignal>
#include <cstdlib>

using namespace llvm;
using namespace llvm::orc;

namespace {

// Where memory is in executors that jitmem's service, or LLVM's memory manager service, serves.
// LLVM's shared-memory service leaves memory shared with children, in LLVM's executor and in ours.
class ExecutorFork : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, ExecutorFork,
                         ::testing::Values(Setting::LoadedShared, Setting::LoadedRemote,
                                           Setting::LinkedShared, Setting::LinkedRemote,
                                           Setting::StockSimple),
                         settingName);

// What a child has seen of data (0 is nothing that it must not), and how it ends that runs code
// which was freed since the fork.
std::pair<std::string, int> oldChild(Setting What) {
  Session S(What);
  S.add("forking.c");
  auto Tracker = S.J->getMainJITDylib().createResourceTracker();
  must(S.J->addObjectFile(Tracker, objectFile("replaced.c")));
  uint64_t Function = S.find("replaced").getValue();
  std::string Seen = S.call(S.find("startChild"), {reinterpret_cast<const char *>(&Function), 8});
  must(Tracker->remove());
  Tracker.reset(); // before the session ends
  int Answer = S.run(S.find("childsAnswer"));
  EXPECT_EQ(S.end(), "exit 0");
  return {Seen, Answer};
}

TEST_P(ExecutorFork, AChildKeepsCodeAndDataAsTheyWere) {
  auto [Seen, Answer] = oldChild(GetParam());
  EXPECT_EQ(Seen, std::string(1, '\0'));
  EXPECT_EQ(Answer, 8);
}

TEST_P(ExecutorFork, AThousandChildren) {
  Session S(GetParam());
  S.add("forking.c");
  EXPECT_EQ(S.run(S.find("children"), 1000), 0);
  // The parent goes on linking, and its children see that too.
  S.add("replaced.c");
  EXPECT_EQ(S.run(S.find("replaced"), 1), 8);
  EXPECT_EQ(S.run(S.find("children"), 10), 0);
  EXPECT_EQ(S.end(), "exit 0");
}

// The option, which the environment gives: what is written after the fork is seen on both sides.
class ExecutorForkShared : public ::testing::TestWithParam<Setting> {
protected:
  void SetUp() override { setenv("JITMEM_FORK_MEMORY", "shared", 1); }
  void TearDown() override { unsetenv("JITMEM_FORK_MEMORY"); }
};
INSTANTIATE_TEST_SUITE_P(Settings, ExecutorForkShared, sharedSettings(), settingName);

TEST_P(ExecutorForkShared, AChildSeesWhatIsWrittenLater) {
  auto [Seen, Answer] = oldChild(GetParam());
  EXPECT_EQ(Seen, "seen");
  EXPECT_NE(Answer, 8);
}

} // namespace
