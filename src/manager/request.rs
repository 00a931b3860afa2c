// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a host asks for, checked whole before anything is done.

use super::label::Label;
use super::pool::number;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::{AllocGroup, CodeHint, Lifetime};
use crate::page::{Alignment, PACKING_GRANULE};
use smallvec::SmallVec;
use std::sync::Arc;

/// Segments may be aligned to this and no more.
pub(super) const LARGEST_ALIGNMENT: u64 = 1 << 30;

/// What is kept of so many fits what `Heap` has in reserve, so that no list that grows with them ends the process
/// where the heap is exhausted.
const MOST_SEGMENTS: usize = 256;

#[cold]
fn too_many_segments() -> Error {
    invalid_argument(format!(
        "a graph has more than {MOST_SEGMENTS} segments: allocate them as several"
    ))
}

/// One segment of the memory of a graph.
///
/// ```
/// use jitmem::{Alignment, Protection, Segment};
/// let table = Segment::new(Protection::READ_WRITE, 64).zero_fill(4032).aligned(Alignment::of::<u128>());
/// assert_eq!(table.content_size + table.zero_fill_size, 4096);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Bytes that the linker writes.
    pub content_size: u64,
    /// Zero bytes behind them.
    pub zero_fill_size: u64,
    /// Alignment of the first byte; at most 1 GiB.
    pub alignment: Alignment,
    /// Protection and lifetime.
    pub group: AllocGroup,
    /// What its code is for.
    pub hint: CodeHint,
}

impl Segment {
    /// `content_size` bytes for the linker to write, aligned to 16. A [`Protection`](crate::Protection)
    /// will do for a group.
    pub fn new(group: impl Into<AllocGroup>, content_size: u64) -> Segment {
        Segment {
            content_size,
            zero_fill_size: 0,
            alignment: PACKING_GRANULE,
            group: group.into(),
            hint: CodeHint::Normal,
        }
    }

    /// The same with so many zero bytes behind the content.
    #[must_use]
    pub fn zero_fill(self, zero_fill_size: u64) -> Segment {
        Segment {
            zero_fill_size,
            ..self
        }
    }

    /// The same with another alignment.
    #[must_use]
    pub fn aligned(self, alignment: Alignment) -> Segment {
        Segment { alignment, ..self }
    }

    /// The same with another hint.
    #[must_use]
    pub fn hinted(self, hint: CodeHint) -> Segment {
        Segment { hint, ..self }
    }
}

#[cold]
fn never(index: usize, content: u64, zero_fill: u64) -> Error {
    invalid_argument(format!(
        "segment {index} of {content} content and {zero_fill} zero-fill bytes: the sizes overflow"
    ))
}

#[cold]
fn too_large(index: usize, size: u64, alignment: u64, window: u64) -> Error {
    Error::new(
        Status::WindowFull,
        format!(
            "segment {index} of {size} bytes, alignment {alignment}: the request is larger than a \
             whole window of {window} bytes; choose a larger window (below 2 GiB) or split the code"
        ),
    )
}

/// A checked segment that takes memory. Sizes fit 32 bits because windows are below 2 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedSegment {
    /// Position in the request.
    pub(super) index: u16,
    pub(super) content: u32,
    pub(super) size: u32,
    pub(super) alignment: u32,
    /// Which pool of a window serves it; what that is for is the segment's group and hint.
    pub(super) pool: u8,
}

impl PlannedSegment {
    pub(super) fn group(&self) -> AllocGroup {
        number::group(self.pool)
    }
}

/// A request for the memory of one graph, checked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(super) planned: SmallVec<[PlannedSegment; 4]>,
    /// Number of segments asked for, those without memory included.
    pub(super) segments: usize,
    /// What the host calls the JITDylib; 0 for none.
    pub(super) dylib: u64,
    /// What else the host said of it.
    pub(super) label: Option<Arc<Label>>,
}

impl Request {
    /// Checks `segments` against a window of at most `window` bytes.
    pub(super) fn new(
        segments: impl IntoIterator<Item = Result<Segment>>,
        dylib: u64,
        window: u64,
    ) -> Result<Request> {
        let mut planned = SmallVec::new();
        let mut total = 0u64;
        let mut count = 0;
        for segment in segments {
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) => return Err(error.context(format!("segment {count}"))),
            };
            let index = count;
            if index == MOST_SEGMENTS {
                return Err(too_many_segments());
            }
            count += 1;
            let Segment {
                content_size,
                zero_fill_size,
                alignment,
                group,
                hint,
            } = segment;
            let (size, overflow) = content_size.overflowing_add(zero_fill_size);
            if overflow {
                return Err(never(index, content_size, zero_fill_size));
            }
            if group.lifetime == Lifetime::NoAlloc {
                continue;
            }
            let alignment = alignment.bytes();
            total = total.saturating_add(size);
            if total > window || alignment > window.min(LARGEST_ALIGNMENT) {
                return Err(too_large(index, size, alignment, window));
            }
            // Windows are below 2 GiB, so all of it fits 32 bits.
            planned.push(PlannedSegment {
                index: index as u16,
                content: content_size as u32,
                size: size as u32,
                alignment: alignment as u32,
                pool: number::of(group, hint),
            });
        }
        Ok(Request {
            planned,
            segments: count,
            dylib,
            label: None,
        })
    }

    /// The same with a label for the same JITDylib.
    pub(super) fn labelled(self, label: Label) -> Result<Request> {
        if label.is_plain() {
            return Ok(self);
        }
        label.check()?;
        let label = Some(Arc::new(label));
        Ok(Request { label, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Protection;

    fn segment(content_size: u64, zero_fill_size: u64, alignment: u64) -> Segment {
        let segment = Segment::new(Protection::READ, content_size).zero_fill(zero_fill_size);
        segment.aligned(alignment.try_into().unwrap())
    }

    #[test]
    fn hopeless_requests_are_refused_whole() {
        let status = |segments: &[Segment]| {
            Request::new(segments.iter().copied().map(Ok), 0, 1 << 30)
                .map(drop)
                .map_err(|error| error.status())
        };
        assert_eq!(status(&[segment(1, 1, 16), segment(0, 0, 1)]), Ok(()));
        for alignment in [0, 12] {
            let refused = Alignment::try_from(alignment).unwrap_err();
            assert_eq!(refused.status(), Status::InvalidArgument);
        }
        assert_eq!(
            status(&[segment(u64::MAX, 1, 1)]),
            Err(Status::InvalidArgument)
        );
        assert_eq!(status(&[segment(u64::MAX, 0, 1)]), Err(Status::WindowFull));
        assert_eq!(
            status(&[segment(1 << 30, 0, 1), segment(1, 0, 1)]),
            Err(Status::WindowFull)
        );
        assert_eq!(status(&[segment(1, 0, 1 << 63)]), Err(Status::WindowFull));
        let mut most = vec![segment(1, 0, 1); MOST_SEGMENTS];
        most[0].group.lifetime = Lifetime::NoAlloc;
        assert_eq!(status(&most), Ok(()));
        most.push(most[0]);
        assert_eq!(status(&most), Err(Status::InvalidArgument));
    }

    #[test]
    fn no_alloc_segments_take_nothing_but_keep_their_place() {
        let mut none = segment(1 << 40, 0, 1);
        none.group.lifetime = Lifetime::NoAlloc;
        let request = Request::new([none, segment(8, 0, 8)].map(Ok), 0, 1 << 30).unwrap();
        assert_eq!(
            (
                request.segments,
                request.planned.len(),
                request.planned[0].index
            ),
            (2, 1, 1)
        );
    }
}
