// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_FOOTPRINT_HPP
#define JITMEM_DEMO_FOOTPRINT_HPP

#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/Error.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace demo {

/// What processes have mapped besides files on disk, heap and stack: where JIT'd code lives.
struct Footprint {
  uint64_t Bytes =
      0; ///< pages really used, each counted once (Pss), by however many processes it is mapped
  int64_t Mappings = 0;

  /// What came since. Memory may also have gone, of which there is no negative amount.
  Footprint operator-(const Footprint &Earlier) const {
    return {Bytes > Earlier.Bytes ? Bytes - Earlier.Bytes : 0, Mappings - Earlier.Mappings};
  }

  /// Reads /proc/PROCESS/smaps of each; a process is its id or "self".
  static llvm::Expected<Footprint> of(llvm::ArrayRef<std::string> Processes);
};

/// Keeps malloc within the heap, in this process and in those that it starts, so that what the
/// linker and the executor allocate for themselves stays out of every Footprint.
void keepMallocInHeap();

/// Makes the heap this much larger, for good. It can't grow while the process has as many mappings
/// as the kernel allows, and LLVM ends the process when malloc fails.
void reserveHeap(size_t Bytes);

} // namespace demo

#endif
