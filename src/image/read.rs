// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reading a file and checking all of it. Of the tables, slots stay as the file has them: there may be more of them
//! than of anything else. A file that is neither small nor large is read at once into memory that its code may stay in;
//! contents of others are checked and not kept, and what makes an allocation of them reads them again.

use super::format::{
    ACTION, ActionPlaces, COUNTS, CallPlaces, EXPORT, FRAME, FrameSection, HEADER, ImageSegment,
    KEY_PART, LARGEST_ALIGNMENT, LEAST_IN_PAGES, MAGIC, MOST_SEGMENTS, PREAMBLE, Place, SEGMENT,
    SLOT, SLOT_GROUP, SYMBOL, SlotGroup, SlotValue, VERSION, content_places, may_be_copied,
};
use super::key::Key;
use super::recorder::of_file;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::memory::placement::REACH;
use crate::memory::staged::StagedFile;
use crate::page::Alignment;
use crate::sys::{OwnFile, heap};
use crc32fast::Hasher;
use std::io;
use std::ops::{Range, RangeInclusive};

/// An eighth of the file is read first, where most have all of their tables, but no fewer and no more bytes than these.
const LEAST_FIRST: u64 = 64 << 10;
const MOST_FIRST: u64 = 1 << 20;

/// Contents are read in parts to be checked: of so many bytes, which fit a processor's second cache, or of more where
/// there would be more parts than so many, up to a bound.
const PART: u64 = 256 << 10;
const MOST_PARTS: u64 = 4;
const LARGEST_PART: u64 = 4 << 20;

/// Files of so many bytes are read at once. Smaller ones hardly have what could stay in its pages, and larger ones are
/// not to have as much memory.
const STAGED: RangeInclusive<u64> = LEAST_IN_PAGES + (64 << 10)..=8 << 20;

/// What the tables of a file have, all of which was checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) segments: Vec<ImageSegment>,
    /// All names, a NUL behind each.
    names: String,
    pub(super) symbols: Vec<Name>,
    slot_groups: Vec<SlotGroup>,
    /// Their records, those of each group behind those of the group before.
    slots: Vec<u8>,
    pub(super) exports: Vec<Exported>,
    pub(super) frames: Vec<FrameSection>,
    pub(super) actions: Vec<ActionPlaces>,
    /// Where the tables end in the file. Contents are behind that.
    pub(super) end: u64,
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
    /// Where the content of each segment is in the file.
    pub(super) fn content_places(&self) -> impl Iterator<Item = Range<u64>> {
        content_places(&self.segments, self.end)
    }

    pub(super) fn name(&self, name: Name) -> &str {
        name.of(&self.names)
    }

    /// A name and the NUL behind it, the only one.
    pub(super) fn c_name(&self, name: Name) -> &[u8] {
        &self.names.as_bytes()[name.start as usize..][..name.size as usize + 1]
    }

    /// The groups of slots, each with the offsets of its slots in their order.
    pub(super) fn slots(&self) -> impl Iterator<Item = (SlotGroup, impl Iterator<Item = u32>)> {
        by_group(&self.slot_groups, &self.slots)
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
pub(super) fn check(file: &OwnFile, key: &Key) -> Result<(Checked, Option<StagedFile>)> {
    if STAGED.contains(&file.size()) {
        if let Some(staged) = StagedFile::copy(file).map_err(not_read)? {
            let read = staged.bytes(0..file.size()).expect("none was moved");
            let checked = check_read(file, read, size_of_head(read, file.size())?, key)?;
            return Ok((checked, Some(staged)));
        }
    }
    Ok((check_in_parts(file, key)?, None))
}

/// The same without keeping anything of the contents.
pub(super) fn check_in_parts(file: &OwnFile, key: &Key) -> Result<Checked> {
    let (read, head) = read_head(file)?;
    check_read(file, &read, head, key)
}

/// Checks all of a file of which some bytes were read, all those of its tables among them.
fn check_read(file: &OwnFile, read: &[u8], head: usize, key: &Key) -> Result<Checked> {
    let (head, behind) = read.split_at(head);
    let checked = check_head(head, file.size(), key)?;
    check_contents(file, &checked, behind)?;
    Ok(checked)
}

/// The first bytes of a file, and how many of them are header and tables.
fn read_head(file: &OwnFile) -> Result<(Vec<u8>, usize)> {
    let first = (file.size() / 8).clamp(LEAST_FIRST, MOST_FIRST);
    let first = file.size().min(first) as usize;
    let mut read = heap::room_for(first, "open an image")?;
    file.read(&mut read, first, 0).map_err(not_read)?;
    let head = size_of_head(&read, file.size())?;
    if let Some(more) = head.checked_sub(read.len()) {
        let room = read.try_reserve_exact(more);
        room.map_err(|_| heap::exhausted("open an image"))?;
        let at = read.len() as u64;
        file.read(&mut read, more, at).map_err(not_read)?;
    }
    Ok((read, head))
}

/// What the system says where it gives no bytes of a file.
fn not_read(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => torn(),
        _ => of_file("read it", error),
    }
}

