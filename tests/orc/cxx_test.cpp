// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What linked C++ needs beyond code that runs, on LLJIT's generic platform.

#include "jit.h"

#include <stdexcept>

using namespace llvm;
using namespace llvm::orc;

namespace {

class Exceptions : public JITTest {
protected:
  void addAll() {
    add("throws.cpp");
    add("passes.cpp");
    add("catches.cpp");
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Exceptions, sessionKinds(), kindName);

TEST_P(Exceptions, ThrownPassedAndCaughtInLinkedObjects) {
  start();
  addAll();
  EXPECT_EQ(find<int(int)>("catchProblem")(7), 1007);
  EXPECT_EQ(callByName("framesUnwound"), 1);
}

TEST_P(Exceptions, ThrownInALinkedObjectAndCaughtByTheHost) {
  start();
  addAll();
  auto *PassOn = find<void(void (*)(int), int)>("passOn");
  auto *ThrowError = find<void(int)>("throwError");
  std::string Caught;
  try {
    PassOn(ThrowError, 3);
  } catch (const std::runtime_error &E) {
    Caught = E.what();
  }
  EXPECT_EQ(Caught, "error 3");
  EXPECT_EQ(callByName("framesUnwound"), 1);
}

TEST_P(Exceptions, ThrownByTheHostThroughALinkedObject) {
  start();
  addAll();
  auto *PassOn = find<void(void (*)(int), int)>("passOn");
  int Caught = 0;
  try {
    PassOn([](int Value) { throw Value; }, 17);
  } catch (int Value) {
    Caught = Value;
  }
  EXPECT_EQ(Caught, 17);
  EXPECT_EQ(callByName("framesUnwound"), 1);
}

TEST_P(Exceptions, ThrownBehindFramesThatWereDropped) {
  start();
  provideHostNote();
  // Both have clang's weak function for exceptions that must not pass.
  add("statics.cpp");
  callByName("sumOfStatics");
  addAll();
  auto *ThrowError = find<void(int)>("throwError");
  // LLVM's manager leaves a gap there, at which the unwinder stops.
  if (!isJitmem(GetParam()))
    return;
  std::string Caught;
  try {
    ThrowError(3);
  } catch (const std::runtime_error &E) {
    Caught = E.what();
  }
  EXPECT_EQ(Caught, "error 3");
}

TEST_P(Exceptions, AcrossJITDylibs) {
  start();
  JITDylib &Library = must(J->createJITDylib("Library"));
  compat::linkWithExecutor(*J, Library);
  add(Library, "throws.cpp");
  add(Library, "passes.cpp");
  add("catches.cpp");
  main().addToLinkOrder(Library);
  EXPECT_EQ(find<int(int)>("catchProblem")(8), 1008);
}

TEST_P(Exceptions, StillWorkAfterOtherFramesWereRemoved) {
  // Frames that stay registered for freed memory would mislead the unwinder, or crash it.
  start();
  for (int Round = 0; Round != 20; ++Round) {
    ResourceTrackerSP Old = main().createResourceTracker();
    must(J->addObjectFile(Old, objectFile("throws.cpp")));
    must(J->addObjectFile(Old, objectFile("passes.cpp")));
    must(J->addObjectFile(Old, objectFile("catches.cpp")));
    ASSERT_EQ(find<int(int)>("catchProblem")(Round), 1000 + Round);
    must(Old->remove());
    if (isJitmem(GetParam())) {
      ASSERT_EQ(statsOf(*MM).live, 0u);
    }
  }
}

class Statics : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Statics, sessionKinds(), kindName);

TEST_P(Statics, OfAModule) {
  start();
  provideHostNote();
  must(J->addIRModule(moduleFile("statics.ll")));
  expectStaticsRun();
}

class ThreadLocals : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, ThreadLocals, sessionKinds(), kindName);

TEST_P(ThreadLocals, Emulated) {
  start();
  must(J->addIRModule(parseIR(R"(
    @Counter = internal thread_local global i32 7
    define i32 @bump() {
      %old = load i32, i32* @Counter
      %new = add i32 %old, 1
      store i32 %new, i32* @Counter
      ret i32 %new
    })")));
  expectCounterPerThread();
}

} // namespace
