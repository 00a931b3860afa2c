// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A reservation for each allocation, from allocate until it goes as a whole, segments of finalize
//! lifetime included: for mappers whose addresses can't be used again.
//!
//! Handles, records and phases are those of windows. In place of taking pieces, the manager asks for a
//! reservation outside the lock, and checks where it lies before it hands it out.

use super::core::nothing_waits;
use super::lookup::ManagerReader;
use super::places::{Places, ReservationsReader};
use super::records::{Buffers, InFlightState, Key, Phase, Records};
use super::request::{PlannedSegment, Request};
use super::space::{Ending, Keys, Memory, Space, heap_is_full};
use super::stats::Sums;
use super::{Allocated, GrowthPolicy, LayoutItem, LayoutKind, Options, SegmentMemory};
use crate::error::{Error, Result, Status};
use crate::group::{AllocGroup, CodeHint};
use crate::mapper::{ReservingMapper, SegmentContent, SegmentContents};
use crate::memory::buffer::{Buffer, BufferPool};
use crate::memory::placement::{BRANCH_REACH, Placement, REACH};
use crate::memory::slab::Slab;
use crate::memory::writer::Writer;
use crate::page::{AddressRange, Alignment};
use crate::sys::heap;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the reservations may lie, and how much they are.
pub(super) struct Reservations {
    page: Alignment,
    /// What everything must be in reach of, besides itself.
    near: Option<(u64, u64)>,
    /// How far from each other the edges of what belongs together may be.
    reach: u64,
    /// Only what belongs to one JITDylib must be in reach of itself.
    apart: bool,
    /// First and end addresses of what is live, by JITDylib, each with how many it is one of.
    edges: BTreeMap<(u64, u64), u32>,
    /// Bytes of all reservations, those under way included.
    reserved: u64,
    /// Those of allocations, whose records hold their numbers.
    own: Slab<OwnReservation>,
    places: Places,
}

/// The reservation of an allocation.
pub(super) struct OwnReservation {
    range: AddressRange,
    segments: SmallVec<[PlacedSegment; 4]>,
    /// Bytes asked for.
    requested: u64,
    /// What it must be in reach of: the JITDylib that it belongs to, 0 if all of the manager.
    belongs: Option<u64>,
    /// Grows with each finalize; 0 before.
    order: u64,
    /// Its JITDylib.
    dylib: u64,
    /// By segment, where look-ups find it.
    places: SmallVec<[u32; 4]>,
}

/// One that holds nothing.
impl Default for OwnReservation {
    fn default() -> Self {
        OwnReservation {
            range: AddressRange::EMPTY,
            segments: SmallVec::new(),
            requested: 0,
            belongs: None,
            order: 0,
            dylib: 0,
            places: SmallVec::new(),
        }
    }
}

/// A segment and its place.
#[derive(Clone, Copy)]
struct PlacedSegment {
    range: AddressRange,
    planned: PlannedSegment,
}

impl PlacedSegment {
    /// The bytes that were asked for.
    fn requested(&self) -> AddressRange {
        let requested = self.range.part(0, self.planned.size.into());
        requested.unwrap_or(self.range)
    }
}

/// What is made for a request before its memory is reserved.
pub(super) struct Draft {
    /// The segments with the smallest alignment first.
    request: Request,
    buffers: Vec<Buffer>,
    pub(super) size: u64,
}

impl Draft {
    pub(super) fn new(mut request: Request, page: Alignment) -> Draft {
        // So that something lies at the start of the reservation wherever that is possible.
        request.planned.sort_by_key(|planned| planned.alignment);
        // At worst the reservation starts a page behind an aligned address.
        let slack = |planned: &PlannedSegment| alignment(planned, page).bytes() - page.bytes();
        let planned = request.planned.iter();
        let size: u64 = planned
            .map(|planned| pages(planned, page) + slack(planned))
            .sum();
        Draft {
            request,
            buffers: Vec::new(),
            // A reservation without segments carries actions.
            size: size.max(page.bytes()),
        }
    }

