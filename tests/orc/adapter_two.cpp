// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include <jitmem/orc.hpp>

llvm::Error checkStats(const jitmem::orc::MemoryManager &MM) {
  if (MM.stats().live != 0)
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   "a new manager says that something is live");
  // Made in this file too, so that both define whatever the header does not declare inline.
  auto Own = jitmem::orc::MemoryManager::CreateInProcess();
  return Own ? llvm::Error::success() : Own.takeError();
}
