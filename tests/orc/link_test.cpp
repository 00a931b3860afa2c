// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Linking through ObjectLinkingLayer and LLJIT: what links runs, what fails or is removed leaves
// nothing.

#include "jit.h"

#include <dlfcn.h>
#include <thread>

using namespace llvm;
using namespace llvm::orc;

namespace {

class Link : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Link, sessionKinds(), kindName);

class JitmemLink : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, JitmemLink, jitmemSessionKinds(), kindName);

TEST_P(Link, CompiledIRRuns) {
  start();
  must(J->addIRModule(parseIR(R"(
    @Counter = global i32 40
    define i32 @next() {
      %old = load i32, i32* @Counter
      %new = add i32 %old, 1
      store i32 %new, i32* @Counter
      ret i32 %new
    })")));
  EXPECT_EQ(callByName("next"), 41);
  EXPECT_EQ(callByName("next"), 42);
}

TEST_P(Link, EverySectionOfACompiledObject) {
  start();
  add("sections.c");
  EXPECT_EQ(callByName("checkSections"), 1 + 2 + 3 + 10 + 20 + 30 + 40 + 5 * 1000);
}

TEST_P(JitmemLink, ObjectAlignedAboveAPage) {
  start();
  add("aligned.c");
  char *Buffer = find<char *()>("alignedBuffer")();
  char *Zeros = find<char *()>("alignedZeros")();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(Buffer) % 65536, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(Zeros) % 16384, 0u);
  EXPECT_STREQ(Buffer, "aligned");
}

TEST_P(Link, ReferencesBetweenJITDylibs) {
  start();
  JITDylib &Library = must(J->createJITDylib("Library"));
  must(J->addIRModule(Library, parseIR(R"(
    @Shared = global i32 5
    declare i32 @callback()
    define i32 @twice() {
      %v = call i32 @callback()
      %w = load i32, i32* @Shared
      %s = add i32 %v, %w
      ret i32 %s
    })")));
  must(J->addIRModule(parseIR(R"(
    @Shared = external global i32
    declare i32 @twice()
    define i32 @callback() {
      ret i32 100
    }
    define i32 @entry() {
      store i32 11, i32* @Shared
      %v = call i32 @twice()
      ret i32 %v
    })")));
  main().addToLinkOrder(Library);
  Library.addToLinkOrder(main());
  EXPECT_EQ(callByName("entry"), 111);
}

TEST_P(Link, ObjectThatRefersToLibcsDataDirectly) {
  // Were stderr copied into this program's own image, no window could be near enough.
  Dl_info Info;
  void *Stderr = dlsym(RTLD_DEFAULT, "stderr");
  ASSERT_TRUE(dladdr(Stderr, &Info));
  ASSERT_NE(std::string(Info.dli_fname).find("libc"), std::string::npos)
      << "stderr is in " << Info.dli_fname;
  start();
  add("direct.c");
  EXPECT_EQ(find<void *()>("standardError")(), *static_cast<void **>(Stderr));
}

TEST_P(Link, UndefinedSymbolFailsOnlyWhatNeedsIt) {
  start();
  must(J->addIRModule(functionReturning("fine", 1)));
  EXPECT_EQ(callByName("fine"), 1);
  uint64_t Live = isJitmem(GetParam()) ? statsOf(*MM).live : 0;
  must(J->addIRModule(parseIR(R"(
    declare i32 @nobodyDefinesThis()
    define i32 @broken() {
      %v = call i32 @nobodyDefinesThis()
      ret i32 %v
    })")));
  // ORC reports to the session as well as to the caller.
  J->getExecutionSession().setErrorReporter([](Error Err) { consumeError(std::move(Err)); });
  EXPECT_NE(messageOf(compat::lookup(*J, "broken")), "");
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).live, Live);
    EXPECT_EQ(statsOf(*MM).in_flight, 0u);
  }
  must(J->addIRModule(functionReturning("alsoFine", 2)));
  EXPECT_EQ(callByName("alsoFine"), 2);
}

// Fails one step of the next link.
class FailingPlugin : public compat::StatelessPlugin {
public:
  enum Step { PrePrune, PostPrune, PostAllocation, PreFixup, PostFixup, Emitted };
  // Earlier, ORC forgets an allocation whose plugins fail when all is linked.
  static constexpr int Steps = LLVM_VERSION_MAJOR >= 19 ? Emitted + 1 : Emitted;

  std::optional<Step> FailAt;

  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    for (auto [Passes, S] : {std::pair(&Config.PrePrunePasses, PrePrune),
                             std::pair(&Config.PostPrunePasses, PostPrune),
                             std::pair(&Config.PostAllocationPasses, PostAllocation),
                             std::pair(&Config.PreFixupPasses, PreFixup),
                             std::pair(&Config.PostFixupPasses, PostFixup)})
      Passes->push_back([this, S = S](jitlink::LinkGraph &) { return failAt(S); });
  }
  Error notifyEmitted(MaterializationResponsibility &) override { return failAt(Emitted); }

private:
  Error failAt(Step S) {
    if (FailAt != S)
      return Error::success();
    FailAt.reset();
    return createStringError(inconvertibleErrorCode(), "step %d refused", int(S));
  }
};

TEST_P(Link, FailureOfAnyStepLeavesNothing) {
  start();
  auto NewPlugin = std::make_unique<FailingPlugin>();
  FailingPlugin *Plugin = NewPlugin.get();
  Layer->addPlugin(std::move(NewPlugin));
  must(J->addIRModule(functionReturning("fine", 1)));
  EXPECT_EQ(callByName("fine"), 1);
  uint64_t Live = isJitmem(GetParam()) ? statsOf(*MM).live : 0;

  std::string Reported;
  J->getExecutionSession().setErrorReporter(
      [&](Error Err) { Reported += toString(std::move(Err)); });
  for (int S = 0; S != FailingPlugin::Steps; ++S) {
    Plugin->FailAt = FailingPlugin::Step(S);
    std::string Name = "broken" + std::to_string(S);
    must(J->addIRModule(functionReturning(Name, S)));
    EXPECT_NE(messageOf(compat::lookup(*J, Name)), "");
    EXPECT_FALSE(Plugin->FailAt) << "step " << S << " was never reached";
    std::string Refused = "step " + std::to_string(S) + " refused";
    EXPECT_TRUE(mentions(Reported, {Refused.c_str()}));
    if (isJitmem(GetParam())) {
      EXPECT_EQ(statsOf(*MM).live, Live) << "step " << S;
      EXPECT_EQ(statsOf(*MM).in_flight, 0u) << "step " << S;
      EXPECT_EQ(statsOf(*MM).finalized, 1u) << "step " << S;
    }
  }
  must(J->addIRModule(functionReturning("fineAgain", 2)));
  EXPECT_EQ(callByName("fineAgain"), 2);
}

TEST_P(Link, RemovingATrackerFreesItsMemory) {
  start();
  must(J->addIRModule(functionReturning("stays", 1)));
  EXPECT_EQ(callByName("stays"), 1);
  uint64_t Live = isJitmem(GetParam()) ? statsOf(*MM).live : 0;
  for (int Round = 0; Round != 10; ++Round) {
    ResourceTrackerSP RT = main().createResourceTracker();
    must(J->addObjectFile(RT, objectFile("sections.c")));
    EXPECT_EQ(callByName("checkSections"), 5106);
    if (isJitmem(GetParam())) {
      EXPECT_GT(statsOf(*MM).live, Live + 2000000) << "there are 2 MB of zeros";
    }
    must(RT->remove());
    if (isJitmem(GetParam())) {
      EXPECT_EQ(statsOf(*MM).live, Live);
    }
  }
  EXPECT_EQ(callByName("stays"), 1);
}

TEST_P(Link, TransferredResourcesAreFreedWithTheirNewTracker) {
  start();
  ResourceTrackerSP First = main().createResourceTracker(), Second = main().createResourceTracker();
  must(J->addIRModule(First, functionReturning("first", 1)));
  must(J->addIRModule(Second, functionReturning("second", 2)));
  EXPECT_EQ(callByName("first") + callByName("second"), 3);
  First->transferTo(*Second);
  must(First->remove());
  EXPECT_EQ(callByName("first") + callByName("second"), 3);
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).finalized, 2u);
  }
  must(Second->remove());
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).live, 0u);
  }
}

