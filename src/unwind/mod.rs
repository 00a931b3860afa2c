// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How the unwinder finds the frames of linked code: an index from code to frame descriptions, which
//! the process that links writes and the process that runs the code reads, without a lock and without a message. Code
//! that is registered by an action is in an index of this process's own, if its unwinder asks for one.

#[allow(unsafe_code)]
pub(crate) mod eh_frame;
#[allow(unsafe_code)]
pub(crate) mod index;
pub(crate) mod occupancy;
#[allow(unsafe_code)]
mod regions;
#[allow(unsafe_code)]
pub(crate) mod registration;
#[allow(unsafe_code)]
pub(crate) mod unwinder;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
