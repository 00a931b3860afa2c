// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's functions that controllers and linked code find by name, for a program to export under
//! those names. libjitmem.so does not: libLLVM exports the same.

use super::llvm::{deregister_eh_frames, register_debug_object, register_eh_frames};
use crate::sys::serve;
use std::ffi::c_char;

pub use super::unwinder::{FoundFrames, unwind_find_fde};
pub use crate::sys::RawWrapperResult;

macro_rules! wrappers {
    ($($(#[$doc:meta])* $name:ident: $body:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `args` has `size` bytes, which are the serialized arguments, and what they say of this
        /// process's memory is so.
        pub unsafe extern "C" fn $name(args: *const c_char, size: usize) -> RawWrapperResult {
            // SAFETY: as the caller says.
            unsafe { serve(args.cast(), size, $body) }
        }
    )*};
}

wrappers! {
    /// Makes the unwinder know an `.eh_frame` section.
    llvm_register_eh_frames: register_eh_frames;
    /// Makes it forget one.
    llvm_deregister_eh_frames: deregister_eh_frames;
    /// Puts an object on GDB's list.
    llvm_register_debug_object: register_debug_object;
}
