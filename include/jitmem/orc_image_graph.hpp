// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What an image needs to know of a linked graph; for orc_image.hpp.

#ifndef JITMEM_ORC_IMAGE_GRAPH_HPP
#define JITMEM_ORC_IMAGE_GRAPH_HPP

#include "orc.hpp"

#include <llvm/ADT/DenseMap.h>
#include <llvm/ADT/STLExtras.h>
#include <llvm/ExecutionEngine/JITLink/x86_64.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace jitmem::orc::detail {

inline llvm::Error notStorable(const llvm::Twine &Why) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), Why);
}

/// How calls of a wrapper function are stored.
struct StorableCall {
  std::string Symbol;
  std::vector<size_t> Addresses; // where its arguments have any
};

/// By the function's address.
using StorableCalls = std::map<uint64_t, StorableCall>;

/// What a recorder is told of a graph whose fixups are applied.
class ImageGraph {
public:
  using Block = llvm::jitlink::Block;
  using Edge = llvm::jitlink::Edge;
  using LinkGraph = llvm::jitlink::LinkGraph;
  using Symbol = llvm::jitlink::Symbol;

  /// Fails if the graph can't be stored, and says what of it. Calls of actions become a segment at
  /// CallsStart, where no graph is; this is moved behind it.
  llvm::Error read(LinkGraph &G, const StorableCalls &Storable, uint64_t &CallsStart) {
    if (G.getTargetTriple().getArch() != llvm::Triple::x86_64)
      return notStorable("its architecture is not x86-64");
    Name = toName(G.getName());
    if (auto Err = readSegments(G))
      return Err;
    findGOT(G);
    for (auto &S : Segments)
      for (auto *B : S.Blocks)
        for (auto &E : B->edges())
          if (auto Err = readEdge(G, S, *B, E))
            return Err;
    for (auto *Sym : G.defined_symbols()) {
      if (!Sym->hasName() || Sym->getScope() == llvm::jitlink::Scope::Local)
        continue;
      auto *S = segmentOf(Sym->getBlock());
      if (!S)
        continue;
      uint64_t Address = Sym->getAddress().getValue();
      // Another segment may begin there, which lies elsewhere in the image.
      if (Address == S->End && S->End != S->Start)
        return notStorable("symbol " + nameOf(*Sym) + " is the end of its segment");
      Exports.push_back({keep(nameOf(*Sym)), Address, flagsOf(*Sym), {}});
    }
    if (auto *Section = G.findSectionByName(FramesName)) {
      llvm::jitlink::SectionRange Range(*Section);
      FramesStart = Range.getStart().getValue(), FramesSize = Range.getSize();
      auto Own = llvm::find_if(Segments, [](auto &S) { return isFrames(*S.Blocks.front()); });
      if (Own != Segments.end() && isFrames(*Own->Blocks.back()))
        Frames.push_back({Own->Start, Own->Content.size(), {}});
      else if (FramesSize != 0)
        Frames.push_back({FramesStart, FramesSize, {}});
    }
    return readActions(G, Storable, CallsStart);
  }

