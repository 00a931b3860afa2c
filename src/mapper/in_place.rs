// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Code and constants of this process that are written at their own addresses, for linkers that know one
//! address per section.
//!
//! Free memory is private, zero and writable. Finalize seals the pages of an allocation by mprotect, which
//! has them for itself. Deallocate replaces them by new memory, so no sealed page is ever made writable.

use crate::error::Result;
use crate::group::Protection;
use crate::memory::placement::Placement;
use crate::memory::reservation::Reservation;
use crate::memory::view::View;
use crate::page::AddressRange;
use crate::sys::{self, AtForkMutex};

/// What is to be known of memory in place.
#[derive(Default)]
pub(super) struct InPlace {
    /// Free, and still sealed, because the system refused to replace it.
    sealed: AtForkMutex<Vec<AddressRange>>,
}

impl InPlace {
    /// # Errors
    /// What the system has against making written memory executable.
    pub(super) fn new() -> Result<InPlace> {
        match try_to_seal() {
            Err(error) if !error.is_passing() => Err(error.context(
                "write code in place: this system does not let memory that was written become \
                 executable",
            )
            .remedy(
                "choose two views (JITMEM_IN_PROCESS_TWO_VIEWS) and tell the linker both addresses \
                 of each section, or lift the restriction (PR_SET_MDWE, SELinux's execmem) from this \
                 process",
            )),
            _ => Ok(InPlace::default()),
        }
    }

    /// Gives what was written its final protection.
    pub(super) fn seal(
        reservation: &Reservation,
        range: AddressRange,
        protection: Protection,
    ) -> Result<()> {
        reservation.protect(range, protection).map_err(|error| {
            let (size, start) = (range.size(), range.start());
            sys::explain_mapping(
                format_args!("set the protection of {size} bytes at {start:#x}"),
                error,
            )
        })
    }

    /// Replaces what is deallocated by new memory. If the system refuses, that is tried again before the
    /// range is handed out.
    pub(super) fn make_new(&self, reservation: &Reservation, range: AddressRange) -> Result<()> {
        let (size, start) = (range.size(), range.start());
        let replaced = reservation.take_memory(range, Protection::READ_WRITE);
        replaced.map_err(|error| {
            self.sealed.lock().push(range);
            sys::explain_mapping(
                format_args!("replace {size} freed bytes at {start:#x}"),
                error,
            )
        })
    }

    /// Tries again what was refused for memory that is about to be handed out.
    pub(super) fn open(
        &self,
        reservation: impl FnOnce() -> Result<Reservation>,
        memory: AddressRange,
    ) -> Result<()> {
        let in_the_way = {
            let mut sealed = self.sealed.lock();
            let overlaps = |range: &AddressRange| range.overlaps(memory);
            match sealed.iter().any(overlaps) {
                true => take(&mut sealed, overlaps),
                false => return Ok(()),
            }
        };
        let reservation = reservation()?;
        // All of them, though one fails: what is not tried again must be noted.
        let tried = in_the_way
            .into_iter()
            .map(|range| self.make_new(&reservation, range));
        tried.fold(Ok(()), super::actions::join)
    }

    /// Nothing lies in a range any more.
    pub(super) fn forget(&self, gone: AddressRange) {
        drop(take(&mut self.sealed.lock(), |range| gone.contains(*range)));
    }
}

/// Takes out what `chosen` says.
fn take(
    ranges: &mut Vec<AddressRange>,
    chosen: impl Fn(&AddressRange) -> bool,
) -> Vec<AddressRange> {
    let (taken, left) = ranges.drain(..).partition(chosen);
    *ranges = left;
    taken
}

/// Has one page written and made executable.
fn try_to_seal() -> Result<()> {
    let page = sys::page_size().bytes();
    let reservation =
        Reservation::new(page, Placement::Default).or_else(|_| Reservation::anywhere(page))?;
    let range = reservation.range();
    let view = View::unsealed(&reservation, range, false)?;
    let sealed = InPlace::seal(&reservation, range, Protection::READ_EXEC);
    view.unmap().map_err(|(_, error)| error)?;
    sealed
}
