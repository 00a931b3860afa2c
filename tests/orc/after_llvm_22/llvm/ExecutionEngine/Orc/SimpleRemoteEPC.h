// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The shape that this class has after LLVM 22: made without a setup, and so without a memory
// manager.

#ifndef LLVM_EXECUTIONENGINE_ORC_SIMPLEREMOTEEPC_H
#define LLVM_EXECUTIONENGINE_ORC_SIMPLEREMOTEEPC_H

#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>

namespace llvm::orc {

class SimpleRemoteEPC : public ExecutorProcessControl {
public:
  template <typename TransportT, typename... ArgTs>
  static Expected<std::unique_ptr<SimpleRemoteEPC>> Create(std::unique_ptr<TaskDispatcher>,
                                                           ArgTs &&...);
};

} // namespace llvm::orc

#endif // LLVM_EXECUTIONENGINE_ORC_SIMPLEREMOTEEPC_H
