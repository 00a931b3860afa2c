// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs between the LLVM versions that the tests are built on (14, 15, 16, 19 and 22):
// JITLink here, the larger headers of ORC in compat_orc.h.

#ifndef JITMEM_TESTS_ORC_COMPAT_H
#define JITMEM_TESTS_ORC_COMPAT_H

#include <llvm/Config/llvm-config.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/JITLink/x86_64.h>
#include <llvm/ExecutionEngine/Orc/SymbolStringPool.h>

namespace compat {

#if LLVM_VERSION_MAJOR >= 19
using llvm::orc::AllocGroup;
using llvm::orc::MemLifetime;
using llvm::orc::MemProt;
#elif LLVM_VERSION_MAJOR >= 16
using llvm::orc::AllocGroup;
using llvm::orc::MemProt;
using MemLifetime = llvm::orc::MemDeallocPolicy;
#else
using llvm::jitlink::AllocGroup;
using llvm::jitlink::MemProt;
using MemLifetime = llvm::jitlink::MemDeallocPolicy;
#endif

inline llvm::jitlink::Section &createSection(llvm::jitlink::LinkGraph &G, const char *Name,
                                             AllocGroup AG) {
  llvm::jitlink::Section &S = G.createSection(Name, AG.getMemProt());
#if LLVM_VERSION_MAJOR >= 19
  S.setMemLifetime(AG.getMemLifetime());
#else
  S.setMemDeallocPolicy(AG.getMemDeallocPolicy());
#endif
  return S;
}

#if LLVM_VERSION_MAJOR >= 22
using ActionResult = llvm::orc::shared::CWrapperFunctionBuffer;
using ActionBuffer = llvm::orc::shared::WrapperFunctionBuffer;
#else
using ActionResult = llvm::orc::shared::CWrapperFunctionResult;
using ActionBuffer = llvm::orc::shared::WrapperFunctionResult;
#endif

// A graph that is linked in a session takes that session's names.
inline std::unique_ptr<llvm::jitlink::LinkGraph>
makeGraph(std::string Name, std::shared_ptr<llvm::orc::SymbolStringPool> Names =
                                std::make_shared<llvm::orc::SymbolStringPool>()) {
  llvm::Triple TT("x86_64-unknown-linux-gnu");
#if LLVM_VERSION_MAJOR >= 22
  return std::make_unique<llvm::jitlink::LinkGraph>(std::move(Name), std::move(Names),
                                                    std::move(TT), llvm::SubtargetFeatures(),
                                                    llvm::jitlink::x86_64::getEdgeKindName);
#elif LLVM_VERSION_MAJOR >= 19
  (void)Names;
  return std::make_unique<llvm::jitlink::LinkGraph>(std::move(Name), TT,
                                                    llvm::jitlink::x86_64::getEdgeKindName);
#else
  (void)Names;
  return std::make_unique<llvm::jitlink::LinkGraph>(std::move(Name), TT, 8, llvm::support::little,
                                                    llvm::jitlink::x86_64::getEdgeKindName);
#endif
}

inline llvm::Expected<llvm::jitlink::SimpleSegmentAlloc>
createSimpleSegments(llvm::jitlink::JITLinkMemoryManager &MM, const llvm::jitlink::JITLinkDylib *JD,
                     llvm::jitlink::SimpleSegmentAlloc::SegmentMap Segments) {
#if LLVM_VERSION_MAJOR >= 22
  return llvm::jitlink::SimpleSegmentAlloc::Create(
      MM, std::make_shared<llvm::orc::SymbolStringPool>(), llvm::Triple("x86_64-unknown-linux-gnu"),
      JD, std::move(Segments));
#else
  return llvm::jitlink::SimpleSegmentAlloc::Create(MM, JD, std::move(Segments));
#endif
}

} // namespace compat

#endif // JITMEM_TESTS_ORC_COMPAT_H
