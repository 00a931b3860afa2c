// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The only code that knows the operating system. A port replaces this folder and nothing else.
//!
//! Preconditions, the same everywhere: addresses and sizes are multiples of [`page_size`], and sizes
//! are not zero. What would be undefined behaviour with a wrong argument is an `unsafe fn`.
//! Each call that enters the kernel and may fail for want of something passes [`gate`], which counts
//! it and, in this crate's own tests, makes it fail on demand.

mod atfork;
mod call;
mod child;
mod clock;
mod code;
mod copies;
mod cpu;
mod crash;
mod debugging;
mod dl;
mod explain;
#[cfg(test)]
pub(crate) mod fault;
mod file;
mod fork;
pub(crate) mod heap;
mod jit_debug;
pub(crate) mod landlock;
mod map;
mod maps;
mod memfile;
mod numbering;
mod orphans;
mod pages;
mod program;
mod raw;
pub(crate) mod seccomp;
mod shared_words;
mod shm;
pub(crate) mod socket;
mod store;
mod stream;
mod thread;
mod unwinder;
mod valgrind;
mod witness;

pub(crate) use atfork::{
    AtForkMutex, AtForkStatic, Forked, call_after_forks, fork_epoch, forks_in_use, witness_forks,
};
#[cfg(test)]
pub(crate) use call::testing;
pub(crate) use call::{
    Answer, WrapperResult, call_wrapper, dispatch_address, serve, serve_buffer,
    session_wrapper_address, unanswered, wrapper_address,
};
pub use call::{RawWrapperResult, WrapperCall};
pub(crate) use child::{ChildProcess, prepare_for_children};
pub(crate) use clock::monotonic_time;
#[cfg(test)]
pub(crate) use code::traps;
pub(crate) use code::{
    COHERENT_FETCH, TRAP, flush_instruction_cache, synchronize_cores, synchronize_fetches,
};
pub(crate) use copies::{copy, end_child, move_mapping, resident, same, write_pages};
pub(crate) use cpu::cpu_features;
pub(crate) use crash::{report_crashes, report_limit, share_crashes, signal_name, take_crash};
pub(crate) use debugging::debugging;
pub(crate) use dl::{Library, next_symbol, open_library, symbol, symbol_in};
use explain::limit;
pub(crate) use explain::{
    address_space_limit, explain, explain_fork, explain_mapping, explain_reach,
};
pub(crate) use file::{OwnFile, Replaced, open_own_file, replace_own_file};
#[cfg(test)]
pub(crate) use fork::testing::in_a_child;
pub(crate) use fork::{ClosedInChild, OwnerCell, OwnerProcess, at_exit_once, children_are_known};
pub(crate) use jit_debug::{
    debug_symbols, deregister_debug_object, deregister_debug_objects_within, oldest_debug_entry,
    register_debug_object,
};
pub(crate) use map::deny_new_code;
use map::map_memory;
pub(crate) use map::{
    At, collapse, decommit, dont_dump, dont_fork, map_again, map_file, map_part, populate, protect,
    remove, replace_by_file, replace_by_memory, replace_by_private_file, replace_by_shared_memory,
    reserve, unmap,
};
pub(crate) use maps::{Mapping, is_private_memory, is_reserved, libc_address, mappings, touched};
pub(crate) use memfile::{MemFile, copy_in_memory};
pub(crate) use numbering::Numbering;
pub(crate) use orphans::Orphans;
pub(crate) use pages::Pages;
pub(crate) use program::{
    OwnThread, call_int, call_main, call_on_frames, call_unwinder, call_void, fit_heap_to_limit,
    set_stack_size, spawn_for_programs, start_own_thread,
};
pub(crate) use raw::{Memory, discard, take};
pub(crate) use shared_words::{SharedWord, shared_words};
pub(crate) use shm::{SharedName, punch_hole, take_part, take_shared_memory};
pub(crate) use socket::random;
pub(crate) use store::{store_16, stores_16_bytes};
pub(crate) use stream::{
    StreamWriter, WRITTEN_AT_ONCE, await_plain_bytes, check_open, close_handed_over, disconnect,
    duplicate, look_for_input, passes_descriptors, read, receive, write_to_stderr,
};
pub(crate) use thread::{exit_now, flush_and_exit, spawn, spawn_to_fork, thread_number};
pub(crate) use unwinder::{FrameRegistrar, frame_registrar};
pub(crate) use valgrind::is_translated;
pub(crate) use witness::ForksInUse;

use crate::page::Alignment;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static SYSTEM_CALLS: AtomicU64 = AtomicU64::new(0);

/// How often jitmem has entered the kernel in this process, for any manager.
pub(crate) fn system_calls() -> u64 {
    SYSTEM_CALLS.load(Ordering::Relaxed)
}

/// Counts one system call; under test it may say that this call shall fail.
fn gate(call: &'static str) -> io::Result<()> {
    SYSTEM_CALLS.fetch_add(1, Ordering::Relaxed);
    #[cfg(test)]
    fault::check(call)?;
    #[cfg(not(test))]
    let _ = call;
    Ok(())
}

/// Where the addresses that a process can map end. What lies above is the kernel's, though a mapping of
/// its may be listed there (vsyscall on x86-64).
pub(crate) fn user_end() -> u64 {
    if cfg!(target_arch = "x86_64") {
        return 1 << 47;
    }
    static USER_END: OnceLock<u64> = OnceLock::new();
    *USER_END.get_or_init(end_above_stack)
}

/// Where addresses end by what the kernel chose: the name of the program is the last thing on the first
/// stack, which ends a little below them.
fn end_above_stack() -> u64 {
    // SAFETY: getauxval reads what the process was started with.
    let stack_end = unsafe { libc::getauxval(libc::AT_EXECFN) };
    match stack_end.checked_next_power_of_two() {
        Some(end) if end > 1 => end,
        _ => 1 << 47,
    }
}

/// The system's page size.
pub(crate) fn page_size() -> Alignment {
    static PAGE_SIZE: OnceLock<Alignment> = OnceLock::new();
    *PAGE_SIZE.get_or_init(|| {
        // SAFETY: sysconf reads a constant and touches no memory of ours.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        u64::try_from(size)
            .ok()
            .and_then(Alignment::new)
            .expect("the page size is a power of two")
    })
}

/// Bytes of a huge page: what one table of page entries maps.
pub(crate) fn huge_page_size() -> Alignment {
    let page = page_size().bytes();
    let entries = page / size_of::<u64>() as u64;
    Alignment::new(page * entries).expect("both are powers of two")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_first_stack_tells_where_addresses_end() {
        assert_eq!(end_above_stack(), user_end());
    }
}
