// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Where a run was made.
#pragma once

#include "llvm/Support/Error.h"

#include <cstdint>
#include <string>

namespace bench {

struct Machine {
  /// Name, release and architecture of the kernel.
  std::string System;
  /// As LLVM names the microarchitecture.
  std::string Processor;
  unsigned Processors = 0;
  /// Most mappings that a process can have (vm.max_map_count).
  uint64_t MostMappings = 0;
};

llvm::Expected<Machine> thisMachine();

} // namespace bench
