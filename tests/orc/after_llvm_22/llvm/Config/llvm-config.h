// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The number of the release that these stubs stand for.

#include_next <llvm/Config/llvm-config.h>
#undef LLVM_VERSION_MAJOR
#define LLVM_VERSION_MAJOR 23
