// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "session.hpp"
#include "timing.hpp"

#include "llvm/ExecutionEngine/JITLink/JITLink.h"
#include "llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h"
#include "llvm/ExecutionEngine/Orc/EPCDynamicLibrarySearchGenerator.h"
#include "llvm/ExecutionEngine/Orc/ObjectFileInterface.h"
#include "llvm/Object/ELF.h"

using namespace llvm;
using namespace llvm::orc;

namespace demo {

// What one library, or several, came to.
struct Tally {
  size_t Objects = 0;
  uint64_t Content = 0;
};

class Meter : public ObjectLinkingLayer::Plugin {
public:
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([this](jitlink::LinkGraph &G) {
      std::lock_guard<std::mutex> Lock(Mutex);
      for (jitlink::Section &Section : G.sections()) {
        if (Section.getMemLifetime() == MemLifetime::NoAlloc)
          continue;
        for (jitlink::Block *Block : Section.blocks())
          count(*Block);
      }
      return Error::success();
    });
  }

  Error notifyEmitted(MaterializationResponsibility &) override {
    std::lock_guard<std::mutex> Lock(Mutex);
    ++Part.Objects;
    ++Whole.Objects;
    return Error::success();
  }
  Error notifyFailed(MaterializationResponsibility &) override { return Error::success(); }
  Error notifyRemovingResources(JITDylib &, ResourceKey) override { return Error::success(); }
  void notifyTransferringResources(JITDylib &, ResourceKey, ResourceKey) override {}

  void startPart() {
    std::lock_guard<std::mutex> Lock(Mutex);
    Part = Tally();
  }
  Tally part() const {
    std::lock_guard<std::mutex> Lock(Mutex);
    return Part;
  }
  Tally whole() const {
    std::lock_guard<std::mutex> Lock(Mutex);
    return Whole;
  }

private:
  void count(const jitlink::Block &Block) {
    uint64_t Content = Block.isZeroFill() ? 0 : Block.getSize();
    Part.Content += Content;
    Whole.Content += Content;
  }

  mutable std::mutex Mutex;
  Tally Part, Whole;
};

static Figures toFigures(const Tally &T, double Milliseconds, Footprint Added, Traffic Crossed) {
  Figures F;
  F.Objects = T.Objects;
  F.Milliseconds = Milliseconds;
  F.Content = T.Content;
  F.Memory = Added.Bytes;
  F.Mappings = Added.Mappings;
  F.Messages = Crossed.Messages;
  F.MessageBytes = Crossed.Bytes;
  return F;
}

Session::Session(std::unique_ptr<ExecutorProcessControl> EPC, const Executor *Other)
    : Other(Other), Processes({"self"}), Measure(std::make_shared<Meter>()), ES(std::move(EPC)) {
  if (Other)
    Processes.push_back(std::to_string(Other->pid()));
  Reported.collectFrom(ES);
}

Session::~Session() { consumeError(end()); }

Error Session::end() {
  if (std::exchange(HasEnded, true))
    return Error::success();
  return Reported.addTo(ES.endSession());
}

Expected<std::unique_ptr<Session>> Session::Create(std::unique_ptr<ExecutorProcessControl> EPC,
                                                   const Executor *Other, CreateManager Create) {
  std::unique_ptr<Session> S(new Session(std::move(EPC), Other));
  ExecutionSession &ES = S->ES;
  S->ProcessSymbols = &ES.createBareJITDylib("process");
  auto InProcess = EPCDynamicLibrarySearchGenerator::GetForTargetProcess(ES);
  if (!InProcess)
    return InProcess.takeError();
  S->ProcessSymbols->addGenerator(std::move(*InProcess));
  // Not every executor uses libm itself.
  auto Math = EPCDynamicLibrarySearchGenerator::Load(ES, "libm.so.6");
  if (!Math)
    return Math.takeError();
  S->ProcessSymbols->addGenerator(std::move(*Math));

  auto Before = Footprint::of(S->Processes);
  if (!Before)
    return Before.takeError();
  S->Before = *Before;
  S->CrossedBefore = S->crossed();
  auto Start = Clock::now();
  auto MemMgr = Create(ES.getExecutorProcessControl());
  if (!MemMgr)
    return MemMgr.takeError();
  S->Milliseconds = millisecondsSince(Start);
  S->Jitmem = MemMgr->Jitmem;
  S->Layer = std::make_unique<ObjectLinkingLayer>(ES, std::move(MemMgr->Owned));
  S->Layer->addPlugin(S->Measure);
  auto EHFrames = EHFrameRegistrationPlugin::Create(ES);
  if (!EHFrames)
    return EHFrames.takeError();
  S->Layer->addPlugin(std::move(*EHFrames));
  return S;
}

// What a manager of jitmem's sends by its own channel counts as much as what EPC sends.
Traffic Session::crossed() const {
  Traffic Sum;
  if (Other)
    Sum += Other->traffic();
  if (!Jitmem)
    return Sum;
  jitmem_stats Stats = Jitmem->stats();
  // EPC's transport has counted the others'.
  if (Stats.mapper == JITMEM_MAPPER_SHARED)
    Sum += {Stats.messages, Stats.message_bytes};
  return Sum;
}

// Debian's Lua is compiled with "internal" visibility, which JITLink refuses. It is hidden
// visibility plus a promise about callers that a linker makes no use of, so hidden says all there
// is to say here.
static Error hideInternalSymbols(StringRef Object) {
  auto File = object::ELFFile<object::ELF64LE>::create(Object);
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
        // The caller's buffer is a private, writable copy of the file.
        const_cast<object::ELF64LE::Sym &>(Symbol).setVisibility(ELF::STV_HIDDEN);
  }
  return Error::success();
}

