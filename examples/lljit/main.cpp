// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLJIT with its memory manager swapped for jitmem's, by one line.
#include <jitmem/orc_lljit.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>
using namespace llvm;

static const char Source[] = "define i32 @add(i32 %a, i32 %b) { %c = add i32 %a, %b  ret i32 %c }";

int main() {
  ExitOnError OrExit("lljit: ");
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  orc::LLJITBuilder Builder;
  // The one line. Without it, LLVM's own manager does the same work.
  OrExit(jitmem::orc::useInProcess(Builder));
  auto JIT = OrExit(Builder.create());
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Source, Diagnostic, *Context);
  OrExit(JIT->addIRModule({std::move(Module), std::move(Context)}));
  auto Symbol = OrExit(JIT->lookup("add"));
#if LLVM_VERSION_MAJOR >= 15
  auto *Add = Symbol.toPtr<int (*)(int, int)>();
#else
  auto *Add = reinterpret_cast<int (*)(int, int)>(Symbol.getAddress());
#endif
  int Sum = Add(40, 2);
  outs() << "40 + 2 = " << Sum << '\n';
  return Sum == 42 ? 0 : 1;
}
