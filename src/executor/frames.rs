// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Registering frames of code that was linked in this process.

use super::exports::{llvm_deregister_eh_frames, llvm_register_eh_frames};
use crate::mapper::{Action, WrapperCall};
use crate::wire::sps::{AddrRange, ExecutorAddr, to_bytes};

/// Has the unwinder of this process know an `.eh_frame` section of `size` bytes at `start`, and forget it
/// when its allocation goes. For managers of this process.
///
/// # Safety
/// Whenever the action is run, a section is there that describes code that is there, and it stays as it is
/// until the action's twin has run.
pub unsafe fn eh_frame_action(start: u64, size: u64) -> Action {
    let section = to_bytes(&AddrRange {
        start: ExecutorAddr(start),
        end: ExecutorAddr(start.saturating_add(size)),
    });
    // SAFETY: wrapper functions of ours, and the caller says that there is such a section.
    let call = |function: usize| unsafe { WrapperCall::new(function as u64, section.clone()) };
    Action {
        finalize: call(llvm_register_eh_frames as *const () as usize),
        dealloc: call(llvm_deregister_eh_frames as *const () as usize),
    }
}
