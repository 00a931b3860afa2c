// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The file: a header, tables of records of fixed size, strings, and the contents of the segments one behind
//! the other. All numbers are little-endian. A checksum in the header is of everything from behind it to the
//! end of the strings, that in a segment's record of its content.

use super::key::Key;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::memory::placement::REACH;
use crate::page::Alignment;
use crate::sys::heap;
use std::ops::Range;

const MAGIC: [u8; 8] = *b"JITMEMIM";
const VERSION: u32 = 2;
/// Of magic, version and checksum; the checksum is of what follows.
const PREAMBLE: usize = 16;
/// Of the preamble and seven counts, and 4 bytes that are 0.
const HEADER: usize = PREAMBLE + 8 * 4;

// Sizes of records. That of a name is its length; names lie in the order of their records.
const KEY_PART: usize = 8;
const SEGMENT: usize = 32;
const SYMBOL: usize = 4;
const SLOT: usize = 24;
const EXPORT: usize = 20;
const FRAME: usize = 12;

/// Segments may be aligned to this and no more, as those of requests.
const LARGEST_ALIGNMENT: u64 = 1 << 30;

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
}

/// A place in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// What a slot holds, to which its addend is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotValue {
    /// A symbol's address, by its number.
    Import(u32),
    /// Where a segment starts, by its number.
    Absolute64(u32),
    /// The same, less the slot's address.
    Relative32(u32),
    Relative64(u32),
    /// A symbol's address, less the slot's.
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
    /// 0, less the slot's address.
    RelativeFixed64,
}

/// Bits of a kind in a file; above them is the segment that a distance is counted from.
const KIND_BITS: u32 = 8;

impl SlotValue {
    fn parts(self) -> (u32, u32) {
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

    fn from_parts(kind: u32, number: u32) -> Option<SlotValue> {
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

    /// The symbol that it says where it is.
    pub(super) fn symbol(self) -> Option<u32> {
        match self {
            SlotValue::Import(symbol)
            | SlotValue::ImportRelative32(symbol)
            | SlotValue::ImportRelative64(symbol)
            | SlotValue::ImportDistance64 { symbol, .. } => Some(symbol),
            _ => None,
        }
    }

    /// The segment that it says where it is.
    pub(super) fn segment(self) -> Option<u32> {
        match self {
            SlotValue::Absolute64(segment)
            | SlotValue::Relative32(segment)
            | SlotValue::Relative64(segment)
            | SlotValue::Distance64 { segment, .. } => Some(segment),
            _ => None,
        }
    }

    /// The segment, other than the slot's own place, from whose start it counts.
    pub(super) fn from(self) -> Option<u32> {
        match self {
            SlotValue::Distance64 { from, .. } | SlotValue::ImportDistance64 { from, .. } => {
                Some(from)
            }
            _ => None,
        }
    }

    pub(super) fn size(self) -> u64 {
        match self {
            SlotValue::Relative32(_) | SlotValue::ImportRelative32(_) => 4,
            _ => 8,
        }
    }
}

/// Bytes of a content that are computed when the image is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) value: SlotValue,
    pub(super) addend: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportedSymbol {
    pub(super) symbol: String,
    pub(super) place: Place,
    pub(super) flags: u64,
}

/// An `.eh_frame` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameSection {
    pub(super) place: Place,
    pub(super) size: u32,
}

/// All of an image but the contents of its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) key: Key,
    /// In the order of their protections' bits, each once.
    pub(super) segments: Vec<ImageSegment>,
    pub(super) symbols: Vec<String>,
    /// In the order of their places. None overlaps another.
    pub(super) slots: Vec<Slot>,
    pub(super) exports: Vec<ExportedSymbol>,
    pub(super) frames: Vec<FrameSection>,
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

    fn string(&mut self, text: &str) -> Result<()> {
        if text.contains('\0') {
            return Err(invalid_argument(format!("name {text:?} has a NUL")));
        }
        self.u32(number(text.len(), "bytes of a name")?);
        self.strings.extend(text.as_bytes());
        Ok(())
    }
}

fn number(count: usize, of: &str) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| invalid_argument(format!("{count} {of}: an image has at most {}", u32::MAX)))
}

