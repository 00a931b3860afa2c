// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Counts instructions by running this program again under valgrind.
#ifndef JITMEM_BENCH_CALLGRIND_H
#define JITMEM_BENCH_CALLGRIND_H

#include <stdbool.h>
#include <stdint.h>

/// Runs this program under callgrind with `arguments` (NULL at the end) and counts what `function`
/// and everything that it calls execute. False: `why` then says why nothing was counted.
bool count_instructions(const char *function, const char *const *arguments, uint64_t *instructions,
                        const char **why);

/// The same for parts of one run: the program has callgrind collect each of them and dump it then,
/// by the requests of valgrind/callgrind.h.
bool count_parts(int parts, const char *const *arguments, uint64_t *instructions, const char **why);

#endif
