// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_stats` and the layout.

use super::handle;
use super::manager::jitmem_manager;
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::invalid_argument;
use crate::manager::LayoutKind;
use crate::mapper::Kind;
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// Which mapper a manager uses.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_mapper_kind {
    /// This process, two views of the same pages.
    JITMEM_MAPPER_TWO_VIEWS = 1,
    /// This process, one view whose protection changes.
    JITMEM_MAPPER_MPROTECT = 2,
    /// The host's own table of callbacks.
    JITMEM_MAPPER_CUSTOM = 3,
    /// Another process on this machine, shared pages.
    JITMEM_MAPPER_SHARED = 4,
    /// A process anywhere, content in messages.
    JITMEM_MAPPER_REMOTE = 5,
    /// Another process on this machine, through LLVM's own shared-memory service.
    JITMEM_MAPPER_LLVM_SHARED = 6,
    /// A process anywhere, through LLVM's own memory manager service.
    JITMEM_MAPPER_LLVM_SIMPLE = 7,
    /// This process, one view that is written in place until finalize.
    JITMEM_MAPPER_IN_PLACE = 8,
}

/// What was fallen back from; bits of jitmem_stats.fallbacks.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_fallback {
    /// Two views were refused, or a debugger is there, so pages change protection; fallback_reason
    /// says why.
    JITMEM_FALLBACK_MPROTECT = 1,
    /// The window is smaller than asked for: address space is limited.
    JITMEM_FALLBACK_SMALLER_WINDOW = 2,
    /// A window lies out of 32-bit reach of the process's images.
    JITMEM_FALLBACK_OUT_OF_REACH = 4,
    /// A better way to the executor, a better mapper for it, or better pages for two views could not
    /// be had; fallback_reason says why.
    JITMEM_FALLBACK_SECOND_BEST = 8,
}

/// How frames of linked code become known to the unwinder.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_frames {
    /// By actions of the host's, of which nothing is known.
    JITMEM_FRAMES_ACTIONS = 0,
    /// By an index that the executor's unwinder reads. Where content is shared no message is needed for them; else an
    /// action enters them.
    JITMEM_FRAMES_INDEX = 1,
    /// By actions that register them, since the executor's unwinder asks for no index: that is another program than
    /// jitmem-executor or one with jitmem/unwind.c, or its unwinder is not libgcc's.
    JITMEM_FRAMES_UNWINDER_ASKS_NONE = 2,
    /// By actions that register them, since there was no room for an index of some window.
    JITMEM_FRAMES_NO_ROOM = 3,
}

