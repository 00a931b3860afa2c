// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reserved address space of this process, and what is mapped in its place.

use super::placement::{Placement, REACH, candidates, random_below};
use super::writer_view::far_from;
use crate::error::{Error, Result, Status};
use crate::group::Protection;
use crate::lock::Mutex;
use crate::page::AddressRange;
use crate::sys::{self, At, Mapping, explain_mapping};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static UNMAP_FAILURES: AtomicU64 = AtomicU64::new(0);

/// How many ranges the kernel refused to unmap in this process; each is lost until it exits.
pub(crate) fn unmap_failures() -> u64 {
    UNMAP_FAILURES.load(Ordering::Relaxed)
}

/// Unmaps; that the kernel refuses is counted.
///
/// # Safety
/// As [`sys::unmap`] has it.
pub(super) unsafe fn unmap(address: u64, size: u64) {
    // SAFETY: as the caller says.
    if unsafe { sys::unmap(address, size) }.is_err() {
        count_lost();
    }
}

/// Counts a range that stays mapped until the process exits.
pub(super) fn count_lost() {
    UNMAP_FAILURES.fetch_add(1, Ordering::Relaxed);
}

/// Reserved address space of this process; unmapped when it and all views in it are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Reservation(Arc<Reserved>);

#[derive(Debug)]
struct Reserved {
    range: AddressRange,
    in_reach: bool,
    /// Parts where something else is mapped since a mapping there has failed.
    lost: Mutex<Vec<AddressRange>>,
}

impl Reservation {
    /// Reserves `size` bytes, a multiple of the page size, where `placement` says.
    ///
    /// # Errors
    /// `OutOfMemory` where no such place is free or address space is short.
    pub(crate) fn new(size: u64, placement: Placement) -> Result<Reservation> {
        match placement {
            Placement::Fixed(address) => Self::fixed(address, size),
            _ => Self::near(size, placement),
        }
    }

    /// Reserves `size` bytes anywhere: the process's images may be out of reach.
    pub(crate) fn anywhere(size: u64) -> Result<Reservation> {
        let start = sys::reserve(At::Anywhere, size)
            .map_err(|error| explain_mapping(format_args!("reserve {size} bytes"), error))?;
        Ok(Reservation::of(start, size, false))
    }

    /// Reserves `size` bytes where a window's neighbourhood is not crowded by them, at a random place.
    pub(crate) fn far_from(window: AddressRange, size: u64) -> Result<Reservation> {
        let start = far_from(window, |at| sys::reserve(at, size))
            .map_err(|error| explain_mapping(format_args!("reserve {size} bytes"), error))?;
        Ok(Reservation::of(start, size, false))
    }

    /// What the kernel has just reserved.
    fn of(start: u64, size: u64, in_reach: bool) -> Reservation {
        let range = range(start, size);
        Reservation(Arc::new(Reserved {
            range,
            in_reach,
            lost: Mutex::default(),
        }))
    }

    fn fixed(address: u64, size: u64) -> Result<Reservation> {
        if address == 0 || !sys::page_size().divides(address) {
            return Err(crate::error::invalid_argument(format!(
                "window at fixed address {address:#x}: must be a multiple of the page size {}",
                sys::page_size().bytes()
            )));
        }
        let start = sys::reserve(At::Free(address), size).map_err(|error| {
            let taken = error.raw_os_error() == Some(libc::EEXIST);
            let error =
                explain_mapping(format_args!("reserve {size} bytes at {address:#x}"), error);
            if taken {
                error.remedy("something is mapped there: choose another address, or near instead")
            } else {
                error
            }
        })?;
        Ok(Reservation::of(start, size, true))
    }

