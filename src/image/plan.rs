// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What goes where in an image: segments of one protection become one, and what depends on addresses a slot.

use super::format::{
    ActionPlaces, CallPlaces, ExportedSymbol, FILE_PAGE, FrameSection, ImageSegment, Place, Slot,
    SlotValue, Tables, in_pages, may_be_copied,
};
use super::graphs::Graphs;
use super::key::Key;
use super::recorder::{RecordedGraph, RecordedSegment, of_graph};
use super::{Reference, ReferenceKind, StoredCall};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::memory::placement::REACH;
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, heap};
use std::collections::HashMap;

/// What ends a section of frames.
const TERMINATOR: [u8; 4] = [0; 4];

/// A segment of an image while it is filled.
struct Filling {
    protection: Protection,
    alignment: Alignment,
    content: Vec<u8>,
    /// Zero bytes behind the content.
    zero_fill: u64,
}

impl Filling {
    fn new(protection: Protection) -> Filling {
        Filling {
            protection,
            alignment: Alignment::ONE,
            content: Vec::new(),
            zero_fill: 0,
        }
    }

    /// Adds a recorded segment and gives its offset.
    fn add(&mut self, recorded: &RecordedSegment) -> Result<u32> {
        let full = || {
            let what = format!(
                "segments of protection {:?} have more bytes than a window",
                self.protection
            );
            Error::new(Status::WindowFull, what).remedy("store fewer graphs in one image")
        };
        let alignment = recorded.segment.alignment;
        let filled = self.content.len() as u64 + self.zero_fill;
        let start = alignment.round_up(filled).ok_or_else(full)?;
        let end = start.checked_add(recorded.range.size());
        let end = end.filter(|end| *end <= REACH).ok_or_else(full)?;
        self.alignment = self.alignment.max(alignment);
        if recorded.content.is_empty() {
            self.zero_fill = end - self.content.len() as u64;
            return Ok(start as u32);
        }
        let more = start as usize + recorded.content.len() - self.content.len();
        let room = self.content.try_reserve(more);
        room.map_err(|_| heap::exhausted("store an image"))?;
        self.content.resize(filled as usize, 0);
        self.fill_gap((start - filled) as usize);
        self.content.extend(&recorded.content);
        self.zero_fill = recorded.segment.zero_fill_size;
        Ok(start as u32)
    }

    /// Adds bytes that are never run or read.
    fn fill_gap(&mut self, size: usize) {
        let executable = self.protection.executable();
        let gap = if executable { sys::TRAP } else { &[0] };
        let pattern = gap.iter().cycle().skip(self.content.len() % gap.len());
        self.content.extend(pattern.take(size));
    }

    /// Unwinders read a section of frames up to a length of 0.
    fn terminate_frames(&mut self) -> Result<()> {
        let room = self.content.try_reserve(TERMINATOR.len());
        room.map_err(|_| heap::exhausted("store an image"))?;
        self.content.extend(TERMINATOR);
        Ok(())
    }

    fn finish(&mut self) -> Result<ImageSegment> {
        if in_pages(self.protection, self.content.len() as u64) {
            self.fill_pages()?;
        }
        Ok(ImageSegment {
            protection: self.protection,
            alignment: self.alignment,
            // Both are at most a window's.
            content: self.content.len() as u32,
            zero_fill: self.zero_fill as u32,
            checksum: crc32fast::hash(&self.content),
        })
    }

    /// Lets the content be whole pages, of which there is no other.
    fn fill_pages(&mut self) -> Result<()> {
        self.alignment = self.alignment.max(FILE_PAGE);
        let size = self.content.len() as u64;
        let more = FILE_PAGE.round_up(size).expect("windows are smaller") - size;
        let room = self.content.try_reserve(more as usize);
        room.map_err(|_| heap::exhausted("store an image"))?;
        match self.zero_fill {
            0 => self.fill_gap(more as usize),
            _ => self.content.resize((size + more) as usize, 0),
        }
        self.zero_fill = self.zero_fill.saturating_sub(more);
        Ok(())
    }
}

