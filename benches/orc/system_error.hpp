// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "llvm/ADT/Twine.h"
#include "llvm/Support/Error.h"

#include <system_error>

namespace bench {

/// "open /proc/7/smaps: No such file or directory". createStringError would drop the cause.
inline llvm::Error systemError(int Errno, const llvm::Twine &Operation) {
  std::error_code Code(Errno, std::generic_category());
  return llvm::createStringError(Code, Operation + ": " + Code.message());
}

} // namespace bench
