// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! cranelift-jit's arena provider for a benchmark in C++.

use cranelift_jit::{ArenaMemoryProvider, BranchProtection, JITMemoryKind, JITMemoryProvider};
use std::ptr;

/// An arena with so many bytes of address space; NULL if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn arena_new(bytes: usize) -> *mut ArenaMemoryProvider {
    ArenaMemoryProvider::new_with_size(bytes)
        .map_or(ptr::null_mut(), |arena| Box::into_raw(Box::new(arena)))
}

/// Code for kind 0, constants for 1, data for 2; aligned to 16. NULL if the arena is full.
///
/// # Safety
/// `arena` is one of [`arena_new`], used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn arena_allocate(
    arena: *mut ArenaMemoryProvider,
    bytes: usize,
    kind: u32,
) -> *mut u8 {
    let kind = match kind {
        0 => JITMemoryKind::Executable,
        1 => JITMemoryKind::ReadOnly,
        _ => JITMemoryKind::Writable,
    };
    // SAFETY: as the caller says.
    let arena = unsafe { &mut *arena };
    arena.allocate(bytes, 16, kind).unwrap_or(ptr::null_mut())
}

/// Gives what was allocated its final protection. Says whether that succeeded.
///
/// # Safety
/// As [`arena_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn arena_finalize(arena: *mut ArenaMemoryProvider) -> bool {
    // SAFETY: as the caller says.
    let arena = unsafe { &mut *arena };
    JITMemoryProvider::finalize(arena, BranchProtection::None).is_ok()
}

/// Frees the arena and all that lies in it.
///
/// # Safety
/// As [`arena_allocate`]; nothing in the arena is used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn arena_free(arena: *mut ArenaMemoryProvider) {
    // SAFETY: as the caller says.
    let mut arena = unsafe { Box::from_raw(arena) };
    // SAFETY: as the caller says.
    unsafe { arena.free_memory() };
}