/// Where a recorded segment has come to be.
struct Moved {
    from: AddressRange,
    content: u64,
    graph: usize,
    to: Place,
}

/// An address where the code was linked, and where in the image that is.
struct Found<'a> {
    moved: &'a Moved,
    place: Place,
}

impl Found<'_> {
    /// The address of the image's segment if all of it had been where this part was.
    fn segment_start(&self) -> u64 {
        self.moved
            .from
            .start()
            .wrapping_sub(self.moved.to.offset.into())
    }

    /// Its segment, and how far behind the start of that `address` is.
    fn target(&self, address: u64) -> (Target, i64) {
        let beyond = address.wrapping_sub(self.segment_start());
        (Target::Segment(self.place.segment), beyond as i64)
    }
}

/// What a slot says where it is.
#[derive(Clone, Copy)]
enum Target {
    /// The start of a segment.
    Segment(u32),
    /// What is outside of the image.
    Symbol(u32),
}

struct Layout {
    segments: Vec<Filling>,
    /// By address.
    moved: Vec<Moved>,
}

fn protection(segment: &RecordedSegment) -> Protection {
    segment.segment.group.protection
}

/// Segments without zero-fill come first, and those that are nothing else last: what is between two
/// contents must be in the file.
fn rank(segment: &RecordedSegment) -> u8 {
    match (segment.segment.zero_fill_size, segment.content.len()) {
        (0, _) => 0,
        (_, 1..) => 1,
        (_, 0) => 2,
    }
}

impl Layout {
    fn new(graphs: &[&RecordedGraph]) -> Result<Layout> {
        let segments = graphs.iter().map(|graph| graph.segments.len()).sum();
        let mut all: Vec<(usize, &RecordedSegment)> = heap::room_for(segments, "store an image")?;
        for (index, graph) in graphs.iter().enumerate() {
            all.extend(graph.segments.iter().map(|segment| (index, segment)));
        }
        let is_frames = |graph: usize, segment: &RecordedSegment| {
            let (start, size) = (segment.range.start(), segment.content.len() as u64);
            let mut frames = graphs[graph].frames.iter();
            frames.any(|section| section.start() == start && section.size() == size)
        };
        // Sections of frames that have a segment of their own come one behind the other, and code of one hint.
        // Else graphs, and the segments of each, which lie in one array, stay in their order.
        all.sort_unstable_by_key(|(graph, segment)| {
            let place = std::ptr::from_ref::<RecordedSegment>(segment);
            (
                protection(segment).bits(),
                rank(segment),
                !is_frames(*graph, segment),
                match protection(segment).executable() {
                    true => segment.segment.hint.rank(),
                    false => 0,
                },
                *graph,
                place,
            )
        });
        let mut segments: Vec<Filling> = Vec::new();
        let mut moved = heap::room_for(all.len(), "store an image")?;
        for (index, &(graph, recorded)) in all.iter().enumerate() {
            let protection = protection(recorded);
            if segments
                .last()
                .is_none_or(|last| last.protection != protection)
            {
                segments.push(Filling::new(protection));
            }
            let segment = segments.len() - 1;
            let added = segments[segment].add(recorded);
            let offset = added.map_err(|error| of_graph(error, &graphs[graph].name))?;
            let filled = segments[segment].content.len() as u64;
            let follows = |(graph, next): &(usize, &RecordedSegment)| {
                self::protection(next) == protection
                    && is_frames(*graph, next)
                    && next.segment.alignment.round_up(filled) == Some(filled)
            };
            if is_frames(graph, recorded)
                && recorded.segment.zero_fill_size == 0
                && ends_with_record(&recorded.content)
                && !all.get(index + 1).is_some_and(follows)
            {
                segments[segment].terminate_frames()?;
            }
            moved.push(Moved {
                from: recorded.range,
                content: recorded.content.len() as u64,
                graph,
                to: Place {
                    segment: segment as u32,
                    offset,
                },
            });
        }
        moved.sort_unstable_by_key(|one| one.from);
        if let Some(both) = moved
            .windows(2)
            .find(|two| two[0].from.overlaps(two[1].from))
        {
            let [one, other] = [&both[0], &both[1]].map(|moved| &graphs[moved.graph].name);
            return Err(invalid_argument(format!(
                "graphs {one:?} and {other:?} overlap at {:#x}; forget what was deallocated",
                both[1].from.start()
            )));
        }
        Ok(Layout { segments, moved })
    }

