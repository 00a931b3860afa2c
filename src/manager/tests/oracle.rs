// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Long random sequences against an oracle.

use super::*;

/// What the oracle knows of one allocation.
struct Shadow {
    segments: Vec<Segment>,
    addresses: Vec<u64>,
    pattern: Vec<Vec<u8>>,
    finalized: bool,
}

impl Shadow {
    fn check(&self, what: &str) {
        for ((segment, address), pattern) in
            self.segments.iter().zip(&self.addresses).zip(&self.pattern)
        {
            let seen = read(*address, segment.content_size + segment.zero_fill_size);
            let (content, zero_fill) = seen.split_at(pattern.len());
            assert!(
                content == pattern.as_slice(),
                "{what}: content at {address:#x} changed"
            );
            assert!(
                zero_fill.iter().all(|byte| *byte == 0),
                "{what}: zero-fill at {address:#x}"
            );
        }
    }
}

fn random_segments(random: &mut Random) -> Vec<Segment> {
    let protections = [
        Protection::READ_EXEC,
        Protection::READ,
        Protection::READ_WRITE,
    ];
    (0..random.below(4))
        .map(|_| {
            let large = random.below(40) == 0;
            let most = if large { 200_000 } else { 700 };
            let content = random.below(most);
            let zero_fill = if random.below(3) == 0 {
                random.below(9000)
            } else {
                0
            };
            let alignment = {
                let most = if random.below(20) == 0 { 17 } else { 8 };
                1 << random.below(most)
            };
            segment(
                content,
                zero_fill,
                alignment,
                protections[random.below(3) as usize],
            )
            .hinted(CodeHint::ALL[random.below(4) as usize])
        })
        .collect()
}

/// Long random sequences; everything that was handed out is checked for overlap, alignment,
/// distance, and, through both views, for its bytes. Steps are done in so many arenas.
fn random_sequence(kind: Kind, steps: u64, arenas: u64, seed: u64) {
    let mut random = Random::new(seed);
    let options = Options {
        window_size: 64 << 20,
        ..Options::default()
    };
    let manager = manager(kind, options).unwrap();
    // Where nothing is divided, no window bounds what is handed out.
    let window = manager.layout().first().map(|item| item.range);
    assert_eq!(window.is_some(), DIVIDING.contains(&kind));
    let mut live: BTreeMap<u64, Shadow> = BTreeMap::new();
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    for step in 0..steps {
        let pick = |random: &mut Random, live: &BTreeMap<u64, Shadow>| {
            let index = random.below(live.len() as u64) as usize;
            *live.keys().nth(index).unwrap()
        };
        if arenas > 1 {
            manager.core.choose_arena(random.below(arenas) as usize);
        }
        match random.below(10) {
            0..5 => {
                let segments = random_segments(&mut random);
                let allocated = match allocate(&manager, &segments) {
                    Ok(allocated) => allocated,
                    Err(error) => {
                        assert_eq!(error.status(), Status::WindowFull, "{error}");
                        continue;
                    }
                };
                let mut shadow = Shadow {
                    addresses: allocated
                        .segments
                        .iter()
                        .map(|memory| memory.address)
                        .collect(),
                    pattern: Vec::new(),
                    finalized: false,
                    segments,
                };
                for (index, segment) in shadow.segments.iter().enumerate() {
                    let address = shadow.addresses[index];
                    let size = segment.content_size + segment.zero_fill_size;
                    assert_eq!(address % segment.alignment.bytes(), 0);
                    let range = AddressRange::new(address, size).unwrap();
                    assert!(window.is_none_or(|window| window.contains(range)));
                    let below = taken.range(..=address).next_back();
                    assert!(below.is_none_or(|(start, length)| start + length <= address));
                    let above = taken.range(address..).next();
                    assert!(above.is_none_or(|(start, _)| address + size <= *start));
                    taken.insert(address, size.max(1));
                    let pattern: Vec<u8> = (0..segment.content_size)
                        .map(|_| random.below(256) as u8)
                        .collect();
                    manager
                        .core
                        .write(allocated.handle, index, 0, &pattern)
                        .unwrap();
                    shadow.pattern.push(pattern);
                }
                assert!(live.insert(allocated.handle, shadow).is_none());
            }
            5..7 if !live.is_empty() => {
                let handle = pick(&mut random, &live);
                let shadow = live.get_mut(&handle).unwrap();
                let answer = finalize(&manager, handle);
                assert_eq!(answer.is_err(), shadow.finalized, "finalize of {handle:#x}");
                shadow.finalized = true;
                shadow.check("after finalize");
            }
            7..9 if !live.is_empty() => {
                let handle = pick(&mut random, &live);
                let shadow = &live[&handle];
                if shadow.finalized {
                    shadow.check("before deallocate");
                    deallocate(&manager, &[handle]).unwrap();
                } else {
                    assert!(deallocate(&manager, &[handle]).is_err());
                    wait(|done| manager.core.abandon(handle, done)).unwrap();
                }
                let shadow = live.remove(&handle).unwrap();
                shadow.addresses.iter().for_each(|address| {
                    taken.remove(address);
                });
                assert!(finalize(&manager, handle).is_err());
            }
            _ if step % 64 == 1 => {
                let before = manager.stats();
                let bytes = manager.trim().unwrap();
                assert_eq!(manager.stats().committed, before.committed - bytes);
            }
            _ if step % 16 == 0 => {
                live.values()
                    .filter(|shadow| shadow.finalized)
                    .for_each(|shadow| {
                        shadow.check("at rest");
                    });
            }
            _ => {}
        }
        let stats = manager.stats();
        assert_eq!(stats.in_flight + stats.finalized, live.len() as u64);
        assert!(stats.live + stats.padding + stats.free <= stats.chunk_bytes);
        let handed_out = stats.live + stats.padding;
        assert!((handed_out..=stats.chunk_bytes).contains(&stats.committed));
        assert!(
            stats.mappings <= 512 || window.is_none(),
            "{}",
            stats.mappings
        );
        let (first, last) = (taken.first_key_value(), taken.last_key_value());
        if let (Some((lowest, _)), Some((highest, _))) = (first, last) {
            assert!(highest - lowest < REACH);
            assert!(stats.span > highest - lowest);
        }
    }
    let finalized: Vec<u64> = live
        .iter()
        .filter(|(_, shadow)| shadow.finalized)
        .map(|(handle, _)| *handle)
        .collect();
    deallocate(&manager, &finalized).unwrap();
    live.iter()
        .filter(|(_, shadow)| !shadow.finalized)
        .for_each(|(handle, _)| {
            wait(|done| manager.core.abandon(*handle, done)).unwrap();
        });
    let stats = manager.stats();
    assert_eq!(
        (stats.live, stats.padding, stats.in_flight, stats.finalized),
        (0, 0, 0, 0)
    );
    // Hysteresis keeps a little of each group.
    assert!(
        stats.committed <= 3 * MOST_SPARE * arenas,
        "{} bytes in chunks",
        stats.committed
    );
}

#[test]
fn random_sequences_match_the_oracle() {
    for kind in all_kinds() {
        // Where nothing is divided there is less that could go wrong.
        let steps = if DIVIDING.contains(&kind) { 2000 } else { 500 };
        random_sequence(kind, rounds(steps), 1, seed());
    }
}

#[test]
fn random_sequences_in_several_arenas_match_the_oracle() {
    random_sequence(TWO_VIEWS, rounds(3000), 4, seed());
}
