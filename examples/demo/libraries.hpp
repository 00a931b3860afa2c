// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_LIBRARIES_HPP
#define JITMEM_DEMO_LIBRARIES_HPP

#include "llvm/Support/Error.h"

#include <jitmem.h>

#include <string>

namespace demo {

/// What the command line chooses.
struct Options {
  unsigned Rounds;
  bool InProcess;
  std::string ExecutorPath;
  jitmem_in_process_kind Mapper;
  std::string LayoutPath;
  std::string DriverPath;
};

/// Links four libraries with each memory manager, uses them, and prints what that cost.
llvm::Error linkLibraries(const Options &O);

} // namespace demo

#endif
