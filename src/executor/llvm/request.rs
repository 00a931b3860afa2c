// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What requests for memory have in common, whichever service they go to.

use super::Told;
use crate::error::{Error, Result, invalid_argument};
use crate::group::{AllocGroup, Protection};
use crate::mapper::actions::join;
use crate::page::AddressRange;
use crate::sys::{self, explain_mapping};
use crate::wire::sps::{ExecutorAddr, RemoteAllocGroup};

/// What the protection of a segment is, and where it lies.
pub(super) fn placed(
    group: RemoteAllocGroup,
    address: ExecutorAddr,
    size: u64,
) -> Result<(AddressRange, Protection)> {
    let range = AddressRange::new(address.0, size).ok_or_else(|| {
        invalid_argument(format!(
            "segment of {size} bytes at {:#x}: it goes beyond the end of memory",
            address.0
        ))
    })?;
    let group = AllocGroup::try_from(group)
        .map_err(|error| error.context(format!("segment at {:#x}", address.0)))?;
    Ok((range, group.protection))
}

/// The whole pages that a range touches.
pub(super) fn pages_of(range: AddressRange) -> AddressRange {
    range.rounded_out(sys::page_size()).unwrap_or(range)
}

/// Changes the protection of the pages that a range touches.
///
/// # Safety
/// The range lies in a reservation of the controller's.
pub(super) unsafe fn protect(range: AddressRange, protection: Protection) -> Result<()> {
    let pages = pages_of(range);
    if pages.size() == 0 {
        return Ok(());
    }
    // SAFETY: as the caller says; the controller sees to it that nothing uses it.
    unsafe { sys::protect(pages.start(), pages.size(), protection) }.map_err(|error| {
        explain_mapping(format_args!("mprotect {pages:?} to {protection:?}"), error)
    })
}

/// An error in the words for a controller.
pub(super) fn told(error: Error) -> String {
    error.message().to_owned()
}

/// Does it for each, the last one first, whatever happens to the others.
pub(super) fn last_to_first(
    addresses: Vec<ExecutorAddr>,
    body: impl Fn(u64) -> Result<()>,
) -> Told<()> {
    let mut result = Ok(());
    for address in addresses.into_iter().rev() {
        result = join(result, body(address.0));
    }
    result.map_err(told)
}
