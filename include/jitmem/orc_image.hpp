// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images: what a session has linked, in a file, from which later processes have it without linking.
// For LLVM 19 and later, and x86-64.

#ifndef JITMEM_ORC_IMAGE_HPP
#define JITMEM_ORC_IMAGE_HPP

#include "orc.hpp"

#include <llvm/ADT/DenseMap.h>
#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/StringExtras.h>
#include <llvm/ExecutionEngine/JITLink/x86_64.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace jitmem::orc {

/// What code depends on besides jitmem's and LLVM's version and the processor, by name: options of
/// the compiler, build-ids of libraries whose structures it knows.
using ImageKey = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// A key as the C API takes it; valid for as long as the key.
class PassedImageKey {
public:
  explicit PassedImageKey(const ImageKey &Key) {
    Parts.push_back({"LLVM", LLVMRelease, {}});
    for (auto &[Name, Value] : Key)
      Parts.push_back({Name.c_str(), Value.c_str(), {}});
  }
  const jitmem_image_key *data() const { return Parts.data(); }
  size_t size() const { return Parts.size(); }

private:
  std::vector<jitmem_image_key> Parts;
};

inline llvm::Error notStorable(const llvm::Twine &Why) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), Why);
}

/// What a recorder is told of a graph whose fixups are applied.
class ImageGraph {
public:
  using Block = llvm::jitlink::Block;
  using Edge = llvm::jitlink::Edge;
  using LinkGraph = llvm::jitlink::LinkGraph;
  using Symbol = llvm::jitlink::Symbol;

  /// Fails if the graph can't be stored, and says what of it.
  llvm::Error read(LinkGraph &G) {
    if (G.getTargetTriple().getArch() != llvm::Triple::x86_64)
      return notStorable("its architecture is not x86-64");
    Name = G.getName();
    if (auto Err = readSegments(G))
      return Err;
    findGOT(G);
    for (auto &S : Segments)
      for (auto *B : S.Blocks)
        for (auto &E : B->edges())
          if (auto Err = readEdge(G, S, *B, E))
            return Err;
    for (auto *Sym : G.defined_symbols())
      if (Sym->hasName() && Sym->getScope() != llvm::jitlink::Scope::Local &&
          segmentOf(Sym->getBlock()))
        Exports.push_back({keep(nameOf(*Sym)), Sym->getAddress().getValue(), flagsOf(*Sym), {}});
    if (auto *Section = G.findSectionByName(".eh_frame")) {
      llvm::jitlink::SectionRange Range(*Section);
      if (Range.getSize() != 0)
        Frames.push_back({Range.getStart().getValue(), Range.getSize(), {}});
    }
    // The program that loads the image registers frames; what other actions do is not known.
    for (auto &Action : G.allocActions())
      for (auto *Call : {&Action.Finalize, &Action.Dealloc})
        if (*Call && !registersFrames(*Call))
          return notStorable("it has finalize actions besides those of its frames");
    return llvm::Error::success();
  }

  /// Hands it to a recorder; 0: it has no memory.
  llvm::Expected<uint64_t> record(jitmem_image_recorder *Recorder) const {
    std::vector<jitmem_image_segment> Passed;
    for (auto &S : Segments) {
      const jitmem_segment Asked = {S.Content.size(),
                                    S.End - S.Start - S.Content.size(),
                                    S.Alignment,
                                    static_cast<uint32_t>(S.Group.getMemProt()),
                                    JITMEM_LIFETIME_STANDARD,
                                    {}};
      Passed.push_back({S.Start, S.Content.data(), Asked, {}});
    }
    jitmem_image_graph Graph = {};
    Graph.struct_size = sizeof(Graph);
    Graph.name = Name.c_str();
    Graph.segments = Passed.data();
    Graph.segment_count = Passed.size();
    Graph.imports = Imports.data();
    Graph.import_count = Imports.size();
    Graph.references = References.data();
    Graph.reference_count = References.size();
    Graph.exports = Exports.data();
    Graph.export_count = Exports.size();
    Graph.frames = Frames.data();
    Graph.frames_count = Frames.size();
    uint64_t Id = 0;
    OwnedError E;
    if (jitmem_image_recorder_record(Recorder, &Graph, &Id, E.out()) != JITMEM_OK)
      return E.take();
    return Id;
  }

