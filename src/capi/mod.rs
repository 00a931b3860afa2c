// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The C API: one file per C type, no logic.
//! What holds for all functions stands in `jitmem.h.in`, from which `build.rs` makes the header.

mod allocate;
mod allocation_request;
mod call;
mod callback;
mod containment;
mod custom;
mod deallocate;
mod epochs;
mod events;
mod executor;
mod finalize;
mod group;
mod guard;
mod handle;
mod host_mapper;
mod image;
mod image_recorder;
mod input;
mod limits;
mod lookup;
mod manager;
mod mapper;
mod options;
mod request;
mod rtdyld;
mod sections;
mod service;
mod stats;
mod status;
mod transport;
mod unwind;
mod usage;
mod version;
mod write_scope;
