// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An ObjectLinkingLayer as LLJIT makes it, for hosts that make their own: exceptions pass through
// its code. Header only; link jitmem::orc and your LLVM.

#ifndef JITMEM_ORC_LAYER_HPP
#define JITMEM_ORC_LAYER_HPP

#include "orc.hpp"

#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#if LLVM_VERSION_MAJOR >= 21
#include <llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h>
#else
#include <llvm/ExecutionEngine/JITLink/EHFrameSupport.h>
#include <llvm/ExecutionEngine/Orc/EPCEHFrameRegistrar.h>
#endif

#include <memory>

namespace jitmem::orc {

namespace detail {

/// Has the frames of what a layer links registered with the executor's unwinder.
inline llvm::Error addFrames(llvm::orc::ObjectLinkingLayer &Layer,
                             llvm::orc::ExecutionSession &ES) {
#if LLVM_VERSION_MAJOR >= 21
  auto Frames = llvm::orc::EHFrameRegistrationPlugin::Create(ES);
  if (!Frames)
    return Frames.takeError();
  Layer.addPlugin(std::move(*Frames));
#else
  std::unique_ptr<llvm::jitlink::EHFrameRegistrar> Registrar;
  if (isThisProcess(ES.getExecutorProcessControl())) {
    // Without a look-up of names, which fails where libLLVM was loaded with RTLD_LOCAL.
    Registrar = std::make_unique<llvm::jitlink::InProcessEHFrameRegistrar>();
  } else {
    auto Remote = llvm::orc::EPCEHFrameRegistrar::Create(ES);
    if (!Remote)
      return Remote.takeError();
    Registrar = std::move(*Remote);
  }
  Layer.addPlugin(std::make_unique<llvm::orc::EHFrameRegistrationPlugin>(ES, std::move(Registrar)));
#endif
  return llvm::Error::success();
}

} // namespace detail

/// A layer over a memory manager; without one, over that of the session's EPC.
inline llvm::Expected<std::unique_ptr<llvm::orc::ObjectLinkingLayer>>
createObjectLayer(llvm::orc::ExecutionSession &ES, std::unique_ptr<MemoryManager> MM = nullptr) {
  using llvm::orc::ObjectLinkingLayer;
  auto Layer = MM ? std::make_unique<ObjectLinkingLayer>(ES, std::move(MM))
                  : std::make_unique<ObjectLinkingLayer>(ES);
  if (auto Err = detail::addFrames(*Layer, ES))
    return Err;
  return Layer;
}

} // namespace jitmem::orc

#endif // JITMEM_ORC_LAYER_HPP
