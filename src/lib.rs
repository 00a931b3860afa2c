// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! jitmem is the memory manager for JIT-linked code.
//!
//! A JIT linker asks a [`Manager`] for memory, writes into working memory, finalizes and
//! runs the code. The manager divides large reservations that a [`Mapper`] makes in the
//! executor. ARCHITECTURE.md tells how the layers fit together; `include/jitmem.h` is the C API.
//!
//! A layer uses only what is listed above it here. `unsafe` is denied but for `sys`, the views of
//! memory, and `capi`.

#![deny(unsafe_code)]

mod error;
mod page;

mod group;

#[allow(unsafe_code)]
mod sys;

mod memory;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod wire;
#[cfg(not(feature = "internals"))]
#[allow(unreachable_pub)]
mod wire;

mod callback_queue;
mod completion;
pub mod transport;

pub mod mapper;

mod manager;

pub mod executor;

// Its functions are exported to C; its declarations are public for cbindgen, which reads enumerations
// that only C uses.
#[allow(unsafe_code, unreachable_pub, dead_code)]
mod capi;

pub use completion::{Completion, wait};
pub use error::{ALL_STATUSES, Error, Result, Status};
pub use group::{AllocGroup, Lifetime, Protection};
pub use manager::{
    AllocationHandle, Dylib, GrowthPolicy, InFlight, LayoutItem, LayoutKind, Manager, Options,
    Segment, Stats,
};
pub use mapper::{Action, InProcessKind, Mapper, WrapperCall};
pub use memory::view::Placement;
pub use page::{AddressRange, Alignment};
