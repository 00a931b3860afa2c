// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs in ORC between the LLVM versions that the tests are built on.

#ifndef JITMEM_TESTS_ORC_COMPAT_ORC_H
#define JITMEM_TESTS_ORC_COMPAT_ORC_H

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>

#if LLVM_VERSION_MAJOR >= 22
#include <llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h>
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#else
#include <llvm/ExecutionEngine/Orc/EPCEHFrameRegistrar.h>
#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#endif

namespace compat {

#if LLVM_VERSION_MAJOR >= 22
using LinkPlugin = llvm::orc::LinkGraphLinkingLayer::Plugin;
#else
using LinkPlugin = llvm::orc::ObjectLinkingLayer::Plugin;
#endif

inline llvm::Error registerEHFrames(llvm::orc::ExecutionSession &ES,
                                    llvm::orc::ObjectLinkingLayer &Layer) {
#if LLVM_VERSION_MAJOR >= 22
  auto Plugin = llvm::orc::EHFrameRegistrationPlugin::Create(ES);
  if (!Plugin)
    return Plugin.takeError();
  Layer.addPlugin(std::move(*Plugin));
#else
  auto Registrar = llvm::orc::EPCEHFrameRegistrar::Create(ES);
  if (!Registrar)
    return Registrar.takeError();
  Layer.addPlugin(
      std::make_unique<llvm::orc::EHFrameRegistrationPlugin>(ES, std::move(*Registrar)));
#endif
  return llvm::Error::success();
}

// LLJITBuilder's hook for the linking layer lost its Triple parameter between the two versions.
template <typename CreateFn>
void setLinkingLayer(llvm::orc::LLJITBuilder &Builder, CreateFn Create) {
#if LLVM_VERSION_MAJOR >= 22
  Builder.setObjectLinkingLayerCreator(
      [Create](llvm::orc::ExecutionSession &ES) { return Create(ES); });
#else
  Builder.setObjectLinkingLayerCreator(
      [Create](llvm::orc::ExecutionSession &ES, const llvm::Triple &) { return Create(ES); });
#endif
}

} // namespace compat

#endif // JITMEM_TESTS_ORC_COMPAT_ORC_H