    pub(super) fn make_buffers(&mut self, pool: &Arc<BufferPool>) -> Result<()> {
        for planned in &self.request.planned {
            let buffer = pool.get(planned.content as usize, planned.alignment as usize);
            let buffer = buffer.map_err(|error| error.context("allocate"))?;
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// Where the segments lie in a reservation that starts at `next`.
    fn place(&self, mut next: u64, page: Alignment) -> Option<SmallVec<[PlacedSegment; 4]>> {
        let mut segments = SmallVec::new();
        for planned in &self.request.planned {
            let start = alignment(planned, page).round_up(next)?;
            let range = AddressRange::new(start, pages(planned, page))?;
            next = range.end();
            let planned = *planned;
            segments.push(PlacedSegment { range, planned });
        }
        Some(segments)
    }
}

fn alignment(planned: &PlannedSegment, page: Alignment) -> Alignment {
    let wanted = Alignment::new(planned.alignment.into()).expect("requests are checked");
    wanted.max(page)
}

/// Bytes of the pages that a segment takes; no two segments have the same address.
fn pages(planned: &PlannedSegment, page: Alignment) -> u64 {
    let size = u64::from(planned.size.max(1));
    page.round_up(size).expect("sizes fit 32 bits")
}

/// From the lowest to the highest byte.
fn extent(segments: &[PlacedSegment]) -> Option<AddressRange> {
    let (first, last) = (segments.first()?.range, segments.last()?.range);
    AddressRange::new(first.start(), last.end() - first.start())
}

impl Reservations {
    /// Fails if the host wants what a mapper can't do that divides no window.
    pub(super) fn new(page: Alignment, options: &Options) -> Result<Reservations> {
        if options.defer_reclamation {
            return Err(nothing_waits());
        }
        let near = match options.placement {
            Placement::Default | Placement::Near(_) | Placement::NearAll { .. } => {
                options.placement.near()
            }
            Placement::Fixed(address) => {
                return Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "a window at {address:#x}: with this mapper the executor chooses where \
                         each allocation lies; load libjitmem.so into the executor, or link \
                         jitmem's service"
                    ),
                ));
            }
        };
        Ok(Reservations {
            page,
            near,
            reach: match options.window_size {
                ..=BRANCH_REACH => options.window_size,
                _ => REACH,
            },
            apart: options.growth == GrowthPolicy::AnotherWindow,
            edges: BTreeMap::new(),
            reserved: 0,
            own: Slab::new(),
            places: Places::default(),
        })
    }

    /// See [`OwnReservation::belongs`].
    fn belongs(&self, dylib: u64) -> Option<u64> {
        match (self.apart, dylib) {
            (false, _) => Some(0),
            (true, 0) => None,
            (true, dylib) => Some(dylib),
        }
    }

    /// The lowest and the highest address of what belongs together.
    fn bounds(&self, belongs: u64) -> [Option<u64>; 2] {
        let mut edges = self.edges.range((belongs, 0)..=(belongs, u64::MAX));
        let lowest = edges.next().map(|((_, address), _)| *address);
        let highest = edges.next_back().map(|((_, address), _)| *address);
        [lowest, highest.or(lowest)]
    }

    /// Fails if something is too far away from a new allocation.
    fn check_reach(&self, new: AddressRange, belongs: Option<u64>) -> Result<()> {
        let [lowest, highest] = belongs.map_or([None; 2], |belongs| self.bounds(belongs));
        let wanted = "which it was wanted near";
        let edges = [
            (self.near.map(|near| near.0), wanted, REACH),
            (self.near.map(|near| near.1), wanted, REACH),
            (lowest, "the lowest address in use", self.reach),
            (highest, "the end of what is in use", self.reach),
        ];
        let mut edges = edges
            .into_iter()
            .filter_map(|(edge, what, reach)| Some((edge?, what, reach)));
        let far = edges.find(|(edge, _, reach)| {
            let (low, high) = (new.start().min(*edge), new.end().max(*edge));
            high - low > *reach
        });
        let Some((far, what, reach)) = far else {
            return Ok(());
        };
        let of = match belongs {
            Some(dylib) if dylib != 0 => format!(" of JITDylib {dylib:#x}"),
            _ => String::new(),
        };
        Err(Error::new(
            Status::WindowFull,
            format!(
                "allocate {} bytes{of}: the executor's memory manager put them at {new:?}, out of \
                 reach of {} from {far:#x}, {what}",
                new.size(),
                match reach {
                    REACH => "32-bit references".to_owned(),
                    window => format!("a window of {window} bytes"),
                }
            ),
        )
        .remedy(
            "load libjitmem.so into the executor or link jitmem's service, which keeps everything \
             in one window, or deallocate something",
        ))
    }

    fn note_edges(&mut self, belongs: u64, live: AddressRange) {
        for edge in [live.start(), live.end()] {
            *self.edges.entry((belongs, edge)).or_insert(0) += 1;
        }
    }

    fn forget_edges(&mut self, belongs: u64, gone: AddressRange) {
        for edge in [gone.start(), gone.end()] {
            if let Some(count) = self.edges.get_mut(&(belongs, edge)) {
                *count -= 1;
                if *count == 0 {
                    self.edges.remove(&(belongs, edge));
                }
            }
        }
    }

    /// Takes a reservation's place into account.
    fn note(&mut self, own: &OwnReservation) {
        if let (Some(belongs), Some(extent)) = (own.belongs, extent(&own.segments)) {
            self.note_edges(belongs, extent);
        }
    }

    fn unnote(&mut self, own: &OwnReservation) {
        if let (Some(belongs), Some(extent)) = (own.belongs, extent(&own.segments)) {
            self.forget_edges(belongs, extent);
        }
    }
}

