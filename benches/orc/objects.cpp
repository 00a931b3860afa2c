// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "objects.hpp"
#include "workload.hpp"

#include "llvm/AsmParser/Parser.h"
#include "llvm/ExecutionEngine/Orc/CompileUtils.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/TargetSelect.h"

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned Count = 2000;

std::string tinyName(unsigned Number) { return formatv("tiny_{0}", Number); }

int tinyResult(unsigned Number, int X) { return X * int(Number + (X & 7)) + int(Number); }

/// A function, a constant that it reads, a word of data that it reads, and unwind info.
static const char Source[] = R"(
@constant = internal constant [8 x i32] [{1}], align 16
@word = internal global i32 {0}
define i32 @tiny_{0}(i32 %x) nounwind uwtable {{
  %index = and i32 %x, 7
  %at = getelementptr [8 x i32], ptr @constant, i32 0, i32 %index
  %factor = load i32, ptr %at
  %product = mul i32 %x, %factor
  %addend = load i32, ptr @word
  %sum = add i32 %product, %addend
  ret i32 %sum
})";

Expected<std::vector<Object>> compileTinyObjects() {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto Builder = JITTargetMachineBuilder::detectHost();
  if (!Builder)
    return Builder.takeError();
  Builder->setRelocationModel(Reloc::PIC_);
  auto Machine = Builder->createTargetMachine();
  if (!Machine)
    return Machine.takeError();

  std::vector<Object> Objects;
  SimpleCompiler Compile(**Machine);
  for (unsigned I = 0; I != Count; ++I) {
    LLVMContext Context;
    SMDiagnostic Diagnostic;
    std::string Factors;
    for (unsigned Index = 0; Index != 8; ++Index)
      Factors += formatv("{0}i32 {1}", Index ? ", " : "", I + Index);
    auto M = parseAssemblyString(formatv(Source, I, Factors).str(), Diagnostic, Context);
    if (!M)
      return createStringError("tiny object %u: %s", I, Diagnostic.getMessage().str().c_str());
    M->setModuleIdentifier(tinyName(I));
    M->setTargetTriple((*Machine)->getTargetTriple());
    M->setDataLayout((*Machine)->createDataLayout());
    auto Buffer = Compile(*M);
    if (!Buffer)
      return Buffer.takeError();
    auto O = readObject(std::move(*Buffer));
    if (!O)
      return O.takeError();
    Objects.push_back(std::move(*O));
  }
  return Objects;
}

static Error run(ExecutionSession &ES, Probe &P, std::shared_ptr<void> &Alive,
                 const std::vector<Object> &Objects) {
  auto Session = LinkSession::Create(ES);
  if (!Session)
    return Session.takeError();
  Alive = *Session;
  auto JD = (*Session)->addDylib("tiny");
  if (!JD)
    return JD.takeError();

  SymbolMap Symbols;
  auto Link = [&]() -> Error {
    for (const Object &O : Objects)
      if (Error Err = (*Session)->add(*JD, O))
        return Err;
    auto Found = (*Session)->lookUp(*JD, Objects);
    if (!Found)
      return Found.takeError();
    Symbols = std::move(*Found);
    return Error::success();
  };
  if (Error Err = P.measure(LinkPhase, Count, Link))
    return Err;
  P.hold(LinkPhase, Count);

  for (unsigned Number : {0u, 1u, Count / 2, Count - 1})
    for (int Argument : {0, 1, 13})
      if (Error Err = expectCall(ES, Symbols[ES.intern(tinyName(Number))].getAddress(),
                                 tinyName(Number), Argument, tinyResult(Number, Argument)))
        return Err;
  return P.measure(RemovePhase, Count, [&] { return (*Session)->removeAll(); });
}

Expected<Workload> tinyObjects(const Settings &S) {
  auto Compiled = compileTinyObjects();
  if (!Compiled)
    return Compiled.takeError();
  auto Objects = std::make_shared<std::vector<Object>>(std::move(*Compiled));
  uint64_t Content = 0;
  for (const Object &O : *Objects)
    Content += O.Content;

  Workload W;
  W.Key = "b";
  W.Title = formatv("{0} tiny objects through ObjectLinkingLayer, eh-frames registered, {1} KB of "
                    "content",
                    Count, Content / 1024);
  W.Operation = "object";
  W.Rounds = S.rounds(31);
  W.HasSum = true;
  W.Run = [Objects](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &Alive) {
    return run(ES, P, Alive, *Objects);
  };
  return W;
}

} // namespace bench
