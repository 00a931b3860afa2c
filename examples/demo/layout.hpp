// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_LAYOUT_HPP
#define JITMEM_DEMO_LAYOUT_HPP

#include "llvm/Support/Error.h"

#include <jitmem.h>

namespace demo {

/// Draws the manager's windows, their chunks and the ranges handed out of them, as SVG under a
/// title.
llvm::Error drawLayout(const jitmem_manager *Manager, llvm::StringRef Path,
                       const llvm::Twine &Title);

} // namespace demo

#endif
