// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Controllers that are killed: their executors end by themselves, and nothing is left of either.

#include "executors.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <set>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

// The names of shared memory.
std::set<std::string> sharedMemory() {
  std::set<std::string> Names;
  DIR *D = opendir("/dev/shm");
  while (const dirent *Entry = D ? readdir(D) : nullptr)
    Names.insert(Entry->d_name);
  if (D)
    closedir(D);
  return Names;
}

class Orphan : public ::testing::TestWithParam<Setting> {
protected:
  // Executors whose parent has gone become children of this process.
  void SetUp() override {
    ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    Before = sharedMemory();
  }
  void TearDown() override { prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); }

  // Kills a controller when it has reported so many things, or all that it does.
  void killAfter(const char *Work, int Reports) {
    SCOPED_TRACE(testing::Message() << Work << ", killed after " << Reports);
    Pipe Reported, Unused;
    ChildProcess Controller({BUILT "/controller", nameOf(GetParam()), Work}, Unused.Read.Number,
                            Reported.Write.Number);
    Reported.Write.close();
    char Byte;
    for (int I = 0; I != Reports; ++I)
      ASSERT_EQ(read(Reported.Read.Number, &Byte, 1), 1) << "it has ended: " << Controller.wait();
    Controller.kill();
    EXPECT_EQ(Controller.wait(), "signal 9");
    // Before the session is there, there may be no executor. And LLVM's own server, even alone, may
    // crash when its controller goes while it starts, and leave a name that was not removed yet.
    bool Early = Reports == 1;
    size_t Ended = expectAllEnd(Reported.Read.Number, Controller.id(), Early);
    EXPECT_TRUE(Ended == 2 || (Ended == 1 && Early)) << Ended << " processes";
  }

  // Returns how many there were.
  size_t expectAllEnd(int Reported, pid_t Controller, bool Early) {
    // Until no process has the other end.
    char Bytes[64];
    pollfd Waiting = {Reported, POLLIN, 0};
    ssize_t Read;
    do {
      if (poll(&Waiting, 1, 60000) != 1)
        throw std::runtime_error("a process goes on");
      Read = read(Reported, Bytes, sizeof(Bytes));
    } while (Read > 0);
    std::vector<pid_t> Ended = {Controller};
    int Status;
    for (pid_t Executor; (Executor = waitpid(-1, &Status, 0)) > 0;) {
      EXPECT_TRUE(WIFEXITED(Status) || Early) << "signal " << WTERMSIG(Status);
      Ended.push_back(Executor);
    }
    EXPECT_EQ(errno, ECHILD);
    auto Left = sharedMemoryOf(Ended);
    if (Early && GetParam() == Setting::StockShared)
      for (auto &Name : Left)
        shm_unlink(Name.c_str());
    else
      EXPECT_EQ(Left, std::vector<std::string>());
    return Ended.size();
  }

private:
  // LLVM's executor puts its number into some names. What an earlier process of that number has
  // left is no business of these.
  std::vector<std::string> sharedMemoryOf(const std::vector<pid_t> &Processes) {
    std::vector<std::string> Names;
    for (auto &Name : sharedMemory())
      for (pid_t Process : Processes)
        if (Name.find("_" + std::to_string(Process) + "_") != std::string::npos &&
            !Before.count(Name))
          Names.push_back(Name);
    return Names;
  }

  std::set<std::string> Before; // names that were there before the test
};
INSTANTIATE_TEST_SUITE_P(Settings, Orphan, everySetting(), settingName);

TEST_P(Orphan, OfAnIdleController) { killAfter("idle", 4); }

TEST_P(Orphan, WithActionsUnderWay) { killAfter("actions", 3); }

TEST_P(Orphan, DuringACall) { killAfter("call", 3); }

TEST_P(Orphan, AtAnyInstant) {
  // While it attaches and links first; then while 200 graphs are finalized.
  for (int Reports : {1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144})
    killAfter("many", Reports);
}

} // namespace
