// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The C API: one file per C type, no logic.
//!
//! Conventions, said once for all functions:
//! - Fallible functions return [`jitmem_status`]; 0 is success. Outputs are written only on
//!   success, the optional error object only on failure.
//! - Every pointer argument may be NULL only where its documentation says so.
//! - `_free(NULL)` does nothing. A handle that was freed is recognized as long as its memory has
//!   not served many other handles since.
//! - A callback is `(fn, ctx, destroy)`: `fn` runs once, in the thread that completes the request,
//!   which may be the calling one, before the call returns; then `destroy(ctx)` runs once. If the
//!   call is refused (its status is not 0), `fn` never runs and `destroy` has run.
//! - No lock is held while a callback runs; it may call any function.
//! - No function of the host (callback, destructor, mapper, action) may throw through the library.
//! - A panic never leaves the library: it is reported as JITMEM_INTERNAL, and the handle refuses
//!   further work.

mod callback;
mod custom;
mod executor;
mod guard;
mod handle;
mod input;
mod manager;
mod mapper;
mod numbered;
mod options;
mod request;
mod service;
mod stats;
mod status;
mod transport;
mod version;
