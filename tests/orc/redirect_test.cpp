// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// LLVM's redirectable symbols in memory of jitmem's: functions that are replaced while threads call
// them.

#include "executors.h"

#if LLVM_VERSION_MAJOR >= 22
#include <llvm/ExecutionEngine/Orc/JITLinkRedirectableSymbolManager.h>

#include <atomic>
#include <thread>

using namespace llvm;
using namespace llvm::orc;

namespace {

constexpr int Versions = 5, Redirects = rounds(300);

// A function of which there are Versions, the first of which answers 0.
class Redirectable {
public:
  explicit Redirectable(LLJIT &J)
      : J(J), Layer(static_cast<ObjectLinkingLayer &>(J.getObjLinkingLayer())),
        Manager(must(JITLinkRedirectableSymbolManager::Create(Layer))),
        Name(J.mangleAndIntern("function")) {
    for (int I = 0; I != Versions; ++I) {
      std::string Version = "version" + std::to_string(I);
      must(J.addIRModule(functionReturning(Version, I)));
      Targets.push_back({must(J.lookup(Version)), Flags});
    }
    must(Manager->createRedirectableSymbol(J.getMainJITDylib().getDefaultResourceTracker(), Name,
                                           Targets[0]));
    Entry = must(J.lookup("function"));
  }

  void redirect(int Version) {
    must(Manager->redirect(J.getMainJITDylib(), Name, Targets[Version]));
  }

  ExecutorAddr Entry;

private:
  static constexpr JITSymbolFlags::FlagNames Both =
      static_cast<JITSymbolFlags::FlagNames>(JITSymbolFlags::Exported | JITSymbolFlags::Callable);
  const JITSymbolFlags Flags = JITSymbolFlags(Both);

  LLJIT &J;
  ObjectLinkingLayer &Layer;
  std::unique_ptr<RedirectableSymbolManager> Manager;
  SymbolStringPtr Name;
  std::vector<ExecutorSymbolDef> Targets;
};

// Redirects many times while `Call` calls in threads. What has been redirected is seen by the next
// call.
template <typename CallT> void expectRedirects(Redirectable &R, CallT Call, unsigned Callers) {
  std::atomic<bool> Stop = false;
  std::atomic<int> Wrong = 0;
  std::vector<std::thread> Threads;
  for (unsigned I = 0; I != Callers; ++I)
    Threads.emplace_back([&] {
      while (!Stop) {
        int Answer = Call(R.Entry);
        Wrong += Answer < 0 || Answer >= Versions;
      }
    });
  EXPECT_EQ(Call(R.Entry), 0);
  for (int I = 1; I <= Redirects; ++I) {
    R.redirect(I % Versions);
    EXPECT_EQ(Call(R.Entry), I % Versions);
  }
  Stop = true;
  for (std::thread &T : Threads)
    T.join();
  EXPECT_EQ(Wrong, 0);
}

class Redirect : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Redirect, sessionKinds(), kindName);

TEST_P(Redirect, WhileThreadsCall) {
  start();
  Redirectable R(*J);
  // Of what a redirect writes, nothing is allocated.
  uint64_t Before = isJitmem(GetParam()) ? statsOf(*MM).allocate_calls : 0;
  expectRedirects(R, [](ExecutorAddr Entry) { return call(Entry); }, 3);
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).allocate_calls, Before);
  }
}

class ExecutorRedirect : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, ExecutorRedirect, everySetting(), settingName);

TEST_P(ExecutorRedirect, WhileThreadsCall) {
  Session S(GetParam());
  {
    Redirectable R(*S.J);
    expectRedirects(R, [&](ExecutorAddr Entry) { return S.run(Entry); }, 1);
  }
  EXPECT_EQ(S.end(), "exit 0");
}

} // namespace
#endif
