// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem as the memory manager of an LLJIT of this process. Header only; link jitmem::orc and your
// LLVM.

#ifndef JITMEM_ORC_LLJIT_HPP
#define JITMEM_ORC_LLJIT_HPP

#include "orc_layer.hpp"

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>

namespace jitmem::orc {

/// Fails for a layer that does not use JITLink's memory managers: jitmem's would silently have
/// nothing to do.
inline llvm::Error checkUsesJITLink(const llvm::orc::ObjectLayer &Layer) {
  if (!llvm::isa<llvm::orc::RTDyldObjectLinkingLayer>(Layer))
    return llvm::Error::success();
  return llvm::make_error<MemoryError>(
      JITMEM_UNSUPPORTED, 0,
      "link with jitmem: the layer is an RTDyldObjectLinkingLayer, which takes no JITLink memory "
      "manager; have setObjectLinkingLayerCreator() make an ObjectLinkingLayer");
}

namespace detail {

/// Has an LLJIT link by JITLink, with the code model that this is for.
template <typename BuilderT> llvm::Error chooseJITLink(BuilderT &Builder) {
  if (!Builder.getJITTargetMachineBuilder()) {
    auto Host = llvm::orc::JITTargetMachineBuilder::detectHost();
    if (!Host)
      return Host.takeError();
    Host->setRelocationModel(llvm::Reloc::PIC_).setCodeModel(llvm::CodeModel::Small);
    Builder.setJITTargetMachineBuilder(std::move(*Host));
  }
  Builder.setObjectLinkingLayerCreator(
      [](llvm::orc::ExecutionSession &ES, auto &&...) { return createObjectLayer(ES); });
  return llvm::Error::success();
}

} // namespace detail

/// Has `Builder`, an LLJITBuilder or LLLazyJITBuilder, make an LLJIT of this process that links by
/// JITLink into memory of jitmem's. What else is set there is set before. An EPC or
/// ExecutionSession that the host has set is an error: it has a memory manager already.
template <typename BuilderT> llvm::Error useInProcess(BuilderT &Builder, const Options &O = {}) {
  if (Builder.EPC || Builder.ES)
    return llvm::make_error<MemoryError>(
        JITMEM_INVALID_ARGUMENT, 0,
        "use jitmem in an LLJIT: its builder has an ExecutorProcessControl or ExecutionSession "
        "already; give the MemoryManager to that");
  if (!detail::JITLinkIsTheDefault && !Builder.CreateObjectLinkingLayer)
    if (auto Err = detail::chooseJITLink(Builder))
      return Err;
  if (auto Make = Builder.CreateObjectLinkingLayer)
    Builder.CreateObjectLinkingLayer = [Make = std::move(Make)](auto &&...Args) {
      auto Layer = Make(std::forward<decltype(Args)>(Args)...);
      if (Layer)
        if (auto Err = checkUsesJITLink(**Layer)) {
          detail::discard(std::move(*Layer));
          Layer = std::move(Err);
        }
      return Layer;
    };
  return detail::giveManager(Builder, [O] { return MemoryManager::CreateInProcess(O); }, 0);
}

} // namespace jitmem::orc

#endif // JITMEM_ORC_LLJIT_HPP