/// Header, tables and strings.
pub(super) fn encode(tables: &Tables) -> Result<Vec<u8>> {
    let names = |names: &[String]| names.iter().map(String::len).sum::<usize>();
    let parts = tables.key.0.iter();
    let exported = tables.exports.iter().map(|export| export.symbol.len());
    let strings = names(&tables.symbols)
        + exported.sum::<usize>()
        + parts
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
    let records = KEY_PART * tables.key.0.len()
        + SEGMENT * tables.segments.len()
        + SYMBOL * tables.symbols.len()
        + SLOT * tables.slots.len()
        + EXPORT * tables.exports.len()
        + FRAME * tables.frames.len();
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
    for slot in &tables.slots {
        let (kind, number) = slot.value.parts();
        output.place(slot.place);
        output.u32(kind);
        output.u32(number);
        output.u64(slot.addend as u64);
    }
    for export in &tables.exports {
        output.string(&export.symbol)?;
        output.place(export.place);
        output.u64(export.flags);
    }
    for frame in &tables.frames {
        output.place(frame.place);
        output.u32(frame.size);
    }
    let counts = [
        (tables.key.0.len(), "parts of a key"),
        (tables.segments.len(), "segments"),
        (tables.symbols.len(), "symbols"),
        (tables.slots.len(), "slots"),
        (tables.exports.len(), "exports"),
        (tables.frames.len(), "sections of frames"),
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
    head.extend([0; 4]);
    head.extend(output.records);
    head.extend(output.strings);
    seal(&mut head);
    Ok(head)
}

/// Writes the checksum of header, tables and strings.
pub(super) fn seal(head: &mut [u8]) {
    let checksum = crc32fast::hash(&head[PREAMBLE..]);
    head[PREAMBLE - 4..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
}

// ---- reading ----

/// What is left to be read of a file.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or_else(torn)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?.try_into().map_err(|_| torn())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let bytes = self.take(8)?.try_into().map_err(|_| torn())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn place(&mut self) -> Result<Place> {
        Ok(Place {
            segment: self.u32()?,
            offset: self.u32()?,
        })
    }

    /// A name, of which the next bytes of `names` are the text. So no two share any, and all together
    /// take no more memory than the file.
    fn string(&mut self, names: &mut Input<'_>) -> Result<String> {
        let size = self.u32()? as usize;
        let bytes = names.take(size);
        let bytes = bytes.map_err(|_| inconsistent("a name is outside of the names"))?;
        let text = std::str::from_utf8(bytes).map_err(|_| inconsistent("a name is not UTF-8"))?;
        if text.contains('\0') {
            return Err(inconsistent("a name has a NUL"));
        }
        Ok(text.to_owned())
    }

    /// `count` records. The room for them is asked for once, for no more than the file has records.
    fn records<T>(
        &mut self,
        count: u32,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut records = heap::room_for(count as usize, "open an image")?;
        for _ in 0..count {
            records.push(read(self)?);
        }
        Ok(records)
    }
}

/// The kind of all that is wrong with a file as such.
fn damaged(what: impl Into<String>) -> Error {
    invalid_argument(what)
}

fn torn() -> Error {
    damaged("it is torn: it ends too early")
}

fn inconsistent(what: &str) -> Error {
    damaged(format!("it is inconsistent: {what}"))
}

/// Reads a file and checks all of it; also where the content of each segment is in it.
pub(super) fn decode(file: &[u8], key: &Key) -> Result<(Tables, Vec<Range<usize>>)> {
    let mut input = Input(file);
    if input.take(MAGIC.len()).map_or(true, |magic| magic != MAGIC) {
        return Err(damaged("it is no image of jitmem's"));
    }
    let version = input.u32()?;
    if version != VERSION {
        let what = format!("its format is version {version}, and this library reads {VERSION}");
        return Err(Error::new(Status::Unsupported, what).remedy("store it anew"));
    }
    let checksum = input.u32()?;
    let mut counts = [0u32; 7];
    for count in &mut counts {
        *count = input.u32()?;
    }
    let padding = input.u32()?;
    let [key_parts, segments, symbols, slots, exports, frames, names] = counts;
    let sizes = [KEY_PART, SEGMENT, SYMBOL, SLOT, EXPORT, FRAME, 1];
    let tables: u64 = counts
        .iter()
        .zip(sizes)
        .map(|(count, size)| u64::from(*count) * size as u64)
        .sum();
    let head = usize::try_from(HEADER as u64 + tables).map_err(|_| torn())?;
    let sealed = file.get(PREAMBLE..head).ok_or_else(torn)?;
    if crc32fast::hash(sealed) != checksum || padding != 0 {
        return Err(damaged(
            "its tables are not what was stored: the checksum differs",
        ));
    }
    let names = &mut Input(&file[head - names as usize..head]);
    let tables = Tables {
        key: Key(input.records(key_parts, |input| {
            Ok((input.string(names)?, input.string(names)?))
        })?),
        segments: input.records(segments, segment)?,
        symbols: input.records(symbols, |input| input.string(names))?,
        slots: input.records(slots, slot)?,
        exports: input.records(exports, |input| {
            Ok(ExportedSymbol {
                symbol: input.string(names)?,
                place: input.place()?,
                flags: input.u64()?,
            })
        })?,
        frames: input.records(frames, |input| {
            Ok(FrameSection {
                place: input.place()?,
                size: input.u32()?,
            })
        })?,
    };
    if !names.0.is_empty() {
        return Err(inconsistent("a name belongs to nothing"));
    }
    key.check(&tables.key)?;
    check(&tables)?;
    let contents = contents(file, head, &tables.segments)?;
    Ok((tables, contents))
}

