// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The adapter compiles in the shape that ORC has after LLVM 22: stubs beside this file stand in
// front of LLVM 22's headers. Compiled, never linked.

#include <jitmem/orc_debug.hpp>
#include <jitmem/orc_executor.hpp>
#include <jitmem/orc_lljit.hpp>
#include <llvm/ExecutionEngine/Orc/InProcessEPC.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>

using namespace llvm;
using namespace llvm::orc;

// As LLJITBuilder after LLVM 22, whose EPC has no memory manager.
struct Builder {
  using MemoryManagerCreator =
      std::function<Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>>(ExecutionSession &)>;
  std::unique_ptr<ExecutorProcessControl> EPC;
  std::unique_ptr<ExecutionSession> ES;
  std::function<Expected<std::unique_ptr<ObjectLayer>>(ExecutionSession &,
                                                       jitlink::JITLinkMemoryManager &)>
      CreateObjectLinkingLayer;
  MemoryManagerCreator CreateMemoryManager;

  Builder &setMemoryManagerCreator(MemoryManagerCreator Create) {
    CreateMemoryManager = std::move(Create);
    return *this;
  }
  Builder &setExecutorProcessControl(std::unique_ptr<ExecutorProcessControl>);
  std::optional<JITTargetMachineBuilder> &getJITTargetMachineBuilder();
  Builder &setJITTargetMachineBuilder(JITTargetMachineBuilder);
  template <typename CreateT> Builder &setObjectLinkingLayerCreator(CreateT Create) {
    CreateObjectLinkingLayer = std::move(Create);
    return *this;
  }
};

// As ObjectLinkingLayer after LLVM 22, which is made over a memory manager.
struct Layer : ObjectLinkingLayer {
  Layer(ExecutionSession &ES, jitlink::JITLinkMemoryManager &MM) : ObjectLinkingLayer(ES, MM) {}
  Layer(ExecutionSession &ES, std::unique_ptr<jitlink::JITLinkMemoryManager> MM)
      : ObjectLinkingLayer(ES, std::move(MM)) {}
};

// As LLJIT's creators are called there; and as C hosts make layers, who are told that it takes a
// manager.
Expected<std::unique_ptr<Layer>> layerOver(ExecutionSession &ES,
                                           jitlink::JITLinkMemoryManager &MM) {
  return jitmem::orc::detail::makeLayer<Layer>(ES, MM);
}
Expected<std::unique_ptr<Layer>> layerOverNothing(ExecutionSession &ES) {
  return jitmem::orc::detail::makeLayer<Layer>(ES);
}

Error connect(Builder &B, int In, int Out) {
  return jitmem::orc::detail::connect<SimpleRemoteEPC, FDSimpleRemoteEPCTransport>(
      B, [](SimpleRemoteEPC &EPC) { return jitmem::orc::MemoryManager::Create(EPC); }, In, Out, 0);
}

bool isThisProcess(InProcessEPC &EPC) { return jitmem::orc::detail::isThisProcess(EPC); }

Error useInThisProcess(Builder &B) { return jitmem::orc::useInProcess(B); }

void useForAnyExecutor(Builder &B) {
  B.setMemoryManagerCreator([](ExecutionSession &ES) {
    return jitmem::orc::MemoryManager::Create(ES.getExecutorProcessControl());
  });
}
