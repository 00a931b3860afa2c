// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The file: a header, tables of records of fixed size, names, and the contents of the segments one behind
//! the other, large ones at multiples of a page with zeros in front. All numbers are little-endian. A checksum
//! in the header is of everything from behind it to the end of the names, that in a segment's record of its content.

use super::key::Key;
use crate::error::{Result, invalid_argument};
use crate::group::Protection;
use crate::memory::placement::REACH;
use crate::page::Alignment;
use crate::sys::heap;
use std::ops::Range;

pub(super) const MAGIC: [u8; 8] = *b"JITMEMIM";
pub(super) const VERSION: u32 = 6;
/// Of magic, version and checksum; the checksum is of what follows.
pub(super) const PREAMBLE: usize = 16;
pub(super) const COUNTS: usize = 9;
pub(super) const HEADER: usize = PREAMBLE + COUNTS * 4;

// Sizes of records. That of a name is its length; names lie in the order of their records, a NUL behind each.
pub(super) const KEY_PART: usize = 8;
pub(super) const SEGMENT: usize = 32;
pub(super) const SYMBOL: usize = 4;
pub(super) const SLOT_GROUP: usize = 16;
pub(super) const SLOT: usize = 4;
pub(super) const EXPORT: usize = 20;
pub(super) const FRAME: usize = 12;
pub(super) const ACTION: usize = 48;

/// Segments may be aligned to this and no more, as those of requests.
pub(super) const LARGEST_ALIGNMENT: u64 = 1 << 30;

/// A segment for each protection; those that are writable and executable at once are none.
pub(super) const MOST_SEGMENTS: usize = 6;

/// Content that linked code only reads or runs is whole pages of the file if it has so many bytes, so that it may stay in
/// the pages that it is read into.
pub(super) const LEAST_IN_PAGES: u64 = 256 << 10;
/// Bytes of a page that has one of the sizes that there are.
pub(super) const FILE_PAGE: Alignment = match cfg!(target_arch = "x86_64") {
    true => Alignment::new(4 << 10).unwrap(),
    false => Alignment::new(64 << 10).unwrap(),
};

/// Most bytes of a file: all that fits a window, and as much again for the tables.
pub(super) const LARGEST_FILE: u64 = 2 * REACH;

/// A segment of an image: all that has one protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageSegment {
    pub(super) protection: Protection,
    pub(super) alignment: Alignment,
    pub(super) content: u32,
    pub(super) zero_fill: u32,
    pub(super) checksum: u32,
}

impl ImageSegment {
    pub(super) fn size(&self) -> u64 {
        u64::from(self.content) + u64::from(self.zero_fill)
    }

    /// Whether its content may stay in the pages that it is read into.
    pub(super) fn is_in_pages(&self) -> bool {
        in_pages(self.protection, self.content.into())
    }
}

/// See [`LEAST_IN_PAGES`].
pub(super) fn in_pages(protection: Protection, content: u64) -> bool {
    !protection.writable() && content >= LEAST_IN_PAGES
}

/// Where the contents of segments are in a file whose tables end at `end`.
pub(super) fn content_places(
    segments: &[ImageSegment],
    mut end: u64,
) -> impl Iterator<Item = Range<u64>> {
    segments.iter().map(move |segment| {
        let start = match segment.is_in_pages() {
            true => FILE_PAGE.round_up(end).expect("files are smaller"),
            false => end,
        };
        end = start + u64::from(segment.content);
        start..end
    })
}

/// A place in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// What is added to what a slot has in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotValue {
    /// A symbol's address, by its number.
    Import(u32),
    /// Where a segment starts, by its number.
    Absolute64(u32),
    /// The same, less where the slot's own segment starts.
    Relative32(u32),
    Relative64(u32),
    /// A symbol's address, less where the slot's segment starts.
    ImportRelative32(u32),
    ImportRelative64(u32),
    /// Where a segment or symbol is, less where the segment `from` starts.
    Distance64 {
        segment: u32,
        from: u32,
    },
    ImportDistance64 {
        symbol: u32,
        from: u32,
    },
    /// 0, less where the slot's segment starts.
    RelativeFixed64,
}

/// Bits of a kind in a file; above them is the segment that a distance is counted from.
const KIND_BITS: u32 = 8;

