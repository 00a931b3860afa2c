// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A C callback: function, context, and the context's destructor.

use std::ffi::c_void;

/// Frees a callback's context; may be NULL where there is nothing to free.
#[allow(non_camel_case_types)]
pub type jitmem_destroy_fn = Option<unsafe extern "C" fn(ctx: *mut c_void)>;

/// The context of a callback; destroyed exactly once, when dropped.
pub(super) struct Context {
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
}

// SAFETY: the API says that a callback and its destructor may run in any thread.
unsafe impl Send for Context {}
// SAFETY: as above; hosts' mapper tables are documented to be called concurrently.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn new(ctx: *mut c_void, destroy: jitmem_destroy_fn) -> Context {
        Context { ctx, destroy }
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        self.ctx
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the host supplied the pair, and this is the only call.
            unsafe { destroy(self.ctx) }
        }
    }
}