impl OwnReservation {
    /// Where a request's segments lie in its reservation.
    fn new(
        draft: &Draft,
        range: AddressRange,
        page: Alignment,
        belongs: Option<u64>,
    ) -> Result<OwnReservation> {
        let segments = draft.place(range.start(), page);
        let segments = segments
            .filter(|segments| extent(segments).is_none_or(|extent| range.contains(extent)))
            .ok_or_else(|| {
                let message = format!("{range:?} was reserved for {} bytes", draft.size);
                Error::new(Status::MapperFailed, message)
            })?;
        let requested = segments.iter().map(|placed| u64::from(placed.planned.size));
        Ok(OwnReservation {
            range,
            requested: requested.sum(),
            segments,
            belongs,
            order: 0,
            dylib: draft.request.dylib,
            places: SmallVec::new(),
        })
    }

    /// What the host learns, whose segments may be in another order.
    fn memory(&self, draft: &Draft) -> SmallVec<[SegmentMemory; 4]> {
        let mut memory = SmallVec::from_elem(SegmentMemory::NONE, draft.request.segments);
        for (placed, buffer) in self.segments.iter().zip(&draft.buffers) {
            memory[placed.planned.index as usize] = SegmentMemory {
                address: placed.range.start(),
                working_memory: buffer.pointer(),
            };
        }
        memory
    }

    fn content(&self, buffers: Buffers) -> SegmentContents {
        let content = self.segments.iter().zip(buffers);
        let content = content.map(|(placed, buffer)| SegmentContent {
            range: placed.range,
            group: placed.planned.group(),
            content: Some(buffer),
            zeroed: true,
        });
        content.collect()
    }
}

impl Memory for Reservations {
    type Mapper = dyn ReservingMapper;
    type Teardown = ();

    #[allow(unsafe_code)]
    unsafe fn content(
        &self,
        holding: u32,
        state: &InFlightState,
        segment: usize,
    ) -> Option<Writer> {
        let mut placed = self.own.get(holding).segments.iter();
        let position = placed.position(|placed| placed.planned.index as usize == segment)?;
        // SAFETY: its record has the buffer as long as it is in flight.
        Some(unsafe { state.buffers.get(position)?.writer() })
    }

    fn forget(&mut self, _: u32) {}

    type Unlocked = ReservationsReader;

    fn unlocked(&self) -> ReservationsReader {
        self.places.reader()
    }

    fn read_by(&mut self, _: &Arc<ManagerReader>) {}

    fn dylib(&self, _: u32, holding: u32) -> u64 {
        self.own.get(holding).dylib
    }

    fn segments(&self, holding: u32, visit: &mut dyn FnMut(AddressRange, AllocGroup)) {
        for placed in &self.own.get(holding).segments {
            visit(placed.requested(), placed.planned.group());
        }
    }

    fn bytes_of_records(&self) -> u64 {
        self.own.bytes() + self.places.bytes()
    }

    fn sums(&self) -> Sums {
        let mut sums = Sums::NONE;
        sums.reserved = self.reserved;
        sums.committed = self.reserved;
        sums.chunk_bytes = self.reserved;
        for own in self.own.iter() {
            sums.windows += 1;
            sums.chunks += own.segments.len() as u64;
            // Each segment, and what is left between or before them.
            sums.mappings += 2 * own.segments.len() as u64 + 1;
        }
        let mut first = None;
        for (belongs, address) in self.edges.keys().copied() {
            let start = match first {
                Some((same, start)) if same == belongs => start,
                _ => address,
            };
            first = Some((belongs, start));
            sums.span = sums.span.max(address - start);
        }
        sums
    }

    fn visit(&self, _: &Records<()>, visit: &mut dyn FnMut(LayoutItem)) {
        for own in self.own.iter() {
            visit(LayoutItem {
                kind: LayoutKind::Window,
                range: own.range,
                group: None,
                hint: CodeHint::Normal,
                allocation: None,
            });
            for placed in &own.segments {
                for kind in [LayoutKind::Chunk, LayoutKind::Range] {
                    visit(LayoutItem {
                        kind,
                        range: placed.range,
                        group: Some(placed.planned.group()),
                        hint: CodeHint::Normal,
                        allocation: None,
                    });
                }
            }
        }
    }