impl SlotValue {
    pub(super) fn parts(self) -> (u32, u32) {
        // There are fewer segments than kinds of protection.
        let from = |kind: u32, segment: u32| kind | segment << KIND_BITS;
        match self {
            SlotValue::Import(symbol) => (0, symbol),
            SlotValue::Absolute64(segment) => (1, segment),
            SlotValue::Relative32(segment) => (2, segment),
            SlotValue::Relative64(segment) => (3, segment),
            SlotValue::ImportRelative32(symbol) => (4, symbol),
            SlotValue::ImportRelative64(symbol) => (5, symbol),
            SlotValue::Distance64 {
                segment,
                from: origin,
            } => (from(6, origin), segment),
            SlotValue::ImportDistance64 {
                symbol,
                from: origin,
            } => (from(7, origin), symbol),
            SlotValue::RelativeFixed64 => (8, 0),
        }
    }

    #[inline]
    pub(super) fn from_parts(kind: u32, number: u32) -> Option<SlotValue> {
        let from = kind >> KIND_BITS;
        Some(match (kind & ((1 << KIND_BITS) - 1), from) {
            (0, 0) => SlotValue::Import(number),
            (1, 0) => SlotValue::Absolute64(number),
            (2, 0) => SlotValue::Relative32(number),
            (3, 0) => SlotValue::Relative64(number),
            (4, 0) => SlotValue::ImportRelative32(number),
            (5, 0) => SlotValue::ImportRelative64(number),
            (6, from) => SlotValue::Distance64 {
                segment: number,
                from,
            },
            (7, from) => SlotValue::ImportDistance64 {
                symbol: number,
                from,
            },
            (8, 0) if number == 0 => SlotValue::RelativeFixed64,
            _ => return None,
        })
    }

    #[inline]
    pub(super) fn size(self) -> u64 {
        match self {
            SlotValue::Relative32(_) | SlotValue::ImportRelative32(_) => 4,
            _ => 8,
        }
    }

    /// Whether it is an address.
    pub(super) fn is_pointer(self) -> bool {
        matches!(self, SlotValue::Import(_) | SlotValue::Absolute64(_))
    }

    /// Whether a slot with it says how far something is from the slot itself. So its offset in its segment is taken off
    /// what it has in the file.
    pub(super) fn is_from_slot(self) -> bool {
        !self.is_pointer()
            && !matches!(
                self,
                SlotValue::Distance64 { .. } | SlotValue::ImportDistance64 { .. }
            )
    }
}

/// Bytes of a content to which something is added when the image is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) value: SlotValue,
}

impl Slot {
    /// What those of one group have in common.
    pub(super) fn group(&self) -> (u32, (u32, u32)) {
        (self.place.segment, self.value.parts())
    }
}

/// The slots of one segment to which the same is added. Their offsets in the segment are records of their own, those of
/// each group behind those of the group before.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotGroup {
    pub(super) segment: u32,
    pub(super) value: SlotValue,
    pub(super) slots: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportedSymbol<'a> {
    pub(super) symbol: &'a str,
    pub(super) place: Place,
    pub(super) flags: u64,
}

/// An `.eh_frame` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameSection {
    pub(super) place: Place,
    pub(super) size: u32,
}

/// A call of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallPlaces {
    /// A slot that is a pointer to the function.
    pub(super) function: Place,
    /// The arguments.
    pub(super) args: Place,
    pub(super) size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ActionPlaces {
    pub(super) finalize: Option<CallPlaces>,
    pub(super) dealloc: Option<CallPlaces>,
}

impl ActionPlaces {
    pub(super) fn calls(&self) -> impl Iterator<Item = &CallPlaces> {
        self.finalize.iter().chain(&self.dealloc)
    }
}

/// Whether actions are called with no more, all together, than is copied for contents of so many bytes. Calls may
/// share arguments, yet a small file must not ask for much memory.
pub(super) fn may_be_copied(actions: &[ActionPlaces], contents: u64) -> bool {
    const TIMES: u64 = 16;
    let calls = actions.iter().flat_map(ActionPlaces::calls);
    let args: u64 = calls.map(|call| u64::from(call.size)).sum();
    args <= TIMES * (contents + (ACTION * actions.len()) as u64)
}

/// All of an image but the contents of its segments, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tables<'a> {
    pub(super) key: &'a Key,
    /// In the order of their protections' bits, each once.
    pub(super) segments: Vec<ImageSegment>,
    pub(super) symbols: Vec<&'a str>,
    /// By group, and in the order of their places. None overlaps another.
    pub(super) slots: Vec<Slot>,
    pub(super) exports: Vec<ExportedSymbol<'a>>,
    pub(super) frames: Vec<FrameSection>,
    /// In the order in which they run.
    pub(super) actions: Vec<ActionPlaces>,
}

// ---- writing ----

/// Records and strings as they come.
struct Output {
    records: Vec<u8>,
    strings: Vec<u8>,
}

impl Output {
    fn u32(&mut self, number: u32) {
        self.records.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.records.extend(number.to_le_bytes());
    }

