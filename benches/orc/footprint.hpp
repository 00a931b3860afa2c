// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "results.hpp"

#include "llvm/Support/Error.h"

namespace bench {

/// What this process holds now.
llvm::Expected<Footprint> footprint();
Footprint operator-(const Footprint &A, const Footprint &B);

} // namespace bench
