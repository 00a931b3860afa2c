// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_FOOTPRINT_HPP
#define JITMEM_DEMO_FOOTPRINT_HPP

#include "llvm/Support/Error.h"

#include <cstdint>

namespace demo {

/// What a process has mapped besides files on disk, its heap and its stack: where JIT'd code lives.
struct Footprint {
  uint64_t Bytes = 0; ///< pages really used, each counted once (Pss)
  int64_t Mappings = 0;

  /// Reads /proc/Process/smaps; Process is a process id or "self".
  static llvm::Expected<Footprint> of(llvm::StringRef Process);
};

/// Keeps malloc within the heap, so that what the linker itself allocates stays out of every
/// Footprint.
void keepMallocInHeap();

} // namespace demo

#endif
