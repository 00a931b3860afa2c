// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The functions of jitmem/llvm_c.h, to be compiled with the LLVM that the host uses.
#include "llvm_c.h"

#include "orc_layer.hpp"
#include "orc_listener.hpp"

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

// LLVM defines these conversions inside its library, where no header has them.
ExecutionSession &unwrapped(LLVMOrcExecutionSessionRef Session) {
  return *reinterpret_cast<ExecutionSession *>(Session);
}
LLVMOrcObjectLayerRef wrapped(std::unique_ptr<ObjectLinkingLayer> Layer) {
  ObjectLayer *Base = Layer.release();
  return reinterpret_cast<LLVMOrcObjectLayerRef>(Base);
}

} // namespace

LLVMOrcObjectLayerRef jitmem_llvm_object_layer(void *manager, LLVMOrcExecutionSessionRef session,
                                               const char *) {
  std::unique_ptr<jitmem::orc::MemoryManager> MM;
  if (manager)
    MM = jitmem::orc::MemoryManager::CreateOver(static_cast<jitmem_manager *>(manager));
  auto &ES = unwrapped(session);
  auto Layer = jitmem::orc::createObjectLayer(ES, std::move(MM));
  if (Layer)
    return wrapped(std::move(*Layer));
  ES.reportError(Layer.takeError());
  return nullptr;
}

LLVMErrorRef jitmem_llvm_connect(LLVMOrcLLJITBuilderRef builder, int in, int out,
                                 const jitmem_manager_options *options, jitmem_manager **manager) {
  jitmem_manager *Handle = nullptr;
  auto Create =
      [&](SimpleRemoteEPC &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
    jitmem::orc::Options Choices;
    Choices.Exactly = options;
    auto MM = jitmem::orc::MemoryManager::Create(EPC, Choices);
    if (!MM)
      return MM.takeError();
    Handle = (*MM)->handle();
    return std::move(*MM);
  };
  auto &Builder = *reinterpret_cast<LLJITBuilder *>(builder);
  if (auto Err = jitmem::orc::detail::connect<SimpleRemoteEPC, FDSimpleRemoteEPCTransport>(
          Builder, Create, in, out, 0))
    return wrap(std::move(Err));
  Builder.setPlatformSetUp(setUpInactivePlatform);
  if (manager)
    *manager = Handle;
  return LLVMErrorSuccess;
}

LLVMErrorRef jitmem_llvm_run_as_main(LLVMOrcExecutionSessionRef session,
                                     LLVMOrcExecutorAddress address, int argc,
                                     const char *const *argv, int32_t *result) {
  auto &EPC = unwrapped(session).getExecutorProcessControl();
  auto Result = EPC.runAsMain(ExecutorAddr(address), std::vector<std::string>(argv, argv + argc));
  if (!Result)
    return wrap(Result.takeError());
  *result = *Result;
  return LLVMErrorSuccess;
}

void jitmem_llvm_register_listener(LLVMOrcObjectLayerRef layer, LLVMJITEventListenerRef listener) {
  auto *Layer = cast<ObjectLinkingLayer>(reinterpret_cast<ObjectLayer *>(layer));
  Layer->addPlugin(std::make_unique<jitmem::orc::ListenerPlugin>(*unwrap(listener)));
}
