// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor's side: what runs where the linked code runs.

pub(crate) mod llvm;
pub mod program;
pub mod server;
pub mod service;
