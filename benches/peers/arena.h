// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What arena/src/lib.rs exports; it is documented there.
#pragma once

#include <cstddef>
#include <cstdint>

struct arena;

extern "C" {
arena *arena_new(size_t bytes);
void *arena_allocate(arena *arena, size_t bytes, uint32_t kind);
bool arena_finalize(arena *arena);
void arena_free(arena *arena);
}
