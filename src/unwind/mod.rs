// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How the unwinder finds the frames of linked code: an index from code to frame descriptions, which
//! the process that links writes and the process that runs the code reads, without a lock and without a message.

#[allow(unsafe_code)]
pub(crate) mod eh_frame;
#[allow(unsafe_code)]
pub(crate) mod index;
#[allow(unsafe_code)]
pub(crate) mod registration;
#[allow(unsafe_code)]
pub(crate) mod unwinder;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