  std::string Name;

private:
  /// All blocks of one protection, which memory managers lay out one behind the other.
  struct Segment {
    AllocGroup Group;
    std::vector<Block *> Blocks;
    uint64_t Alignment = 1, Start = 0, End = 0;
    std::string Content;
  };

  static bool isConstructors(llvm::StringRef Section) {
    return Section == ".init_array" || Section.starts_with(".init_array.") ||
           Section == ".fini_array" || Section == ".ctors" || Section == ".dtors" ||
           Section == ".preinit_array";
  }

  llvm::Error readSegments(LinkGraph &G) {
    for (auto &Section : G.sections()) {
      if (!isAllocated(Section) || Section.blocks_size() == 0)
        continue;
      if (endsAtFinalize(Section))
        return notStorable("section " + Section.getName() + " lives only until finalize");
      if (isConstructors(Section.getName()))
        return notStorable("section " + Section.getName() +
                           " has constructors, which its platform runs");
      auto Group = groupOf(Section);
      auto Found = llvm::find_if(Segments, [&](auto &S) { return S.Group == Group; });
      if (Found == Segments.end()) {
        Segments.push_back({Group, {}, 1, 0, 0, {}});
        Found = std::prev(Segments.end());
      }
      for (auto *B : Section.blocks())
        Found->Blocks.push_back(B);
    }
    for (auto &S : Segments) {
      llvm::sort(S.Blocks, [](auto *L, auto *R) { return L->getAddress() < R->getAddress(); });
      for (auto *B : S.Blocks) {
        S.Alignment = std::max<uint64_t>(S.Alignment, B->getAlignment());
        S.End = std::max(S.End, B->getAddress().getValue() + B->getSize());
      }
      S.Start = S.Blocks.front()->getAddress().getValue() & ~(S.Alignment - 1);
      for (auto *B : S.Blocks) {
        Of[B] = static_cast<size_t>(&S - Segments.data());
        if (B->isZeroFill() || B->getSize() == 0)
          continue;
        S.Content.resize(B->getAddress().getValue() - S.Start, 0);
        auto Bytes = B->getContent();
        S.Content.append(Bytes.data(), Bytes.size());
      }
    }
    return llvm::Error::success();
  }

  const Segment *segmentOf(const Block &B) const {
    auto Found = Of.find(&B);
    return Found == Of.end() ? nullptr : &Segments[Found->second];
  }

  llvm::Error readEdge(LinkGraph &G, const Segment &S, const Block &B, const Edge &E) {
    namespace x86 = llvm::jitlink::x86_64;
    if (!E.isRelocation())
      return llvm::Error::success();
    const uint64_t Slot = B.getAddress().getValue() + E.getOffset();
    const auto &Target = E.getTarget();
    const uint64_t Address = Target.getAddress().getValue();
    const Segment *In = Target.isDefined() ? segmentOf(Target.getBlock()) : nullptr;
    auto Refuse = [&]() {
      auto Symbol = nameOf(Target);
      return notStorable("it refers to " + (Symbol.empty() ? "something of its own" : Symbol) +
                         " by an edge of kind " + G.getEdgeKindName(E.getKind()));
    };
    uint32_t Distance = 0;
    // Instructions count from their end.
    int64_t Behind = 0;
    switch (E.getKind()) {
    case x86::Pointer64:
      if (In) {
        References.push_back({Slot, In->Start, 0, JITMEM_IMAGE_ABSOLUTE_64, {}});
        return llvm::Error::success();
      }
      // A weak reference that nothing defines stays 0.
      if (Target.isAbsolute() || (Address == 0 && Target.isWeaklyReferenced()))
        return llvm::Error::success();
      if (nameOf(Target).empty())
        return Refuse();
      Imports.push_back(
          {Slot, keep(nameOf(Target)), E.getAddend(), 0, JITMEM_IMAGE_ABSOLUTE_64, {}});
      return llvm::Error::success();
    case x86::Delta64:
      // A GOT without entries is at 0.
      if (Target.isAbsolute()) {
        References.push_back({Slot, 0, 0, JITMEM_IMAGE_RELATIVE_FIXED_64, {}});
        return llvm::Error::success();
      }
      Distance = JITMEM_IMAGE_RELATIVE_64;
      break;
    case x86::Delta64FromGOT:
      return readFromGOT(Slot, In, E) ? llvm::Error::success() : Refuse();
    case x86::Delta32:
      Distance = JITMEM_IMAGE_RELATIVE_32;
      break;
    case x86::PCRel32:
    case x86::BranchPCRel32:
    case x86::BranchPCRel32ToPtrJumpStub:
    case x86::BranchPCRel32ToPtrJumpStubBypassable:
    case x86::PCRel32GOTLoadRelaxable:
    case x86::PCRel32GOTLoadREXRelaxable:
      Distance = JITMEM_IMAGE_RELATIVE_32;
      Behind = 4;
      break;
    default:
      return isFixed(G.getEdgeKindName(E.getKind()), In == &S) ? llvm::Error::success() : Refuse();
    }
    if (In == &S)
      return llvm::Error::success();
    if (In) {
      References.push_back({Slot, In->Start, 0, Distance, {}});
      return llvm::Error::success();
    }
    // To what is outside, of the graph or of the image: it must be in reach in later processes too.
    if (Target.isDefined() || Address == 0 || nameOf(Target).empty())
      return Refuse();
    Imports.push_back({Slot, keep(nameOf(Target)), E.getAddend() - Behind, 0, Distance, {}});
    return llvm::Error::success();
  }

