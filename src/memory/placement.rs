// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where a window goes in this process.
//!
//! Linked code calls into the process's libraries and, compiled for PIE, refers to their data
//! (`stderr`, `environ`) with 32-bit references, so by default the window must lie where every
//! address of those images is less than 2 GiB from every address of the window.

use super::reservation::range;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, Mapping};

/// How far apart two addresses may be that refer to each other: 2 GiB less a margin for addends
/// and for references to the end of an object.
pub(crate) const REACH: u64 = (2 << 30) - (2 << 20);

/// The most for [`Options::window_size`](crate::Options::window_size) if code branches directly to all else
/// in its window: a branch of AArch64 reaches from 128 MiB before it to 4 bytes less behind it.
pub const BRANCH_REACH: u64 = 128 << 20;

/// A window smaller than this is of no use.
pub(crate) const SMALLEST_WINDOW: u64 = 64 << 10;

/// Room left between images and window, so that libraries loaded later still come close.
const ROOM: u64 = 256 << 20;

/// How far away from a chunk its writer view is at least.
pub(super) const WRITER_DISTANCE: u64 = 64 << 30;

/// How many addresses beyond that distance a writer view may begin at: with pages of 4 KiB 28 bits that
/// can't be guessed, as many as Linux has by default for its own mappings (vm.mmap_rnd_bits).
pub(super) const WRITER_SPAN: u64 = 1 << 40;

/// The same for those whose place is a multiple of more than a page: 24 bits with 2 MiB.
const ALIGNED_WRITER_SPAN: u64 = 1 << 45;

/// Writer views stay above executables that are linked to fixed addresses, and above their heaps.
const LOWEST_WRITER: u64 = 4 << 30;

/// The part of a gap that may stay in front of a window, so that its place can't be guessed.
const SLACK_SHARE: u64 = 16;

/// Bits that can't be guessed and take no system call, but for the first of each thread: SipHash, with
/// keys that the system has drawn.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// A random number below `bound`, which is not zero.
pub(super) fn random_below(bound: u64) -> u64 {
    ((u128::from(random()) * u128::from(bound)) >> 64) as u64
}

/// A place for the writer view of a chunk. `random` draws a number below its argument.
pub(super) fn far_place(
    executor: AddressRange,
    alignment: Alignment,
    random: impl Fn(u64) -> u64,
) -> Option<u64> {
    let span = match alignment > sys::page_size() {
        true => ALIGNED_WRITER_SPAN,
        false => WRITER_SPAN,
    };
    let size = executor.size();
    let highest = executor.start().saturating_sub(WRITER_DISTANCE + size);
    let below = (highest.saturating_sub(span).max(LOWEST_WRITER), highest);
    let lowest = executor.end().saturating_add(WRITER_DISTANCE);
    let above = (
        lowest,
        lowest.saturating_add(span).min(sys::user_end() - size),
    );
    let width = |(low, high): (u64, u64)| high.saturating_sub(low);
    let (low, high) = if width(below) >= width(above) {
        below
    } else {
        above
    };
    let low = alignment.round_up(low)?;
    let places = width((low, high)) / alignment.bytes();
    (places > 0).then(|| low + random(places) * alignment.bytes())
}

/// Where the host wants a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Where the executor's own images are in reach of 32-bit references.
    Default,
    /// So that this address is in reach.
    Near(u64),
    /// So that several addresses are in reach: the lowest and the highest of them, and with these
    /// all that lie between. [`Placement::near_all`] makes it of a list.
    NearAll {
        /// The lowest address.
        lowest: u64,
        /// The highest address.
        highest: u64,
    },
    /// Exactly here.
    Fixed(u64),
}

impl Placement {
    /// So that each of these addresses is in reach of everything in the window.
    ///
    /// # Errors
    /// `InvalidArgument` for no address, and for two that are so far apart that no window reaches
    /// both.
    pub fn near_all(addresses: &[u64]) -> Result<Placement> {
        let (Some(lowest), Some(highest)) = (addresses.iter().min(), addresses.iter().max()) else {
            return Err(invalid_argument("a window near no address at all"));
        };
        let (lowest, highest) = (*lowest, *highest);
        let placement = Placement::NearAll { lowest, highest };
        placement.largest_window(SMALLEST_WINDOW)?;
        Ok(placement)
    }

    /// The lowest and the highest address that shall be in reach, if there are such.
    pub(crate) fn near(self) -> Option<(u64, u64)> {
        match self {
            Placement::Near(address) => Some((address, address)),
            Placement::NearAll { lowest, highest } => Some((lowest, highest)),
            Placement::Default | Placement::Fixed(_) => None,
        }
    }

