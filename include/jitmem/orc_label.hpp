// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the allocation of a link graph is called. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_LABEL_HPP
#define JITMEM_ORC_LABEL_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"

#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/JITLink/JITLinkDylib.h>
#include <llvm/Support/JSON.h>

#include <functional>
#include <string>

namespace jitmem::orc {

/// A number of the host's for a graph; JD may be null.
using TagFunction = std::function<uint64_t(const llvm::jitlink::JITLinkDylib *JD,
                                           const llvm::jitlink::LinkGraph &G)>;

namespace detail {

/// A name as jitmem takes it: UTF-8, and at most 4,096 bytes. LLVM's names are any bytes.
inline std::string toName(llvm::StringRef Name) {
  constexpr size_t Most = 4096;
  std::string Text = llvm::json::fixUTF8(Name);
  if (Text.size() > Most) {
    size_t End = Most;
    while (End > 0 && (Text[End] & 0xc0) == 0x80) // inside a character
      --End;
    Text.resize(End);
  }
  return Text;
}

/// The tag and the names of a graph's allocation.
class Label {
public:
  Label(bool Names, const TagFunction &TagOf, const llvm::jitlink::JITLinkDylib *JD,
        const llvm::jitlink::LinkGraph &G)
      : Tag(TagOf ? TagOf(JD, G) : 0) {
    if (!Names)
      return;
    Name = toName(G.getName());
    if (JD)
      DylibName = toName(JD->getName());
  }

  /// Adds them to a request, which must not outlive them.
  void addTo(jitmem_allocation_request &Request) const {
    Request.tag = Tag;
    if (!Name.empty())
      Request.name = Name.c_str();
    if (!DylibName.empty())
      Request.dylib_name = DylibName.c_str();
  }

private:
  uint64_t Tag;
  std::string Name, DylibName;
};

} // namespace detail
} // namespace jitmem::orc

#endif // JITMEM_ORC_LABEL_HPP