  /// Distances from the GOT, which the large code model has, are counted from the symbol that
  /// JITLink has put there: at its first entry, or at 0 if there are none.
  void findGOT(LinkGraph &G) {
    auto Find = [&](auto &&Symbols) {
      for (auto *Sym : Symbols)
        if (nameOf(*Sym) == "_GLOBAL_OFFSET_TABLE_")
          GOT = Sym;
    };
    Find(G.defined_symbols());
    Find(G.absolute_symbols());
  }

  /// False: it can't be stored.
  bool readFromGOT(uint64_t Slot, const Segment *In, const Edge &E) {
    const auto &Target = E.getTarget();
    const uint64_t Origin = GOT ? GOT->getAddress().getValue() : 0;
    const Segment *From = GOT && GOT->isDefined() ? segmentOf(GOT->getBlock()) : nullptr;
    if (!From && !(GOT && GOT->isAbsolute() && Origin == 0))
      return false;
    // From 0 it is an address.
    const uint32_t Kind = From ? JITMEM_IMAGE_DISTANCE_64 : JITMEM_IMAGE_ABSOLUTE_64;
    if (In) {
      if (In != From)
        References.push_back({Slot, In->Start, Origin, Kind, {}});
      return true;
    }
    if (Target.isAbsolute() && !From)
      return true;
    if (!Target.isExternal() || nameOf(Target).empty() || Target.getAddress().getValue() == 0)
      return false;
    Imports.push_back({Slot, keep(nameOf(Target)), E.getAddend(), Origin, Kind, {}});
    return true;
  }

  /// Whether edges of a kind are the same wherever the image lies. By name: LLVM 19 has no sizes.
  static bool isFixed(llvm::StringRef Kind, bool InOneSegment) {
    if (Kind == "Size32" || Kind == "Size64")
      return true;
    return InOneSegment &&
           (Kind == "Delta8" || Kind == "Delta16" || Kind == "NegDelta32" || Kind == "NegDelta64");
  }

  /// Whether a call takes the range of this graph's frames and nothing else.
  bool registersFrames(const llvm::orc::shared::WrapperFunctionCall &Call) const {
    auto Args = Call.getArgData();
    uint64_t Range[2];
    if (Frames.empty() || Args.size() != sizeof(Range))
      return false;
    std::memcpy(Range, Args.data(), sizeof(Range));
    return Range[0] == Frames[0].start && Range[1] == Frames[0].start + Frames[0].size;
  }

  static uint64_t flagsOf(const Symbol &Sym) {
    llvm::JITSymbolFlags Flags;
    if (Sym.getLinkage() == llvm::jitlink::Linkage::Weak)
      Flags |= llvm::JITSymbolFlags::Weak;
    if (Sym.getScope() == llvm::jitlink::Scope::Default)
      Flags |= llvm::JITSymbolFlags::Exported;
    if (Sym.isCallable())
      Flags |= llvm::JITSymbolFlags::Callable;
    return Flags.getRawFlagsValue();
  }

  /// A copy that lives as long as this does.
  const char *keep(std::string Text) {
    Texts.push_back(std::make_unique<std::string>(std::move(Text)));
    return Texts.back()->c_str();
  }

  std::vector<Segment> Segments;
  llvm::DenseMap<const Block *, size_t> Of;
  const Symbol *GOT = nullptr;
  std::vector<jitmem_image_import> Imports;
  std::vector<jitmem_image_reference> References;
  std::vector<jitmem_image_export> Exports;
  std::vector<jitmem_image_frames> Frames;
  std::vector<std::unique_ptr<std::string>> Texts;
};