    /// Where an address is now.
    fn find(&self, address: u64) -> Option<Found<'_>> {
        let behind = self
            .moved
            .partition_point(|one| one.from.start() <= address);
        let moved = &self.moved[behind.checked_sub(1)?];
        let distance = address - moved.from.start();
        let mut place = moved.to;
        place.offset += u32::try_from(distance)
            .ok()
            .filter(|_| distance < moved.from.size())?;
        Some(Found { moved, place })
    }

    /// Where `size` bytes of a graph's content are now.
    fn find_content(&self, graph: usize, address: u64, size: u64, what: &str) -> Result<Found<'_>> {
        let inside = |found: &Found<'_>| {
            let offset = address - found.moved.from.start();
            let end = offset.checked_add(size);
            found.moved.graph == graph && end.is_some_and(|end| end <= found.moved.content)
        };
        self.find(address).filter(inside).ok_or_else(|| {
            invalid_argument(format!(
                "{what} of {size} bytes at {address:#x} is outside of the graph's content"
            ))
        })
    }

    /// Where the parts of a graph's call are now.
    fn find_call(&self, graph: usize, of: &RecordedGraph, call: StoredCall) -> Result<CallPlaces> {
        let StoredCall { function, args } = call;
        let found = self.find_content(graph, function, 8, "the pointer to an action's function")?;
        let (start, size) = (args.start(), args.size());
        let args = match size {
            0 => found.place,
            size => {
                self.find_content(graph, start, size, "what an action is called with")?
                    .place
            }
        };
        let here = |slot: u64, kind| slot == function && kind == ReferenceKind::Absolute64;
        let mut imports = of.imports.iter();
        let mut references = of.references.iter();
        if !imports.any(|one| here(one.slot, one.kind))
            && !references.any(|one| here(one.slot, one.kind))
        {
            return Err(invalid_argument(format!(
                "the pointer to an action's function at {function:#x} depends on no address; tell what it is by an \
                 import or a reference of 8 bytes"
            )));
        }
        Ok(CallPlaces {
            function: found.place,
            args,
            // It lies in a segment.
            size: size as u32,
        })
    }

    /// The address that a slot at `address` says.
    fn meant(&self, place: Place, address: u64, kind: ReferenceKind) -> u64 {
        let content = &self.segments[place.segment as usize].content;
        kind.meant(address, &content[place.offset as usize..])
    }

    /// Whether a slot says something.
    fn is_filled(&self, place: Place, size: u64) -> bool {
        let content = &self.segments[place.segment as usize].content;
        let slot = &content[place.offset as usize..][..size as usize];
        slot.iter().any(|byte| *byte != 0)
    }

    /// What a slot is filled from, and what is added to it, if it says where something is `beyond` bytes
    /// behind a target.
    fn value(&self, kind: ReferenceKind, target: Target, beyond: i64) -> Result<(SlotValue, i64)> {
        let value = match (kind, target) {
            (ReferenceKind::Absolute64, Target::Segment(segment)) => SlotValue::Absolute64(segment),
            (ReferenceKind::Relative32, Target::Segment(segment)) => SlotValue::Relative32(segment),
            (ReferenceKind::Relative64, Target::Segment(segment)) => SlotValue::Relative64(segment),
            (ReferenceKind::Absolute64, Target::Symbol(symbol)) => SlotValue::Import(symbol),
            (ReferenceKind::Relative32, Target::Symbol(symbol)) => {
                SlotValue::ImportRelative32(symbol)
            }
            (ReferenceKind::Relative64, Target::Symbol(symbol)) => {
                SlotValue::ImportRelative64(symbol)
            }
            (ReferenceKind::Distance64 { origin }, target) => {
                let found = self.find(origin).ok_or_else(|| {
                    invalid_argument(format!(
                        "a distance from {origin:#x}, which is in no recorded graph; record the graph that is \
                         there"
                    ))
                })?;
                let from = found.place.segment;
                let value = match target {
                    Target::Segment(segment) => SlotValue::Distance64 { segment, from },
                    Target::Symbol(symbol) => SlotValue::ImportDistance64 { symbol, from },
                };
                let origin = origin.wrapping_sub(found.segment_start());
                return Ok((value, beyond.wrapping_sub(origin as i64)));
            }
            (ReferenceKind::RelativeFixed64, _) => SlotValue::RelativeFixed64,
        };
        Ok((value, beyond))
    }

    /// Fills in what a slot has in the file.
    fn fill(&mut self, place: Place, size: u64, distance: i64) -> Result<()> {
        if size == 4 && i32::try_from(distance).is_err() {
            let what = format!(
                "a distance of 4 bytes can't be stored: less the slot's own place in the image it is {distance}"
            );
            return Err(invalid_argument(what));
        }
        let start = place.offset as usize;
        let content = &mut self.segments[place.segment as usize].content[start..];
        let size = size as usize;
        content[..size].copy_from_slice(&distance.to_le_bytes()[..size]);
        Ok(())
    }
}