TEST_P(Link, RemovingAJITDylibFreesItsMemory) {
  start();
  JITDylib &Library = must(J->createJITDylib("Library"));
  must(J->addIRModule(Library, functionReturning("inLibrary", 3)));
  EXPECT_EQ(call(must(compat::lookup(*J, Library, "inLibrary"))), 3);
  must(J->getExecutionSession().removeJITDylib(Library));
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).live, 0u);
  }
}

TEST_P(Link, ThousandObjectsThenRemoved) {
  start();
  constexpr int N = rounds(1000);
  std::vector<ResourceTrackerSP> Trackers;
  std::vector<ExecutorAddr> Entries;
  for (int I = 0; I != N; ++I) {
    Trackers.push_back(main().createResourceTracker());
    std::string Name = "f" + std::to_string(I);
    must(J->addIRModule(Trackers.back(), functionReturning(Name, I)));
    Entries.push_back(must(compat::lookup(*J, Name)));
  }
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).finalized, uint64_t(N));
    EXPECT_LT(statsOf(*MM).span, MaxSpan);
  }
  for (int I = 0; I < N; I += 2)
    must(Trackers[I]->remove());
  for (int I = 1; I < N; I += 2)
    ASSERT_EQ(call(Entries[I]), I);
  for (int I = 1; I < N; I += 2)
    must(Trackers[I]->remove());
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).live, 0u);
  }
}

TEST_P(Link, ConcurrentLinks) {
  LLJITBuilder Builder = builder();
  if (!needsExecutor(GetParam())) // whose EPC brings a dispatcher of its own
    Builder.setNumCompileThreads(4);
  start(std::move(Builder));
  constexpr int PerThread = 50, Threads = 4;
  for (int I = 0; I != PerThread * Threads; ++I)
    must(J->addIRModule(functionReturning("f" + std::to_string(I), I)));
  std::vector<std::string> Errors(Threads);
  std::vector<std::thread> Running;
  for (int T = 0; T != Threads; ++T)
    Running.emplace_back([&, T] {
      for (int I = T; I < PerThread * Threads; I += Threads) {
        auto Entry = compat::lookup(*J, "f" + std::to_string(I));
        if (!Entry)
          Errors[T] += toString(Entry.takeError());
        else if (call(*Entry) != I)
          Errors[T] += "f" + std::to_string(I) + " returned something else";
      }
    });
  for (std::thread &T : Running)
    T.join();
  EXPECT_EQ(Errors, std::vector<std::string>(Threads));
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).finalized, uint64_t(PerThread * Threads));
  }
}

} // namespace
