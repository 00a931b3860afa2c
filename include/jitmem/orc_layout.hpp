// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Lays the blocks of a link graph out in segments. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_LAYOUT_HPP
#define JITMEM_ORC_LAYOUT_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"

#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/SmallVector.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/Support/MathExtras.h>

#include <cstring>
#include <tuple>

namespace jitmem::orc::detail {

/// One segment per alloc group: blocks with content, then zero-fill blocks, each in the order of
/// their sections and, within a section, of their addresses. That order has a meaning: the
/// terminator of .eh_frame is last because its address is.
///
/// Does in one pass over the graph what llvm::jitlink::BasicLayout does, without its maps.
class GraphLayout {
  using MemProt = llvm::orc::MemProt;
  static_assert(static_cast<uint32_t>(MemProt::Read) == JITMEM_PROT_READ &&
                    static_cast<uint32_t>(MemProt::Write) == JITMEM_PROT_WRITE &&
                    static_cast<uint32_t>(MemProt::Exec) == JITMEM_PROT_EXEC,
                "LLVM's protection bits are the C API's");

  struct Placed {
    llvm::jitlink::Block *B;
    uint64_t Offset; // in the segment
    unsigned Section;
  };

  struct Segment {
    llvm::orc::AllocGroup Group;
    uint64_t Alignment = 1;
    uint64_t ContentSize = 0;
    uint64_t Size = 0;
    llvm::SmallVector<Placed, 8> Content;
    llvm::SmallVector<Placed, 2> ZeroFill;
  };

public:
  explicit GraphLayout(llvm::jitlink::LinkGraph &G) {
    for (auto &Section : G.sections()) {
      if (Section.getMemLifetime() == llvm::orc::MemLifetime::NoAlloc || Section.empty())
        continue;
      Segment *S = nullptr;
      for (auto *B : Section.blocks()) {
        if (!S)
          S = &segmentFor({Section.getMemProt(), Section.getMemLifetime()});
        auto &Blocks = B->isZeroFill() ? static_cast<llvm::SmallVectorImpl<Placed> &>(S->ZeroFill)
                                       : S->Content;
        Blocks.push_back({B, 0, Section.getOrdinal()});
      }
    }
    for (auto &S : Segments) {
      place(S, S.Content);
      S.ContentSize = S.Size;
      place(S, S.ZeroFill);
    }
  }

  /// What the manager is asked for, one entry per segment.
  llvm::SmallVector<jitmem_segment, 4> request() const {
    llvm::SmallVector<jitmem_segment, 4> Request;
    for (auto &S : Segments) {
      auto Protection = static_cast<uint32_t>(S.Group.getMemProt());
      uint32_t Lifetime = S.Group.getMemLifetime() == llvm::orc::MemLifetime::Finalize
                              ? JITMEM_LIFETIME_FINALIZE
                              : JITMEM_LIFETIME_STANDARD;
      Request.push_back({S.ContentSize, S.Size - S.ContentSize, S.Alignment, Protection, Lifetime});
    }
    return Request;
  }

  /// Gives every block its address, and its content a place in working memory. `Memory` has one
  /// entry per segment of the request.
  void apply(const jitmem_segment_memory *Memory) {
    for (auto &S : Segments) {
      auto *Working = static_cast<char *>(Memory->working_memory);
      uint64_t End = 0;
      for (auto &P : S.Content) {
        std::memset(Working + End, 0, P.Offset - End);
        size_t Size = P.B->getSize();
        if (Size > 0)
          std::memcpy(Working + P.Offset, P.B->getContent().data(), Size);
        P.B->setMutableContent({Working + P.Offset, Size});
        P.B->setAddress(llvm::orc::ExecutorAddr(Memory->address + P.Offset));
        End = P.Offset + Size;
      }
      for (auto &P : S.ZeroFill)
        P.B->setAddress(llvm::orc::ExecutorAddr(Memory->address + P.Offset));
      ++Memory;
    }
  }

private:
  Segment &segmentFor(llvm::orc::AllocGroup Group) {
    for (auto &S : Segments)
      if (S.Group == Group)
        return S;
    Segments.emplace_back();
    Segments.back().Group = Group;
    return Segments.back();
  }

  /// Sizes saturate: the manager refuses what does not fit a window.
  static void place(Segment &S, llvm::SmallVectorImpl<Placed> &Blocks) {
    if (Blocks.size() > 1)
      llvm::sort(Blocks, [](const Placed &L, const Placed &R) {
        return std::make_tuple(L.Section, L.B->getAddress(), L.B->getSize()) <
               std::make_tuple(R.Section, R.B->getAddress(), R.B->getSize());
      });
    for (auto &P : Blocks) {
      uint64_t Alignment = P.B->getAlignment();
      uint64_t Padding = (P.B->getAlignmentOffset() - S.Size) & (Alignment - 1);
      P.Offset = llvm::SaturatingAdd(S.Size, Padding);
      S.Size = llvm::SaturatingAdd(P.Offset, static_cast<uint64_t>(P.B->getSize()));
      S.Alignment = std::max(S.Alignment, Alignment);
    }
  }

  llvm::SmallVector<Segment, 4> Segments;
};

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_LAYOUT_HPP