fn segment(input: &mut Input<'_>) -> Result<ImageSegment> {
    let protection = Protection::from_bits(input.u32()?)?;
    let checksum = input.u32()?;
    let alignment = Alignment::try_from(input.u64()?)?;
    let size = |number: u64| {
        u32::try_from(number).map_err(|_| inconsistent("a segment is larger than a window"))
    };
    Ok(ImageSegment {
        protection,
        checksum,
        alignment,
        content: size(input.u64()?)?,
        zero_fill: size(input.u64()?)?,
    })
}

fn slot(input: &mut Input<'_>) -> Result<Slot> {
    let place = input.place()?;
    let (kind, number) = (input.u32()?, input.u32()?);
    let value = SlotValue::from_parts(kind, number);
    Ok(Slot {
        place,
        value: value.ok_or_else(|| inconsistent("a slot is of an unknown kind"))?,
        addend: input.u64()? as i64,
    })
}

/// Checks that all numbers in the tables mean something.
fn check(tables: &Tables) -> Result<()> {
    let segments = &tables.segments;
    let bits = |segment: &ImageSegment| segment.protection.bits();
    if !segments.is_sorted_by(|one, next| bits(one) < bits(next)) {
        return Err(inconsistent(
            "its segments are not in the order of their protections",
        ));
    }
    if segments.iter().map(ImageSegment::size).sum::<u64>() > REACH {
        return Err(inconsistent("it is larger than a window"));
    }
    if segments
        .iter()
        .any(|one| one.alignment.bytes() > LARGEST_ALIGNMENT)
    {
        return Err(inconsistent(
            "the alignment of a segment is more than 1 GiB",
        ));
    }
    let content = |place: Place| segments.get(place.segment as usize).map(|one| one.content);
    let inside = |place: Place, size: u64| {
        let end = u64::from(place.offset) + size;
        content(place).is_some_and(|content| end <= content.into())
    };
    let mut free = Place {
        segment: 0,
        offset: 0,
    };
    for slot in &tables.slots {
        let size = slot.value.size();
        if !inside(slot.place, size) {
            return Err(inconsistent("a slot is outside of the contents"));
        }
        if slot.place < free {
            return Err(inconsistent("slots overlap or are not in order"));
        }
        free = slot.place;
        free.offset += size as u32;
        let value = slot.value;
        let unknown = |number: Option<u32>, known| number.is_some_and(|it| it as usize >= known);
        if unknown(value.symbol(), tables.symbols.len())
            || unknown(value.segment(), segments.len())
            || unknown(value.from(), segments.len())
        {
            return Err(inconsistent(
                "a slot names no symbol or segment that is there",
            ));
        }
    }
    for export in &tables.exports {
        let segment = segments.get(export.place.segment as usize);
        if segment.is_none_or(|segment| u64::from(export.place.offset) >= segment.size()) {
            return Err(inconsistent("a symbol is outside of the segments"));
        }
    }
    let frames = &mut tables.frames.iter();
    if frames.any(|frame| frame.size == 0 || !inside(frame.place, frame.size.into())) {
        return Err(inconsistent(
            "a section of frames is outside of the contents",
        ));
    }
    Ok(())
}

/// Where the contents are: they are all that follows.
fn contents(file: &[u8], head: usize, segments: &[ImageSegment]) -> Result<Vec<Range<usize>>> {
    let mut contents: Vec<Range<usize>> = heap::room_for(segments.len(), "open an image")?;
    let mut start = head;
    for segment in segments {
        let end = start + segment.content as usize;
        let content = file.get(start..end).ok_or_else(torn)?;
        if crc32fast::hash(content) != segment.checksum {
            let what = "the content of a segment is not what was stored: the checksum differs";
            return Err(damaged(what));
        }
        contents.push(start..end);
        start = end;
    }
    match file.len() - start {
        0 => Ok(contents),
        more => Err(damaged(format!("{more} bytes follow its end"))),
    }
}