struct FreeImageRecorder {
  void operator()(jitmem_image_recorder *R) const { jitmem_image_recorder_free(R); }
};

struct FreeImage {
  void operator()(jitmem_image *I) const { jitmem_image_free(I); }
};

} // namespace detail

/// Copies of what layers link, to be stored as an image. It is told of graphs by an ImagePlugin of
/// each layer, and forgets those that are removed. Thread-safe.
class ImageRecorder {
public:
  static llvm::Expected<std::shared_ptr<ImageRecorder>> Create() {
    detail::OwnedError E;
    jitmem_image_recorder *New = nullptr;
    if (jitmem_image_recorder_create(&New, E.out()) != JITMEM_OK)
      return E.take();
    return std::shared_ptr<ImageRecorder>(new ImageRecorder(New));
  }

  /// Writes what is linked now to a file, in the place of one that is there; see
  /// jitmem_image_recorder_store. Fails if something can't be stored, and names
  /// the first eight graphs of it.
  llvm::Error store(llvm::StringRef Path, const ImageKey &Key = {}) {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Missing = refused();
    if (!Missing.empty()) {
      constexpr size_t MostNamed = 8;
      if (Missing.size() > MostNamed) {
        size_t More = Missing.size() - MostNamed;
        Missing.resize(MostNamed);
        Missing.push_back("and " + std::to_string(More) + " more; see notStorable()");
      }
      return llvm::make_error<MemoryError>(
          JITMEM_UNSUPPORTED, 0, "store image " + Path.str() + ": " + llvm::join(Missing, "; "));
    }
    detail::PassedImageKey Passed(Key);
    detail::OwnedError E;
    jitmem_image_recorder_store(Recorder.get(), Path.str().c_str(), Passed.data(), Passed.size(),
                                E.out());
    return E.take();
  }

  /// Which of what is linked now can't be stored, and why.
  std::vector<std::string> notStorable() {
    std::lock_guard<std::mutex> Guard(Lock);
    return refused();
  }

private:
  friend class ImagePlugin;
  using Owner = const llvm::orc::MaterializationResponsibility *;

  struct Graph {
    Owner Linking; // null once it is emitted
    llvm::orc::ResourceKey Key;
    uint64_t Id; // 0: not recorded
    std::string Name, Why;
  };

  explicit ImageRecorder(jitmem_image_recorder *New) : Recorder(New) {}

  void record(Owner Linking, llvm::jitlink::LinkGraph &G) {
    detail::ImageGraph Read;
    Graph New{Linking, {}, 0, G.getName(), {}};
    std::lock_guard<std::mutex> Guard(Lock);
    auto Err = Read.read(G);
    if (!Err) {
      if (auto Id = Read.record(Recorder.get()))
        New.Id = *Id;
      else
        Err = Id.takeError();
    }
    if (Err)
      New.Why = llvm::toString(std::move(Err));
    Graphs.push_back(std::move(New));
  }

  void emitted(Owner Linking, llvm::orc::ResourceKey Key) {
    std::lock_guard<std::mutex> Guard(Lock);
    for (auto &G : Graphs)
      if (G.Linking == Linking)
        G.Linking = nullptr, G.Key = Key;
  }

  template <typename WhichT> void forget(WhichT Which) {
    std::lock_guard<std::mutex> Guard(Lock);
    for (auto &G : Graphs)
      if (Which(G) && G.Id != 0)
        jitmem_image_recorder_forget(Recorder.get(), G.Id, nullptr);
    llvm::erase_if(Graphs, Which);
  }

  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) {
    std::lock_guard<std::mutex> Guard(Lock);
    for (auto &G : Graphs)
      if (!G.Linking && G.Key == From)
        G.Key = To;
  }

  std::vector<std::string> refused() const {
    std::vector<std::string> All;
    for (auto &G : Graphs) {
      if (!G.Why.empty())
        All.push_back("graph " + G.Name + " is not storable: " + G.Why);
    }
    return All;
  }

  std::mutex Lock;
  std::unique_ptr<jitmem_image_recorder, detail::FreeImageRecorder> Recorder;
  std::vector<Graph> Graphs;
};

