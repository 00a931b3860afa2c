// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reading a file and checking all of it. Slots stay in the file as they are: there may be more of them than
//! of anything else.

use super::format::{
    ACTION, ActionPlaces, CallPlaces, EXPORT, FRAME, FrameSection, HEADER, ImageSegment, KEY_PART,
    LARGEST_ALIGNMENT, MAGIC, MOST_SEGMENTS, PREAMBLE, Place, SEGMENT, SLOT, SYMBOL, Slot,
    SlotValue, VERSION, may_be_copied,
};
use super::key::Key;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::memory::placement::REACH;
use crate::page::Alignment;
use crate::sys::heap;
use std::ffi::CStr;
use std::ops::Range;

/// What a file has, all of which was checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) segments: Vec<ImageSegment>,
    /// All names, a NUL behind each.
    names: String,
    pub(super) symbols: Vec<Name>,
    /// Where their records are in the file.
    slots: Range<usize>,
    pub(super) exports: Vec<Exported>,
    pub(super) frames: Vec<FrameSection>,
    pub(super) actions: Vec<ActionPlaces>,
    /// Where the contents of the segments are in the file.
    pub(super) contents: Vec<Range<usize>>,
}

/// Where a name is in the names. No file is larger than 4 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    start: u32,
    size: u32,
}

impl Name {
    fn of(self, names: &str) -> &str {
        &names[self.start as usize..][..self.size as usize]
    }
}

/// An export.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exported {
    pub(super) symbol: Name,
    pub(super) place: Place,
    pub(super) flags: u64,
}

impl Checked {
    pub(super) fn name(&self, name: Name) -> &str {
        name.of(&self.names)
    }

    /// A name and the NUL behind it.
    pub(super) fn c_name(&self, name: Name) -> &CStr {
        let bytes = &self.names.as_bytes()[name.start as usize..][..name.size as usize + 1];
        CStr::from_bytes_with_nul(bytes).expect("that it has one NUL was checked")
    }

    /// The slots, in the order of their places, out of the records of `file`, the file that was checked.
    pub(super) fn slots(&self, file: &[u8]) -> impl Iterator<Item = Slot> {
        slots(&file[self.slots.clone()]).flatten()
    }
}

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

    fn call(&mut self) -> Result<Option<CallPlaces>> {
        let there = self.u32()?;
        let call = CallPlaces {
            function: self.place()?,
            args: self.place()?,
            size: self.u32()?,
        };
        match there {
            0 => Ok(None),
            1 => Ok(Some(call)),
            _ => Err(inconsistent("an action neither has a call nor has none")),
        }
    }

    /// A name, which lies behind the names before it, so that no two share any byte.
    fn name(&mut self, names: &mut Names<'_>) -> Result<Name> {
        names.next(self.u32()?)
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

/// The names of a file, of which those in front of `next` are taken.
struct Names<'a> {
    all: &'a str,
    next: usize,
}

impl Names<'_> {
    fn new(bytes: &[u8]) -> Result<Names<'_>> {
        let all = std::str::from_utf8(bytes).map_err(|_| inconsistent("a name is not UTF-8"))?;
        Ok(Names { all, next: 0 })
    }

    fn next(&mut self, size: u32) -> Result<Name> {
        let (start, end) = (self.next, self.next + size as usize);
        match self.all.as_bytes().get(start..=end) {
            Some([name @ .., 0]) if !name.contains(&0) => {}
            Some([_, .., 0]) => return Err(inconsistent("a name has a NUL")),
            Some(_) => return Err(inconsistent("a name has no end")),
            None => return Err(inconsistent("a name is outside of the names")),
        }
        self.next = end + 1;
        Ok(Name {
            start: start as u32,
            size,
        })
    }
}

/// The kind of all that is wrong with a file as such.
fn damaged(what: impl Into<String>) -> Error {
    invalid_argument(what).remedy("store it anew")
}

fn torn() -> Error {
    damaged("it is torn: it ends too early")
}

fn inconsistent(what: &str) -> Error {
    damaged(format!("it is inconsistent: {what}"))
}

