// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "jit.h"

#include <llvm/AsmParser/Parser.h>
#include <llvm/IR/LLVMContext.h>
#include <llvm/IR/Module.h>
#include <llvm/IRReader/IRReader.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

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

ThreadSafeModule bitcodeFile(const std::string &Name) {
  auto Context = std::make_unique<LLVMContext>();
  SMDiagnostic Diagnostic;
  auto M = parseIRFile(JIT_OBJECT_DIR "/" + Name, Diagnostic, *Context);
  if (!M)
    throw std::runtime_error(Diagnostic.getMessage().str());
  return ThreadSafeModule(std::move(M), std::move(Context));
}

ThreadSafeModule parseIR(const std::string &Text) {
  auto Context = std::make_unique<LLVMContext>();
  SMDiagnostic Diagnostic;
  auto M = parseAssemblyString(Text, Diagnostic, *Context);
  if (!M)
    throw std::runtime_error(Diagnostic.getMessage().str());
  return ThreadSafeModule(std::move(M), std::move(Context));
}

ThreadSafeModule functionReturning(const std::string &Name, int Value) {
  return parseIR("define i32 @" + Name + "() {\n  ret i32 " + std::to_string(Value) + "\n}\n");
}

LLJITBuilder JITTest::builder() {
  LLJITBuilder Builder;
  compat::setLinkingLayer(Builder,
                          [this](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
                            auto Layer = std::make_unique<ObjectLinkingLayer>(ES, *MM);
                            if (Error Err = compat::registerEHFrames(ES, *Layer))
                              return Err;
                            return Layer;
                          });
  return Builder;
}

void JITTest::startWithRuntime() {
  LLJITBuilder Builder = builder();
  Builder.setPlatformSetUp(ExecutorNativePlatform(ORC_RUNTIME));
  start(std::move(Builder));
}

void JITTest::provide(const char *Name, void *Address) {
  must(main().define(absoluteSymbols(
      {{J->mangleAndIntern(Name),
        {ExecutorAddr::fromPtr(Address), JITSymbolFlags::Exported | JITSymbolFlags::Callable}}})));
}
