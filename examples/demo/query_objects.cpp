// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "query_objects.hpp"

#include "llvm/AsmParser/Parser.h"
#include "llvm/ExecutionEngine/Orc/CompileUtils.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Object/ObjectFile.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/TargetSelect.h"

#include <cstring>

using namespace llvm;
using namespace llvm::orc;

namespace demo {

namespace {

struct Literals {
  int64_t A, B;
};

/// What a query computes of a row, in IR and in C++.
struct Shape {
  const char *IR; ///< from %row, %a and %b to %value
  int64_t (*Value)(int64_t Row, Literals L);
};

constexpr Shape Shapes[] = {
    // a * row + b
    {"%product = mul i64 %a, %row\n"
     "%value = add i64 %product, %b",
     [](int64_t Row, Literals L) { return L.A * Row + L.B; }},
    // row > a ? b : 0
    {"%passes = icmp sgt i64 %row, %a\n"
     "%value = select i1 %passes, i64 %b, i64 0",
     [](int64_t Row, Literals L) { return Row > L.A ? L.B : 0; }},
    // row between a and a + b
    {"%above = sub i64 %row, %a\n"
     "%within = icmp ule i64 %above, %b\n"
     "%value = zext i1 %within to i64",
     [](int64_t Row, Literals L) { return int64_t(uint64_t(Row - L.A) <= uint64_t(L.B)); }},
    // (row xor a) * b / 2^16, as a hash
    {"%mixed = xor i64 %row, %a\n"
     "%product = mul i64 %mixed, %b\n"
     "%value = ashr i64 %product, 16",
     [](int64_t Row, Literals L) { return ((Row ^ L.A) * L.B) >> 16; }},
    // case row is odd
    {"%bit = trunc i64 %row to i1\n"
     "%value = select i1 %bit, i64 %a, i64 %b",
     [](int64_t Row, Literals L) { return Row & 1 ? L.A : L.B; }},
    // (row + a) * row - b
    {"%sum = add i64 %row, %a\n"
     "%product = mul i64 %sum, %row\n"
     "%value = sub i64 %product, %b",
     [](int64_t Row, Literals L) { return (Row + L.A) * Row - L.B; }},
};

// The literals' values are not known to the compiler, so it loads them.
constexpr const char *Source = R"(
@literals = internal externally_initialized constant [2 x i64] zeroinitializer
@total = internal global i64 0
define i64 @{0}(i64 %row) nounwind {{
  %a = load i64, ptr @literals
  %b = load i64, ptr getelementptr (i8, ptr @literals, i64 8)
  {1}
  %before = load i64, ptr @total
  %after = add i64 %before, %value
  store i64 %after, ptr @total
  ret i64 %after
})";

Literals literals(unsigned Number) { return {Number % 1009, Number % 65521 + 1}; }

Expected<std::unique_ptr<MemoryBuffer>> compile(TargetMachine &Machine, const Shape &S) {
  LLVMContext Context;
  SMDiagnostic Diagnostic;
  auto M =
      parseAssemblyString(formatv(Source, QueryObjects::name(0), S.IR).str(), Diagnostic, Context);
  if (!M)
    return createStringError("a query's IR: " + Diagnostic.getMessage());
  M->setTargetTriple(Machine.getTargetTriple());
  M->setDataLayout(Machine.createDataLayout());
  return SimpleCompiler(Machine)(*M);
}

Expected<object::SymbolRef> find(const object::ObjectFile &File, StringRef Wanted) {
  for (const object::SymbolRef &Symbol : File.symbols()) {
    auto Name = Symbol.getName();
    if (!Name)
      return Name.takeError();
    if (*Name == Wanted)
      return Symbol;
  }
  return createStringError("a query's object file has no symbol " + Wanted);
}

/// Where the name itself is in the file.
Expected<size_t> offsetOfName(const object::ObjectFile &File, StringRef Wanted) {
  auto Symbol = find(File, Wanted);
  if (!Symbol)
    return Symbol.takeError();
  auto Name = Symbol->getName();
  if (!Name)
    return Name.takeError();
  return Name->data() - File.getData().data();
}

/// Where the content of a symbol is in the file.
Expected<size_t> offsetOfContent(const object::ObjectFile &File, StringRef Wanted) {
  auto Symbol = find(File, Wanted);
  if (!Symbol)
    return Symbol.takeError();
  auto Section = Symbol->getSection();
  if (!Section)
    return Section.takeError();
  auto Offset = Symbol->getValue();
  if (!Offset)
    return Offset.takeError();
  auto Content = (*Section)->getContents();
  if (!Content)
    return Content.takeError();
  if (*Offset + sizeof(Literals) > Content->size())
    return createStringError("a query's object file has no content for " + Wanted);
  return Content->data() + *Offset - File.getData().data();
}

} // namespace

std::string QueryObjects::name(unsigned Number) {
  std::string Name;
  raw_string_ostream(Name) << format("query_%08u", Number); // all names are of the same length
  return Name;
}

int64_t QueryObjects::value(unsigned Number, int64_t Row) {
  return Shapes[Number % std::size(Shapes)].Value(Row, literals(Number));
}

Expected<QueryObjects> QueryObjects::Create() {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto Builder = JITTargetMachineBuilder::detectHost();
  if (!Builder)
    return Builder.takeError();
  Builder->setRelocationModel(Reloc::PIC_);
  auto Machine = Builder->createTargetMachine();
  if (!Machine)
    return Machine.takeError();
  QueryObjects Objects;
  for (const Shape &S : Shapes) {
    auto Buffer = compile(**Machine, S);
    if (!Buffer)
      return Buffer.takeError();
    auto File = object::ObjectFile::createObjectFile(**Buffer);
    if (!File)
      return File.takeError();
    auto NameAt = offsetOfName(**File, name(0));
    if (!NameAt)
      return NameAt.takeError();
    auto LiteralsAt = offsetOfContent(**File, "literals");
    if (!LiteralsAt)
      return LiteralsAt.takeError();
    Objects.Templates.push_back({(*Buffer)->getBuffer().str(), *NameAt, *LiteralsAt});
  }
  return Objects;
}

std::unique_ptr<MemoryBuffer> QueryObjects::object(unsigned Number) const {
  const Template &T = Templates[Number % Templates.size()];
  std::string Name = name(Number);
  Literals Values = literals(Number);
  auto Object = WritableMemoryBuffer::getNewUninitMemBuffer(T.Object.size(), Name);
  char *Bytes = Object->getBufferStart();
  memcpy(Bytes, T.Object.data(), T.Object.size());
  memcpy(Bytes + T.NameAt, Name.data(), Name.size());
  memcpy(Bytes + T.LiteralsAt, &Values, sizeof Values);
  return Object;
}

} // namespace demo
