// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The shape that this class has after LLVM 22: a look-up in one library at a time, which answers
// addresses.

#ifndef LLVM_EXECUTIONENGINE_ORC_DYLIBMANAGER_H
#define LLVM_EXECUTIONENGINE_ORC_DYLIBMANAGER_H

#include <llvm/ExecutionEngine/Orc/Shared/TargetProcessControlTypes.h>

namespace llvm::orc {

class SymbolLookupSet;

class DylibManager {
public:
  virtual ~DylibManager();
  virtual Expected<tpctypes::DylibHandle> loadDylib(const char *Path) = 0;
  Expected<std::vector<std::optional<ExecutorAddr>>> lookupSymbols(tpctypes::DylibHandle,
                                                                   const SymbolLookupSet &);
};

} // namespace llvm::orc

#endif // LLVM_EXECUTIONENGINE_ORC_DYLIBMANAGER_H
