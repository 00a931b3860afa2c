// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Values by number, for what few allocations have or each has for a while only.
//!
//! They lie in parts that come from the heap one by one, so nothing is copied when there are more of
//! them, and a part that is empty goes back. Places without a value have a default one, so that values
//! are made and ended where they lie.

const PART: usize = 64;
const END: u32 = u32::MAX;
/// Empty parts that are kept.
const KEPT: usize = 4;

type Values<T> = Box<[T; PART]>;

struct Part<T> {
    /// `None` while it is in the list of bare parts.
    values: Option<Values<T>>,
    /// One bit for each value that is there.
    occupied: u64,
    /// Neighbours in the list of parts with room, or in that of bare ones.
    next: u32,
    previous: u32,
}

impl<T> Part<T> {
    /// Whether the value of a number is there.
    fn has(&self, number: u32) -> bool {
        self.occupied >> (number as usize % PART) & 1 == 1
    }
}

/// The values.
pub(crate) struct Slab<T> {
    parts: Vec<Part<T>>,
    /// List of the parts with room.
    open: u32,
    /// List of the parts without memory.
    bare: u32,
    /// Values for which there is room.
    spare: usize,
    empty_parts: usize,
}

const IS_THERE: &str = "a number is valid until its value is taken out";

impl<T: Default> Slab<T> {
    /// No values.
    pub(crate) const fn new() -> Slab<T> {
        Slab {
            parts: Vec::new(),
            open: END,
            bare: END,
            spare: 0,
            empty_parts: 0,
        }
    }

    /// Makes sure that `count` more values fit; `false` if the heap is full.
    #[inline]
    pub(crate) fn make_spare(&mut self, count: usize) -> bool {
        while self.spare < count {
            if !self.add_part() {
                return false;
            }
        }
        true
    }

    #[cold]
    fn add_part(&mut self) -> bool {
        let mut values: Vec<T> = Vec::new();
        let room = values.try_reserve_exact(PART).is_ok() && self.parts.try_reserve(1).is_ok();
        if !room {
            return false;
        }
        values.resize_with(PART, T::default);
        let values = values.into_boxed_slice().try_into().ok();
        let number = match self.bare {
            END => {
                self.parts.push(Part {
                    values,
                    occupied: 0,
                    next: END,
                    previous: END,
                });
                self.parts.len() as u32 - 1
            }
            bare => {
                self.bare = self.part(bare).next;
                self.part(bare).values = values;
                bare
            }
        };
        self.link(number);
        self.spare += PART;
        self.empty_parts += 1;
        true
    }

    fn part(&mut self, number: u32) -> &mut Part<T> {
        &mut self.parts[number as usize]
    }

