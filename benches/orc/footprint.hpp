// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "results.hpp"

#include "llvm/Support/Error.h"

#include <sys/types.h>

namespace bench {

/// What a process holds now; 0: this one.
llvm::Expected<Footprint> footprint(pid_t Process = 0);
Footprint operator-(const Footprint &A, const Footprint &B);
Footprint operator+(const Footprint &A, const Footprint &B);

} // namespace bench
