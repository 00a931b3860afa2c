// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The shape that this class has after LLVM 22, as far as the adapter and LLVM 22's other headers
// need it: no memory manager, no dylib manager and no dispatch information of its own. Compiled,
// never linked.

#ifndef LLVM_EXECUTIONENGINE_ORC_EXECUTORPROCESSCONTROL_H
#define LLVM_EXECUTIONENGINE_ORC_EXECUTORPROCESSCONTROL_H

#include <llvm/ADT/FunctionExtras.h>
#include <llvm/ADT/StringMap.h>
#include <llvm/ExecutionEngine/Orc/Shared/ExecutorAddress.h>
#include <llvm/ExecutionEngine/Orc/Shared/TargetProcessControlTypes.h>
#include <llvm/ExecutionEngine/Orc/Shared/WrapperFunctionUtils.h>
#include <llvm/ExecutionEngine/Orc/SymbolStringPool.h>
#include <llvm/ExecutionEngine/Orc/TaskDispatch.h>
#include <llvm/TargetParser/Triple.h>

namespace llvm::jitlink {
class JITLinkMemoryManager;
}

namespace llvm::orc {

class DylibManager;
class ExecutionSession;

class ExecutorProcessControl {
  friend class ExecutionSession;

public:
  using ResultBuffer = shared::WrapperFunctionBuffer;
  using IncomingWFRHandler = unique_function<void(ResultBuffer)>;

  struct RunInPlace {
    template <typename FnT> IncomingWFRHandler operator()(FnT &&Fn) {
      return IncomingWFRHandler(std::forward<FnT>(Fn));
    }
  };

  virtual ~ExecutorProcessControl();

  virtual Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> createDefaultMemoryManager() = 0;
  virtual Expected<std::unique_ptr<DylibManager>> createDefaultDylibMgr() = 0;
  virtual void callWrapperAsync(ExecutorAddr, IncomingWFRHandler, ArrayRef<char>) = 0;
  template <typename RunnerT, typename FnT>
  void callWrapperAsync(RunnerT &&Runner, ExecutorAddr Function, FnT &&Then, ArrayRef<char> Args) {
    callWrapperAsync(Function, Runner(std::forward<FnT>(Then)), Args);
  }
  virtual Error disconnect() = 0;

  SymbolStringPtr intern(StringRef Name);
  std::shared_ptr<SymbolStringPool> getSymbolStringPool() const;
  TaskDispatcher &getDispatcher();
  ExecutionSession &getExecutionSession();
  const Triple &getTargetTriple() const;
  unsigned getPageSize() const;
  const StringMap<std::vector<char>> &getBootstrapMap() const;
  const StringMap<ExecutorAddr> &getBootstrapSymbolsMap() const;
  Error getBootstrapSymbols(ArrayRef<std::pair<ExecutorAddr &, StringRef>>) const;
  template <typename T, typename TagT>
  Error getBootstrapMapValue(StringRef Key, std::optional<T> &Value) const;
  // Only for LLVM 22's ExecutionSession; later that does it itself.
  template <typename SignatureT, typename ThenT, typename... ArgTs>
  void callSPSWrapperAsync(ExecutorAddr, ThenT &&, const ArgTs &...);
  template <typename SignatureT, typename... ArgTs> Error callSPSWrapper(ExecutorAddr, ArgTs &&...);
  ResultBuffer callWrapper(ExecutorAddr, ArrayRef<char>);
};

} // namespace llvm::orc

#endif // LLVM_EXECUTIONENGINE_ORC_EXECUTORPROCESSCONTROL_H
