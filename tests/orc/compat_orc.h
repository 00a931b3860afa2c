// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs in ORC between the LLVM versions that the tests are built on.

#ifndef JITMEM_TESTS_ORC_COMPAT_ORC_H
#define JITMEM_TESTS_ORC_COMPAT_ORC_H

#include <llvm/ExecutionEngine/Orc/EPCDynamicLibrarySearchGenerator.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>

#if LLVM_VERSION_MAJOR >= 22
#include <llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h>
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#else
#include <llvm/ExecutionEngine/Orc/EPCEHFrameRegistrar.h>
#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#endif
#if LLVM_VERSION_MAJOR >= 16
#include <llvm/TargetParser/Host.h>
#else
#include <llvm/Support/Host.h>
#endif

namespace compat {

#if LLVM_VERSION_MAJOR >= 22
using LinkPlugin = llvm::orc::LinkGraphLinkingLayer::Plugin;
#else
using LinkPlugin = llvm::orc::ObjectLinkingLayer::Plugin;
#endif

// A plugin that keeps nothing of its own for objects.
class StatelessPlugin : public LinkPlugin {
  llvm::Error notifyFailed(llvm::orc::MaterializationResponsibility &) override {
    return llvm::Error::success();
  }
#if LLVM_VERSION_MAJOR >= 16
  llvm::Error notifyRemovingResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey) override {
    return llvm::Error::success();
  }
  void notifyTransferringResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey,
                                   llvm::orc::ResourceKey) override {}
#else
  llvm::Error notifyRemovingResources(llvm::orc::ResourceKey) override {
    return llvm::Error::success();
  }
  void notifyTransferringResources(llvm::orc::ResourceKey, llvm::orc::ResourceKey) override {}
#endif
};

// The address of a symbol that is looked up in the main JITDylib, or in another one.
template <typename... ArgTs>
llvm::Expected<llvm::orc::ExecutorAddr> lookup(llvm::orc::LLJIT &J, ArgTs &&...Args) {
#if LLVM_VERSION_MAJOR >= 15
  return J.lookup(std::forward<ArgTs>(Args)...);
#else
  auto Symbol = J.lookup(std::forward<ArgTs>(Args)...);
  if (!Symbol)
    return Symbol.takeError();
  return llvm::orc::ExecutorAddr(Symbol->getAddress());
#endif
}

// Lets the code of a JITDylib refer to what the executor has, as the main one's does since LLVM 17
// without being told.
inline void linkWithExecutor(llvm::orc::LLJIT &J, llvm::orc::JITDylib &JD) {
#if LLVM_VERSION_MAJOR >= 19
  auto *Process = J.getProcessSymbolsJITDylib().get();
  if (Process && &JD != &J.getMainJITDylib())
    JD.addToLinkOrder(*Process);
#else
  JD.addGenerator(llvm::cantFail(
      llvm::orc::EPCDynamicLibrarySearchGenerator::GetForTargetProcess(J.getExecutionSession())));
#endif
}

// An entry of absoluteSymbols().
inline auto callableAt(llvm::orc::ExecutorAddr Address) {
  auto Flags = llvm::JITSymbolFlags::Exported | llvm::JITSymbolFlags::Callable;
#if LLVM_VERSION_MAJOR >= 19
  return llvm::orc::ExecutorSymbolDef(Address, Flags);
#else
  return llvm::JITEvaluatedSymbol(Address.getValue(), Flags);
#endif
}

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

// Until LLVM 17, LLJIT links ELF objects for x86-64 by RuntimeDyld unless it is told otherwise.
inline void useJITLink([[maybe_unused]] llvm::orc::LLJITBuilder &Builder) {
#if LLVM_VERSION_MAJOR < 17
  setLinkingLayer(Builder, [](llvm::orc::ExecutionSession &ES) {
    return std::make_unique<llvm::orc::ObjectLinkingLayer>(ES);
  });
#endif
}

} // namespace compat

#endif // JITMEM_TESTS_ORC_COMPAT_ORC_H