/// How many bytes the tables of a file have, which begins with `first` and has `whole` bytes.
fn size_of_head(first: &[u8], whole: u64) -> Result<usize> {
    let mut input = Input(first);
    if input.take(MAGIC.len()).map_or(true, |magic| magic != MAGIC) {
        return Err(damaged("it is no image of jitmem's"));
    }
    let version = input.u32()?;
    if version != VERSION {
        let what = format!("its format is version {version}, and this library reads {VERSION}");
        return Err(Error::new(Status::Unsupported, what).remedy("store it anew"));
    }
    let (_checksum, counts) = (input.u32()?, counts(&mut input)?);
    let sizes = [
        KEY_PART, SEGMENT, SYMBOL, SLOT_GROUP, SLOT, EXPORT, FRAME, ACTION, 1,
    ];
    let sizes = counts.iter().zip(sizes);
    let tables: u64 = sizes
        .map(|(count, size)| u64::from(*count) * size as u64)
        .sum();
    let size = HEADER as u64 + tables;
    if size > whole {
        return Err(torn());
    }
    usize::try_from(size).map_err(|_| torn())
}

fn counts(input: &mut Input<'_>) -> Result<[u32; COUNTS]> {
    let mut counts = [0u32; COUNTS];
    for count in &mut counts {
        *count = input.u32()?;
    }
    Ok(counts)
}

/// Checks header and tables of a file of `whole` bytes, all but the contents' checksums.
fn check_head(head: &[u8], whole: u64, key: &Key) -> Result<Checked> {
    let mut input = Input(head);
    input.take(MAGIC.len() + size_of::<u32>())?;
    let checksum = input.u32()?;
    if crc32fast::hash(&head[PREAMBLE..]) != checksum {
        return Err(damaged(
            "its tables are not what was stored: the checksum differs",
        ));
    }
    let [
        key_parts,
        segments,
        symbols,
        slot_groups,
        slots,
        exports,
        frames,
        actions,
        names,
    ] = counts(&mut input)?;
    let names = &mut Names::new(&head[head.len() - names as usize..])?;
    let parts = input.records(key_parts, |input| {
        Ok((input.name(names)?, input.name(names)?))
    })?;
    let segments = input.records(segments, segment)?;
    let symbols = input.records(symbols, |input| input.name(names))?;
    let slot_groups = input.records(slot_groups, slot_group)?;
    let grouped = slot_groups.iter().map(|group| u64::from(group.slots));
    if grouped.sum::<u64>() != u64::from(slots) {
        return Err(inconsistent("a slot is in no group"));
    }
    let records = input.take(SLOT * slots as usize)?;
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
    let checked = Checked {
        names: heap::text(names.all, "open an image")?,
        slots: heap::copy_of(records, "open an image")?,
        slot_groups,
        end: head.len() as u64,
        segments,
        symbols,
        exports,
        frames,
        actions,
    };
    check_numbers(&checked, records)?;
    check_sizes(&checked, whole)?;
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

/// The groups of slots with the offsets of each, out of the records of all.
fn by_group<'a>(
    groups: &'a [SlotGroup],
    mut records: &'a [u8],
) -> impl Iterator<Item = (SlotGroup, impl Iterator<Item = u32> + use<'a>)> {
    groups.iter().map(move |group| {
        let (own, rest) = records.split_at(SLOT * group.slots as usize);
        records = rest;
        let records = own.chunks_exact(SLOT).flat_map(<[u8; SLOT]>::try_from);
        (*group, records.map(u32::from_le_bytes))
    })
}

