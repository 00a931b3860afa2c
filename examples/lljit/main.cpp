// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLJIT with its memory manager swapped for jitmem's, by one line.
#include <jitmem/orc.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>
using namespace llvm;

static const char Source[] = "define i32 @add(i32 %a, i32 %b) { %c = add i32 %a, %b  ret i32 %c }";

int main() {
  ExitOnError OrExit("lljit: ");
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  // The one line. Pass nullptr for what it makes, and LLVM's own manager does the same work.
  auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
  auto EPC = OrExit(orc::SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MemMgr)));
  auto JIT = OrExit(orc::LLJITBuilder().setExecutorProcessControl(std::move(EPC)).create());
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Source, Diagnostic, *Context);
  OrExit(JIT->addIRModule({std::move(Module), std::move(Context)}));
  auto *Add = OrExit(JIT->lookup("add")).toPtr<int(int, int)>();
  int Sum = Add(40, 2);
  outs() << "40 + 2 = " << Sum << '\n';
  return Sum == 42 ? 0 : 1;
}