    /// The largest window that can have all of it in reach.
    ///
    /// # Errors
    /// `InvalidArgument` if that is below `least`.
    pub(crate) fn largest_window(self, least: u64) -> Result<u64> {
        let (lowest, highest) = self.near().unwrap_or_default();
        let most = highest
            .checked_sub(lowest)
            .and_then(|apart| REACH.checked_sub(apart));
        most.filter(|most| *most >= least).ok_or_else(|| {
            invalid_argument(format!(
                "a window near both {lowest:#x} and {highest:#x}: they are {} bytes apart and a window of \
                 {least} bytes can have {} between them in reach; leave one of them out",
                highest.abs_diff(lowest),
                REACH - least
            ))
        })
    }

    /// Fails if a window that was to be near several addresses does not have them all in reach.
    pub(crate) fn check(self, window: AddressRange) -> Result<()> {
        let Placement::NearAll { lowest, highest } = self else {
            return Ok(());
        };
        let far = |address: &u64| {
            let end = window.end().max(*address);
            end - window.start().min(*address) > REACH
        };
        match [lowest, highest].iter().find(|address| far(address)) {
            None => Ok(()),
            Some(address) => Err(Error::new(
                Status::Unsupported,
                format!(
                    "the mapper reserved {window:?}, out of reach of {address:#x}, which it was \
                     wanted near; choose another address, or a mapper of jitmem's own"
                ),
            )),
        }
    }

    /// What a window of `size` bytes shall have in reach.
    pub(super) fn target(self, mappings: &[Mapping], size: u64) -> AddressRange {
        match self {
            Placement::Default => images_around(mappings, sys::libc_address(), size),
            Placement::Near(address) | Placement::Fixed(address) => {
                range(address.min(u64::MAX - 1), 1)
            }
            Placement::NearAll { lowest, highest } => {
                let lowest = lowest.min(u64::MAX - 1);
                range(lowest, highest.saturating_sub(lowest).max(1))
            }
        }
    }
}

/// The span of all images that one window can reach, around the image that holds `anchor`.
pub(crate) fn images_around(mappings: &[Mapping], anchor: u64, window: u64) -> AddressRange {
    let (mut start, mut end) = (anchor, anchor.saturating_add(1));
    let widest = REACH.saturating_sub(window);
    // Nearest images first, so that one far image costs none of the near ones.
    let mut images: Vec<AddressRange> = mappings
        .iter()
        .filter(|mapping| mapping.image)
        .map(|mapping| mapping.range)
        .collect();
    images.sort_by_key(|image| image.start().abs_diff(anchor));
    for image in images {
        let (low, high) = (start.min(image.start()), end.max(image.end()));
        if high - low <= widest {
            (start, end) = (low, high);
        }
    }
    AddressRange::new(start, end - start).expect("the hull of valid ranges is valid")
}

/// Free places of `size` bytes from which all of `target` is in reach, best first. Within its gap a place
/// is random, as far as that costs none of the windows of this size that fit there, or a 16th of the gap
/// where that is more. `random` draws a number below its argument.
pub(super) fn candidates(
    mappings: &[Mapping],
    target: AddressRange,
    size: u64,
    page: Alignment,
    random: impl Fn(u64) -> u64,
) -> Vec<u64> {
    let lowest = target.end().saturating_sub(REACH).max(page.bytes() * 16);
    let highest_end = target.start().saturating_add(REACH);
    let mut found: Vec<(bool, u64, u64)> = Vec::new();
    let mut gap_start = 0;
    let user_end = sys::user_end();
    let ends = mappings
        .iter()
        .map(|mapping| (mapping.range.start(), mapping.range.end()));
    for (gap_end, next_start) in ends.chain([(user_end, user_end)]) {
        let low = gap_start.max(lowest);
        let high = gap_end.min(highest_end).min(user_end);
        gap_start = next_start;
        let (Some(low), high) = (page.round_up(low), page.round_down(high)) else {
            continue;
        };
        if high.checked_sub(size).is_none_or(|start| start < low) {
            continue;
        }
        // As near as possible, yet leaving room beside the images where there is that much.
        // `spare` is what a window takes none of.
        let slack = |spare: u64| {
            let share = (spare + size) / SLACK_SHARE;
            let slack = (spare % size).max(share).min(spare);
            random(slack / page.bytes() + 1) * page.bytes()
        };
        let start = if high <= target.start() {
            let wanted = target
                .start()
                .saturating_sub(ROOM)
                .min(high)
                .saturating_sub(size);
            let nearest = page.round_down(wanted).max(low);
            nearest - slack(nearest - low)
        } else {
            let wanted = target.end().saturating_add(ROOM).max(low);
            let nearest = page.round_up(wanted).unwrap_or(low).min(high - size);
            nearest + slack(high - size - nearest)
        };
        let below = high <= target.start();
        let distance = if below {
            target.start() - (start + size)
        } else {
            start.saturating_sub(target.end())
        };
        // Below first: the heap grows up from an executable's image, mmap down from the libraries.
        found.push((!below, distance, start));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, _, start)| start).collect()
}

