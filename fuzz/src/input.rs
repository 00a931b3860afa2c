// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Choices, out of the bytes of an input. Where those are at their end every choice is the first.

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What no choice was made of yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// A small number mostly, any number sometimes.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            0xff => {
                let bytes = self.bytes_of(8);
                let mut number = [0; 8];
                number[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(number)
            }
            0xfe => u64::MAX,
            small => small.into(),
        }
    }

    /// As many bytes as the next byte says.
    pub fn bytes(&mut self) -> &'a [u8] {
        let size = self.byte();
        self.bytes_of(size.into())
    }

    fn bytes_of(&mut self, size: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One of these; `None` if there are none.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        match all.len() {
            0 => None,
            count => Some(all[self.below(count)]),
        }
    }

    /// Up to `most` of something.
    pub fn some<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| one(self)).collect()
    }
}
