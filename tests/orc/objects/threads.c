// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Neither is static: a compiler would then use the local-dynamic model, which JITLink lacks.
__thread int Counter = 7;
__thread int Zero;

int bump(void) { return ++Counter + Zero; }
