// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_OPTIONS_HPP
#define JITMEM_DEMO_OPTIONS_HPP

#include <jitmem.h>

#include <string>

namespace demo {

/// What the command line chooses.
struct Options {
  unsigned Rounds;
  bool InProcess;
  std::string ExecutorPath; ///< what the libraries are linked into
  jitmem_in_process_kind Mapper;
  std::string LayoutPath;
  std::string DriverPath;
};

} // namespace demo

#endif
