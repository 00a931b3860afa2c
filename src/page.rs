// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Sizes and address ranges: every rounding and every overflow check of the crate.

use crate::error::{Error, Result, invalid_argument};
use std::fmt;

/// A power of two, used as page size, granule or alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alignment(u64);

impl Alignment {
    /// No alignment at all.
    pub const ONE: Alignment = Alignment(1);

    /// `value` as an alignment; `None` if it is not a power of two.
    pub const fn new(value: u64) -> Option<Alignment> {
        if value.is_power_of_two() {
            Some(Alignment(value))
        } else {
            None
        }
    }

    /// What values of a type must be aligned to.
    pub const fn of<T>() -> Alignment {
        Alignment(align_of::<T>() as u64)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// `value` rounded up to a multiple; `None` on overflow.
    pub const fn round_up(self, value: u64) -> Option<u64> {
        match value.checked_add(self.0 - 1) {
            Some(sum) => Some(sum & !(self.0 - 1)),
            None => None,
        }
    }

    /// `value` rounded down to a multiple.
    pub const fn round_down(self, value: u64) -> u64 {
        value & !(self.0 - 1)
    }

    /// Whether `value` is a multiple.
    pub const fn divides(self, value: u64) -> bool {
        value & (self.0 - 1) == 0
    }
}

impl TryFrom<u64> for Alignment {
    type Error = Error;

    /// # Errors
    /// `InvalidArgument` if it is not a power of two.
    #[inline]
    fn try_from(value: u64) -> Result<Alignment> {
        #[cold]
        fn refused(value: u64) -> Error {
            invalid_argument(format!("alignment {value} is not a power of two"))
        }
        Alignment::new(value).ok_or_else(|| refused(value))
    }
}

/// Where pages are shared, allocations start at multiples of this: what JITLink aligns code to.
pub(crate) const PACKING_GRANULE: Alignment = Alignment(16);

/// `size` bytes of executor address space from `start`; the end never overflows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    start: u64,
    size: u64,
}

impl AddressRange {
    /// No bytes.
    pub(crate) const EMPTY: AddressRange = AddressRange { start: 0, size: 0 };

    /// The range, or `None` if its end is not an address.
    pub const fn new(start: u64, size: u64) -> Option<AddressRange> {
        match start.checked_add(size) {
            Some(_) => Some(AddressRange { start, size }),
            None => None,
        }
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Number of bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// First address behind the range.
    pub const fn end(self) -> u64 {
        self.start + self.size
    }

    /// Whether all of `other` lies inside.
    pub const fn contains(self, other: AddressRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether any byte is in both.
    pub const fn overlaps(self, other: AddressRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The multiples of `alignment` that the range touches, pages for instance; `None` if they go beyond
    /// the last address.
    pub(crate) fn rounded_out(self, alignment: Alignment) -> Option<AddressRange> {
        let start = alignment.round_down(self.start);
        let end = alignment.round_up(self.end())?;
        AddressRange::new(start, end - start)
    }

    /// The part `[offset, offset + size)`, or `None` if it is not wholly inside.
    pub const fn part(self, offset: u64, size: u64) -> Option<AddressRange> {
        match offset.checked_add(size) {
            Some(end) if end <= self.size => Some(AddressRange {
                start: self.start + offset,
                size,
            }),
            _ => None,
        }
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_out_to_pages() {
        let page = Alignment::new(4096).unwrap();
        let pages = |start, size| AddressRange::new(start, size).unwrap().rounded_out(page);
        assert_eq!(pages(4095, 2), AddressRange::new(0, 8192));
        assert_eq!(pages(4096, 4096), AddressRange::new(4096, 4096));
        assert_eq!(pages(u64::MAX - 1, 1), None);
    }

    #[test]
    fn alignment_takes_powers_of_two_only() {
        assert!(Alignment::new(0).is_none());
        assert!(Alignment::new(24).is_none());
        let page = Alignment::new(4096).unwrap();
        assert_eq!(page.round_up(1), Some(4096));
        assert_eq!(page.round_up(4096), Some(4096));
        assert_eq!(page.round_up(u64::MAX - 4094), None);
        assert_eq!(page.round_down(8191), 4096);
        assert!(page.divides(8192) && !page.divides(8193));
        assert_eq!(Alignment::ONE.round_up(u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn ranges_never_overflow() {
        assert!(AddressRange::new(u64::MAX, 1).is_none());
        let range = AddressRange::new(0x1000, 0x1000).unwrap();
        assert_eq!(range.part(0xfff, 1).unwrap().start(), 0x1fff);
        assert!(range.part(0xfff, 2).is_none());
        assert!(range.part(u64::MAX, 2).is_none());
        assert!(range.contains(range) && range.overlaps(range));
        assert!(!range.overlaps(AddressRange::new(0x2000, 1).unwrap()));
    }
}
