// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the code of a link graph is for. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_HINT_HPP
#define JITMEM_ORC_HINT_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"

#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/StringRef.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/JITLink/JITLinkDylib.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>

namespace jitmem::orc {

/// What a graph's code is for, for hosts that know it from elsewhere than the names of its
/// sections; JD may be null.
using HintFunction = std::function<jitmem_code_hint(const llvm::jitlink::JITLinkDylib *JD,
                                                    const llvm::jitlink::LinkGraph &G)>;

namespace detail {

/// Whether JITLink has added a section to the graph, of jumps to what is far: it says nothing of
/// the code that the host links.
inline bool isOfJITLink(const llvm::jitlink::Section &Section) {
  return Section.getName() == "$__STUBS";
}

/// Whether a section's bytes are run.
inline bool isCode(const llvm::jitlink::Section &Section) {
  return (static_cast<uint32_t>(Section.getMemProt()) & JITMEM_PROT_EXEC) != 0;
}

/// What code is for by the name of its section. Compilers name sections after what a profile or an
/// attribute says of their functions, and ORC those of its stubs. With -ffunction-sections a
/// function called hot, unlikely, startup or exit has such a name too; no more depends on that than
/// where it lies.
inline jitmem_code_hint hintOf(llvm::StringRef Section) {
  if (Section == "__orc_stubs")
    return JITMEM_CODE_STUB;
  llvm::StringRef Kind = Section;
  if (!Kind.consume_front(".text."))
    return JITMEM_CODE_NORMAL;
  // LLVM alone writes this one, with the dot behind it.
  if (Kind.consume_front("split."))
    return JITMEM_CODE_COLD;
  Kind = Kind.take_until([](char C) { return C == '.'; });
  if (Kind == "hot")
    return JITMEM_CODE_HOT;
  // What runs once is as rare.
  if (Kind == "unlikely" || Kind == "startup" || Kind == "exit")
    return JITMEM_CODE_COLD;
  return JITMEM_CODE_NORMAL;
}

/// Hints in the order in which their code lies in a segment, that which runs most often first. A
/// graph with code of several has the first of them, because all of its code lies together.
constexpr jitmem_code_hint HintOrder[] = {JITMEM_CODE_HOT, JITMEM_CODE_NORMAL, JITMEM_CODE_STUB,
                                          JITMEM_CODE_COLD};

inline uint8_t rankOf(jitmem_code_hint Hint) {
  return static_cast<uint8_t>(llvm::find(HintOrder, Hint) - std::begin(HintOrder));
}

/// What a graph's code is for, by the names of its sections.
class SectionHints {
public:
  /// A section that has bytes.
  void add(const llvm::jitlink::Section &Section) {
    if (isCode(Section) && !isOfJITLink(Section))
      First = std::min(First, rankOf(hintOf(Section.getName())));
  }

  jitmem_code_hint hint() const {
    return First == std::size(HintOrder) ? JITMEM_CODE_NORMAL : HintOrder[First];
  }

private:
  /// The first of the ranks of its code, if it has any.
  uint8_t First = std::size(HintOrder);
};

} // namespace detail
} // namespace jitmem::orc

#endif // JITMEM_ORC_HINT_HPP
