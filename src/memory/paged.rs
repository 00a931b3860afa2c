// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An array that grows without moving what it holds.
//!
//! A `Vec` that doubles copies everything into pages that the kernel has to find and zero.
//! Measured for 10,000 small graphs that are allocated and stay: 190 of 1,810 ns per graph.

use std::ops::{Index, IndexMut};

/// Elements per part.
const PART: usize = 512;

/// An array in parts of fixed size. Elements are never removed.
#[derive(Debug)]
pub(crate) struct Paged<T> {
    parts: Vec<Vec<T>>,
}

impl<T> Paged<T> {
    /// No elements.
    pub(crate) const fn new() -> Paged<T> {
        Paged { parts: Vec::new() }
    }

    /// Appends an element and gives its index.
    pub(crate) fn push(&mut self, element: T) -> u32 {
        if self.parts.last().is_none_or(|part| part.len() == PART) {
            self.parts.push(Vec::with_capacity(PART));
        }
        let last = self.parts.len() - 1;
        let part = &mut self.parts[last];
        part.push(element);
        u32::try_from(last * PART + part.len() - 1).expect("fewer elements than bytes of a window")
    }

    /// The element, if there is one.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.parts
            .get_mut(index as usize / PART)?
            .get_mut(index as usize % PART)
    }

    /// All elements by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.parts.iter().flatten()
    }

    /// All elements by index.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.parts.iter_mut().flatten()
    }
}

impl<T> Index<u32> for Paged<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.parts[index as usize / PART][index as usize % PART]
    }
}

impl<T> IndexMut<u32> for Paged<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.parts[index as usize / PART][index as usize % PART]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_keep_their_index_and_their_place() {
        let mut array = Paged::new();
        let first = array.push(0u32);
        let place = std::ptr::from_ref(&array[first]);
        for number in 1..5000 {
            assert_eq!(array.push(number), number);
        }
        assert_eq!(std::ptr::from_ref(&array[first]), place);
        assert!(array.iter().copied().eq(0..5000));
        array[4999] += 1;
        assert_eq!(array.get_mut(4999), Some(&mut 5000));
        assert_eq!(array.get_mut(5000), None);
        assert_eq!(array.get_mut(u32::MAX), None);
    }
}
