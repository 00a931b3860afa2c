// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's functions that controllers and linked code find by name, for a program to export under
//! those names. libjitmem.so does not: libLLVM exports the same.

use super::llvm::register_debug_object;
use crate::sys::serve;
use crate::unwind::registration::{deregister, register};
use std::ffi::c_char;

pub use crate::sys::RawWrapperResult;
pub use crate::unwind::unwinder::{FoundFrames, unwind_find_fde};

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
    llvm_register_eh_frames: register;
    /// Makes it forget one.
    llvm_deregister_eh_frames: deregister;
    /// Puts an object on GDB's list.
    llvm_register_debug_object: register_debug_object;
}
