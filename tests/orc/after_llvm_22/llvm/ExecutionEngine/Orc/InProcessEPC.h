// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A class that LLVM has after 22: this process, reached through the ORC runtime's session in it.

#ifndef LLVM_EXECUTIONENGINE_ORC_INPROCESSEPC_H
#define LLVM_EXECUTIONENGINE_ORC_INPROCESSEPC_H

#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>

namespace llvm::orc {

class InProcessEPC : public ExecutorProcessControl {};

} // namespace llvm::orc

#endif // LLVM_EXECUTIONENGINE_ORC_INPROCESSEPC_H
