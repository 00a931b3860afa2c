// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor's side: what runs where the linked code runs.

#[allow(unsafe_code)]
mod actions;
pub mod containment;
#[allow(unsafe_code)]
pub mod exports;
mod fixed_code;
#[allow(unsafe_code)]
mod frames;
#[allow(unsafe_code)]
pub(crate) mod llvm;
pub mod program;
#[allow(unsafe_code)]
pub mod server;
#[allow(unsafe_code)]
pub mod service;

pub(crate) use frames::{action_of as eh_frame_action_of, section_of as eh_frame_args};
pub use frames::{eh_frame_action, manager_eh_frame_action};