/// Figures of one moment. Sizes in bytes, counts since the manager was made unless said otherwise.
/// Set struct_size to sizeof(jitmem_stats) before the call.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_stats {
    /// sizeof(jitmem_stats); afterwards the bytes that this library filled in.
    pub struct_size: usize,
    /// Address space of all windows.
    pub reserved: u64,
    /// Pages that may hold memory: those of which something was handed out since they were last given
    /// back to the system.
    pub committed: u64,
    /// Bytes asked for by live allocations.
    pub live: u64,
    /// Bytes lost to rounding and alignment in live allocations.
    pub padding: u64,
    /// Bytes in chunks that are not handed out: chunk_bytes - live - padding - waiting, less guards.
    pub free: u64,
    /// Kernel mappings at most, writer views and reserved gaps included.
    pub mappings: u64,
    /// Windows now.
    pub windows: u64,
    /// Chunks now.
    pub chunks: u64,
    /// Allocations now that are not finalized.
    pub in_flight: u64,
    /// Allocations now that are finalized.
    pub finalized: u64,
    /// Allocations made.
    pub allocate_calls: u64,
    /// Allocations finalized.
    pub finalize_calls: u64,
    /// Allocations abandoned.
    pub abandon_calls: u64,
    /// Allocations deallocated.
    pub deallocate_calls: u64,
    /// Requests that ended in an error.
    pub failures: u64,
    /// Times jitmem entered the kernel in this process, all managers together.
    pub system_calls: u64,
    /// Bytes from the lowest to the highest byte of the chunks in use, widest window.
    pub span: u64,
    /// One of jitmem_mapper_kind.
    pub mapper: u32,
    /// Bits of jitmem_fallback.
    pub fallbacks: u32,
    /// The mapper in words; valid until the manager is freed.
    pub mapper_name: *const c_char,
    /// What was fallen back from when the manager was made, and why, in words; NULL if nothing was.
    /// Valid until the manager is freed.
    pub fallback_reason: *const c_char,
    /// Ranges that the kernel refused to unmap in this process; lost until it exits.
    pub unmap_failures: u64,
    /// Messages sent to the executor for the mapper's purposes, all its managers together.
    pub messages: u64,
    /// Bytes of these messages and of their answers.
    pub message_bytes: u64,
    /// Address space of all chunks.
    pub chunk_bytes: u64,
    /// Bytes of this process's memory for what is noted of allocations and of free ranges. They sink
    /// when allocations go, but for some hundred KiB.
    pub records: u64,
    /// Bytes of what is deallocated and waits for jitmem_manager_reclaim, rounding included; neither
    /// live nor free.
    pub waiting: u64,
    /// Bytes that were freed and stay as they were, because other processes that were forked may see
    /// them.
    pub frozen: u64,
    /// Answers of the executor that had more bytes than was asked for, or than jitmem_limits.answer: each failed its
    /// call. This and the next two: of all that was asked over the transport.
    pub answers_too_large: u64,
    /// Answers that came when their call had been given up, or its limit was over.
    pub answers_late: u64,
    /// Answers to no call: each ended its connection.
    pub answers_unexpected: u64,
    /// One of jitmem_frames.
    pub frames_found_by: u64,
    /// Allocations whose frames are found by an index, so that no action registers them. This and the next one: of all
    /// managers over the mapper.
    pub frames_indexed: u64,
    /// Allocations whose frames an action registers.
    pub frames_registered: u64,
    /// Huge pages that the system has granted.
    pub huge_pages: u64,
    /// Those that it has refused; the error of jitmem_manager_collapse says why.
    pub huge_pages_refused: u64,
    /// How often another process has taken the place of the one that ran the executor's linked code, since the
    /// executor began to serve: JITMEM_EVENT_EXECUTOR_RESTARTED.
    pub executor_restarts: u64,
}

const LEAST: usize = offset_of!(jitmem_stats, unmap_failures) + size_of::<u64>();

/// Fills `stats`. Thread-safe; the figures are those of one moment.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or a wrong struct_size, JITMEM_INVALID_HANDLE (freed; in
/// a forked child, a manager over an executor).
///
/// # Safety
/// `manager` is NULL or a handle of this library; `stats` is NULL or has `struct_size` bytes;
/// `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_stats(
    manager: *const jitmem_manager,
    stats: *mut jitmem_stats,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let manager = unsafe { handle::get(manager) }?;
        manager.manager().check_process()?;
        input::required(stats, "stats")?;
        // SAFETY: the struct begins with its size.
        let given = unsafe { stats.cast::<usize>().read() };
        input::check_size(given, LEAST, "jitmem_stats")?;
        let now = manager.manager().stats();
        let mut fallbacks = 0;
        if now.mapper_fallback {
            fallbacks |= match now.mapper {
                Kind::Mprotect => jitmem_fallback::JITMEM_FALLBACK_MPROTECT,
                _ => jitmem_fallback::JITMEM_FALLBACK_SECOND_BEST,
            } as u32;
        }
        if now.smaller_window {
            fallbacks |= jitmem_fallback::JITMEM_FALLBACK_SMALLER_WINDOW as u32;
        }
        if now.windows_out_of_reach > 0 {
            fallbacks |= jitmem_fallback::JITMEM_FALLBACK_OUT_OF_REACH as u32;
        }
        let size = given.min(size_of::<jitmem_stats>());
        let filled = jitmem_stats {
            struct_size: size,
            reserved: now.reserved,
            committed: now.committed,
            live: now.live,
            padding: now.padding,
            free: now.free,
            mappings: now.mappings,
            windows: now.windows,
            chunks: now.chunks,
            in_flight: now.in_flight,
            finalized: now.finalized,
            allocate_calls: now.allocate_calls,
            finalize_calls: now.finalize_calls,
            abandon_calls: now.abandon_calls,
            deallocate_calls: now.deallocate_calls,
            failures: now.failures,
            system_calls: now.system_calls,
            span: now.span,
            mapper: now.mapper as u32,
            fallbacks,
            mapper_name: manager.mapper_name(),
            fallback_reason: manager.fallback_reason(),
            unmap_failures: now.unmap_failures,
            messages: now.messages,
            message_bytes: now.message_bytes,
            chunk_bytes: now.chunk_bytes,
            records: now.records,
            waiting: now.waiting,
            frozen: now.frozen,
            answers_too_large: now.dropped_answers.too_large,
            answers_late: now.dropped_answers.late,
            answers_unexpected: now.dropped_answers.unexpected,
            frames_found_by: now.frames_found_by as u64,
            frames_indexed: now.frames_indexed,
            frames_registered: now.frames_registered,
            huge_pages: now.huge_pages,
            huge_pages_refused: now.huge_pages_refused,
            executor_restarts: now.executor_restarts,
        };
        let source = std::ptr::from_ref(&filled).cast::<u8>();
        // SAFETY: the caller's struct has `given` bytes and ours has all of its own.
        unsafe { stats.cast::<u8>().copy_from_nonoverlapping(source, size) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// What a jitmem_layout_item is.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_layout_kind {
    /// A reserved window.
    JITMEM_LAYOUT_WINDOW = 0,
    /// A chunk of a window.
    JITMEM_LAYOUT_CHUNK = 1,
    /// A range of a chunk that is handed out.
    JITMEM_LAYOUT_RANGE = 2,
}

