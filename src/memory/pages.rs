// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A set of pages, one bit each.

use std::ops::Range;

const BITS: u32 = u64::BITS;

/// Some of the pages of a chunk, by their position in it.
#[derive(Debug)]
pub(crate) struct PageSet {
    words: Vec<u64>,
    count: u32,
    /// All pages in front of this one are in it. The others may be.
    leading: u32,
}

/// The words that hold a range, and which of their bits belong to it.
fn parts(pages: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let words = match pages.is_empty() {
        true => 0..0,
        false => pages.start / BITS..pages.end.div_ceil(BITS),
    };
    words.map(move |word| {
        let from = pages.start.saturating_sub(word * BITS);
        let to = (pages.end - word * BITS).min(BITS);
        let bits = u64::MAX >> (BITS - (to - from));
        (word as usize, bits << from)
    })
}

impl PageSet {
    /// Room for `pages` of them, none of which is in it; `None` if the heap is full.
    pub(crate) fn new(pages: u32) -> Option<PageSet> {
        let (mut words, count) = (Vec::new(), pages.div_ceil(BITS) as usize);
        words.try_reserve_exact(count).ok()?;
        words.resize(count, 0);
        Some(PageSet {
            words,
            count: 0,
            leading: 0,
        })
    }

    /// The same pages; `None` if the heap is full.
    pub(crate) fn try_clone(&self) -> Option<PageSet> {
        let mut words = Vec::new();
        words.try_reserve_exact(self.words.len()).ok()?;
        words.extend_from_slice(&self.words);
        Some(PageSet { words, ..*self })
    }

    /// Of a message's words.
    pub(crate) fn of_words(words: Vec<u64>) -> PageSet {
        let count = words.iter().map(|word| word.count_ones()).sum();
        PageSet {
            words,
            count,
            leading: 0,
        }
    }

    /// A bit for each page, the first one's the lowest of the first word.
    pub(crate) fn into_words(self) -> Vec<u64> {
        self.words
    }

    /// How many pages are in it.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The page behind the last one in it.
    pub(crate) fn end(&self) -> u32 {
        let last = self.words.iter().rposition(|word| *word != 0);
        last.map_or(0, |word| {
            (word as u32 + 1) * BITS - self.words[word].leading_zeros()
        })
    }

    /// All pages that there is room for.
    pub(crate) fn all(&self) -> Range<u32> {
        0..self.words.len() as u32 * BITS
    }

    /// Whether all of these are in it.
    #[inline]
    pub(crate) fn contains_all(&self, pages: Range<u32>) -> bool {
        // For every piece that is handed out, so that most are told by one compare.
        pages.end <= self.leading || self.contains_all_behind(pages)
    }

    fn contains_all_behind(&self, pages: Range<u32>) -> bool {
        parts(pages).all(|(word, bits)| self.words[word] & bits == bits)
    }

    /// How many of these are in it.
    pub(crate) fn count_in(&self, pages: Range<u32>) -> u32 {
        let here = parts(pages).map(|(word, bits)| (self.words[word] & bits).count_ones());
        here.sum()
    }

    /// Adds pages.
    pub(crate) fn insert(&mut self, pages: Range<u32>) {
        let Range { start, end } = pages;
        for (word, bits) in parts(pages) {
            let word = &mut self.words[word];
            self.count += (bits & !*word).count_ones();
            *word |= bits;
        }
        if start <= self.leading && end > self.leading {
            let all = self.all().end;
            self.leading = self.next(end, all, u64::MAX).unwrap_or(all);
        }
    }

    /// Takes pages out.
    pub(crate) fn remove(&mut self, pages: Range<u32>) {
        if !pages.is_empty() {
            self.leading = self.leading.min(pages.start);
        }
        for (word, bits) in parts(pages) {
            let word = &mut self.words[word];
            self.count -= (bits & *word).count_ones();
            *word &= !bits;
        }
    }

    /// The runs of pages in it, lowest first, as far as they lie in `pages`.
    pub(crate) fn runs(&self, pages: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let Range { mut start, end } = pages;
        std::iter::from_fn(move || {
            start = self.next(start, end, 0)?;
            let run = start..self.next(start, end, u64::MAX).unwrap_or(end);
            start = run.end;
            Some(run)
        })
    }

    /// The runs of pages that are not in it, lowest first, as far as they lie in `pages`.
    pub(crate) fn gaps(&self, pages: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let Range { mut start, end } = pages;
        std::iter::from_fn(move || {
            start = self.next(start, end, u64::MAX)?;
            let gap = start..self.next(start, end, 0).unwrap_or(end);
            start = gap.end;
            Some(gap)
        })
    }

    /// The first of some pages that is in the set, or with `inverted` bits is not.
    fn next(&self, start: u32, end: u32, inverted: u64) -> Option<u32> {
        let (word, bits) = parts(start..end.max(start))
            .map(|(word, bits)| (word, (self.words[word] ^ inverted) & bits))
            .find(|(_, bits)| *bits != 0)?;
        Some(word as u32 * BITS + bits.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Miri takes a hundred times as long for each.
    const MOST_STEPS: usize = if cfg!(miri) { 10 } else { 100 };

    proptest! {
        #[test]
        fn it_is_a_set(
            steps in proptest::collection::vec((any::<bool>(), 0u32..200, 0u32..200), 1..MOST_STEPS),
        ) {
            let mut set = PageSet::new(200).unwrap();
            let mut model = BTreeSet::new();
            for (insert, a, b) in steps {
                let pages = a.min(b)..a.max(b);
                let there = pages.clone().filter(|page| model.contains(page)).count() as u32;
                prop_assert_eq!(set.count_in(pages.clone()), there);
                prop_assert_eq!(set.contains_all(pages.clone()), there as usize == pages.len());
                let runs = set.runs(pages.clone()).collect::<Vec<_>>();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
                let in_runs: Vec<u32> = runs.into_iter().flatten().collect();
                let known: Vec<u32> = model.range(pages.clone()).copied().collect();
                prop_assert_eq!(&in_runs, &known);
                let gaps = set.gaps(pages.clone()).collect::<Vec<_>>();
                prop_assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start));
                let outside = gaps.into_iter().flatten().filter(|page| !known.contains(page));
                prop_assert_eq!(outside.count() + known.len(), pages.len());
                let copy = PageSet::of_words(set.try_clone().unwrap().into_words());
                prop_assert_eq!(copy.count(), set.count());
                if insert {
                    set.insert(pages.clone());
                    model.extend(pages);
                } else {
                    set.remove(pages.clone());
                    model.retain(|page| !pages.contains(page));
                }
                prop_assert_eq!(set.count() as usize, model.len());
                prop_assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
            }
        }
    }
}