/// Tells an ImageRecorder of what a layer links. It keeps calls and loads of what is outside of a
/// graph indirect, through the GOT. To be added to the layer behind all other plugins, whose
/// actions it is to see.
class ImagePlugin : public detail::ResourcePlugin {
public:
  explicit ImagePlugin(std::shared_ptr<ImageRecorder> R) : Recorder(std::move(R)) {}

  void modifyPassConfig(llvm::orc::MaterializationResponsibility &MR, llvm::jitlink::LinkGraph &,
                        llvm::jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back(keepIndirect);
    Config.PostFixupPasses.push_back([this, Linking = &MR](llvm::jitlink::LinkGraph &G) {
      Recorder->record(Linking, G);
      return llvm::Error::success();
    });
  }

  llvm::Error notifyEmitted(llvm::orc::MaterializationResponsibility &MR) override {
    return MR.withResourceKeyDo([&](llvm::orc::ResourceKey Key) { Recorder->emitted(&MR, Key); });
  }
  llvm::Error notifyFailed(llvm::orc::MaterializationResponsibility &MR) override {
    Recorder->forget([&](auto &G) { return G.Linking == &MR; });
    return llvm::Error::success();
  }
  llvm::Error remove(llvm::orc::ResourceKey Key) override {
    Recorder->forget([&](auto &G) { return !G.Linking && G.Key == Key; });
    return llvm::Error::success();
  }
  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) override {
    Recorder->transfer(To, From);
  }

private:
  /// JITLink makes direct what is in reach here, and need not be in later processes.
  static llvm::Error keepIndirect(llvm::jitlink::LinkGraph &G) {
    namespace x86 = llvm::jitlink::x86_64;
    if (G.getTargetTriple().getArch() != llvm::Triple::x86_64)
      return llvm::Error::success();
    for (auto *B : G.blocks())
      for (auto &E : B->edges())
        switch (E.getKind()) {
        case x86::BranchPCRel32ToPtrJumpStubBypassable:
          E.setKind(x86::BranchPCRel32ToPtrJumpStub);
          break;
        case x86::PCRel32GOTLoadRelaxable:
        case x86::PCRel32GOTLoadREXRelaxable:
          E.setKind(x86::PCRel32);
          break;
        default:
          break;
        }
    return llvm::Error::success();
  }

  std::shared_ptr<ImageRecorder> Recorder;
};

/// Links images into JITDylibs of a session, which must outlive it, as the manager must.
/// Thread-safe.
class ImageLoader : public detail::ResourceOwner {
public:
  ImageLoader(llvm::orc::ExecutionSession &ES, MemoryManager &MM) : ResourceOwner(ES), MM(MM) {}

  /// Links an image and defines its symbols, as part of RT: its memory goes when that is removed.
  /// What it imports is looked up as by code of that JITDylib. Waits for look-ups and the executor.
  ///
  /// Fails as jitmem_image_open, _link and _finalize, and where a symbol is not found or is defined
  /// already; nothing is left of it then.
  llvm::Error add(const llvm::orc::ResourceTrackerSP &RT, llvm::StringRef Path,
                  const ImageKey &Key = {}) {
    auto &JD = RT->getJITDylib();
    detail::PassedImageKey Passed(Key);
    detail::OwnedError E;
    jitmem_image *Opened = nullptr;
    if (jitmem_image_open(Path.str().c_str(), Passed.data(), Passed.size(), &Opened, E.out()) !=
        JITMEM_OK)
      return E.take();
    std::unique_ptr<jitmem_image, detail::FreeImage> Image(Opened);
    auto Addresses = lookUp(JD, *Image);
    if (!Addresses)
      return Addresses.takeError();
    const std::string Name = detail::toName(Path), DylibName = detail::toName(JD.getName());
    jitmem_image_link_request Request = {};
    Request.struct_size = sizeof(Request);
    Request.addresses = Addresses->data();
    Request.address_count = Addresses->size();
    Request.dylib = reinterpret_cast<uintptr_t>(static_cast<llvm::jitlink::JITLinkDylib *>(&JD));
    Request.name = Name.c_str();
    Request.dylib_name = DylibName.c_str();
    uint64_t Allocation = 0;
    if (jitmem_image_link(Image.get(), MM.handle(), &Request, E.out()) != JITMEM_OK ||
        jitmem_image_finalize(Image.get(), nullptr, 0, &Allocation, E.out()) != JITMEM_OK)
      return E.take();
    auto Err = RT->withResourceKeyDo([&](llvm::orc::ResourceKey RK) {
      std::lock_guard<std::mutex> Guard(Lock);
      Allocations[RK].push_back(Allocation);
    });
    if (Err)
      return llvm::joinErrors(std::move(Err), deallocate({Allocation}));
    auto Symbols = exportsOf(*Image);
    if (!Symbols)
      return llvm::joinErrors(Symbols.takeError(), giveUp(*RT, Allocation));
    if (Symbols->empty())
      return llvm::Error::success();
    if (auto Err = JD.define(llvm::orc::absoluteSymbols(std::move(*Symbols)), RT))
      return llvm::joinErrors(std::move(Err), giveUp(*RT, Allocation));
    return llvm::Error::success();
  }

