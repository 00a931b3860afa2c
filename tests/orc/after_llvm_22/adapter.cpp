// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The adapter compiles in the shape that ORC has after LLVM 22: stubs beside this file stand in
// front of LLVM 22's headers. Compiled, never linked.

#include <jitmem/orc_executor.hpp>
#include <jitmem/orc_lljit.hpp>

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
  std::optional<JITTargetMachineBuilder> &getJITTargetMachineBuilder();
  Builder &setJITTargetMachineBuilder(JITTargetMachineBuilder);
  template <typename CreateT> Builder &setObjectLinkingLayerCreator(CreateT Create) {
    CreateObjectLinkingLayer = std::move(Create);
    return *this;
  }
};

Error useInThisProcess(Builder &B) { return jitmem::orc::useInProcess(B); }

void useForAnyExecutor(Builder &B) {
  B.setMemoryManagerCreator([](ExecutionSession &ES) {
    return jitmem::orc::MemoryManager::Create(ES.getExecutorProcessControl());
  });
}
