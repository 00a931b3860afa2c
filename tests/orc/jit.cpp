// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "jit.h"

#include <llvm/AsmParser/Parser.h>
#include <llvm/IR/LLVMContext.h>
#include <llvm/IR/Module.h>
#include <llvm/IRReader/IRReader.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <thread>

using namespace llvm;
using namespace llvm::orc;

namespace {

// LLVM's registry of targets is global, and has to be filled before the first LLJIT is made.
struct InitializeTarget {
  InitializeTarget() {
    InitializeNativeTarget();
    InitializeNativeTargetAsmPrinter();
    InitializeNativeTargetAsmParser();
  }
};
const InitializeTarget Initialized;

} // namespace

std::unique_ptr<MemoryBuffer> objectFile(const std::string &Source) {
  return must(errorOrToExpected(MemoryBuffer::getFile(JIT_OBJECT_DIR "/" + Source + ".o")));
}

// In which a pointer is "ptr".
static std::unique_ptr<LLVMContext> newContext() {
  auto Context = std::make_unique<LLVMContext>();
#if LLVM_VERSION_MAJOR == 14
  Context->enableOpaquePointers();
#endif
  return Context;
}

ThreadSafeModule moduleFile(const std::string &Name) {
  auto Context = newContext();
  SMDiagnostic Diagnostic;
  auto M = parseIRFile(JIT_SOURCE_DIR "/" + Name, Diagnostic, *Context);
  if (!M)
    throw std::runtime_error(Diagnostic.getMessage().str());
  return ThreadSafeModule(std::move(M), std::move(Context));
}

static ThreadSafeModule parse(const std::string &Text, std::unique_ptr<LLVMContext> Context) {
  SMDiagnostic Diagnostic;
  auto M = parseAssemblyString(Text, Diagnostic, *Context);
  if (!M)
    throw std::runtime_error(Diagnostic.getMessage().str());
  return ThreadSafeModule(std::move(M), std::move(Context));
}

ThreadSafeModule parseIR(const std::string &Text) { return parse(Text, newContext()); }

// There is no pointer in it: LLJIT's own threads copy modules into contexts where LLVM 14 reads no
// "ptr".
ThreadSafeModule functionReturning(const std::string &Name, int Value) {
  return parse("define i32 @" + Name + "() {\n  ret i32 " + std::to_string(Value) + "\n}\n",
               std::make_unique<LLVMContext>());
}

LLJITBuilder JITTest::builder() {
  LLJITBuilder Builder;
  if (EPC)
    Builder.setExecutorProcessControl(std::move(EPC));
  compat::setLinkingLayer(Builder,
                          [this](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
                            auto Layer = std::make_unique<ObjectLinkingLayer>(ES, *MM);
                            if (Error Err = compat::registerEHFrames(ES, *Layer))
                              return Err;
                            return Layer;
                          });
  return Builder;
}

static std::vector<int> Notes;

void JITTest::provideHostNote() {
  Notes.clear();
  auto HostNote = [](int Id) { Notes.push_back(Id); };
  must(main().define(absoluteSymbols(
      {{J->mangleAndIntern("hostNote"), compat::callableAt(ExecutorAddr::fromPtr(+HostNote))}})));
}

void JITTest::expectStaticsRun() {
  EXPECT_EQ(Notes, std::vector<int>());
  must(J->initialize(main()));
  EXPECT_EQ(Notes, (std::vector<int>{1, 2}));
  EXPECT_EQ(callByName("sumOfStatics"), 3);
  must(J->deinitialize(main()));
  EXPECT_EQ(Notes, (std::vector<int>{1, 2, -2, -1}));
}

void JITTest::expectCounterPerThread() {
  int (*Bump)() = find<int()>("bump");
  EXPECT_EQ(Bump(), 8);
  EXPECT_EQ(Bump(), 9);
  int Other = 0;
  std::thread([&] { Other = Bump(); }).join();
  EXPECT_EQ(Other, 8);
  EXPECT_EQ(Bump(), 10);
}
