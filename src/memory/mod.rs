// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The memory core: views of pages, and the arithmetic of dividing address space.
//!
//! No RPC, no policy; the one lock is that of [`buffer`]'s pool. [`ranges`] and [`runs`] are pure arithmetic on offsets, so they
//! serve address space of any process; [`placement`], [`reservation`] and the views are about this process.

#[allow(unsafe_code)]
pub(crate) mod buffer;
#[allow(unsafe_code)]
pub(crate) mod byte_strings;
#[allow(unsafe_code)]
pub(crate) mod child_copy;
#[allow(unsafe_code)]
pub(crate) mod paged;
pub(crate) mod pages;
pub(crate) mod placement;
#[allow(unsafe_code)]
pub(crate) mod published;
#[allow(unsafe_code)]
pub(crate) mod ranges;
#[allow(unsafe_code)]
pub(crate) mod reservation;
pub(crate) mod runs;
pub(crate) mod slab;
#[allow(unsafe_code)]
pub(crate) mod staged;
#[allow(unsafe_code)]
pub(crate) mod view;
pub(crate) mod window;
#[allow(unsafe_code)]
pub(crate) mod words;
#[allow(unsafe_code)]
pub(crate) mod writer;
#[allow(unsafe_code)]
pub(crate) mod writer_view;