/// Numbers for names, each once, and where each symbol is.
#[derive(Default)]
struct Symbols<'a> {
    numbers: HashMap<&'a str, (u32, Option<u64>)>,
    names: Vec<&'a str>,
}

impl<'a> Symbols<'a> {
    fn make_room(&mut self, count: usize) -> Result<()> {
        let room = self.numbers.try_reserve(count);
        room.map_err(|_| heap::exhausted("store an image"))?;
        self.names = heap::room_for(count, "store an image")?;
        Ok(())
    }

    /// The number of a symbol outside, and where that is, if its slot is filled: a later process has one address
    /// for a name.
    fn number(&mut self, name: &'a str, address: Option<u64>) -> Result<u32> {
        let names = &mut self.names;
        let (number, before) = self.numbers.entry(name).or_insert_with(|| {
            names.push(name);
            (names.len() as u32 - 1, address)
        });
        match (*before, address) {
            (Some(before), Some(address)) if before != address => Err(invalid_argument(format!(
                "symbol {name:?} is at {address:#x} here and at {before:#x} for a graph before, and has one address in \
                 a later process; store them apart, or what they refer to as well"
            ))),
            _ => {
                *before = before.or(address);
                Ok(*number)
            }
        }
    }
}

/// Lays an image out: its tables, and the content of each of its segments.
pub(super) fn plan<'a>(recorded: &'a Graphs, key: &'a Key) -> Result<(Tables<'a>, Vec<Vec<u8>>)> {
    let graphs = recorded.in_order()?;
    let refer_to_forgotten = recorded.refer_to_forgotten(&graphs)?;
    let mut layout = Layout::new(&graphs)?;
    let mut symbols = Symbols::default();
    let count = |of: fn(&RecordedGraph) -> usize| graphs.iter().copied().map(of).sum();
    let what = "store an image";
    symbols.make_room(count(|graph| graph.imports.len()))?;
    let slots_most = count(|graph| graph.imports.len() + graph.references.len());
    let mut slots = heap::room_for(slots_most, what)?;
    let mut exports = heap::room_for(count(|graph| graph.exports.len()), what)?;
    let mut frames = heap::room_for(count(|graph| graph.frames.len()), what)?;
    let mut actions = heap::room_for(count(|graph| graph.actions.len()), what)?;
    for (index, (&graph, gone)) in graphs.iter().zip(refer_to_forgotten).enumerate() {
        if let Some(gone) = gone {
            let what = format!("it refers to graph {gone:?}, which was forgotten; forget it too");
            return Err(of_graph(invalid_argument(what), &graph.name));
        }
        let mut graph_slots = || -> Result<()> {
            let mut note = |place, (value, addend), address| {
                let slot = Slot { place, value };
                slots.push(FoundSlot {
                    slot,
                    addend,
                    address,
                });
            };
            for import in &graph.imports {
                let (slot, kind) = (import.slot, import.kind);
                let place = layout
                    .find_content(index, slot, kind.size(), "an import")?
                    .place;
                if kind == ReferenceKind::RelativeFixed64 {
                    let symbol = &import.symbol;
                    return Err(invalid_argument(format!(
                        "import {symbol:?} at {slot:#x} is said to be at a fixed address; tell that as a reference"
                    )));
                }
                let says = layout.meant(place, slot, kind);
                let symbol = says.wrapping_add_signed(import.addend.wrapping_neg());
                let filled = layout.is_filled(place, kind.size());
                // What another graph of the image defines is no import of the image. A distance of 0 may say that nothing
                // was filled in.
                let found = layout.find(symbol);
                let found = found.filter(|found| filled || found.moved.graph != index);
                let (target, beyond) = match found {
                    Some(found) => found.target(says),
                    None => {
                        let number = symbols.number(&import.symbol, filled.then_some(symbol))?;
                        (Target::Symbol(number), import.addend)
                    }
                };
                note(place, layout.value(kind, target, beyond)?, slot);
            }
            for reference in &graph.references {
                let Reference { slot, target, kind } = *reference;
                let place = layout
                    .find_content(index, slot, kind.size(), "a reference")?
                    .place;
                let says = layout.meant(place, slot, kind);
                let value = if kind == ReferenceKind::RelativeFixed64 {
                    (SlotValue::RelativeFixed64, says as i64)
                } else {
                    let found = layout.find(target).ok_or_else(|| {
                        invalid_argument(format!(
                            "a reference at {slot:#x} to {target:#x}, which is in no recorded graph; record the \
                             graph that is there, or tell it as an import"
                        ))
                    })?;
                    let (target, beyond) = found.target(says);
                    layout.value(kind, target, beyond)?
                };
                note(place, value, slot);
            }
            for export in &graph.exports {
                let found = layout.find(export.address);
                let found = found
                    .filter(|found| found.moved.graph == index)
                    .ok_or_else(|| {
                        invalid_argument(format!(
                            "symbol {:?} at {:#x} is outside of the graph's segments",
                            export.symbol, export.address
                        ))
                    })?;
                exports.push(ExportedSymbol {
                    symbol: &export.symbol,
                    place: found.place,
                    flags: export.flags,
                });
            }
            for section in &graph.frames {
                let (start, size) = (section.start(), section.size());
                if size > 0 {
                    let found = layout.find_content(index, start, size, "a section of frames")?;
                    let place = found.place;
                    frames.push(FrameSection {
                        place,
                        size: size as u32,
                    });
                }
            }
            for action in &graph.actions {
                let find = |call| layout.find_call(index, graph, call);
                actions.push(ActionPlaces {
                    finalize: action.finalize.map(find).transpose()?,
                    dealloc: action.dealloc.map(find).transpose()?,
                });
            }
            Ok(())
        };
        graph_slots().map_err(|error| of_graph(error, &graph.name))?;
    }
    let frames = join_frames(&layout, frames)?;
    let slots = evaluate(&mut layout, slots)?;
    let mut segments = heap::room_for(layout.segments.len(), "store an image")?;
    for segment in &mut layout.segments {
        segments.push(segment.finish()?);
    }
    if segments.iter().map(ImageSegment::size).sum::<u64>() > REACH {
        let error = Error::new(
            Status::WindowFull,
            "all segments have more bytes than a window",
        );
        return Err(error.remedy("store fewer graphs in one image"));
    }
    let content = segments.iter().map(|segment| u64::from(segment.content));
    if !may_be_copied(&actions, content.sum()) {
        let error = invalid_argument("actions are called with many times what the graphs have");
        return Err(error.remedy("let fewer of them share large arguments"));
    }
    let contents = layout.segments.into_iter().map(|segment| segment.content);
    let contents = contents.collect();
    let tables = Tables {
        key,
        segments,
        symbols: symbols.names,
        slots,
        exports,
        frames,
        actions,
    };
    Ok((tables, contents))
}

