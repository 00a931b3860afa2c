// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The huge pages of a pool's chunks.

use super::{Pool, PoolChunk, addresses};
use crate::manager::huge_pages::{self, FreshHugePages};
use crate::manager::piece::Untouched;
use std::ops::Range;

impl PoolChunk {
    /// Notes the huge pages around some pages of which so many pages that hold memory, of all that it has, are
    /// as they should be. Gives the bytes that hold memory since.
    fn touch_huge_pages(
        &mut self,
        pages: Range<u32>,
        origin: u64,
        huge: &mut FreshHugePages,
        fits: impl Fn(u32, u32) -> bool,
    ) -> u64 {
        let Some(size) = huge.size else { return 0 };
        let aligned = u64::from(self.offset) % size == 0;
        // What is held gets other pages.
        let stays = !self.all_committed && self.held.is_none() && !self.forks.is_inherited();
        if !aligned || !stays || !self.is_shared() {
            return 0;
        }
        let count = (size / self.page.bytes()) as u32;
        let before = self.committed();
        let last = (self.size >> self.page_shift()) / count;
        for number in pages.start / count..pages.end.div_ceil(count).min(last) {
            let all = number * count..(number + 1) * count;
            let of_other_memory =
                |adopted: &Range<u32>| adopted.start < all.end && all.start < adopted.end;
            if self.adopted.iter().any(of_other_memory) {
                continue;
            }
            if fits(self.touched.count_in(all.clone()), count) {
                let bytes = self.bytes(all.clone());
                self.touched.insert(all);
                huge.ranges
                    .push(addresses(origin, bytes.start, bytes.end - bytes.start));
            }
        }
        self.committed() - before
    }
}

impl Pool {
    /// Notes the huge pages that a small piece begins, if the pool is large beside one. Gives the bytes that
    /// hold memory since.
    pub(in crate::manager) fn begin_huge_pages(
        &mut self,
        untouched: &Untouched,
        origin: u64,
        huge: &mut FreshHugePages,
    ) -> u64 {
        let Some(size) = huge.size else { return 0 };
        let pages = untouched.pages.clone();
        let chunk = self.chunk(untouched.region);
        // What is large may be zero for the most part, and is written in pages as it needs them.
        let small = u64::from(pages.end - pages.start) * chunk.page.bytes() < size;
        if !small || !self.is_large_beside(size) {
            return 0;
        }
        let chunk = self.chunk_mut(untouched.region);
        chunk.touch_huge_pages(pages, origin, huge, |touched, _| touched == 0)
    }

    /// Notes the huge pages of which nearly all pages may hold memory. Gives the bytes that hold memory since.
    pub(in crate::manager) fn fill_huge_pages(
        &mut self,
        origin: u64,
        huge: &mut FreshHugePages,
    ) -> u64 {
        let chunks = self.chunks.iter_mut().flatten();
        let bytes = chunks.map(|chunk| {
            let pages = chunk.pages_around(chunk.offset, chunk.offset + chunk.size);
            chunk.touch_huge_pages(pages, origin, huge, huge_pages::is_nearly_full)
        });
        bytes.sum()
    }

    fn is_large_beside(&self, size: u64) -> bool {
        let chunks: u64 = self.chunks().map(|chunk| u64::from(chunk.size)).sum();
        huge_pages::are_few(size, chunks - self.ranges.free_bytes())
    }
}
