// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The objects of workloads (b) and (c).
#pragma once

#include "session.hpp"

namespace bench {

llvm::Expected<std::vector<Object>> compileTinyObjects();
/// tiny_N of them, which counts from 0, and what it answers.
std::string tinyName(unsigned Number);
int tinyResult(unsigned Number, int X);

/// The members of a static library.
struct Library {
  std::string Name;
  std::vector<Object> Members;
};

llvm::Expected<std::vector<Library>> readLibraries();

} // namespace bench