/// Sections that follow each other become one, to be registered at once.
fn join_frames(layout: &Layout, mut sections: Vec<FrameSection>) -> Result<Vec<FrameSection>> {
    sections.sort_unstable_by_key(|section| section.place);
    let mut joined: Vec<FrameSection> = heap::room_for(sections.len(), "store an image")?;
    // Whether the last one ends with a record and not with a terminator.
    let mut open = false;
    for section in sections {
        let Place { segment, offset } = section.place;
        let content = &layout.segments[segment as usize].content;
        let bytes = &content[offset as usize..][..section.size as usize];
        match joined.last_mut() {
            Some(last)
                if open
                    && last.place.segment == segment
                    && last.place.offset + last.size == offset =>
            {
                last.size += section.size;
            }
            _ => joined.push(section),
        }
        open = ends_with_record(bytes);
    }
    // So a reader of the section need not look behind it.
    for section in &mut joined {
        let content = &layout.segments[section.place.segment as usize].content;
        let (section_bytes, behind) =
            content[section.place.offset as usize..].split_at(section.size as usize);
        if behind.starts_with(&TERMINATOR) && ends_with_record(section_bytes) {
            section.size += TERMINATOR.len() as u32;
        }
    }
    Ok(joined)
}

/// Whether a section has whole records of frames and no terminator, so that others may follow.
fn ends_with_record(mut section: &[u8]) -> bool {
    while let Some((length, rest)) = section.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length);
        // The longest mean that a length of 8 bytes follows, which no linker writes.
        let whole = matches!(length, 1..0xffff_fff0);
        let Some((_, next)) = rest.split_at_checked(length as usize).filter(|_| whole) else {
            return false;
        };
        section = next;
    }
    section.is_empty()
}

