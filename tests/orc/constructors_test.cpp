// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// C++ constructors and destructors in another process: as allocation actions, and by LLVM's ORC
// runtime.

#include "executors.h"

#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;
using Ids = std::vector<int>;

namespace {

// Has constructors run when their object is finalized, and destructors when it is deallocated.
class ConstructorsAsActions : public compat::StatelessPlugin {
public:
  explicit ConstructorsAsActions(Session &S) {
    S.add("constructors.c");
    Run = S.find("runConstructors");
    RunBack = S.find("runDestructors");
  }

  void modifyPassConfig(MaterializationResponsibility &, LinkGraph &,
                        PassConfiguration &Config) override {
    Config.PrePrunePasses.push_back(&keepConstructors);
    Config.PostFixupPasses.push_back([this](LinkGraph &G) { return addActions(G); });
  }

private:
  static Error keepConstructors(LinkGraph &G) {
    if (Section *Init = G.findSectionByName(".init_array"))
      for (Block *B : Init->blocks())
        G.addAnonymousSymbol(*B, 0, 0, false, /*IsLive=*/true);
    return Error::success();
  }

  Error addActions(LinkGraph &G) {
    using namespace llvm::orc::shared;
    Section *Init = G.findSectionByName(".init_array");
    if (!Init)
      return Error::success();
    SectionRange Range(*Init);
    G.allocActions().push_back({cantFail(Journal::Call::Create<SPSArgList<uint64_t, uint64_t>>(
                                    Run, Range.getStart().getValue(), Range.getSize())),
                                Journal::Call(RunBack, {})});
    return Error::success();
  }

  ExecutorAddr Run, RunBack;
};

class Constructors : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Constructors, everySetting(), settingName);

TEST_P(Constructors, RunAsAllocationActions) {
  Session S(GetParam());
  S.inside("hostNote");
  auto &Layer = static_cast<ObjectLinkingLayer &>(S.J->getObjLinkingLayer());
  Layer.addPlugin(std::make_unique<ConstructorsAsActions>(S));
  for (int Round = 0; Round != 2; ++Round) {
    auto Tracker = S.J->getMainJITDylib().createResourceTracker();
    must(S.J->addObjectFile(Tracker, objectFile("statics.cpp")));
    ExecutorAddr Sum = S.find("sumOfStatics");
    EXPECT_EQ(S.takeNotes(), (Ids{1, 2}));
    EXPECT_EQ(S.run(Sum), 3);
    must(Tracker->remove());
    EXPECT_EQ(S.takeNotes(), (Ids{-2, -1}));
  }
  EXPECT_EQ(S.end(), "exit 0");
  EXPECT_EQ(S.takeErrors(), "");
}

#if LLVM_VERSION_MAJOR >= 19
// A session on LLVM's ORC runtime.
std::unique_ptr<Session> onRuntime(Setting What) {
  LLJITBuilder Builder;
  Builder.setPlatformSetUp(ExecutorNativePlatform(ORC_RUNTIME));
  return std::make_unique<Session>(What, Session::Owner::EPC, Session::Dispatcher::Threads,
                                   std::move(Builder));
}

#if LLVM_VERSION_MAJOR >= 22
class WithRuntime : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, WithRuntime, everySetting(), settingName);

TEST_P(WithRuntime, ConstructorsAndDestructors) {
  auto S = onRuntime(GetParam());
  S->inside("hostNote");
  S->add("statics.cpp");
  ExecutorAddr Sum = S->find("sumOfStatics");
  EXPECT_EQ(S->takeNotes(), Ids());
  must(S->J->initialize(S->J->getMainJITDylib()));
  EXPECT_EQ(S->takeNotes(), (Ids{1, 2}));
  EXPECT_EQ(S->run(Sum), 3);
  must(S->J->deinitialize(S->J->getMainJITDylib()));
  EXPECT_EQ(S->takeNotes(), (Ids{-2, -1}));
  EXPECT_EQ(S->end(), "exit 0");
  EXPECT_EQ(S->takeErrors(), "");
}
#else
// LLVM 19 can't run its runtime in another process, whatever the manager. Its platform passes an
// object's exception frames to the runtime before the object is finalized: in LLVM's own shared
// memory nothing can be read before that, and elsewhere the runtime may find zeros. And what
// several threads link at a time is mislinked; see jit.h.
TEST(RuntimeOfLLVM19, FailsWithLLVMsOwnManagerToo) {
  {
    Session S(Setting::Llvm); // which works otherwise
    EXPECT_EQ(S.run(S.inside("plusOne"), 1), 2);
    EXPECT_EQ(S.end(), "exit 0");
  }
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto Attempt = [] {
    alarm(30);
    try {
      auto S = onRuntime(Setting::Llvm);
      S->add("statics.cpp");
      S->find("sumOfStatics");
      _exit(0);
    } catch (const std::exception &) {
      _exit(1);
    }
  };
  EXPECT_EXIT(
      Attempt(), [](int Status) { return Status != 0; }, "")
      << "where LLVM's own manager does it, jitmem's can, and WithRuntime has to be tried";
}
#endif
#endif

} // namespace
