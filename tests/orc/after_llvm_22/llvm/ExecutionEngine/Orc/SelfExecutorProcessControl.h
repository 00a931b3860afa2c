// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The shape that this class has after LLVM 22: made without a memory manager.

#ifndef LLVM_EXECUTIONENGINE_ORC_SELFEXECUTORPROCESSCONTROL_H
#define LLVM_EXECUTIONENGINE_ORC_SELFEXECUTORPROCESSCONTROL_H

#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>

namespace llvm::orc {

class SelfExecutorProcessControl : public ExecutorProcessControl {
public:
  static Expected<std::unique_ptr<SelfExecutorProcessControl>>
      Create(std::shared_ptr<SymbolStringPool> = nullptr,
             std::unique_ptr<TaskDispatcher> = nullptr);
};

} // namespace llvm::orc

#endif // LLVM_EXECUTIONENGINE_ORC_SELFEXECUTORPROCESSCONTROL_H
