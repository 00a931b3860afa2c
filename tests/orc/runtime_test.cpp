// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Linked C++ on the ORC runtime. Each test needs a process of its own: LLVM 19's runtime never
// deregisters exception frames, so after a session nothing in the process can be thrown safely.

#include "jit.h"

namespace {

class Runtime : public JITTest {
protected:
  void SetUp() override {
    llvm::orc::LLJITBuilder Builder = builder();
    Builder.setPlatformSetUp(llvm::orc::ExecutorNativePlatform(ORC_RUNTIME));
    start(std::move(Builder));
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Runtime, sessionKinds(), kindName);

TEST_P(Runtime, Exceptions) {
  add("throws.cpp");
  add("passes.cpp");
  add("catches.cpp");
  must(J->initialize(main()));
  EXPECT_EQ(find<int(int)>("catchProblem")(9), 1009);
  EXPECT_EQ(callByName("framesUnwound"), 1);
  must(J->deinitialize(main()));
}

TEST_P(Runtime, StaticsOfAnObject) {
  provideHostNote();
  add("statics.cpp");
  expectStaticsRun();
}

TEST_P(Runtime, NativeThreadLocals) {
  add("threads.c");
  must(J->initialize(main()));
  expectCounterPerThread();
  must(J->deinitialize(main()));
}

} // namespace
