// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs between LLVM versions, in one place. Hosts include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_COMPAT_HPP
#define JITMEM_ORC_COMPAT_HPP

#include <llvm/Config/llvm-config.h>

#if LLVM_VERSION_MAJOR < 19
#error "jitmem's ORC adapter needs LLVM 19 or later"
#endif

#include <llvm/ExecutionEngine/Orc/Core.h>
#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#include <llvm/ExecutionEngine/Orc/Shared/MemoryFlags.h>
#if LLVM_VERSION_MAJOR >= 21 && __has_include(<llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>)
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#endif

#include <string>

namespace jitmem::orc::detail {

/// Whether EPC's executor is this process. EPC classes carry no kind of their own, and LLVM may be
/// built without RTTI; but the context that a SelfExecutorProcessControl gives its executor for
/// calls back is the object itself, and a remote executor's is an object of another process.
inline bool isThisProcess(llvm::orc::ExecutorProcessControl &EPC) {
  const auto &Dispatch = EPC.getJITDispatchInfo();
  return Dispatch.JITDispatchContext == llvm::orc::ExecutorAddr::fromPtr(&EPC);
}

/// Loads a library into the executor and looks a symbol up in it.
inline llvm::Expected<llvm::orc::ExecutorAddr>
findInLibrary(llvm::orc::ExecutorProcessControl &EPC, const std::string &Path, const char *Name) {
#if LLVM_VERSION_MAJOR >= 21
  auto &Dylibs = EPC.getDylibMgr();
#else
  auto &Dylibs = EPC;
#endif
  auto Library = Dylibs.loadDylib(Path.c_str());
  if (!Library)
    return Library.takeError();
  llvm::orc::SymbolLookupSet Names(EPC.intern(Name));
  auto Found = Dylibs.lookupSymbols({{*Library, Names}});
  if (!Found)
    return Found.takeError();
  // The executor decides what it answers, so an answer without the symbol is no surprise.
  auto Missing = [&] {
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   "the executor's answer has no address of " + std::string(Name));
  };
  if (Found->size() != 1 || Found->front().size() != 1)
    return Missing();
  const auto &Symbol = Found->front().front();
#if LLVM_VERSION_MAJOR >= 21
  if (!Symbol)
    return Missing();
  return Symbol->getAddress();
#else
  return Symbol.getAddress();
#endif
}

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_COMPAT_HPP
