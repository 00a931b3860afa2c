// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An ObjectLinkingLayer as LLJIT makes it, for hosts that make their own: exceptions pass through
// its code. Header only; link jitmem::orc and your LLVM.

#ifndef JITMEM_ORC_LAYER_HPP
#define JITMEM_ORC_LAYER_HPP

#include "orc.hpp"

#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>

#include <memory>

namespace jitmem::orc {

/// A layer over a memory manager, which it owns; without one, over that of the session's EPC, which
/// has one until LLVM 22.
inline llvm::Expected<std::unique_ptr<llvm::orc::ObjectLinkingLayer>>
createObjectLayer(llvm::orc::ExecutionSession &ES, std::unique_ptr<MemoryManager> MM = nullptr) {
  return MM ? detail::makeLayer(ES, std::move(MM)) : detail::makeLayer(ES);
}

/// A layer over a memory manager that outlives it, as LLJIT's is that setMemoryManagerCreator()
/// makes after LLVM 22.
inline llvm::Expected<std::unique_ptr<llvm::orc::ObjectLinkingLayer>>
createObjectLayer(llvm::orc::ExecutionSession &ES, llvm::jitlink::JITLinkMemoryManager &MM) {
  return detail::makeLayer(ES, MM);
}

} // namespace jitmem::orc

#endif // JITMEM_ORC_LAYER_HPP