/// A slot, what is added besides to what it says, and where it was when it was recorded.
struct FoundSlot {
    slot: Slot,
    addend: i64,
    address: u64,
}

/// Takes out of slots what depends on where something is. Leaves those out that say the same wherever the image lies:
/// distances inside of one segment.
fn evaluate(layout: &mut Layout, mut found: Vec<FoundSlot>) -> Result<Vec<Slot>> {
    found.sort_unstable_by_key(|one| one.slot.place);
    let mut slots = heap::room_for(found.len(), "store an image")?;
    let mut free = Place {
        segment: 0,
        offset: 0,
    };
    for one in found {
        let Slot { place, value } = one.slot;
        if place < free {
            let address = one.address;
            return Err(invalid_argument(format!(
                "two slots overlap at {address:#x}"
            )));
        }
        free = place;
        free.offset += value.size() as u32;
        let stored = match value.is_from_slot() {
            true => one.addend.wrapping_sub(place.offset.into()),
            false => one.addend,
        };
        layout.fill(place, value.size(), stored)?;
        let is_constant = match value {
            SlotValue::Relative32(segment) | SlotValue::Relative64(segment) => {
                segment == place.segment
            }
            SlotValue::Distance64 { segment, from } => segment == from,
            _ => false,
        };
        if !is_constant {
            slots.push(one.slot);
        }
    }
    slots.sort_unstable_by_key(|slot| (slot.group(), slot.place));
    Ok(slots)
}
