// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_CRASH_HPP
#define JITMEM_DEMO_CRASH_HPP

#include "options.hpp"

#include "llvm/Support/Error.h"

namespace demo {

/// Scene 3: linked code crashes in a second process, and this one goes on with another.
llvm::Error runCrash(const Options &O);

} // namespace demo

#endif
