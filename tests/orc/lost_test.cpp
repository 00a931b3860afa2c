// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A controller that makes executors and loses them stays as it was.

#include "executors.h"

#include <cstdlib>
#include <dirent.h>
#include <iostream>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;

namespace {

size_t entriesOf(const char *Directory) {
  size_t Count = 0;
  DIR *D = opendir(Directory);
  while (D && readdir(D))
    ++Count;
  closedir(D);
  return Count;
}

// What this process has. The C library's own mappings come and go a little, sanitizers' a lot; each
// kind of loss happens 33 times, and what it leaves is there as often.
struct Footprint {
  size_t Descriptors = entriesOf("/proc/self/fd");
  size_t Threads = entriesOf("/proc/self/task");
  size_t Mappings = 0, SharedMappings = 0;
  uint64_t AddressSpace = 0;
  bool Children;

  Footprint() {
    siginfo_t Any;
    Children = waitid(P_ALL, 0, &Any, WEXITED | WNOHANG | WNOWAIT) == 0;
    for (const Mapping &M : readMappings()) {
      bool Shared = M.Perms[3] == 's';
      SharedMappings += Shared;
      if (!Sanitized) {
        ++Mappings;
        AddressSpace += M.End - M.Start;
      }
    }
  }

  bool within(const Footprint &Other) const {
    return Descriptors <= Other.Descriptors && Threads <= Other.Threads &&
           Mappings < Other.Mappings + 10 && AddressSpace < Other.AddressSpace + 64 * MiB &&
           SharedMappings <= Other.SharedMappings && Children <= Other.Children;
  }
};

std::ostream &operator<<(std::ostream &OS, const Footprint &F) {
  return OS << F.Descriptors << " descriptors, " << F.Threads << " threads, " << F.Mappings
            << " mappings of " << F.AddressSpace << " bytes, " << F.SharedMappings
            << " shared, children: " << F.Children << "\n";
}

// Ends an executor in order, kills it while it is at work, or kills it while it is idle.
void makeAndLose(Setting What, int Round) {
  Session S(What, Round % 2 ? Session::Owner::EPC : Session::Owner::Session);
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  auto Allocate = [&](char Behaviour) {
    Graphs.push_back(compat::makeGraph("graph"));
    LinkGraph &G = *Graphs.back();
    addContent(G, addSection(G, "text", RX), codeReturning(1), {16});
    addContent(G, addSection(G, "data", RW), std::string(100000, 'd'));
    G.allocActions().push_back({S.note(1, Behaviour), S.note(-1)});
    return must(S.MM->allocate(nullptr, G));
  };
  auto Finalized = must(Allocate('n')->finalize());
  InFlight Waiting = Allocate('w');
  switch (Round % 3) {
  case 0:
    must(S.MM->deallocate(std::move(Finalized)));
    Waiting.reset();
    EXPECT_EQ(S.end(), "exit 0");
    break;
  case 1: {
    Countdown Done(1);
    Waiting->finalize([&](Expected<Placed::FinalizedAlloc> FA) {
      EXPECT_NE(messageOf(std::move(FA)), "");
      Done.arrive();
    });
    EXPECT_EQ(S.run(S.inside("waitForNotes"), 2), 2);
    S.Child->kill();
    EXPECT_TRUE(Done.wait());
    EXPECT_NE(messageOf(S.MM->deallocate(std::move(Finalized))), "");
    EXPECT_EQ(S.end(), "signal 9");
    break;
  }
  default: // and the manager goes with all that it has
    S.Child->kill();
    Finalized.release();
    Waiting.reset();
    EXPECT_EQ(S.end(), "signal 9");
  }
}

// Returns whether nothing is left.
bool makeAndLoseMany(Setting What) {
  for (int Round = 0; Round != 6; ++Round) // what is only made once is made
    makeAndLose(What, Round);
  Footprint Before;
  for (int Round = 0; Round != 100; ++Round)
    makeAndLose(What, Round);
  // Threads end a little later than what they were for.
  bool Same = eventually([&] { return Footprint().within(Before); });
  std::cerr << Before << Footprint();
  return Same && !::testing::Test::HasFailure();
}

class Lost : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Lost, everySetting(), settingName);

TEST_P(Lost, AHundredExecutorsLeaveNothing) {
  // In a process of its own, in which the C library keeps no stacks of threads that have ended, nor
  // a heap for each thread.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  setenv("GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=0:glibc.malloc.arena_max=1", 1);
  EXPECT_EXIT(_exit(makeAndLoseMany(GetParam()) ? 0 : 1), ::testing::ExitedWithCode(0), "");
  unsetenv("GLIBC_TUNABLES");
}

} // namespace