/// Reads a file and checks all of it.
pub(super) fn check(file: &[u8], key: &Key) -> Result<Checked> {
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
    let mut counts = [0u32; 8];
    for count in &mut counts {
        *count = input.u32()?;
    }
    let [
        key_parts,
        segments,
        symbols,
        slot_count,
        exports,
        frames,
        actions,
        names,
    ] = counts;
    let sizes = [KEY_PART, SEGMENT, SYMBOL, SLOT, EXPORT, FRAME, ACTION, 1];
    let tables: u64 = counts
        .iter()
        .zip(sizes)
        .map(|(count, size)| u64::from(*count) * size as u64)
        .sum();
    let head = usize::try_from(HEADER as u64 + tables).map_err(|_| torn())?;
    let sealed = file.get(PREAMBLE..head).ok_or_else(torn)?;
    if crc32fast::hash(sealed) != checksum {
        return Err(damaged(
            "its tables are not what was stored: the checksum differs",
        ));
    }
    let names = &mut Names::new(&file[head - names as usize..head])?;
    let parts = input.records(key_parts, |input| {
        Ok((input.name(names)?, input.name(names)?))
    })?;
    let segments = input.records(segments, segment)?;
    let symbols = input.records(symbols, |input| input.name(names))?;
    let slots_at = file.len() - input.0.len();
    let records = input.take(SLOT * slot_count as usize)?;
    let exports = input.records(exports, |input| {
        Ok(Exported {
            symbol: input.name(names)?,
            place: input.place()?,
            flags: input.u64()?,
        })
    })?;
    let frames = input.records(frames, |input| {
        Ok(FrameSection {
            place: input.place()?,
            size: input.u32()?,
        })
    })?;
    let actions = input.records(actions, |input| {
        Ok(ActionPlaces {
            finalize: input.call()?,
            dealloc: input.call()?,
        })
    })?;
    if names.next != names.all.len() {
        return Err(inconsistent("a name belongs to nothing"));
    }
    let parts = parts.iter();
    key.check(parts.map(|(name, value)| (name.of(names.all), value.of(names.all))))?;
    let mut checked = Checked {
        names: heap::text(names.all, "open an image")?,
        slots: slots_at..slots_at + records.len(),
        contents: Vec::new(),
        segments,
        symbols,
        exports,
        frames,
        actions,
    };
    check_numbers(&checked, records)?;
    checked.contents = contents(file, head, &checked.segments)?;
    Ok(checked)
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

fn slots(records: &[u8]) -> impl Iterator<Item = Option<Slot>> {
    records.chunks_exact(SLOT).map(|record| {
        let record: &[u8; SLOT] = record.try_into().ok()?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(record[at..at + 4].try_into().ok()?));
        Some(Slot {
            place: Place {
                segment: u32_at(0)?,
                offset: u32_at(4)?,
            },
            value: SlotValue::from_parts(u32_at(8)?, u32_at(12)?)?,
            addend: i64::from_le_bytes(record[16..SLOT].try_into().ok()?),
        })
    })
}

/// Checks that all numbers in the tables mean something.
fn check_numbers(tables: &Checked, records: &[u8]) -> Result<()> {
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
    let mut sizes = [0; MOST_SEGMENTS];
    for (size, segment) in sizes.iter_mut().zip(segments) {
        *size = segment.content.into();
    }
    let inside = |place: Place, size: u64| {
        let content = sizes.get(place.segment as usize);
        content.is_some_and(|content| u64::from(place.offset) + size <= *content)
    };
    let functions = pointers_to_functions(&tables.actions)?;
    let mut functions = functions.iter().peekable();
    let symbol = |number: u32| (number as usize) < tables.symbols.len();
    let segment = |number: u32| (number as usize) < segments.len();
    let mut free = Place {
        segment: 0,
        offset: 0,
    };
    for slot in slots(records) {
        let slot = slot.ok_or_else(|| inconsistent("a slot is of an unknown kind"))?;
        let size = slot.value.size();
        if !inside(slot.place, size) {
            return Err(inconsistent("a slot is outside of the contents"));
        }
        if slot.place < free {
            return Err(inconsistent("slots overlap or are not in order"));
        }
        free = slot.place;
        free.offset += size as u32;
        functions.next_if(|place| **place == slot.place && slot.value.is_pointer());
        let known = match slot.value {
            SlotValue::Import(number)
            | SlotValue::ImportRelative32(number)
            | SlotValue::ImportRelative64(number) => symbol(number),
            SlotValue::Absolute64(number)
            | SlotValue::Relative32(number)
            | SlotValue::Relative64(number) => segment(number),
            SlotValue::Distance64 {
                segment: number,
                from,
            } => segment(number) && segment(from),
            SlotValue::ImportDistance64 {
                symbol: number,
                from,
            } => symbol(number) && segment(from),
            SlotValue::RelativeFixed64 => true,
        };
        if !known {
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
    if functions.next().is_some() {
        return Err(inconsistent("an action's function is in no slot"));
    }
    let mut calls = tables.actions.iter().flat_map(ActionPlaces::calls);
    if calls.any(|call| !inside(call.args, call.size.into())) {
        return Err(inconsistent(
            "what an action is called with is outside of the contents",
        ));
    }
    if !may_be_copied(&tables.actions, sizes.iter().sum()) {
        return Err(inconsistent(
            "actions are called with many times what the contents have",
        ));
    }
    Ok(())
}

/// The slots that calls of actions have their functions from: in order, each once.
fn pointers_to_functions(actions: &[ActionPlaces]) -> Result<Vec<Place>> {
    let mut places = heap::room_for(2 * actions.len(), "open an image")?;
    places.extend(
        actions
            .iter()
            .flat_map(ActionPlaces::calls)
            .map(|call| call.function),
    );
    places.sort_unstable();
    places.dedup();
    Ok(places)
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
