// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The byte formats of ORC's RPC, without any unsafe code.

pub(crate) mod answer;
pub mod frame;
pub mod llvm;
pub mod service;
pub mod sps;
