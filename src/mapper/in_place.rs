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
        replace(reservation, range).inspect_err(|_| self.sealed.lock().push(range))
    }

    /// Tries again what was refused for memory that is about to be handed out.
    pub(super) fn open(
        &self,
        reservation: impl FnOnce() -> Result<Reservation>,
        memory: AddressRange,
    ) -> Result<()> {
        let overlaps = |range: &AddressRange| range.overlaps(memory);
        if !self.sealed.lock().iter().any(overlaps) {
            return Ok(());
        }
        let reservation = reservation()?;
        // Each stays noted until it is new: other threads may be handed out another part of it.
        let mut tried = Ok(());
        self.sealed.lock().retain(|range| {
            let new = match range.overlaps(memory) {
                true => replace(&reservation, *range),
                false => return true,
            };
            let stays = new.is_err();
            tried = super::actions::join(std::mem::replace(&mut tried, Ok(())), new);
            stays
        });
        tried
    }

    /// Nothing lies in a range any more.
    pub(super) fn forget(&self, gone: AddressRange) {
        drop(take(&mut self.sealed.lock(), |range| gone.contains(*range)));
    }
}

/// Puts new memory in the place of what was sealed.
fn replace(reservation: &Reservation, range: AddressRange) -> Result<()> {
    let replaced = reservation.renew_memory(range, Protection::READ_WRITE);
    replaced.map_err(|error| {
        let (size, start) = (range.size(), range.start());
        sys::explain_mapping(
            format_args!("replace {size} freed bytes at {start:#x}"),
            error,
        )
    })
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
