// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Lays the blocks of a link graph out in segments. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_LAYOUT_HPP
#define JITMEM_ORC_LAYOUT_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"
#include "orc_hint.hpp"

#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/SmallVector.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/Support/MathExtras.h>

#include <algorithm>
#include <cstring>
#include <tuple>

namespace jitmem::orc::detail {

/// One segment per alloc group: blocks with content, then zero-fill blocks, each in the order of
/// their sections and, within a section, of their addresses. That order has a meaning: the
/// terminator of .eh_frame is last because its address is. Of code, sections of one hint come one
/// behind the other, those that run often first.
///
/// Does in one pass over the graph what llvm::jitlink::BasicLayout does, without its maps.
class GraphLayout {
  static_assert(static_cast<uint32_t>(MemProt::Read) == JITMEM_PROT_READ &&
                    static_cast<uint32_t>(MemProt::Write) == JITMEM_PROT_WRITE &&
                    static_cast<uint32_t>(MemProt::Exec) == JITMEM_PROT_EXEC,
                "LLVM's protection bits are the C API's");

  struct Placed {
    llvm::jitlink::Block *B;
    uint64_t Offset; // in the segment
    uint8_t Segment;
    bool ZeroFill;
  };

  struct Segment {
    AllocGroup Group;
    uint64_t Alignment;
    uint64_t ContentSize;
    uint64_t Size;
  };

public:
  explicit GraphLayout(llvm::jitlink::LinkGraph &G) {
    llvm::SmallVector<std::tuple<uint8_t, unsigned, llvm::jitlink::Section *>, 8> Sections;
    eachOf(G.sections(), G.sections_size(), [&](llvm::jitlink::Section &Section) {
      if (!isAllocated(Section) || Section.blocks_size() == 0)
        return;
      auto Hint = isCode(Section) ? hintOf(Section.getName()) : JITMEM_CODE_NORMAL;
      Sections.push_back({rankOf(Hint), Section.getOrdinal(), &Section});
    });
    if (Sections.size() > 1)
      llvm::sort(Sections);
    for (auto [Rank, Ordinal, Section] : Sections) {
      uint8_t Index = segmentFor(groupOf(*Section));
      size_t Begin = Blocks.size();
      eachOf(Section->blocks(), Section->blocks_size(),
             [&](llvm::jitlink::Block *B) { Blocks.push_back({B, 0, Index, B->isZeroFill()}); });
      if (Blocks.size() - Begin > 1)
        llvm::sort(Blocks.begin() + Begin, Blocks.end(), [](const Placed &L, const Placed &R) {
          return std::make_tuple(L.B->getAddress(), L.B->getSize()) <
                 std::make_tuple(R.B->getAddress(), R.B->getSize());
        });
      if (describesFrames(*Section))
        joinFrames(Begin);
      if (hasBytes(Begin))
        Hints.add(*Section);
    }
    for (auto &P : Blocks)
      if (!P.ZeroFill)
        place(P);
    for (auto &P : Blocks)
      if (P.ZeroFill)
        place(P);
  }

  /// What the graph's code is for, by the names of its sections.
  jitmem_code_hint hint() const { return Hints.hint(); }

  /// What the manager is asked for, one entry per segment, with code of this hint.
  llvm::SmallVector<jitmem_segment, 4> request(jitmem_code_hint Hint) const {
    llvm::SmallVector<jitmem_segment, 4> Request;
    for (auto &S : Segments) {
      auto Protection = static_cast<uint32_t>(S.Group.getMemProt());
      uint32_t Lifetime =
          endsAtFinalize(S.Group) ? JITMEM_LIFETIME_FINALIZE : JITMEM_LIFETIME_STANDARD;
      Request.push_back(
          {S.ContentSize, S.Size - S.ContentSize, S.Alignment, Protection, Lifetime, Hint, {}});
    }
    return Request;
  }

  /// Gives every block its address, and its content a place in working memory. `Memory` has one
  /// entry per segment of the request.
  void apply(const jitmem_segment_memory *Memory) {
    uint64_t End[MostSegments] = {};
    for (auto &P : Blocks) {
      auto &M = Memory[P.Segment];
      P.B->setAddress(llvm::orc::ExecutorAddr(M.address + P.Offset));
      if (P.ZeroFill)
        continue;
      auto *Working = static_cast<char *>(M.working_memory);
      auto &ContentEnd = End[P.Segment];
      if (P.Offset > ContentEnd)
        std::memset(Working + ContentEnd, 0, P.Offset - ContentEnd);
      size_t Size = P.B->getSize();
      if (Size > 0)
        std::memcpy(Working + P.Offset, P.B->getContent().data(), Size);
      P.B->setMutableContent({Working + P.Offset, Size});
      ContentEnd = P.Offset + Size;
    }
  }

private:
  /// Three bits of protection, two lifetimes that take memory.
  static constexpr uint8_t MostSegments = 16;

  /// Calls F with the Count elements of a range and stops: LLVM keeps sections and blocks in hash
  /// tables of 64 buckets, most of them empty, and going on to the end of each table costs as much
  /// as all the rest of the layout of a small graph.
  template <typename RangeT, typename FunctionT>
  static void eachOf(RangeT Range, size_t Count, FunctionT F) {
    if (Count == 0)
      return;
    for (auto I = Range.begin();; ++I) {
      F(*I);
      if (--Count == 0)
        return;
    }
  }

  uint8_t segmentFor(AllocGroup Group) {
    uint8_t Index = 0;
    for (; Index != Segments.size(); ++Index)
      if (Segments[Index].Group == Group)
        return Index;
    Segments.push_back({Group, 1, 0, 0});
    return Index;
  }

  /// JITLink makes a block of each record, at the offset in its alignment that it had in the
  /// object. Where it has dropped records of other sizes there would be gaps, which are lengths of
  /// 0: the unwinder would find nothing behind the first.
  void joinFrames(size_t Begin) {
    for (size_t I = Begin; I != Blocks.size(); ++I) {
      Blocks[I].B->setAlignmentOffset(0);
      if (I != Begin)
        Blocks[I].B->setAlignment(1);
    }
  }

  /// Whether the blocks from one on have any.
  bool hasBytes(size_t Begin) const {
    return std::any_of(Blocks.begin() + Begin, Blocks.end(),
                       [](const Placed &P) { return P.B->getSize() != 0; });
  }

  /// Sizes saturate: the manager refuses what does not fit a window.
  void place(Placed &P) {
    auto &S = Segments[P.Segment];
    uint64_t Alignment = P.B->getAlignment();
    uint64_t Padding = (P.B->getAlignmentOffset() - S.Size) & (Alignment - 1);
    P.Offset = llvm::SaturatingAdd(S.Size, Padding);
    S.Size = llvm::SaturatingAdd(P.Offset, static_cast<uint64_t>(P.B->getSize()));
    S.Alignment = std::max(S.Alignment, Alignment);
    if (!P.ZeroFill)
      S.ContentSize = S.Size;
  }

  llvm::SmallVector<Placed, 8> Blocks;
  SectionHints Hints;
  llvm::SmallVector<Segment, 4> Segments;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_LAYOUT_HPP
