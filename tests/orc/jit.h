// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An LLJIT over the manager under test.

#ifndef JITMEM_TESTS_ORC_JIT_H
#define JITMEM_TESTS_ORC_JIT_H

#include "compat_orc.h"
#include "kit.h"

// An object file that the build compiled from objects/<Source>.
std::unique_ptr<llvm::MemoryBuffer> objectFile(const std::string &Source);

// A module that is in objects/<Name>, for instance "statics.ll", or that is given as text.
llvm::orc::ThreadSafeModule moduleFile(const std::string &Name);
llvm::orc::ThreadSafeModule parseIR(const std::string &Text);

// `i32 @Name()` that returns Value.
llvm::orc::ThreadSafeModule functionReturning(const std::string &Name, int Value);

// LLVM 19 mislinks objects that refer to each other when several threads complete their links, with
// its own manager too; there, sessions run on managers that complete in the calling thread.
#if LLVM_VERSION_MAJOR >= 22
inline auto sessionKinds() { return everyKind(); }
inline auto jitmemSessionKinds() { return jitmemKinds(); }
#else
inline auto sessionKinds() {
  return ::testing::Values(Kind::LlvmInProcess, Kind::JitmemTwoViews, Kind::JitmemMprotect);
}
inline auto jitmemSessionKinds() {
  return ::testing::Values(Kind::JitmemTwoViews, Kind::JitmemMprotect);
}
#endif

class JITTest : public ::testing::TestWithParam<Kind> {
protected:
  JITTest()
      : EPC(needsExecutor(GetParam()) ? createLoopback() : nullptr),
        MM(must(EPC ? createManager(GetParam(), *EPC) : createManager(GetParam()))) {}

  // Ends the session, which frees everything, and then asks the manager, which outlives it.
  void TearDown() override {
    J.reset();
    expectNothingLeft(GetParam(), *MM);
  }

  // An LLJIT whose linking layer allocates from MM and registers exception frames.
  void start() { start(builder()); }
  void start(llvm::orc::LLJITBuilder Builder) {
    J = must(Builder.create());
    compat::linkWithExecutor(*J, main());
    Layer = static_cast<llvm::orc::ObjectLinkingLayer *>(&J->getObjLinkingLayer());
  }
  llvm::orc::LLJITBuilder builder();

  void add(const std::string &Source) { must(J->addObjectFile(objectFile(Source))); }
  void add(llvm::orc::JITDylib &JD, const std::string &Source) {
    must(J->addObjectFile(JD, objectFile(Source)));
  }
  template <typename FnT> FnT *find(const std::string &Name) {
    return must(compat::lookup(*J, Name)).toPtr<FnT *>();
  }
  int callByName(const std::string &Name) { return call(must(compat::lookup(*J, Name))); }

  // objects/statics.cpp calls hostNote of the host in its constructors and destructors. The second
  // call initializes the main JITDylib that the object was added to, and checks their order.
  void provideHostNote();
  void expectStaticsRun();

  // bump(), from objects/threads.c or the like, counts from 7 on in each thread.
  void expectCounterPerThread();

  llvm::orc::JITDylib &main() { return J->getMainJITDylib(); }

  std::unique_ptr<llvm::orc::ExecutorProcessControl> EPC; // until the session has it
  std::unique_ptr<llvm::jitlink::JITLinkMemoryManager> MM;
  std::unique_ptr<llvm::orc::LLJIT> J;
  llvm::orc::ObjectLinkingLayer *Layer = nullptr;
};

#endif // JITMEM_TESTS_ORC_JIT_H