/// One piece of the layout.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_layout_item {
    /// First executor address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// One of jitmem_layout_kind.
    pub kind: u32,
    /// Bits of jitmem_protection; 0 for a window.
    pub protection: u32,
    /// One of jitmem_lifetime; 0 for a window.
    pub lifetime: u32,
    /// One of jitmem_code_hint: what the code of its chunk is for, which may be less than was asked for.
    pub code_hint: u32,
    /// The allocation that a range belongs to, where the manager knows: of what was allocated with a
    /// tag or name, or with an observer or the option `usage`; else 0.
    pub allocation: u64,
    /// 0: for fields of later versions.
    pub reserved: [u32; 2],
}

/// Sees one piece of the layout; `item` is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_layout_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, item: *const jitmem_layout_item)>;

/// Calls `visit` in this thread for each window, followed by its chunks in address order, each
/// followed by the ranges in it that are handed out, in address order. A picture of one moment: while
/// it is taken, some 10 ns for each range, the manager serves no other call, and memory is needed for
/// all of it; jitmem_manager_walk stops no other call for long. No lock is held during the calls.
/// Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE (freed; in a forked
/// child, a manager over an executor), JITMEM_OUT_OF_MEMORY.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `visit` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_layout(
    manager: *const jitmem_manager,
    visit: jitmem_layout_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let manager = unsafe { handle::get(manager) }?;
        manager.manager().check_process()?;
        let visit = visit.ok_or_else(|| invalid_argument("visit is NULL"))?;
        for item in manager.manager().core().layout()? {
            let kind = match item.kind {
                LayoutKind::Window => jitmem_layout_kind::JITMEM_LAYOUT_WINDOW,
                LayoutKind::Chunk => jitmem_layout_kind::JITMEM_LAYOUT_CHUNK,
                LayoutKind::Range => jitmem_layout_kind::JITMEM_LAYOUT_RANGE,
            };
            let item = jitmem_layout_item {
                kind: kind as u32,
                protection: item.group.map_or(0, |group| group.protection.bits()),
                lifetime: item.group.map_or(0, |group| group.lifetime as u32),
                address: item.range.start(),
                size: item.range.size(),
                code_hint: item.hint as u32,
                allocation: item.allocation.map_or(0, |allocation| allocation.0),
                reserved: [0; 2],
            };
            // SAFETY: the host's function takes a context and an item that lives through the call.
            unsafe { visit(ctx, &item) };
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