fn slot_group(input: &mut Input<'_>) -> Result<SlotGroup> {
    let (segment, kind, number) = (input.u32()?, input.u32()?, input.u32()?);
    let value = SlotValue::from_parts(kind, number);
    Ok(SlotGroup {
        segment,
        value: value.ok_or_else(|| inconsistent("a slot is of an unknown kind"))?,
        slots: input.u32()?,
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
    let mut functions = PointersToFunctions::of(&tables.actions)?;
    let symbol = |number: u32| (number as usize) < tables.symbols.len();
    let segment = |number: u32| (number as usize) < segments.len();
    for (group, offsets) in by_group(&tables.slot_groups, records) {
        let known = match group.value {
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
        let size = group.value.size();
        let is_pointer = group.value.is_pointer();
        let mut free = 0;
        for offset in offsets {
            if u64::from(offset) < free {
                return Err(inconsistent("slots overlap or are not in order"));
            }
            free = u64::from(offset) + size;
            if is_pointer {
                functions.note(Place {
                    segment: group.segment,
                    offset,
                });
            }
        }
        let content = sizes.get(group.segment as usize);
        if content.is_none_or(|content| free > *content) {
            return Err(inconsistent("a slot is outside of the contents"));
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
    if !functions.all_noted() {
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

/// The slots that calls of actions have their functions from, in order, and whether each is there.
struct PointersToFunctions(Vec<(Place, bool)>);

impl PointersToFunctions {
    fn of(actions: &[ActionPlaces]) -> Result<PointersToFunctions> {
        let mut places = heap::room_for(2 * actions.len(), "open an image")?;
        let calls = actions.iter().flat_map(ActionPlaces::calls);
        places.extend(calls.map(|call| (call.function, false)));
        places.sort_unstable();
        places.dedup();
        Ok(PointersToFunctions(places))
    }

    /// A pointer is in a slot.
    fn note(&mut self, place: Place) {
        if let Ok(found) = self.0.binary_search_by_key(&place, |(place, _)| *place) {
            self.0[found].1 = true;
        }
    }

    fn all_noted(&self) -> bool {
        self.0.iter().all(|(_, noted)| *noted)
    }
}

/// Checks that the contents are all that follows the tables in a file of `whole` bytes.
fn check_sizes(checked: &Checked, whole: u64) -> Result<()> {
    let end = checked.content_places().last();
    match whole.checked_sub(end.map_or(checked.end, |place| place.end)) {
        None => Err(torn()),
        Some(0) => Ok(()),
        Some(more) => Err(damaged(format!("{more} bytes follow its end"))),
    }
}

/// What is left of a file, some of which was read.
struct Rest<'a> {
    file: &'a OwnFile,
    /// Bytes that were read with the tables and not used yet.
    behind: &'a [u8],
    /// A part that was read later, and how much of it was used.
    part: Vec<u8>,
    used: usize,
    /// Where the file goes on.
    at: u64,
}

impl<'a> Rest<'a> {
    fn new(file: &'a OwnFile, checked: &Checked, behind: &'a [u8]) -> Result<Rest<'a>> {
        let at = checked.end + behind.len() as u64;
        let left = file.size().saturating_sub(at);
        let most = left.min(left.div_ceil(MOST_PARTS).clamp(PART, LARGEST_PART)) as usize;
        Ok(Rest {
            file,
            behind,
            part: heap::room_for(most, "open an image")?,
            used: 0,
            at,
        })
    }

    /// Shows the next `size` bytes, in as many parts as they were read in.
    fn take(&mut self, mut size: usize, mut show: impl FnMut(&[u8])) -> Result<()> {
        while size > 0 {
            let (shown, behind) = self.behind.split_at(size.min(self.behind.len()));
            self.behind = behind;
            show(shown);
            size -= shown.len();
            if size == 0 {
                break;
            }
            if self.used == self.part.len() {
                let next = (self.file.size() - self.at).min(self.part.capacity() as u64) as usize;
                self.part.clear();
                let read = self.file.read(&mut self.part, next, self.at);
                read.map_err(not_read)?;
                (self.used, self.at) = (0, self.at + self.part.len() as u64);
            }
            let part = &self.part[self.used..];
            let shown = &part[..size.min(part.len())];
            show(shown);
            self.used += shown.len();
            size -= shown.len();
        }
        Ok(())
    }
}

/// Checks that the contents are what was stored. `behind` has those of their bytes that were read with the tables.
fn check_contents(file: &OwnFile, checked: &Checked, behind: &[u8]) -> Result<()> {
    let (mut rest, mut end) = (Rest::new(file, checked, behind)?, checked.end);
    for (segment, place) in checked.segments.iter().zip(checked.content_places()) {
        let mut zeros = true;
        let gap = (place.start - end) as usize;
        rest.take(gap, |bytes| zeros &= bytes.iter().all(|byte| *byte == 0))?;
        if !zeros {
            return Err(inconsistent("what is between two contents is not zero"));
        }
        let mut checksum = Hasher::new();
        rest.take(segment.content as usize, |bytes| checksum.update(bytes))?;
        if checksum.finalize() != segment.checksum {
            let what = "the content of a segment is not what was stored: the checksum differs";
            return Err(damaged(what));
        }
        end = place.end;
    }
    Ok(())
}
