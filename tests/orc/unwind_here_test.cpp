// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Frames of this process's own linked code, in a program that is linked with jitmem::unwind: libgcc
// asks jitmem's index, and no object is registered.

#include "jit.h"

#include <jitmem/orc_lljit.hpp>

#include <atomic>
#include <thread>

using namespace llvm;
using namespace llvm::orc;

namespace {

// Whose plugin makes the frames known: jitmem's, or LLVM's, whose actions jitmem recognizes.
enum class Plugin { Own, Llvm };

class UnwindingHere : public ::testing::TestWithParam<Plugin> {
protected:
  UnwindingHere() : MM(must(jitmem::orc::MemoryManager::CreateInProcess())) {
    LLJITBuilder Builder;
    compat::setLinkingLayer(
        Builder, [this](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
          auto Layer = std::make_unique<ObjectLinkingLayer>(ES, *MM);
          if (Error Err = GetParam() == Plugin::Own ? jitmem::orc::detail::addFrames(*Layer, ES)
                                                    : compat::registerEHFrames(ES, *Layer))
            return Err;
          return Layer;
        });
    J = must(Builder.create());
    compat::linkWithExecutor(*J, J->getMainJITDylib());
  }

  ResourceTrackerSP addAll() {
    auto Tracker = J->getMainJITDylib().createResourceTracker();
    for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
      must(J->addObjectFile(Tracker, objectFile(Source)));
    return Tracker;
  }
  int catchProblem(int Value) {
    auto Address = must(compat::lookup(*J, "catchProblem"));
    return Address.template toPtr<int (*)(int)>()(Value);
  }

  std::unique_ptr<jitmem::orc::MemoryManager> MM;
  std::unique_ptr<LLJIT> J;
};

auto plugins() {
#if LLVM_VERSION_MAJOR >= 21
  return ::testing::Values(Plugin::Own, Plugin::Llvm);
#else
  // Before, LLVM's makes no actions.
  return ::testing::Values(Plugin::Own);
#endif
}
INSTANTIATE_TEST_SUITE_P(Plugins, UnwindingHere, plugins(), [](const auto &Info) {
  return Info.param == Plugin::Own ? "own" : "llvm";
});

TEST_P(UnwindingHere, RegistersNothing) {
  auto Tracker = addAll();
  EXPECT_EQ(catchProblem(7), 1007);
  jitmem_stats Stats = MM->stats();
  EXPECT_EQ(Stats.frames_found_by, uint64_t(JITMEM_FRAMES_INDEX));
  EXPECT_GE(Stats.frames_indexed, 3u);
  EXPECT_EQ(Stats.frames_registered, 0u);
  for (int Round = 0; Round != 20; ++Round) {
    must(Tracker->remove());
    Tracker = addAll();
    EXPECT_EQ(catchProblem(Round), 1000 + Round);
  }
  EXPECT_EQ(MM->stats().frames_registered, 0u);
}

TEST_P(UnwindingHere, ThrowsWhileOtherCodeComesAndGoes) {
  auto Tracker = addAll();
  auto *Catch = must(compat::lookup(*J, "catchProblem")).template toPtr<int (*)(int)>();
  std::atomic<bool> Stop{false};
  std::atomic<int> Wrong{0}, Right{0};
  std::vector<std::thread> Throwing;
  for (int N = 0; N != 3; ++N)
    Throwing.emplace_back([&] {
      do
        ++(Catch(5) == 1005 ? Right : Wrong);
      while (!Stop);
    });
  auto &Other = must(J->createJITDylib("Other"));
  compat::linkWithExecutor(*J, Other);
  for (int Round = 0; Round != 100; ++Round) {
    auto Passing = Other.createResourceTracker();
    for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
      must(J->addObjectFile(Passing, objectFile(Source)));
    auto Address = must(compat::lookup(*J, Other, "catchProblem"));
    EXPECT_EQ(Address.template toPtr<int (*)(int)>()(Round), 1000 + Round);
    must(Passing->remove());
  }
  Stop = true;
  for (auto &Thread : Throwing)
    Thread.join();
  EXPECT_EQ(Wrong, 0);
  EXPECT_GT(Right, 0);
}

} // namespace
