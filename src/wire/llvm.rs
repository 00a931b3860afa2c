// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What LLVM's memory services are asked: types of its `OrcRPCTemplate`s, in LLVM's names.

use super::sps::{ActionPair, Bytes, ExecutorAddr, RemoteAllocGroup};

/// `SPSSegFinalizeRequest`: one segment with its address, size and content.
pub type SegFinalizeRequest<'a> = (RemoteAllocGroup, ExecutorAddr, u64, Bytes<'a>);

/// `SPSFinalizeRequest`: an allocation of the memory manager service.
pub type FinalizeRequest<'a> = (Vec<SegFinalizeRequest<'a>>, Vec<ActionPair<'a>>);

/// `SPSSharedMemorySegFinalizeRequest`: one segment whose content is in place.
pub type SharedMemorySegFinalizeRequest = (RemoteAllocGroup, ExecutorAddr, u64);

/// `SPSSharedMemoryFinalizeRequest`: an allocation of the shared-memory service.
pub type SharedMemoryFinalizeRequest<'a> =
    (Vec<SharedMemorySegFinalizeRequest>, Vec<ActionPair<'a>>);