  /// Hands it to a recorder; 0: it has no memory.
  llvm::Expected<uint64_t> record(jitmem_image_recorder *Recorder) const {
    std::vector<jitmem_image_segment> Passed;
    SectionHints Hints;
    for (auto &S : Segments)
      for (auto *B : S.Blocks)
        if (B->getSize() != 0)
          Hints.add(B->getSection());
    for (auto &S : Segments) {
      const jitmem_segment Asked = {S.Content.size(),
                                    S.End - S.Start - S.Content.size(),
                                    S.Alignment,
                                    static_cast<uint32_t>(S.Group.getMemProt()),
                                    JITMEM_LIFETIME_STANDARD,
                                    Hints.hint(),
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
    Graph.actions = Actions.data();
    Graph.action_count = Actions.size();
    uint64_t Id = 0;
    OwnedError E;
    if (jitmem_image_recorder_record(Recorder, &Graph, &Id, E.out()) != JITMEM_OK)
      return E.take();
    return Id;
  }

  std::string Name;

private:
  static constexpr llvm::StringLiteral FramesName = ".eh_frame";

  static bool isFrames(const Block &B) { return B.getSection().getName() == FramesName; }

  /// What JITLink puts behind the frames, where another graph's would follow.
  static bool isTerminator(const Block &B) {
    return isFrames(B) && !B.isZeroFill() && B.getSize() == 4 &&
           llvm::all_of(B.getContent(), [](char Byte) { return Byte == 0; });
  }

  /// Blocks of one protection, which memory managers lay out one behind the other. Frames are a
  /// segment of their own, so that those of all graphs become one section of the image.
  struct Segment {
    AllocGroup Group;
    std::vector<Block *> Blocks;
    uint64_t Alignment = 1, Start = 0, End = 0;
    std::string Content;
  };

  static bool isConstructors(llvm::StringRef Section) {
    // One with a priority has a dot and that behind its name.
    auto Name = Section.take_front(Section.find('.', 1));
    return Name == ".init_array" || Name == ".fini_array" || Name == ".ctors" || Name == ".dtors" ||
           Name == ".preinit_array";
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
    std::vector<Segment> Parts;
    for (auto &S : Segments)
      splitAtFrames(std::move(S), Parts);
    Segments = std::move(Parts);
    for (auto &S : Segments) {
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

  static void measure(Segment &S) {
    for (auto *B : S.Blocks) {
      S.Alignment = std::max<uint64_t>(S.Alignment, B->getAlignment());
      S.End = std::max(S.End, B->getAddress().getValue() + B->getSize());
    }
    S.Start = S.Blocks.front()->getAddress().getValue() & ~(S.Alignment - 1);
  }

  /// Adds the parts of a segment: what is before frames, they, and what is behind. A part whose
  /// alignment would make it begin in the one before leaves the segment as it is.
  static void splitAtFrames(Segment S, std::vector<Segment> &Parts) {
    llvm::sort(S.Blocks, [](auto *L, auto *R) { return L->getAddress() < R->getAddress(); });
    std::vector<Segment> Split;
    for (auto *B : S.Blocks) {
      if (isTerminator(*B))
        continue;
      if (Split.empty() || isFrames(*Split.back().Blocks.back()) != isFrames(*B))
        Split.push_back({S.Group, {}, 1, 0, 0, {}});
      Split.back().Blocks.push_back(B);
    }
    for (auto &Part : Split)
      measure(Part);
    for (size_t I = 1; I < Split.size(); ++I)
      if (Split[I].Start < Split[I - 1].End)
        Split.clear();
    if (Split.empty()) {
      measure(S);
      Split.push_back(std::move(S));
    }
    for (auto &Part : Split)
      Parts.push_back(std::move(Part));
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
    // What a graph says of an address may be of this process. A GOT without entries is at 0.
    if (Target.isAbsolute() && Address != 0)
      return Refuse();
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
    return Range[0] == FramesStart && Range[1] == FramesStart + FramesSize;
  }

  /// The program that loads the image registers frames; of other actions, and of those that take
  /// frames for what is not registering them, the host has said how they are called.
  llvm::Error readActions(LinkGraph &G, const StorableCalls &Storable, uint64_t &CallsStart) {
    Segment Calls{AllocGroup(llvm::orc::MemProt::Read), {}, 8, CallsStart, CallsStart, {}};
    for (auto &Pair : G.allocActions()) {
      jitmem_image_action Action = {};
      for (auto [Call, Stored] :
           {std::pair(&Pair.Finalize, &Action.finalize), {&Pair.Dealloc, &Action.dealloc}})
        if (*Call && (Storable.count(Call->getCallee().getValue()) || !registersFrames(*Call)))
          if (auto Err = readCall(*Call, Storable, Calls, *Stored))
            return Err;
      if (Action.finalize.function != 0 || Action.dealloc.function != 0)
        Actions.push_back(Action);
    }
    if (!Actions.empty()) {
      CallsStart = Calls.End = Calls.Start + Calls.Content.size();
      Segments.push_back(std::move(Calls));
    }
    return llvm::Error::success();
  }

  /// Puts a pointer to the function into a segment, and its arguments behind that.
  llvm::Error readCall(const llvm::orc::shared::WrapperFunctionCall &Call,
                       const StorableCalls &Storable, Segment &Calls, jitmem_image_call &Stored) {
    const uint64_t Function = Call.getCallee().getValue();
    auto Found = Storable.find(Function);
    if (Found == Storable.end())
      return notStorable("it has finalize actions besides those of its frames; if their functions "
                         "are known, tell the recorder by storeCallsOf");
    const auto &[Symbol, Addresses] = Found->second;
    auto Args = Call.getArgData();
    Stored.function = Calls.Start + Calls.Content.size();
    Stored.args = Stored.function + sizeof(Function);
    Stored.args_size = Args.size();
    Imports.push_back({Stored.function, keep(Symbol), 0, 0, JITMEM_IMAGE_ABSOLUTE_64, {}});
    Calls.Content.append(reinterpret_cast<const char *>(&Function), sizeof(Function));
    Calls.Content.append(Args.data(), Args.size());
    Calls.Content.resize((Calls.Content.size() + 7) & ~size_t{7}, 0);
    const Segment *Last = nullptr;
    for (size_t Offset : Addresses) {
      uint64_t Address = 0;
      if (Args.size() < sizeof(Address) || Offset > Args.size() - sizeof(Address))
        return notStorable("a call of " + Symbol + " has " + llvm::Twine(Args.size()) +
                           " bytes of arguments, and no address at byte " + llvm::Twine(Offset));
      std::memcpy(&Address, Args.data() + Offset, sizeof(Address));
      if (Address == 0)
        continue;
      // Frames end where the terminator was, which is left out.
      if (Last && isFrames(*Last->Blocks.front()) && Address == FramesStart + FramesSize) {
        Address = Last->End;
        std::memcpy(&Calls.Content[Stored.args - Calls.Start + Offset], &Address, sizeof(Address));
      }
      // The end of a range may be where another segment begins.
      if (!Last || Address < Last->Start || Address > Last->End)
        Last = std::find_if(Segments.data(), Segments.data() + Segments.size(),
                            [&](auto &S) { return Address >= S.Start && Address < S.End; });
      if (Last == Segments.data() + Segments.size())
        return notStorable("a call of " + Symbol + " has the address " +
                           llvm::Twine::utohexstr(Address) + ", which is not in the graph");
      References.push_back({Stored.args + Offset, Last->Start, 0, JITMEM_IMAGE_ABSOLUTE_64, {}});
    }
    return llvm::Error::success();
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
  uint64_t FramesStart = 0, FramesSize = 0;
  std::vector<jitmem_image_import> Imports;
  std::vector<jitmem_image_reference> References;
  std::vector<jitmem_image_export> Exports;
  std::vector<jitmem_image_frames> Frames;
  std::vector<jitmem_image_action> Actions;
  std::vector<std::unique_ptr<std::string>> Texts;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_IMAGE_GRAPH_HPP
