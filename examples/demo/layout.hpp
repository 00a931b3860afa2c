// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_LAYOUT_HPP
#define JITMEM_DEMO_LAYOUT_HPP

#include "llvm/Support/Error.h"

#include <jitmem.h>

namespace demo {

/// Draws the manager's windows, their chunks and the ranges handed out of them, as SVG.
llvm::Error drawLayout(const jitmem_manager *Manager, llvm::StringRef Path);

} // namespace demo

#endif