  llvm::Error add(llvm::orc::JITDylib &JD, llvm::StringRef Path, const ImageKey &Key = {}) {
    return add(JD.getDefaultResourceTracker(), Path, Key);
  }

private:
  llvm::Expected<std::vector<uint64_t>> lookUp(llvm::orc::JITDylib &JD, jitmem_image &Image) {
    size_t Count = 0;
    detail::OwnedError E;
    if (jitmem_image_imports(&Image, nullptr, 0, &Count, E.out()) != JITMEM_OK)
      return E.take();
    std::vector<const char *> Names(Count);
    std::vector<uint64_t> Addresses(Count);
    if (Count == 0)
      return Addresses;
    jitmem_image_imports(&Image, Names.data(), Count, &Count, nullptr);
    auto &ES = JD.getExecutionSession();
    llvm::orc::SymbolLookupSet Wanted;
    for (auto *Name : Names)
      Wanted.add(ES.intern(Name));
    llvm::orc::JITDylibSearchOrder Order;
    JD.withLinkOrderDo([&](const llvm::orc::JITDylibSearchOrder &O) { Order = O; });
    auto Found = ES.lookup(Order, std::move(Wanted));
    if (!Found)
      return Found.takeError();
    for (size_t I = 0; I != Count; ++I)
      Addresses[I] = (*Found)[ES.intern(Names[I])].getAddress().getValue();
    return Addresses;
  }

  llvm::Expected<llvm::orc::SymbolMap> exportsOf(jitmem_image &Image) {
    size_t Count = 0;
    detail::OwnedError E;
    if (jitmem_image_exports(&Image, nullptr, 0, &Count, E.out()) != JITMEM_OK)
      return E.take();
    std::vector<jitmem_image_export> Exports(Count);
    if (Count != 0)
      jitmem_image_exports(&Image, Exports.data(), Count, &Count, nullptr);
    llvm::orc::SymbolMap Symbols;
    for (auto &One : Exports) {
      auto Raw = static_cast<llvm::JITSymbolFlags::UnderlyingType>(One.flags);
      auto Flags = static_cast<llvm::JITSymbolFlags::FlagNames>(Raw);
      Symbols[ES.intern(One.symbol)] = {llvm::orc::ExecutorAddr(One.address), Flags};
    }
    return Symbols;
  }

  llvm::Error deallocate(const std::vector<uint64_t> &Gone) {
    if (Gone.empty())
      return llvm::Error::success();
    detail::OwnedError E;
    jitmem_manager_deallocate(MM.handle(), Gone.data(), Gone.size(), E.out());
    return E.take();
  }

  /// Of what was not defined after all.
  llvm::Error giveUp(llvm::orc::ResourceTracker &, uint64_t Allocation) {
    {
      std::lock_guard<std::mutex> Guard(Lock);
      for (auto &Entry : Allocations)
        llvm::erase(Entry.second, Allocation);
    }
    return deallocate({Allocation});
  }

  llvm::Error remove(llvm::orc::ResourceKey Key) override {
    std::vector<uint64_t> Gone;
    {
      std::lock_guard<std::mutex> Guard(Lock);
      auto Found = Allocations.find(Key);
      if (Found == Allocations.end())
        return llvm::Error::success();
      Gone = std::move(Found->second);
      Allocations.erase(Found);
    }
    return deallocate(Gone);
  }

  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) override {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Found = Allocations.find(From);
    if (Found == Allocations.end())
      return;
    auto Moved = std::move(Found->second);
    Allocations.erase(Found);
    auto &All = Allocations[To];
    All.insert(All.end(), Moved.begin(), Moved.end());
  }

  MemoryManager &MM;
  std::mutex Lock;
  llvm::DenseMap<llvm::orc::ResourceKey, std::vector<uint64_t>> Allocations;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_IMAGE_HPP