    fn near(size: u64, placement: Placement) -> Result<Reservation> {
        let known = sys::mappings();
        let unknown = known.is_err();
        // Without /proc it is known only that something lies at the target. Below it is tried first: above the
        // libraries there may be no room beside the stack.
        let mappings = known.unwrap_or_else(|_| {
            vec![Mapping {
                range: placement.target(&[], size),
                image: true,
                reserved: false,
                private_memory: false,
            }]
        });
        let target = placement.target(&mappings, size);
        for start in candidates(&mappings, target, size, sys::page_size(), random_below) {
            match sys::reserve(At::Free(start), size) {
                Ok(start) => return Ok(Reservation::of(start, size, true)),
                // Another thread was faster, or the kernel keeps a guard gap there.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                Err(error) => {
                    return Err(explain_mapping(format_args!("reserve {size} bytes"), error));
                }
            }
        }
        if unknown {
            // The kernel knows where there is room, and looks near the libraries first.
            let start = sys::reserve(At::Anywhere, size)
                .map_err(|error| explain_mapping(format_args!("reserve {size} bytes"), error))?;
            if (start + size).max(target.end()) - start.min(target.start()) <= REACH {
                return Ok(Reservation::of(start, size, true));
            }
            // SAFETY: it was just reserved, for this call alone.
            unsafe { unmap(start, size) };
        }
        let what = match placement {
            Placement::Near(address) => format!("within 2 GiB of {address:#x}"),
            Placement::NearAll { lowest, highest } => {
                format!("within 2 GiB of both {lowest:#x} and {highest:#x}")
            }
            _ => "within 2 GiB of the process's images".to_owned(),
        };
        Err(Error::new(
            Status::OutOfMemory,
            format!(
                "reserve {size} bytes {what}: no gap there is large enough; choose a smaller \
                 window, another address, or make the manager before the large reservations"
            ),
        ))
    }

    /// The reserved addresses.
    pub(crate) fn range(&self) -> AddressRange {
        self.0.range
    }

    /// Whether everything that the placement asked for is in reach.
    pub(crate) fn in_reach(&self) -> bool {
        self.0.in_reach
    }

    /// Fails unless `part` is a part of it that is still reserved.
    fn check(&self, part: AddressRange) -> io::Result<()> {
        if !self.range().contains(part) {
            let message = format!("{part:?} does not lie in {:?}", self.range());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        match self.0.lost.lock().iter().any(|lost| lost.overlaps(part)) {
            false => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        }
    }

    /// After a mapping over `part` has failed: kernels before 6.12 may have unmapped what was there, and
    /// another thread may have mapped something since. That is left alone from then on.
    pub(super) fn restore(&self, part: AddressRange) {
        // Where something is mapped, it is most likely the reservation itself.
        self.restore_what_is(part, sys::is_reserved);
    }

    fn restore_what_is(&self, part: AddressRange, ours: fn(AddressRange) -> io::Result<bool>) {
        let restored = sys::reserve(At::Free(part.start()), part.size());
        if restored.is_err() && ours(part).is_ok_and(|ours| !ours) {
            self.0.lost.lock().push(part);
        }
    }

    /// Has other pages put in the place of a part, which is the reservation's again if that fails.
    fn replace(
        &self,
        part: AddressRange,
        replace: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check(part)?;
        replace(part.start(), part.size()).inspect_err(|_| self.restore(part))
    }

    /// Puts private zeroed pages in the place of a part.
    pub(crate) fn take_memory(&self, part: AddressRange, protection: Protection) -> io::Result<()> {
        self.replace(part, |start, size| {
            // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
            unsafe { sys::replace_by_memory(start, size, protection) }
        })
    }

    /// [`Reservation::take_memory`] where private memory is already, which stays if that fails.
    pub(crate) fn renew_memory(
        &self,
        part: AddressRange,
        protection: Protection,
    ) -> io::Result<()> {
        self.check(part)?;
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        let renewed = unsafe { sys::replace_by_memory(part.start(), part.size(), protection) };
        renewed.inspect_err(|_| self.restore_what_is(part, sys::is_private_memory))
    }

    /// Puts shared zeroed pages in the place of a part.
    pub(super) fn take_shared_memory(
        &self,
        part: AddressRange,
        protection: Protection,
    ) -> io::Result<()> {
        self.replace(part, |start, size| {
            // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
            unsafe { sys::replace_by_shared_memory(start, size, protection) }
        })
    }

    /// Puts the first pages of a file in the place of a part.
    pub(crate) fn take_file(
        &self,
        part: AddressRange,
        protection: Protection,
        file: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.replace(part, |start, size| {
            // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
            unsafe { sys::replace_by_file(start, size, protection, file) }
        })
    }

    /// [`Reservation::take_file`] for pages that this process copies when it writes them.
    pub(super) fn take_private_file(
        &self,
        part: AddressRange,
        protection: Protection,
        file: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.replace(part, |start, size| {
            // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
            unsafe { sys::replace_by_private_file(start, size, protection, file) }
        })
    }

    /// [`Reservation::take_file`] for code that perf shall name. perf is told of mmap and not of mremap: first
    /// it is told of anonymous memory in its place, for which it reads /tmp/perf-PID.map. Where that may not
    /// be executable, perf names the file.
    pub(crate) fn take_code(
        &self,
        part: AddressRange,
        protection: Protection,
        file: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.check(part)?;
        let size = part.size();
        let code = sys::map_file(At::Anywhere, size, protection, file)?;
        let moved = self.take_shared_memory(part, protection).and_then(|()| {
            // SAFETY: mapped for this; the part is this reservation's.
            let moved = unsafe { sys::move_mapping(code, size, part.start()) };
            moved.inspect_err(|error| match error.raw_os_error() {
                // With these the kernel may have unmapped the part before.
                Some(libc::ENOMEM | libc::EAGAIN) => self.restore(part),
                // SAFETY: the part is this reservation's, and shows what was just mapped there.
                _ => drop(unsafe { sys::decommit(part.start(), size) }),
            })
        });
        let Err(error) = moved else { return Ok(()) };
        // SAFETY: mapped for this, and it was not moved.
        unsafe { unmap(code, size) };
        match error.raw_os_error() {
            Some(libc::EPERM) => self.take_file(part, protection, file),
            _ => Err(error),
        }
    }

    /// Puts the first pages of a file in the place of a part where something is mapped already, which
    /// stays if that fails. perf keeps what it was told by [`Reservation::take_code`].
    pub(super) fn exchange(
        &self,
        part: AddressRange,
        protection: Protection,
        file: &sys::MemFile,
    ) -> io::Result<()> {
        self.check(part)?;
        let size = part.size();
        let new = sys::map_file(At::Anywhere, size, protection, file.as_fd())?;
        // SAFETY: mapped for this; the part is this reservation's.
        unsafe { sys::move_mapping(new, size, part.start()) }.inspect_err(|_| {
            // SAFETY: mapped for this, and it was not moved.
            unsafe { unmap(new, size) };
        })
    }

    /// Changes the protection of a part.
    pub(crate) fn protect(&self, part: AddressRange, protection: Protection) -> io::Result<()> {
        self.check(part)?;
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        unsafe { sys::protect(part.start(), part.size(), protection) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let lost = self.lost.get_mut();
        lost.sort_unstable_by_key(|lost| lost.start());
        let mut start = self.range.start();
        for (end, next) in lost
            .iter()
            .map(|lost| (lost.start(), lost.end()))
            .chain([(self.range.end(), self.range.end())])
        {
            if end > start {
                // SAFETY: the views in it, which hold it, are gone.
                unsafe { unmap(start, end - start) };
            }
            start = start.max(next);
        }
    }
}

pub(super) fn range(start: u64, size: u64) -> AddressRange {
    AddressRange::new(start, size).expect("the kernel hands out ranges that end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fault::Faults;

    #[test]
    fn libc_tells_nothing_of_a_window_in_its_reach() {
        let places: std::collections::HashSet<u64> = (0..8)
            .map(|_| {
                let window = Reservation::new(256 << 20, Placement::Default).unwrap();
                window.range().start()
            })
            .collect();
        // Of some 50,000 places, the same one may come twice.
        assert!(places.len() >= 7, "{places:x?}");
    }

    #[test]
    fn without_proc_a_window_is_in_reach_of_libc() {
        let (libc, page) = (sys::libc_address(), sys::page_size().bytes());
        // Windows of other tests may lie where the first ones are tried.
        let windows: Vec<Reservation> = (0..8)
            .map(|_| {
                let refused = Faults::one(0, libc::EACCES);
                let window = Reservation::new(16 * page, Placement::Default).unwrap();
                assert_eq!(refused.failed(), Some("open(/proc/self/maps)"));
                window
            })
            .collect();
        for window in windows {
            assert!(window.in_reach());
            assert!(window.range().start().abs_diff(libc) < REACH, "{window:?}");
        }
        // Where nothing is in the way, below.
        let alone = Placement::Default.target(&[], 1 << 30);
        let known = [Mapping {
            range: alone,
            image: true,
            reserved: false,
            private_memory: false,
        }];
        let first = candidates(&known, alone, 1 << 30, sys::page_size(), |_| 0)[0];
        assert!(first < libc, "{first:#x}");
    }

    #[test]
    fn near_and_fixed_are_obeyed() {
        let page = sys::page_size().bytes();
        let first = Reservation::new(page, Placement::Default).unwrap();
        let taken = Reservation::new(page, Placement::Fixed(first.range().start())).unwrap_err();
        assert_eq!(taken.os_code(), Some(libc::EEXIST));
        assert!(Reservation::new(page, Placement::Fixed(12345)).is_err());
        let near = 0x2000_0000_0000;
        let reservation = Reservation::new(1 << 30, Placement::Near(near)).unwrap();
        assert!(reservation.range().start().abs_diff(near) < 1 << 31);
        assert!(reservation.range().end().abs_diff(near) < 1 << 31);
        assert!(Reservation::new(page, Placement::Near(u64::MAX)).is_err());
    }
}
