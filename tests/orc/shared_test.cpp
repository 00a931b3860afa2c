// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What holds of pages that two processes share.

#include "executors.h"
#include "sandbox.h"

#include <csignal>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;

namespace {

class Shared : public ::testing::TestWithParam<Setting> {
protected:
  Shared() : S(GetParam()) {}

  void TearDown() override {
    EXPECT_EQ(S.end(), "exit 0");
    EXPECT_EQ(S.takeErrors(), "");
  }

  Session S;
};
INSTANTIATE_TEST_SUITE_P(Settings, Shared, sharedSettings(), settingName);

TEST_P(Shared, EachSideHasItsOwnViewOfCode) {
  ExecutorAddr Entry = S.inside("plusOne");
  EXPECT_EQ(S.run(Entry, 1), 2);
  for (const Mapping &M : readMappings(S.Child->id())) {
    EXPECT_FALSE(M.writable() && M.executable()) << M.Perms << " " << M.Path;
    if (M.Start <= Entry.getValue() && Entry.getValue() < M.End) {
      EXPECT_EQ(M.Perms, "r-xs");
      EXPECT_NE(M.Path.find("memfd:jitmem-code"), std::string::npos) << M.Path;
    }
  }
  bool Seen = false;
  for (const Mapping &M : readMappings()) {
    if (!StringRef(M.Path).contains("memfd:jitmem"))
      continue;
    Seen |= M.writable();
    EXPECT_FALSE(M.executable()) << M.Perms;
  }
  EXPECT_TRUE(Seen) << "the controller writes somewhere else";
}

TEST_P(Shared, TheExecutorCanNotMakeItsCodeWritable) {
  EXPECT_EQ(S.run(S.inside("waysToWriteCode")), 0);
}

TEST_P(Shared, ConstantsCanNotBeMadeWritableEither) {
  auto G = compat::makeGraph("graph");
  Block &Const = addContent(*G, addSection(*G, "rodata", R), "constants");
  Block &Data = addContent(*G, addSection(*G, "data", RW), "data");
  Placed P(*S.MM, must(must(S.MM->allocate(nullptr, *G))->finalize()));
  for (const Mapping &M : readMappings(S.Child->id())) {
    if (M.Start <= Const.getAddress().getValue() && Const.getAddress().getValue() < M.End) {
      EXPECT_EQ(M.Perms, "r--s");
      EXPECT_NE(M.Path.find("memfd:jitmem-constants"), std::string::npos) << M.Path;
    }
    if (M.Start <= Data.getAddress().getValue() && Data.getAddress().getValue() < M.End) {
      EXPECT_EQ(M.Perms, "rw-s");
      EXPECT_NE(M.Path.find("memfd:jitmem-data"), std::string::npos) << M.Path;
    }
  }
}

// LLVM's transport brings no socket along.
TEST(Sealed, PagesAreSharedOverLlvmsTransport) {
  Session S(Setting::SealedShared);
  EXPECT_EQ(S.MM->stats().mapper, unsigned{JITMEM_MAPPER_SHARED});
  EXPECT_NE(StringRef(S.MM->stats().mapper_name).find("socket of the executor's"), StringRef::npos);
  EXPECT_EQ(S.run(S.inside("plusOne"), 1), 2);
  EXPECT_EQ(S.end(), "exit 0");
  EXPECT_EQ(S.takeErrors(), "");
}

bool worksWithoutMakingFiles(Setting What) {
  onMakingFiles(SECCOMP_RET_KILL_PROCESS);
  Session S(What);
  bool Runs = S.run(S.inside("plusOne"), 1) == 2;
  std::vector<Placed> All; // in many chunks
  for (int I = 0; I != 200; ++I) {
    auto G = compat::makeGraph("large");
    addContent(*G, addSection(*G, "rodata", R), std::string(100000, 'x'));
    G->allocActions().push_back({S.note(I), S.note(-I)});
    All.emplace_back(*S.MM, must(must(S.MM->allocate(nullptr, *G))->finalize()));
  }
  must(freeAll(*S.MM, All));
  return Runs && S.takeNotes().size() == 400 && S.end() == "exit 0";
}

class NoFile : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, NoFile, sharedSettings(), settingName);

TEST_P(NoFile, IsMadeInAnyFileSystem) {
  GTEST_FLAG_SET(death_test_style, "threadsafe"); // in a process of its own from the start
  EXPECT_EXIT(_exit(worksWithoutMakingFiles(GetParam()) ? 0 : 1), ::testing::ExitedWithCode(0), "");
  // And the filter would have noticed.
  EXPECT_EXIT(
      {
        onMakingFiles(SECCOMP_RET_KILL_PROCESS);
        open("/dev/shm/jitmem-test", O_RDWR | O_CREAT, 0600);
      },
      ::testing::KilledBySignal(SIGSYS), "");
}

} // namespace