    fn place(&mut self, place: Place) {
        self.u32(place.segment);
        self.u32(place.offset);
    }

    fn call(&mut self, call: Option<CallPlaces>) {
        const NOWHERE: Place = Place {
            segment: 0,
            offset: 0,
        };
        self.u32(call.is_some().into());
        let CallPlaces {
            function,
            args,
            size,
        } = call.unwrap_or(CallPlaces {
            function: NOWHERE,
            args: NOWHERE,
            size: 0,
        });
        self.place(function);
        self.place(args);
        self.u32(size);
    }

    fn string(&mut self, text: &str) -> Result<()> {
        if text.contains('\0') {
            return Err(invalid_argument(format!("name {text:?} has a NUL")));
        }
        self.u32(number(text.len(), "bytes of a name")?);
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        Ok(())
    }
}

fn number(count: usize, of: &str) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| invalid_argument(format!("{count} {of}: an image has at most {}", u32::MAX)))
}

/// Header, tables and strings.
pub(super) fn encode(tables: &Tables<'_>) -> Result<Vec<u8>> {
    let parts = tables.key.0.iter();
    let parts = parts.flat_map(|(name, value)| [&**name, &**value]);
    let exported = tables.exports.iter().map(|export| export.symbol);
    let names = parts.chain(tables.symbols.iter().copied()).chain(exported);
    let strings = names.map(|name| name.len() + 1).sum::<usize>();
    let groups = || (tables.slots).chunk_by(|one, next| one.group() == next.group());
    let records = KEY_PART * tables.key.0.len()
        + SEGMENT * tables.segments.len()
        + SYMBOL * tables.symbols.len()
        + SLOT_GROUP * groups().count()
        + SLOT * tables.slots.len()
        + EXPORT * tables.exports.len()
        + FRAME * tables.frames.len()
        + ACTION * tables.actions.len();
    let mut output = Output {
        records: heap::room_for(records, "store an image")?,
        strings: heap::room_for(strings, "store an image")?,
    };
    for (name, value) in &tables.key.0 {
        output.string(name)?;
        output.string(value)?;
    }
    for segment in &tables.segments {
        output.u32(segment.protection.bits());
        output.u32(segment.checksum);
        output.u64(segment.alignment.bytes());
        output.u64(segment.content.into());
        output.u64(segment.zero_fill.into());
    }
    for symbol in &tables.symbols {
        output.string(symbol)?;
    }
    for group in groups() {
        let (segment, (kind, number)) = group[0].group();
        output.u32(segment);
        output.u32(kind);
        output.u32(number);
        output.u32(self::number(group.len(), "slots")?);
    }
    for slot in &tables.slots {
        output.u32(slot.place.offset);
    }
    for export in &tables.exports {
        output.string(export.symbol)?;
        output.place(export.place);
        output.u64(export.flags);
    }
    for frame in &tables.frames {
        output.place(frame.place);
        output.u32(frame.size);
    }
    for action in &tables.actions {
        output.call(action.finalize);
        output.call(action.dealloc);
    }
    let counts = [
        (tables.key.0.len(), "parts of a key"),
        (tables.segments.len(), "segments"),
        (tables.symbols.len(), "symbols"),
        (groups().count(), "groups of slots"),
        (tables.slots.len(), "slots"),
        (tables.exports.len(), "exports"),
        (tables.frames.len(), "sections of frames"),
        (tables.actions.len(), "actions"),
        (output.strings.len(), "bytes of names"),
    ];
    let size = HEADER + output.records.len() + output.strings.len();
    let mut head: Vec<u8> = heap::room_for(size, "store an image")?;
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend([0; 4]);
    for (count, of) in counts {
        head.extend(number(count, of)?.to_le_bytes());
    }
    head.extend(output.records);
    head.extend(output.strings);
    seal(&mut head);
    Ok(head)
}

/// What is between two contents of a file.
static GAP: [u8; FILE_PAGE.bytes() as usize] = [0; FILE_PAGE.bytes() as usize];

/// All of a file, in parts one behind the other.
pub(super) fn file_parts<'a>(
    head: &'a [u8],
    segments: &[ImageSegment],
    contents: &'a [Vec<u8>],
) -> Vec<&'a [u8]> {
    let (mut parts, mut end) = (vec![head], head.len() as u64);
    for (place, content) in content_places(segments, end).zip(contents) {
        if end < place.start {
            parts.push(&GAP[..(place.start - end) as usize]);
        }
        parts.push(content);
        end = place.end;
    }
    parts
}

/// Writes the checksum of header, tables and strings.
pub(super) fn seal(head: &mut [u8]) {
    let checksum = crc32fast::hash(&head[PREAMBLE..]);
    head[PREAMBLE - 4..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
}
