// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A way through functions, each of which calls the next; the last one throws.
#pragma once

enum { HOPS = 100, ROUNDS = 200 };

/// Calls the function that `way` points to with the rest of the way.
typedef int (*hop)(const void *way);

extern "C" {
/// HOPS functions and the one that throws.
extern hop way[HOPS + 1];
int throwHere(const void *way);
/// The least time in ns of ROUNDS throws through the way, each of which was caught; -1 if one was
/// not.
int timeOfThrow(int);
}