/// The largest window below `size` bytes, and of at least `least`, for which there is a candidate; up to
/// a 128th of `size`. `target` is what a window of some size shall have in reach.
pub(crate) fn largest(
    mappings: &[Mapping],
    target: impl Fn(u64) -> AddressRange,
    size: u64,
    least: u64,
    page: Alignment,
) -> Option<u64> {
    let fits = |size| !candidates(mappings, target(size), size, page, |_| 0).is_empty();
    let (mut fitting, mut too_large) = (page.round_up(least)?, size);
    if fitting >= size || !fits(fitting) {
        return None;
    }
    let precision = page.bytes().max(size / 128);
    while too_large - fitting > precision {
        let between = page.round_down(fitting + (too_large - fitting) / 2);
        match fits(between) {
            true => fitting = between,
            false => too_large = between,
        }
    }
    Some(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Alignment = Alignment::new(4096).unwrap();
    const GIB: u64 = 1 << 30;

    fn mapping(start: u64, end: u64, image: bool) -> Mapping {
        Mapping {
            range: AddressRange::new(start, end - start).unwrap(),
            image,
            reserved: false,
            private_memory: false,
        }
    }

    fn reaches(window: u64, size: u64, target: AddressRange) -> bool {
        target.end().max(window + size) - target.start().min(window) <= REACH
    }

    #[test]
    fn a_window_below_the_libraries_leaves_room_and_reaches_all() {
        let libs = 0x7f00_0000_0000;
        let maps = [
            mapping(0x5555_0000_0000, 0x5555_0010_0000, true),
            mapping(libs, libs + 0x800_0000, true),
            mapping(libs + 0x900_0000, libs + 0x910_0000, true),
            mapping(0x7ffe_0000_0000, 0x7ffe_0010_0000, false),
        ];
        let target = images_around(&maps, libs + 0x1000, GIB);
        assert_eq!((target.start(), target.end()), (libs, libs + 0x910_0000));
        let found = candidates(&maps, target, GIB, PAGE, |_| 0);
        assert_eq!(found[0], libs - ROOM - GIB);
        assert!(found.iter().all(|start| reaches(*start, GIB, target)));
    }

    #[test]
    fn a_crowded_neighbourhood_still_gives_what_fits() {
        let libs = 0x7f00_0000_0000;
        let maps = [
            mapping(libs - 8 * GIB, libs - 300 * (1 << 20), false),
            mapping(libs, libs + 0x100_0000, true),
        ];
        let target = images_around(&maps, libs, 256 << 20);
        let found = candidates(&maps, target, 256 << 20, PAGE, |_| 0);
        assert!(!found.is_empty());
        for start in found {
            assert!(reaches(start, 256 << 20, target));
            let window = AddressRange::new(start, 256 << 20).unwrap();
            assert!(maps.iter().all(|mapping| !mapping.range.overlaps(window)));
        }
    }

    #[test]
    fn a_low_executable_gets_a_window_above() {
        let maps = [mapping(0x40_0000, 0x50_0000, true)];
        let target = images_around(&maps, 0x40_1000, GIB);
        let found = candidates(&maps, target, GIB, PAGE, |_| 0);
        assert_eq!(found, vec![0x50_0000 + ROOM]);
    }

    #[test]
    fn the_largest_window_fills_the_largest_gap() {
        let libs = 0x7f00_0000_0000;
        let maps = [
            mapping(libs - 8 * GIB, libs - 1500 * (1 << 20), false),
            mapping(libs, libs + 0x200_0000, true),
            mapping(libs + 0x200_0000, libs + 8 * GIB, false),
        ];
        let most = REACH;
        let target = |size| images_around(&maps, libs + 0x1000, size);
        let found = largest(&maps, target, most, 64 << 20, PAGE).unwrap();
        assert!(found <= 1500 << 20 && found >= (1500 << 20) - most / 128);
        assert!(!candidates(&maps, target(found), found, PAGE, |_| 0).is_empty());
        // Where the gap is no limit, the images that must be in reach are.
        let found = largest(&maps[1..], target, most, 64 << 20, PAGE).unwrap();
        assert!(found > 1900 << 20, "{found}");
        assert_eq!(largest(&maps, target, most, 1600 << 20, PAGE), None);
        assert_eq!(largest(&maps, target, 64 << 20, 64 << 20, PAGE), None);
    }

    #[test]
    fn a_window_near_several_addresses_reaches_them_all() {
        let libs = 0x7f00_0000_0000;
        let maps = [mapping(libs, libs + (1 << 20), true)];
        let near = |addresses: &[u64]| Placement::near_all(addresses);
        let apart = REACH - SMALLEST_WINDOW;
        for addresses in [[libs, libs + GIB], [libs + apart, libs], [libs, libs]] {
            let placement = near(&addresses).unwrap();
            let size = placement.largest_window(0).unwrap().min(GIB);
            let target = placement.target(&maps, size);
            let found = candidates(&maps, target, size, PAGE, |_| 0);
            assert!(!found.is_empty(), "{addresses:x?}");
            for start in found {
                let window = AddressRange::new(start, size).unwrap();
                placement.check(window).unwrap();
                assert!(reaches(start, size, target));
            }
        }
        let far = near(&[libs + 7, libs, libs + apart + 1]).unwrap_err();
        assert_eq!(far.status(), Status::InvalidArgument);
        for address in [libs, libs + apart + 1] {
            assert!(far.message().contains(&format!("{address:#x}")), "{far}");
        }
        assert!(!far.message().contains(&format!("{:#x}", libs + 7)));
        assert!(near(&[]).is_err());
        assert!(near(&[0, u64::MAX]).is_err());
        let window = AddressRange::new(libs, 1 << 20).unwrap();
        for elsewhere in [libs - 2 * GIB, libs + 2 * GIB] {
            let far = near(&[elsewhere, elsewhere + 1]).unwrap().check(window);
            assert!(far.unwrap_err().message().contains("out of reach of"));
        }
    }

    #[test]
    fn no_place_in_reach_is_no_candidate() {
        let libs = 0x7f00_0000_0000u64;
        let maps = [mapping(libs - 4 * GIB, libs + 4 * GIB, true)];
        let target = AddressRange::new(libs, 1).unwrap();
        assert!(candidates(&maps, target, GIB, PAGE, |_| 0).is_empty());
    }

    #[test]
    fn a_random_place_is_in_reach_and_costs_no_window() {
        let libs = 0x7f00_0000_0000;
        let maps = [mapping(libs, libs + 0x200_0000, true)];
        let above = [
            mapping(0x40_0000, 0x50_0000, true),
            mapping(libs, libs + 0x100_0000, false),
        ];
        for maps in [&maps[..], &above[..]] {
            // A smaller one fits below the low executable, where there is no room to leave.
            for size in [GIB, 256 << 20, 8 << 20] {
                let target = images_around(maps, maps[0].range.start(), size);
                let nearest = candidates(maps, target, size, PAGE, |_| 0)[0];
                let farthest = candidates(maps, target, size, PAGE, |bound| bound - 1)[0];
                let bits = (nearest.abs_diff(farthest) / PAGE.bytes()).ilog2();
                assert!((14..=18).contains(&bits), "{size}: {bits}");
                for start in [nearest, farthest] {
                    assert!(reaches(start, size, target));
                    let window = AddressRange::new(start, size).unwrap();
                    assert!(maps.iter().all(|mapping| !mapping.range.overlaps(window)));
                }
                let windows = |start: u64| match start < target.start() {
                    true => (start + size + REACH - target.end()) / size,
                    false => (target.start() + REACH - start) / size,
                };
                if size >= 256 << 20 {
                    assert_eq!(windows(nearest), windows(farthest), "{size}");
                }
            }
        }
    }

    #[test]
    fn a_writer_view_is_far_from_its_chunk_wherever_that_is() {
        for start in [
            0x1_0000,
            0x50_0000,
            70 * GIB,
            0x5555_0000_0000,
            sys::user_end() - GIB,
        ] {
            let chunk = AddressRange::new(start, 8 << 20).unwrap();
            let first = far_place(chunk, PAGE, |_| 0).unwrap();
            let last = far_place(chunk, PAGE, |bound| bound - 1).unwrap();
            assert_eq!((last - first) / PAGE.bytes(), (1 << 28) - 1, "{start:#x}");
            for place in [first, last] {
                let view = AddressRange::new(place, chunk.size()).unwrap();
                let between = match place < start {
                    true => start - view.end(),
                    false => place - chunk.end(),
                };
                assert!(between >= WRITER_DISTANCE, "{start:#x}: {place:#x}");
                assert!(place >= LOWEST_WRITER && view.end() <= sys::user_end());
            }
        }
    }

    #[test]
    fn a_writer_view_of_what_ends_with_all_addresses_is_below() {
        let size = 8 << 20;
        let chunk = AddressRange::new(PAGE.round_down(u64::MAX) - size, size).unwrap();
        let place = far_place(chunk, PAGE, |bound| bound - 1).unwrap();
        assert!(place + size + WRITER_DISTANCE <= chunk.start());
    }

    #[test]
    fn random_numbers_are_below_their_bound_and_differ() {
        let numbers: Vec<u64> = (0..100).map(|_| random_below(1 << 40)).collect();
        assert!(numbers.iter().all(|number| *number < 1 << 40));
        let distinct: std::collections::HashSet<&u64> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len());
        assert_eq!(random_below(1), 0);
    }
}