Error Session::addObject(JITDylib &JD, MemoryBufferRef Object, SymbolLookupSet &Linked) {
  auto Interface = getObjectFileInterface(ES, Object);
  if (!Interface)
    return Interface.takeError();
  // There is nothing to link, and LLVM's EPCGenericJITLinkMemoryManager fails on such objects.
  if (Interface->SymbolFlags.empty())
    return Error::success();
  // Some members define symbols for themselves only. So each gets one more, without an address, to
  // look up.
  if (!Interface->InitSymbol) {
    Interface->InitSymbol = ES.intern(("linked " + Object.getBufferIdentifier()).str());
    Interface->SymbolFlags[Interface->InitSymbol] = JITSymbolFlags::MaterializationSideEffectsOnly;
  }
  Linked.add(Interface->InitSymbol, SymbolLookupFlags::WeaklyReferencedSymbol);
  return Layer->add(JD.getDefaultResourceTracker(), MemoryBuffer::getMemBuffer(Object, false),
                    std::move(*Interface));
}

Error Session::lookup(JITDylib &JD, SymbolLookupSet Symbols, SymbolMap *Found) {
  auto Result = ES.lookup({{&JD, JITDylibLookupFlags::MatchAllSymbols}}, std::move(Symbols));
  if (!Result)
    return Reported.explain(Result.takeError());
  if (Found)
    *Found = std::move(*Result);
  return Error::success();
}

Expected<object::Archive &> Session::open(const Library &Lib) {
  auto Buffer = WritableMemoryBuffer::getFile(Lib.Archive);
  if (!Buffer)
    return createStringError("cannot read %s: %s; Debian's package %s has it: apt-get install %s",
                             Lib.Archive.c_str(), Buffer.getError().message().c_str(),
                             Lib.Package.c_str(), Lib.Package.c_str());
  auto Archive = object::Archive::create(**Buffer);
  if (!Archive)
    return createFileError(Lib.Archive, Archive.takeError());
  Archives.emplace_back(std::move(*Archive), std::move(*Buffer));
  return *Archives.back().getBinary();
}

Error Session::addMembers(JITDylib &JD, object::Archive &Members, SymbolLookupSet &Linked) {
  Error Bad = Error::success();
  for (const object::Archive::Child &Member : Members.children(Bad)) {
    auto Object = Member.getMemoryBufferRef();
    if (!Object)
      return Object.takeError();
    if (auto E = hideInternalSymbols(Object->getBuffer()))
      return createFileError(Object->getBufferIdentifier(), std::move(E));
    if (auto E = addObject(JD, *Object, Linked))
      return createFileError(Object->getBufferIdentifier(), std::move(E));
  }
  return Bad;
}

Expected<Figures> Session::link(const Library &Lib) {
  auto Members = open(Lib);
  if (!Members)
    return Members.takeError();
  JITDylib &JD = ES.createBareJITDylib(Lib.Name);
  JD.addToLinkOrder(*ProcessSymbols);
  SymbolLookupSet Linked;
  if (auto E = addMembers(JD, *Members, Linked))
    return createFileError(Lib.Archive, std::move(E));

  auto Earlier = Footprint::of(Processes);
  if (!Earlier)
    return Earlier.takeError();
  Measure->startPart();
  Traffic CrossedEarlier = crossed();
  size_t MemberCount = Linked.size();
  auto Start = Clock::now();
  if (auto E = lookup(JD, std::move(Linked)))
    return E;
  double Elapsed = millisecondsSince(Start);
  Milliseconds += Elapsed;
  auto Now = Footprint::of(Processes);
  if (!Now)
    return Now.takeError();
  Tally Part = Measure->part();
  if (Part.Objects != MemberCount)
    return createStringError("linked %zu of the %zu members of %s", Part.Objects, MemberCount,
                             Lib.Archive.c_str());
  Libraries.push_back(&JD);
  return toFigures(Part, Elapsed, *Now - *Earlier, crossed() - CrossedEarlier);
}

Expected<Figures> Session::total() const {
  auto Now = Footprint::of(Processes);
  if (!Now)
    return Now.takeError();
  return toFigures(Measure->whole(), Milliseconds, *Now - Before, crossed() - CrossedBefore);
}

Error Session::linkDriver(StringRef Path) {
  auto Object = MemoryBuffer::getFile(Path);
  if (!Object)
    return createStringError("cannot read the driver " + Path + ": " + Object.getError().message());
  Driver = &ES.createBareJITDylib("driver");
  // The libraries come before the process, which may have loaded shared libraries of the same name.
  for (JITDylib *JD : Libraries)
    Driver->addToLinkOrder(*JD);
  Driver->addToLinkOrder(*ProcessSymbols);
  SymbolLookupSet Linked;
  Objects.push_back(std::move(*Object));
  if (auto E = addObject(*Driver, *Objects.back(), Linked))
    return E;
  return lookup(*Driver, std::move(Linked));
}

Error Session::run(StringRef Function, bool Quiet) {
  SymbolMap Found;
  SymbolStringPtr Name = ES.intern(Function);
  if (auto E = lookup(*Driver, SymbolLookupSet(Name), &Found))
    return E;
  std::vector<std::string> Args = {Function.str()};
  if (Quiet)
    Args.push_back("quiet");
  auto Wrong = ES.getExecutorProcessControl().runAsMain(Found[Name].getAddress(), Args);
  if (!Wrong)
    return Wrong.takeError();
  if (*Wrong)
    return createStringError("%s gave %d wrong answers", Args.front().c_str(), int(*Wrong));
  return Error::success();
}

} // namespace demo