    /// All reservations go at once; those that nothing was finalized in first, which is last on the
    /// executor's side.
    fn end(
        space: &mut Space<Self>,
        _others: Vec<Space<Self>>,
        mapper: Arc<dyn ReservingMapper>,
    ) -> Ending {
        let left = space.memory.own.iter().map(|own| (own.order, own.range));
        let mut left: Vec<(u64, AddressRange)> = left.collect();
        left.sort_by_key(|(order, _)| *order);
        let ranges: Vec<AddressRange> = left.into_iter().map(|(_, range)| range).collect();
        Box::new(move |done| match ranges.is_empty() {
            true => done.complete(Ok(())),
            false => mapper.release(ranges, done),
        })
    }
}

impl Space<Reservations> {
    /// Counts a reservation that is about to be made.
    pub(super) fn set_aside(&mut self, size: u64) -> Result<()> {
        self.usage.check_quota(size, 0)?;
        self.usage.taken += size;
        self.memory.reserved += size;
        Ok(())
    }

    /// A reservation that was set aside is not there, or is there no more.
    pub(super) fn not_aside(&mut self, size: u64) {
        self.usage.taken -= size;
        self.memory.reserved -= size;
    }

    /// Makes an allocation of a reservation that was set aside.
    pub(super) fn hand_out(&mut self, draft: &mut Draft, range: AddressRange) -> Result<Allocated> {
        let memory = &mut self.memory;
        let belongs = memory.belongs(draft.request.dylib);
        let own = OwnReservation::new(draft, range, memory.page, belongs)?;
        if let Some(extent) = extent(&own.segments) {
            memory.check_reach(extent, belongs)?;
        }
        self.records.make_spare(self.usage.in_flight)?;
        if !memory.own.make_spare(1) {
            return Err(heap_is_full());
        }
        let label = draft.request.label.as_ref();
        let tag = label.map_or(0, |label| label.tag_number());
        self.records.make_room_for_tag(tag)?;
        memory.places.make_spare(own.segments.len())?;
        memory.note(&own);
        let segments = own.memory(draft);
        let requested = own.requested;
        let holding = memory.own.insert(own);
        let buffers = std::mem::take(&mut draft.buffers).into();
        let set = |state: &mut InFlightState| state.buffers = buffers;
        let (key, handle) = self.admit(holding, 0, false, requested, set);
        self.records.set_tag(key, tag);
        let own = self.memory.own.get_mut(holding);
        let segments_of = own.segments.iter();
        let places = segments_of.map(|placed| {
            let (range, group) = (placed.requested(), placed.planned.group());
            self.memory
                .places
                .add(range, group, key.number(), own.dylib)
        });
        own.places = places.collect();
        Ok(Allocated { handle, segments })
    }

    /// Marks an allocation as being finalized and gives what the mapper needs of it.
    pub(super) fn take_content(
        &mut self,
        handle: u64,
    ) -> Result<(Key, AddressRange, SegmentContents)> {
        let key = self.records.find_in_flight(handle)?;
        let state = self.records.end_writing(key, Phase::Finalizing);
        let own = self.memory.own.get(self.records.record(key).holding);
        Ok((key, own.range, own.content(state.buffers)))
    }

    /// The mapper has answered: marks an allocation as finalized or, where it failed and the reservation
    /// is gone, forgets it.
    pub(super) fn finalized(&mut self, key: Key, answer: Result<()>) -> Result<()> {
        match answer {
            Ok(()) => {
                self.set_finalized(key, None);
                let number = self.records.record(key).holding;
                self.memory.own.get_mut(number).order = self.usage.counters.finalize;
                Ok(())
            }
            Err(error) => {
                self.take_reservation(key);
                self.forget(key);
                Err(error)
            }
        }
    }

    /// Marks an allocation as abandoned and takes its reservation out.
    pub(super) fn abandon(&mut self, handle: u64) -> Result<(Key, AddressRange, Buffers)> {
        let key = self.records.find_in_flight(handle)?;
        let state = self.records.end_writing(key, Phase::Abandoned);
        self.usage.counters.abandon += 1;
        Ok((key, self.take_reservation(key), state.buffers))
    }

    /// Takes the reservations of a whole batch out, or none if any handle is wrong.
    pub(super) fn deallocate(&mut self, handles: &[u64]) -> Result<(Keys, Vec<AddressRange>)> {
        let mut keys = Keys::new();
        let mut ranges = heap::room_for(handles.len(), "deallocate")?;
        self.start_deallocating(handles, &mut keys, |_| true)?;
        ranges.extend(keys.iter().map(|key| self.take_reservation(*key)));
        Ok((keys, ranges))
    }

    /// Takes the reservation of an allocation that goes out of its record. Before the executor is told,
    /// which may use the addresses again before its answer is here.
    fn take_reservation(&mut self, key: Key) -> AddressRange {
        let own = self.memory.own.remove(self.records.record(key).holding);
        self.memory.unnote(&own);
        own.places
            .iter()
            .for_each(|place| self.memory.places.remove(*place));
        self.usage.live -= own.requested;
        self.not_aside(own.range.size());
        own.range
    }
}
