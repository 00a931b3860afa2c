// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The adapter header in two files of a program without exceptions and RTTI: it compiles without a
// warning, and nothing of it is defined twice.

#include <jitmem/orc_debug.hpp>
#include <jitmem/orc_lljit.hpp>
#if LLVM_VERSION_MAJOR >= 19
#include <jitmem/orc_image.hpp>
#endif

#include <llvm/Support/raw_ostream.h>

// In adapter_two.cpp.
llvm::Error checkStats(const jitmem::orc::MemoryManager &MM);

int main() {
  auto MM = jitmem::orc::MemoryManager::CreateInProcess();
  llvm::Error Err = MM ? checkStats(**MM) : MM.takeError();
  if (!Err)
    return 0;
  llvm::errs() << llvm::toString(std::move(Err)) << "\n";
  return 1;
}
