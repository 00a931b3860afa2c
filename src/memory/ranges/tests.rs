// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Bins, and ranges of any size against a model.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn ranges(granule: u32) -> Ranges {
    let nodes = Arc::new(Nodes::new());
    nodes.make_spare(2000).unwrap();
    Ranges::new(granule, nodes, 0x2a_aaaa)
}

#[test]
fn bins_are_monotone_and_rounding_is_sound() {
    // Fewer for Miri, as below.
    let (most, beyond) = if cfg!(miri) {
        (1000, 10)
    } else {
        (100_000, 1000)
    };
    let mut last = 0;
    for size in (0..most).chain((1 << 30)..(1 << 30) + beyond) {
        let here = bin(size);
        assert!(here >= last);
        last = here;
        if size == 0 {
            continue;
        }
        // Everything in the fitting bin is large enough, and none before it is without what is not.
        let fitting = fitting_bin(size);
        assert!(fitting >= here && fitting <= here + 1);
        assert!(bin(size - 1) < fitting);
        assert!(fitting == here || bin(size - 1) == here);
    }
    assert_eq!(bin(u32::MAX), BINS - 1);
}

#[test]
fn a_monotone_load_is_dense() {
    let mut ranges = ranges(16);
    ranges.add_region(7, 0x1000, 0x1000);
    for step in 0..256 {
        let handed = ranges.allocate(16, 1).unwrap();
        assert_eq!((handed.start, handed.region), (0x1000 + step * 16, 7));
    }
    assert!(ranges.allocate(1, 1).is_none());
    assert_eq!(ranges.free_bytes(), 0);
}

#[test]
fn a_region_of_exactly_the_size_serves_it() {
    for size in [16u32, 0x1010, 0xfff0, 0x12340] {
        let mut ranges = ranges(16);
        ranges.add_region(0, 0, size);
        let id = ranges.allocate(size, 16).unwrap().id;
        assert_eq!(ranges.free(id).size, size);
        assert!(ranges.remove_region(0, size));
        assert!(ranges.allocate(1, 1).is_none());
    }
}

#[test]
fn a_region_that_is_forgotten_hands_out_nothing() {
    let mut ranges = ranges(16);
    let of = |ranges: &Ranges, region| {
        let (mut free, mut used) = (0, 0);
        ranges.each_of(region, |range| match range {
            RangeOf::Free { size, .. } => free += size,
            RangeOf::Used(_) => used += 1,
        });
        (free, used)
    };
    ranges.add_region(0, 0, 0x1000);
    ranges.add_region(1, 0x1000, 0x1000);
    let handed: Vec<Handed> = (0..5).map(|_| ranges.allocate(0x100, 1).unwrap()).collect();
    let one = handed[0].region;
    for index in [0, 2, 4] {
        ranges.free(handed[index].id);
    }
    assert_eq!(of(&ranges, one), (0xe00, 2));
    assert!(!ranges.remove_region(handed[0].start, 0x1000));
    ranges.forget_region(one);
    assert_eq!(ranges.free_bytes(), 0x1000);
    assert_eq!(of(&ranges, one), (0, 0));
    while let Some(other) = ranges.allocate(0x100, 1) {
        assert_ne!(other.region, one);
    }
    // Its number serves anew, and one that never had a region has no ranges.
    ranges.add_region(one, 0x8000, 0x1000);
    assert_eq!(of(&ranges, one), (0x1000, 0));
    assert!(ranges.remove_region(0x8000, 0x1000));
    assert_eq!(of(&ranges, one), (0, 0));
    assert_eq!(of(&ranges, 9), (0, 0));
}

#[test]
fn alignment_above_the_region_size_needs_luck() {
    let mut ranges = ranges(16);
    ranges.add_region(0, 0x10000, 0x1000);
    assert_eq!(ranges.allocate(0x800, 0x10000).unwrap().start, 0x10000);
    assert!(ranges.allocate(16, 0x10000).is_none());
    assert_eq!(ranges.free_bytes(), 0x800);
}

#[test]
fn a_thorough_search_finds_what_a_fast_one_misses() {
    let mut ranges = ranges(16);
    ranges.add_region(0, 0, 0x10000);
    let fits = ranges.allocate(1072, 16).unwrap();
    ranges.allocate(16, 16).unwrap();
    let small: Vec<Handed> = (0..9)
        .map(|_| {
            let handed = ranges.allocate(1024, 16).unwrap();
            ranges.allocate(16, 16).unwrap();
            handed
        })
        .collect();
    while ranges.allocate(16, 16).is_some() {}
    ranges.free(fits.id);
    for handed in &small {
        ranges.free(handed.id);
    }
    assert_eq!(
        ranges.allocate(1072, 16),
        None,
        "else the test shows nothing"
    );
    assert_eq!(
        ranges.allocate_thoroughly(1072, 16).unwrap().start,
        fits.start
    );
    assert_eq!(ranges.allocate_thoroughly(1072, 16), None);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u32, u32),
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u32..3000, 0u32..14).prop_map(|(size, shift)| Step::Allocate(size, 1 << shift)),
        2 => any::<usize>().prop_map(Step::Free),
    ]
}

/// Miri takes a hundred times as long for each.
const MOST_STEPS: usize = if cfg!(miri) { 20 } else { 400 };

proptest! {
    #[test]
    fn ranges_never_overlap_and_all_come_back(
        granule_shift in 0u32..13,
        steps in proptest::collection::vec(step(), 1..MOST_STEPS),
    ) {
        let granule = 1 << granule_shift;
        let regions = [(0u32, 0x10000u32), (0x10000, 0x8000), (0x40000, 0x20000)];
        let mut ranges = ranges(granule);
        for (id, (start, size)) in regions.into_iter().enumerate() {
            ranges.add_region(id as u32, start, size);
        }
        let total: u64 = regions.iter().map(|(_, size)| u64::from(*size)).sum();
        let mut live: BTreeMap<u32, Handed> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Allocate(size, alignment) => {
                    let Some(handed) = ranges.allocate(size, alignment) else { continue };
                    prop_assert!(handed.size >= size && handed.size - size < granule);
                    prop_assert_eq!(handed.start % alignment, 0);
                    prop_assert_eq!(handed.start % granule, 0);
                    let (start, length) = regions[handed.region as usize];
                    prop_assert!(handed.start >= start);
                    prop_assert!(handed.start + handed.size <= start + length);
                    if let Some((_, below)) = live.range(..handed.start).next_back() {
                        prop_assert!(below.start + below.size <= handed.start);
                    }
                    if let Some((next, _)) = live.range(handed.start..).next() {
                        prop_assert!(handed.start + handed.size <= *next);
                    }
                    live.insert(handed.start, handed);
                }
                Step::Free(pick) => {
                    if live.is_empty() { continue }
                    let key = *live.keys().nth(pick % live.len()).unwrap();
                    let handed = live.remove(&key).unwrap();
                    prop_assert_eq!(ranges.free(handed.id), handed);
                }
            }
            let used: u64 = live.values().map(|handed| u64::from(handed.size)).sum();
            prop_assert_eq!(ranges.free_bytes(), total - used);
        }
        for handed in live.values() {
            ranges.free(handed.id);
        }
        for (start, size) in regions {
            prop_assert!(ranges.remove_region(start, size));
        }
        prop_assert_eq!(ranges.free_bytes(), 0);
    }
}
