// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "objects.hpp"
#include "system_error.hpp"
#include "workload.hpp"

#include "llvm/ADT/StringExtras.h"
#include "llvm/BinaryFormat/ELF.h"
#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"
#include "llvm/Object/Archive.h"
#include "llvm/Object/ELF.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/Path.h"

using namespace llvm;
using namespace llvm::orc;

namespace bench {

/// Lua's internal functions have the visibility "internal", which JITLink refuses. To a linker it
/// means what "hidden" means.
static Error hideInternalSymbols(WritableMemoryBuffer &Buffer) {
  auto File = object::ELFFile<object::ELF64LE>::create(toStringRef(Buffer.getBuffer()));
  if (!File)
    return File.takeError();
  auto Sections = File->sections();
  if (!Sections)
    return Sections.takeError();
  for (const auto &Section : *Sections) {
    if (Section.sh_type != ELF::SHT_SYMTAB)
      continue;
    auto Symbols = File->symbols(&Section);
    if (!Symbols)
      return Symbols.takeError();
    for (const auto &Symbol : *Symbols)
      if (Symbol.getVisibility() == ELF::STV_INTERNAL)
        const_cast<object::ELF64LE::Sym &>(Symbol).setVisibility(ELF::STV_HIDDEN);
  }
  return Error::success();
}

static Expected<Object> readMember(MemoryBufferRef Member) {
  // A copy, also because members of an archive aren't aligned as object files are.
  auto Copy = WritableMemoryBuffer::getNewUninitMemBuffer(Member.getBufferSize(),
                                                          Member.getBufferIdentifier());
  memcpy(Copy->getBufferStart(), Member.getBufferStart(), Member.getBufferSize());
  if (Error Err = hideInternalSymbols(*Copy))
    return Err;
  return readObject(std::move(Copy));
}

static Expected<Library> readLibrary(StringRef Path) {
  auto File = MemoryBuffer::getFile(Path);
  if (!File)
    return systemError(File.getError().value(), "read " + Path);
  auto Archive = object::Archive::create((*File)->getMemBufferRef());
  if (!Archive)
    return Archive.takeError();

  Library L;
  L.Name = sys::path::stem(Path).str();
  Error Err = Error::success();
  for (const auto &Child : (*Archive)->children(Err)) {
    auto Member = Child.getMemoryBufferRef();
    if (!Member)
      return joinErrors(std::move(Err), Member.takeError());
    auto O = readMember(*Member);
    if (!O)
      return joinErrors(std::move(Err), O.takeError());
    // Some members are empty in this configuration of the library: nothing can ask for them.
    if (!O->Defines.empty())
      L.Members.push_back(std::move(*O));
  }
  if (Err)
    return Err;
  return L;
}

Expected<std::vector<Library>> readLibraries() {
  std::vector<Library> Libraries;
  for (StringRef Path : split(JITMEM_BENCH_ARCHIVES, ':')) {
    auto L = readLibrary(Path);
    if (!L)
      return L.takeError();
    Libraries.push_back(std::move(*L));
  }
  return Libraries;
}

/// One function of each library, with an answer that its documentation promises.
static Error checkResults(ExecutionSession &ES, const SymbolMap &Symbols) {
  static constexpr struct {
    const char *Name;
    int Argument, Result;
  } Calls[] = {
      {"luaO_ceillog2", 1000, 10}, // a Lua internal: everything public needs a state
      {"sqlite3_initialize", 0, 0}, {"deflateEnd", 0, -2}, // Z_STREAM_ERROR for no stream
      {"ZSTD_maxCLevel", 0, 22},    {"sqlite3_shutdown", 0, 0},
  };
  for (const auto &C : Calls) {
    auto Found = Symbols.find(ES.intern(C.Name));
    if (Found == Symbols.end())
      return createStringError("no library defines %s", C.Name);
    if (Error Err = expectCall(ES, Found->second.getAddress(), C.Name, C.Argument, C.Result))
      return Err;
  }
  return Error::success();
}

static Error run(ExecutionSession &ES, Probe &P, std::shared_ptr<void> &Alive,
                 const std::vector<Library> &Libraries, uint64_t Members) {
  auto Session = LinkSession::Create(ES);
  if (!Session)
    return Session.takeError();
  Alive = *Session;
  // The members refer to it.
  if (auto LibM = ES.getExecutorProcessControl().getDylibMgr().loadDylib("libm.so.6"); !LibM)
    return LibM.takeError();
  SymbolMap Symbols;
  auto Link = [&]() -> Error {
    for (const Library &L : Libraries) {
      auto JD = (*Session)->addDylib(L.Name);
      if (!JD)
        return JD.takeError();
      if (Error Err = (*Session)->defineProcessSymbols(*JD, L.Members))
        return Err;
      for (const Object &O : L.Members)
        if (Error Err = (*Session)->add(*JD, O))
          return Err;
      auto Found = (*Session)->lookUp(*JD, L.Members);
      if (!Found)
        return Found.takeError();
      for (auto &[Name, Definition] : *Found)
        Symbols[Name] = Definition;
    }
    return Error::success();
  };
  if (Error Err = P.measure(LinkPhase, Members, Link))
    return Err;
  P.hold(LinkPhase, Members);
  if (Error Err = checkResults(ES, Symbols))
    return Err;
  return P.measure(RemovePhase, Members, [&] { return (*Session)->removeAll(); });
}

Expected<Workload> archives(const Settings &S) {
  auto Read = readLibraries();
  if (!Read)
    return Read.takeError();
  auto Libraries = std::make_shared<std::vector<Library>>(std::move(*Read));
  uint64_t Members = 0, Content = 0;
  std::string Names;
  for (const Library &L : *Libraries) {
    Members += L.Members.size();
    for (const Object &O : L.Members)
      Content += O.Content;
    Names += (Names.empty() ? "" : ", ") + L.Name;
  }

  Workload W;
  W.Key = "c";
  W.Title = formatv("All {0} members of {1} through ObjectLinkingLayer, eh-frames registered, "
                    "{2} KB of content",
                    Members, Names, Content / 1024);
  W.Operation = "object";
  W.Rounds = S.rounds(31);
  W.HasSum = true;
  W.Run = [Libraries, Members](const Host &, ExecutionSession &ES, Probe &P,
                               std::shared_ptr<void> &Alive) {
    return run(ES, P, Alive, *Libraries, Members);
  };
  return W;
}

} // namespace bench