    /// Adds a value and gives its number.
    ///
    /// # Panics
    /// If the heap is full; not after [`Slab::make_spare`].
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let number = self.add();
        *self.get_mut(number) = value;
        number
    }

    /// Adds a default value and gives its number.
    ///
    /// # Panics
    /// As [`Slab::insert`].
    #[inline]
    pub(crate) fn add(&mut self) -> u32 {
        if self.spare == 0 {
            assert!(self.add_part(), "the heap has no room for {PART} values");
        }
        let number = self.open;
        let part = self.part(number);
        let occupied = part.occupied;
        let position = occupied.trailing_ones();
        part.occupied = occupied | (occupied + 1);
        self.empty_parts -= usize::from(occupied == 0);
        self.spare -= 1;
        if occupied | (occupied + 1) == u64::MAX {
            self.unlink(number);
        }
        number * PART as u32 + position
    }

    /// The value of a number.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> &T {
        let part = &self.parts[number as usize / PART];
        debug_assert!(part.has(number));
        &part.values.as_ref().expect(IS_THERE)[number as usize % PART]
    }

    /// The value of a number.
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> &mut T {
        let part = &mut self.parts[number as usize / PART];
        debug_assert!(part.has(number));
        &mut part.values.as_mut().expect(IS_THERE)[number as usize % PART]
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, number: u32) -> T {
        let mut value = T::default();
        self.end(number, |there| value = std::mem::take(there));
        value
    }

    /// Ends a value where it lies: `reset` makes it a default one.
    #[inline]
    pub(crate) fn end(&mut self, number: u32, reset: impl FnOnce(&mut T)) {
        let index = number / PART as u32;
        let part = self.part(index);
        debug_assert!(part.has(number));
        let position = number as usize % PART;
        reset(&mut part.values.as_mut().expect(IS_THERE)[position]);
        let occupied = part.occupied;
        part.occupied = occupied & !(1 << position);
        let empty = part.occupied == 0;
        self.spare += 1;
        if occupied == u64::MAX {
            self.link(index);
        }
        if empty {
            self.emptied(index);
        }
    }

    fn emptied(&mut self, number: u32) {
        self.empty_parts += 1;
        if self.empty_parts > KEPT {
            self.empty_parts -= 1;
            self.spare -= PART;
            self.unlink(number);
            let bare = self.bare;
            let part = self.part(number);
            part.values = None;
            part.next = bare;
            self.bare = number;
        }
    }

    /// Puts a part in front of those with room.
    #[cold]
    fn link(&mut self, number: u32) {
        let head = self.open;
        let part = self.part(number);
        (part.next, part.previous) = (head, END);
        if head != END {
            self.part(head).previous = number;
        }
        self.open = number;
    }

    #[cold]
    fn unlink(&mut self, number: u32) {
        let part = self.part(number);
        let (next, previous) = (part.next, part.previous);
        if next != END {
            self.part(next).previous = previous;
        }
        match previous {
            END => self.open = next,
            previous => self.part(previous).next = next,
        }
    }

    /// Gives all memory back that holds no value.
    #[cold]
    pub(crate) fn trim(&mut self) {
        let mut held = 0;
        for number in 0..self.parts.len() {
            let part = &mut self.parts[number];
            if part.values.is_none() {
                continue;
            }
            if part.occupied != 0 {
                held = number + 1;
                continue;
            }
            part.values = None;
            self.unlink(number as u32);
            self.spare -= PART;
            self.empty_parts -= 1;
        }
        self.parts.truncate(held);
        let mut fitting = Vec::new();
        if fitting.try_reserve_exact(held).is_ok() {
            fitting.append(&mut self.parts);
            self.parts = fitting;
        }
        self.bare = END;
        for number in (0..held).rev() {
            if self.parts[number].values.is_none() {
                self.parts[number].next = self.bare;
                self.bare = number as u32;
            }
        }
    }

    /// No value has this number or a larger one, until more room is made.
    pub(crate) fn numbers(&self) -> usize {
        self.parts.len() * PART
    }

    /// All values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.parts.iter().flat_map(|part| {
            let values = part.values.iter().flat_map(|values| values.iter());
            values
                .enumerate()
                .filter_map(|(position, value)| part.has(position as u32).then_some(value))
        })
    }

    /// Bytes of heap.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = self.parts.capacity() * size_of::<Part<T>>();
        let held = self.parts.iter().filter(|part| part.values.is_some());
        (parts + held.count() * PART * size_of::<T>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn values_keep_their_number_and_their_room_goes_back() {
        let mut slab: Slab<Box<u32>> = Slab::new();
        for _ in 0..2 {
            let mut live = BTreeMap::new();
            for value in 0..10_000 {
                let number = slab.insert(Box::new(value));
                assert!(live.insert(number, value).is_none());
                if value % 3 == 0 {
                    let (number, value) = live.pop_first().unwrap();
                    assert_eq!(*slab.remove(number), value);
                }
            }
            assert_eq!(slab.iter().count(), live.len());
            for (number, value) in &live {
                **slab.get_mut(*number) += 1;
                assert_eq!(**slab.get(*number), value + 1);
            }
            let full = slab.bytes();
            live.keys().for_each(|number| drop(slab.remove(*number)));
            assert_eq!(slab.iter().count(), 0);
            assert!(slab.bytes() < full / 4, "{} of {full}", slab.bytes());
        }
        let most = slab.bytes();
        let kept: Vec<u32> = (0..500).map(|value| slab.insert(Box::new(value))).collect();
        slab.trim();
        // Some parts in the middle have gone, and come again.
        kept[64..256]
            .iter()
            .for_each(|number| drop(slab.remove(*number)));
        slab.trim();
        assert!(slab.bytes() < most, "{} of {most}", slab.bytes());
        let more: Vec<u32> = (500..900)
            .map(|value| slab.insert(Box::new(value)))
            .collect();
        let live = kept[..64].iter().chain(&kept[256..]).chain(&more);
        let values = (0..64).chain(256..900);
        for (number, value) in live.zip(values) {
            assert_eq!(*slab.remove(*number), value);
        }
        slab.trim();
        assert_eq!(slab.bytes(), 0);
        assert!(slab.make_spare(1000));
        assert!(slab.bytes() > 1000 * size_of::<Box<u32>>() as u64);
    }
}
