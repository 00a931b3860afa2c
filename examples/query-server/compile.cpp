// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Compiles queries and stores them as an image: the only program of the two that has LLVM.
//   jitmem-compile-queries IMAGE

#include <jitmem/orc_image.hpp>
#include <jitmem/orc_lljit.hpp>

#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/Support/FormatVariadic.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>
#include <llvm/Support/raw_ostream.h>

using namespace llvm;
using namespace llvm::orc;

static ExitOnError Exit("jitmem-compile-queries: ");

/// sum(column * factor) where column % modulus == 0, in rounds; the server counts the rows.
static const char Query[] = R"(
declare void @count_rows(i64)
define i64 @query_{0}(ptr %column, i64 %rows) {{
entry:
  call void @count_rows(i64 %rows)
  br label %row
row:
  %at = phi i64 [0, %entry], [%next, %row]
  %sum = phi i64 [0, %entry], [%added, %row]
  %place = getelementptr i64, ptr %column, i64 %at
  %value = load i64, ptr %place
  %rest = urem i64 %value, {1}
  %matches = icmp eq i64 %rest, 0
  %scaled = mul i64 %value, {2}
  %term = select i1 %matches, i64 %scaled, i64 0
  %added = add i64 %sum, %term
  %next = add i64 %at, 1
  %more = icmp ult i64 %next, %rows
  br i1 %more, label %row, label %end
end:
  ret i64 %added
})";

static uint64_t Counted;
static void countRows(uint64_t Rows) { Counted += Rows; }

int main(int Count, char **Arguments) {
  if (Count != 2) {
    errs() << "usage: jitmem-compile-queries IMAGE\n";
    return 2;
  }
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();

  auto Recorder = Exit(jitmem::orc::ImageRecorder::Create());
  LLJITBuilder Builder;
  Exit(jitmem::orc::useInProcess(Builder));
  auto J = Exit(Builder.create());
  auto &Layer = static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer());
  Layer.addPlugin(std::make_unique<jitmem::orc::ImagePlugin>(Recorder));
  Exit(J->getMainJITDylib().define(
      absoluteSymbols({{J->mangleAndIntern("count_rows"),
                        {ExecutorAddr::fromPtr(&countRows),
                         JITSymbolFlags::Exported | JITSymbolFlags::Callable}}})));

  for (unsigned Number = 0; Number != 8; ++Number) {
    auto Context = std::make_unique<LLVMContext>();
    SMDiagnostic Diagnostic;
    auto M = parseAssemblyString(formatv(Query, Number, Number + 1, Number + 2).str(), Diagnostic,
                                 *Context);
    if (!M)
      Exit(createStringError(inconvertibleErrorCode(), Diagnostic.getMessage()));
    Exit(J->addIRModule(ThreadSafeModule(std::move(M), std::move(Context))));
    // Links it.
    Exit(J->lookup(formatv("query_{0}", Number).str()));
  }
  Exit(Recorder->store(Arguments[1], {{"queries", "1"}}));
  outs() << "8 queries are in " << Arguments[1] << "\n";
}
