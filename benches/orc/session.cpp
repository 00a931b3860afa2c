// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "session.hpp"

#include "llvm/ADT/StringSet.h"
#include "llvm/BinaryFormat/ELF.h"
#include "llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h"
#include "llvm/ExecutionEngine/Orc/EPCDynamicLibrarySearchGenerator.h"
#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"
#include "llvm/Object/ELFObjectFile.h"

using namespace llvm;
using namespace llvm::orc;

namespace bench {

Expected<Object> readObject(std::unique_ptr<MemoryBuffer> Buffer) {
  auto File = object::ObjectFile::createELFObjectFile(Buffer->getMemBufferRef());
  if (!File)
    return File.takeError();
  Object O;
  for (const object::SymbolRef &Symbol : (*File)->symbols()) {
    Expected<uint32_t> Flags = Symbol.getFlags();
    if (!Flags)
      return Flags.takeError();
    if ((*Flags & object::SymbolRef::SF_FormatSpecific) || !(*Flags & object::SymbolRef::SF_Global))
      continue;
    Expected<StringRef> Name = Symbol.getName();
    if (!Name)
      return Name.takeError();
    bool IsUndefined = *Flags & object::SymbolRef::SF_Undefined;
    (IsUndefined ? O.Needs : O.Defines).push_back(Name->str());
  }
  for (const object::ELFSectionRef Section : (*File)->sections())
    if (Section.getFlags() & ELF::SHF_ALLOC)
      O.Content += Section.getSize();
  O.Buffer = std::move(Buffer);
  return O;
}

Expected<std::shared_ptr<LinkSession>> LinkSession::Create(ExecutionSession &ES) {
  std::shared_ptr<LinkSession> S(new LinkSession(ES));
  auto Unwind = EHFrameRegistrationPlugin::Create(ES);
  if (!Unwind)
    return Unwind.takeError();
  S->Layer.addPlugin(std::move(*Unwind));
  return S;
}

Expected<JITDylib &> LinkSession::addDylib(StringRef Name) {
  JITDylib &JD = ES.createBareJITDylib(Name.str());
  Dylibs.push_back(&JD);
  auto Process = EPCDynamicLibrarySearchGenerator::GetForTargetProcess(ES);
  if (!Process)
    return Process.takeError();
  JD.addGenerator(std::move(*Process));
  return JD;
}

Error LinkSession::defineProcessSymbols(JITDylib &JD, const std::vector<Object> &Objects) {
  StringSet<> Names;
  for (const Object &O : Objects)
    Names.insert_range(O.Needs);
  for (const Object &O : Objects)
    for (const std::string &Name : O.Defines)
      Names.erase(Name);
  SymbolLookupSet Needed;
  for (StringRef Name : Names.keys())
    Needed.add(ES.intern(Name), SymbolLookupFlags::WeaklyReferencedSymbol);
  return ES.lookup({{&JD, JITDylibLookupFlags::MatchAllSymbols}}, std::move(Needed)).takeError();
}

Error LinkSession::add(JITDylib &JD, const Object &O) {
  return Layer.add(JD, MemoryBuffer::getMemBuffer(O.Buffer->getMemBufferRef(),
                                                  /*RequiresNullTerminator=*/false));
}

Expected<SymbolMap> LinkSession::lookUp(JITDylib &JD, const std::vector<Object> &Objects) {
  SymbolLookupSet Names;
  for (const Object &O : Objects)
    for (const std::string &Name : O.Defines)
      Names.add(ES.intern(Name));
  // All symbols, also the hidden ones: every member is to be linked.
  return ES.lookup({{&JD, JITDylibLookupFlags::MatchAllSymbols}}, std::move(Names));
}

Error LinkSession::removeAll() {
  Error Err = Error::success();
  for (JITDylib *JD : Dylibs)
    Err = joinErrors(std::move(Err), JD->clear());
  return Err;
}

Error expectCall(ExecutionSession &ES, ExecutorAddr Address, StringRef Name, int Argument,
                 int Expected) {
  auto Result = ES.getExecutorProcessControl().runAsIntFunction(Address, Argument);
  if (!Result)
    return Result.takeError();
  if (*Result != Expected)
    return createStringError("linked code is wrong: %s(%d) gave %d, not %d", Name.str().c_str(),
                             Argument, int(*Result), Expected);
  return Error::success();
}

} // namespace bench
