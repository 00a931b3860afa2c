// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include <stdio.h>

FILE *standardError(void) { return stderr; }
