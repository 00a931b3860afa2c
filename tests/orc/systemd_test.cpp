// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host that systemd runs with MemoryDenyWriteExecute=yes and SystemCallFilter=@system-service.

#include "jit.h"
#include "sandbox.h"

#include <cerrno>
#include <csignal>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

// A session with jitmem's defaults: code and data of many graphs come and go.
int session() {
  likeSystemd();
  auto MM = must(jitmem::orc::MemoryManager::CreateInProcess());
  bool TwoViews = StringRef(MM->stats().mapper_name).contains("two views");
  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(
      must(SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MM))));
  compat::useJITLink(Builder);
  auto J = must(Builder.create());
  int Wrong = 0;
  for (int I = 0; I != 20; ++I) {
    auto Tracker = J->getMainJITDylib().createResourceTracker();
    must(J->addObjectFile(Tracker, objectFile("sections.c")));
    int Sum = must(compat::lookup(*J, "checkSections")).toPtr<int (*)()>()();
    Wrong += Sum != 1 + 2 + 3 + 10 + 20 + 30 + 40 + 5 * 1000;
    must(Tracker->remove());
  }
  return TwoViews ? Wrong : 100;
}

// Whether the filter refuses what systemd's does.
bool refuses() {
  likeSystemd();
  size_t Page = size_t(sysconf(_SC_PAGESIZE));
  int Anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
  bool Maps = mmap(nullptr, Page, PROT_WRITE | PROT_EXEC, Anonymous, -1, 0) != MAP_FAILED;
  void *Data = mmap(nullptr, Page, PROT_READ | PROT_WRITE, Anonymous, -1, 0);
  return !Maps && mprotect(Data, Page, PROT_READ | PROT_EXEC) != 0 &&
         (errno == EPERM || errno == EACCES);
}

class Systemd : public ::testing::Test {
protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(Systemd, AHostLinksAndRunsCode) {
  EXPECT_EXIT(_exit(session()), ::testing::ExitedWithCode(0), "");
}

TEST_F(Systemd, TheFilterIsOne) {
  EXPECT_EXIT(_exit(refuses() ? 0 : 1), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(
      {
        likeSystemd();
        syscall(SYS_userfaultfd, 0);
      },
      ::testing::KilledBySignal(SIGSYS), "");
}

} // namespace
