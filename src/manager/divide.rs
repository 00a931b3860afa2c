// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Dividing windows among allocations: pieces are taken, and given back.

use super::allocate::{Tried, Waiting};
use super::lookup::ManagerReader;
use super::parts::{End, PART};
use super::piece::{Piece, Pieces, Place, RequestLayout};
use super::pool::Keep;
use super::pool::number::{self, POOLS};
use super::records::{InFlightState, Key, Phase, Records};
use super::request::Request;
use super::space::{Ending, Keys, Memory, Space};
use super::stats::Sums;
use super::window::Search;
use super::windows::{Detached, Growth, MOST_WINDOWS, Windows};
use super::write_scope::{OpenSegment, OpenSegments};
use super::{ForkPolicy, LayoutItem, LayoutKind, Options, SegmentMemory};
use crate::error::{Error, Result};
use crate::group::AllocGroup;
use crate::mapper::{Deinitialization, MemoryMapper, SegmentContent, SegmentContents, Teardown};
use crate::memory::paged::Table;
use crate::memory::ranges::RangeId;
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::sys::Forked;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How far to go for a request.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// A JITDylib may begin where there is little room for more of it.
    pub(super) last_resort: bool,
    /// Empty chunks may be given up for it.
    pub(super) reclaim: bool,
    /// Where code is looked for first.
    pub(super) search: Search,
}

impl Effort {
    /// What is left to do for a request.
    pub(super) fn after(tried: Tried) -> Effort {
        Effort {
            last_resort: tried.last_resort,
            reclaim: !tried.reclaimed,
            // What was reclaimed may be a chunk for a hint, without which the rest of the request has room.
            search: match tried.reclaimed || tried.in_any_code {
                true => Search::AnyCode,
                false => Search::OwnChunks,
            },
        }
    }
}

/// What came of trying to allocate.
pub(super) enum Attempt {
    Done(Key),
    /// This run needs the mapper's `prepare`.
    Grow(Growth),
    /// These chunks are empty; with their pages it may fit.
    Reclaim(Vec<Detached>),
    /// It may fit once what others are doing is done.
    Wait,
    /// It fits no window; another one may be reserved.
    Full(Error),
    /// It fits no window and another one does not help.
    Refused(Error),
}

/// Pieces that are about to be free, still taken.
#[derive(Default)]
pub(super) struct Freed {
    pub(super) pieces: Pieces,
    /// Shared code, which is made to trap before it is free.
    pub(super) traps: SmallVec<[(Writer, AddressRange); 1]>,
    /// Bytes of them.
    pub(super) code: u64,
    /// Their content may never have been written.
    pub(super) unwritten: bool,
    /// Segments that are copied or in place, which are the mapper's to change.
    pub(super) copied: SmallVec<[(AddressRange, AllocGroup); 4]>,
}

impl Freed {
    /// Makes room for so many pieces and what is to be done before they are free; `false` if the heap
    /// has none.
    pub(super) fn try_reserve(&mut self, pieces: usize) -> bool {
        self.pieces.try_reserve(pieces).is_ok()
            && self.traps.try_reserve(pieces).is_ok()
            && self.copied.try_reserve(pieces).is_ok()
    }

    /// Adds pieces, and what is to be done before they are free.
    pub(super) fn add(&mut self, pieces: Pieces, windows: &Windows) {
        self.pieces.reserve(pieces.len());
        for piece in pieces {
            self.push(piece, windows);
        }
    }

    #[inline]
    pub(super) fn push(&mut self, piece: Piece, windows: &Windows) {
        self.pieces.push(piece);
        if piece.needs_care() {
            self.take_care(&piece, windows);
        }
    }

    /// Notes what is to be done before a piece is free.
    fn take_care(&mut self, piece: &Piece, windows: &Windows) {
        let Place {
            range,
            group,
            writer,
            frozen,
        } = windows.place(piece);
        match writer {
            _ if frozen => (),
            Some(writer) if !piece.copied => {
                self.code += range.size();
                self.traps.push((writer, range));
            }
            _ => self.copied.push((range, group)),
        }
    }
}

/// Allocations that are being deallocated together.
#[derive(Default)]
pub(super) struct Deallocated {
    pub(super) keys: Keys,
    pub(super) freed: Freed,
    /// What the mapper has to do before.
    pub(super) deinitialize: Vec<Deinitialization>,
    /// Their pieces wait until the host has them reclaimed; what [`Space::expect_deferred`] counted.
    pub(super) deferred: Option<usize>,
}

impl Memory for Windows {
    type Mapper = dyn MemoryMapper;
    type Teardown = Teardown;

    #[allow(unsafe_code)]
    unsafe fn content(
        &self,
        holding: u32,
        state: &InFlightState,
        segment: usize,
    ) -> Option<Writer> {
        let mut segments = state.segments.iter();
        let position = segments.position(|state| state.segment as usize == segment)?;
        let pieces = self.pieces(holding);
        if let Some(writer) = self.place(&pieces[position]).writer {
            return Some(writer.part_of(0, state.segments[position].content));
        }
        let copied = pieces[..position].iter().filter(|piece| piece.copied);
        // SAFETY: its record has the buffer as long as it is in flight.
        Some(unsafe { state.buffers.get(copied.count())?.writer() })
    }

    type Unlocked = ();

    fn read_by(&mut self, manager: &Arc<ManagerReader>) {
        self.read_by(manager);
    }

    fn dylib(&self, number: u32, _holding: u32) -> u64 {
        let id = self.dylibs.ids().get(number as usize);
        id.map_or(0, |id| id.load(Relaxed))
    }

    fn segments(&self, holding: u32, visit: &mut dyn FnMut(AddressRange, AllocGroup)) {
        let first = RangeId::of_number(holding);
        self.nodes.chained(first, |chained| {
            let piece = Piece::new(chained);
            let (range, group) = self.window(piece.window.into()).extent(&piece);
            visit(range, group);
        });
    }

    fn forked(&mut self, forked: Forked) {
        self.forked(forked);
    }

    fn check_in_flight(&self, holding: u32) -> Result<()> {
        self.check_in_flight(holding)
    }

    fn forget(&mut self, dylib: u32) {
        self.leave_home(dylib);
    }

    fn take_waiting(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    fn table(&self) -> Option<Arc<dyn Table>> {
        Some(Arc::clone(&self.nodes) as Arc<dyn Table>)
    }

    fn has_idle(&self) -> bool {
        self.nodes.has_idle()
    }

    fn bytes_of_records(&self) -> u64 {
        self.nodes.resident_bytes() + self.dylibs.bytes()
    }

    fn sums(&self) -> Sums {
        let mut sums = Sums::NONE;
        for window in self.iter() {
            window.add_to(&mut sums);
        }
        debug_assert_eq!(sums.committed, self.committed);
        sums
    }

    fn visit(&self, records: &Records<Teardown>, visit: &mut dyn FnMut(LayoutItem)) {
        self.iter().for_each(|window| window.visit(visit));
        let pieces = records
            .iter()
            .flat_map(|record| self.pieces(record.holding));
        for piece in pieces {
            let Place { range, group, .. } = self.place(&piece);
            visit(LayoutItem {
                kind: LayoutKind::Range,
                range,
                group: Some(group),
                hint: number::hint(piece.pool),
                allocation: None,
            });
        }
    }

    fn take(space: &mut Space<Self>, mapper: &(dyn MemoryMapper + 'static)) -> Option<Space<Self>> {
        // Nothing is allocated there any more, and nothing is left of it in children.
        let options = Options {
            fork: ForkPolicy::Reuse,
            ..Options::default()
        };
        let gone = Space::new(Windows::new(mapper.capabilities(), &options), None, 0);
        Some(std::mem::replace(space, gone))
    }

    fn end(
        space: &mut Space<Self>,
        others: Vec<Space<Self>>,
        mapper: Arc<dyn MemoryMapper>,
    ) -> Ending {
        let mut spaces = others;
        spaces.extend(Self::take(space, &*mapper));
        End::of(spaces, mapper)
    }
}

impl Space<Windows> {
    // ---- allocating ----

    /// Whether a segment that was just handed out may show other memory than its chunk has, and whether it has none yet.
    pub(super) fn may_adopt(&mut self, handle: u64, segment: usize) -> Result<Option<bool>> {
        let (piece, untouched) = self.piece_in_flight(handle, segment)?;
        let may = self
            .memory
            .window_mut(piece.window.into())
            .may_adopt(&piece);
        Ok(may.then_some(untouched))
    }

    /// Notes that it does.
    pub(super) fn adopted(&mut self, handle: u64, segment: usize) -> Result<()> {
        let (piece, _) = self.piece_in_flight(handle, segment)?;
        self.memory.window_mut(piece.window.into()).adopted(&piece);
        Ok(())
    }

    /// A segment of an allocation in flight, and whether it had no memory when it was handed out.
    fn piece_in_flight(&mut self, handle: u64, segment: usize) -> Result<(Piece, bool)> {
        let key = self.records.find_in_flight(handle)?;
        let states = &self.records.in_flight(key).segments;
        let mut states = states.iter().enumerate();
        let found = states.find(|(_, state)| state.segment as usize == segment);
        let found = found.map(|(position, state)| (position, state.untouched));
        let (position, untouched) = found.expect("a segment with content has a piece");
        Ok((self.pieces(key)[position], untouched))
    }

    /// Takes ranges for a request. A JITDylib that has no window yet goes where there is room for
    /// more of it.
    pub(super) fn try_allocate(
        &mut self,
        request: &Request,
        effort: Effort,
        layout: &mut RequestLayout,
    ) -> Attempt {
        if self.usage.quota.is_some() {
            let wanted = self.memory.wanted(request);
            let others = self.memory.common.taken_by_others();
            if let Err(error) = self.usage.check_quota(wanted, others) {
                return Attempt::Refused(error);
            }
        }
        // So that a heap that is full is an error here and not the end of the process later.
        let not_finalized = self.usage.in_flight;
        let spare = self.records.make_spare(not_finalized);
        if let Err(error) = spare.and_then(|()| self.memory.make_spare(request)) {
            return Attempt::Refused(error);
        }
        if let Some(label) = &request.label {
            if let Err(error) = self.records.make_room_for_tag(label.tag_number()) {
                return Attempt::Refused(error);
            }
        }
        layout
            .segments
            .resize(request.segments, SegmentMemory::NONE);
        if let Some(number) = self.memory.likely_window(request) {
            let window = self.memory.window_mut(number);
            if let Ok(pieces) = window.take_all(&request.planned, effort.search, layout) {
                if let Some(key) = self.hand_out(request, number, &pieces, layout) {
                    return Attempt::Done(key);
                }
            }
        }
        self.try_each_window(request, effort, layout)
    }

    /// Makes an allocation of pieces; `None`, and they are free again, if its JITDylib turns out to be in
    /// another window.
    #[inline(always)]
    fn hand_out(
        &mut self,
        request: &Request,
        window: usize,
        pieces: &Pieces,
        layout: &mut RequestLayout,
    ) -> Option<Key> {
        let Some(dylib) = self.memory.hold(request, window, layout) else {
            self.memory.take_back(pieces);
            return None;
        };
        self.usage.taken += layout.taken;
        self.memory.note_taken(self.usage.taken);
        let for_finalize = pieces.iter().any(Piece::is_for_finalize) && !self.memory.keeps_served;
        let states = &mut layout.states;
        let set = |state: &mut InFlightState| std::mem::swap(&mut state.segments, states);
        let first = Windows::first(pieces);
        let (key, handle) = self.admit(first, dylib, for_finalize, layout.live, set);
        if let Some(label) = &request.label {
            self.records.set_tag(key, label.tag_number());
        }
        self.memory.chain(pieces, key.number());
        layout.handle = handle;
        Some(key)
    }

    /// Goes through the windows, fast and then thoroughly, and says what would help.
    #[cold]
    fn try_each_window(
        &mut self,
        request: &Request,
        effort: Effort,
        layout: &mut RequestLayout,
    ) -> Attempt {
        let windows = self.memory.windows_for(request, effort.last_resort);
        for search in [effort.search, Search::Thorough] {
            for number in windows.iter().copied() {
                let window = self.memory.window_mut(number);
                match window.take_all(&request.planned, search, layout) {
                    Ok(pieces) => {
                        self.memory.served_by(number, request);
                        return match self.hand_out(request, number, &pieces, layout) {
                            Some(key) => Attempt::Done(key),
                            None => self.try_each_window(request, effort, layout),
                        };
                    }
                    Err(short) => match self.memory.grow(number, &short, search) {
                        Ok(Some(growth)) => return Attempt::Grow(growth),
                        Ok(None) => {}
                        Err(error) => return Attempt::Refused(error),
                    },
                }
            }
        }
        let taken = self.usage.taken;
        let memory = &mut self.memory;
        if memory.changes > 0 {
            return Attempt::Wait;
        }
        let mut empty = Vec::new();
        for window in windows.iter().filter(|_| effort.reclaim) {
            (0..POOLS).for_each(|pool| memory.detach(*window, pool, Keep::None, &mut empty));
        }
        if !empty.is_empty() {
            return Attempt::Reclaim(empty);
        }
        let bound = memory.home(request.dylib).is_some();
        let full = memory.full(request, &windows, bound, taken);
        let full = self.usage.name_waiting(full);
        let hopeless = memory.least_window(request) > memory.window_size;
        if bound
            || hopeless
            || effort.last_resort
            || !memory.many
            || memory.iter().count() >= MOST_WINDOWS
        {
            Attempt::Refused(full)
        } else {
            Attempt::Full(full)
        }
    }

    // ---- finalizing ----

    /// Finalizes an allocation that the mapper has no part in. Its segments of finalize lifetime are
    /// to be freed.
    pub(super) fn try_finalize(&mut self, handle: u64, served: &mut Option<Freed>) -> Result<()> {
        let key = self.records.find_in_flight(handle)?;
        if self.memory.inherited {
            let holding = self.records.record(key).holding;
            self.memory.check_in_flight(holding)?;
        }
        if self.set_finalized(key, None) {
            self.take_served(key, served.get_or_insert_default());
        }
        Ok(())
    }

    /// Marks an allocation as being finalized and gives what the mapper needs of it.
    pub(super) fn take_content(&mut self, handle: u64) -> Result<(Key, SegmentContents)> {
        let key = self.records.find_in_flight(handle)?;
        if self.memory.inherited {
            let holding = self.records.record(key).holding;
            self.memory.check_in_flight(holding)?;
        }
        let pieces = self.pieces(key);
        let state = self.records.end_writing(key, Phase::Finalizing);
        let mut buffers = state.buffers.into_iter();
        let content = pieces.iter().zip(&state.segments).map(|(piece, state)| {
            let place = self.memory.place(piece);
            SegmentContent {
                range: place.range,
                group: place.group,
                content: if piece.copied { buffers.next() } else { None },
                // What is shared was zeroed in place before it was handed out.
                zeroed: state.zeroed || !piece.copied,
            }
        });
        Ok((key, content.collect()))
    }

    /// Marks an allocation as finalized and takes out its segments of finalize lifetime, which have
    /// served.
    pub(super) fn finalized(&mut self, key: Key, teardown: Teardown, freed: &mut Freed) {
        let teardown = (!teardown.is_nothing()).then_some(teardown);
        if self.set_finalized(key, teardown) {
            self.take_served(key, freed);
        }
    }

    #[cold]
    fn take_served(&mut self, key: Key, freed: &mut Freed) {
        let pieces = self.pieces(key).into_iter();
        let (served, stay): (Pieces, Pieces) = pieces.partition(Piece::is_for_finalize);
        self.memory.chain(&stay, key.number());
        self.records.set_holding(key, Windows::first(&stay));
        let nodes = &self.memory.nodes;
        served.iter().for_each(|piece| nodes.disown(piece.id));
        freed.add(served, &self.memory);
    }

    /// The segments of a finalized allocation, to be written.
    pub(super) fn open_segments(&mut self, handle: u64) -> Result<OpenSegments> {
        let key = self.records.find_finalized(handle)?;
        let open = self.pieces(key).into_iter().map(|piece| {
            let place = self.memory.place(&piece);
            OpenSegment::new(place)
        });
        Ok(open.collect())
    }

    // ---- freeing ----

    /// Takes the pieces of an allocation out of its record.
    pub(super) fn take_pieces(&mut self, key: Key, freed: &mut Freed) {
        let holding = self.records.take_holding(key);
        self.free_holding(holding, freed);
    }

    #[inline]
    fn free_holding(&self, holding: u32, freed: &mut Freed) {
        let memory = &self.memory;
        memory.each_piece(holding, |piece| freed.push(piece, memory));
    }

    /// The pieces of an allocation.
    pub(super) fn pieces(&self, key: Key) -> Pieces {
        let record = self.records.record(key);
        self.memory.pieces(record.holding)
    }

    /// Takes a whole batch out, or nothing if any handle is wrong. The pieces of one of more than
    /// [`PART`] allocations stay in their records.
    pub(super) fn deallocate(&mut self, handles: &[u64], out: &mut Deallocated) -> Result<()> {
        self.take_out(handles, |_| true, out).map(drop)
    }

    /// Takes a whole batch out if the mapper has no part in it, else nothing, and answers `false`.
    pub(super) fn try_deallocate(
        &mut self,
        handles: &[u64],
        shared: bool,
        out: &mut Deallocated,
    ) -> Result<bool> {
        // Nothing is made to trap that is deferred, so only actions are the mapper's.
        let shared = shared || self.memory.deferred.is_chosen();
        let alone = |has_teardown: bool| shared && !has_teardown;
        self.take_out(handles, alone, out)
    }

    fn take_out(
        &mut self,
        handles: &[u64],
        accept: impl Fn(bool) -> bool,
        out: &mut Deallocated,
    ) -> Result<bool> {
        if self.memory.deferred.is_chosen() {
            out.deferred = Some(self.expect_deferred(handles)?);
        }
        let accepted = self.start_deallocating(handles, &mut out.keys, accept);
        match (&accepted, out.deferred) {
            // What is large is freed in parts.
            (Ok(true), _) if handles.len() <= PART => self.take_pieces_of(out),
            (Err(_) | Ok(false), Some(expected)) => self.memory.deferred.expect_less(expected),
            _ => {}
        }
        accepted
    }

    /// What the mapper has to do for an allocation that is being deallocated. Its pieces stay.
    pub(super) fn deinitialization(
        &mut self,
        key: Key,
        deferred: bool,
    ) -> Option<Deinitialization> {
        let mut freed = Freed::default();
        if !deferred {
            freed.add(self.pieces(key), &self.memory);
        }
        let teardown = self.records.take_teardown(key).unwrap_or_default();
        Deinitialization::new(teardown, freed.copied)
    }

    fn take_pieces_of(&mut self, out: &mut Deallocated) {
        for key in &out.keys {
            let (holding, teardown) = self.records.take_out(*key);
            self.free_holding(holding, &mut out.freed);
            if out.deferred.is_some() {
                out.freed.copied.clear();
            }
            // Most often there is nothing to do, and nothing to move.
            if teardown.is_some() || !out.freed.copied.is_empty() {
                let copied = std::mem::take(&mut out.freed.copied);
                out.deinitialize
                    .extend(Deinitialization::new(teardown.unwrap_or_default(), copied));
            }
        }
    }

    /// Takes the pieces back that leave chunks empty which are too large to be kept, and gives the
    /// others. Code in such a chunk is not made to trap: that would touch pages which go at once. `None`,
    /// and nothing is done, if the heap has no room.
    #[cold]
    pub(super) fn free_with_chunks(
        &mut self,
        freed: &Freed,
        empty: &mut Vec<Detached>,
    ) -> Option<Freed> {
        let (pieces, unwritten) = (&freed.pieces, freed.unwritten);
        let memory = &self.memory;
        let chunk_of = |piece: &Piece| {
            let window = usize::from(piece.window);
            (window, memory.window(window).chunk_of(piece))
        };
        let mut counts = HashMap::new();
        counts.try_reserve(pieces.len()).ok()?;
        let mut going = Pieces::new();
        going.try_reserve(pieces.len()).ok()?;
        let mut staying = Freed {
            unwritten,
            ..Freed::default()
        };
        if !staying.try_reserve(pieces.len()) {
            return None;
        }
        for piece in pieces {
            *counts.entry(chunk_of(piece)).or_insert(0) += 1;
        }
        for piece in pieces {
            let window = memory.window(piece.window.into());
            match window.goes_without(piece, counts[&chunk_of(piece)]) {
                true => going.push(*piece),
                false => staying.push(*piece, memory),
            }
        }
        self.free(&going, empty);
        Some(staying)
    }

    /// Takes pieces back. Chunks that are empty now, but for some spare ones of each pool, come out
    /// to be reclaimed.
    pub(super) fn free(&mut self, pieces: &Pieces, empty: &mut Vec<Detached>) {
        let (mut sizes, mut requested) = (0, 0);
        for piece in pieces {
            let (size, empty_now) = self.memory.free(piece);
            sizes += size;
            requested += u64::from(piece.requested);
            if empty_now {
                let (window, pool) = (piece.window as usize, piece.pool as usize);
                self.memory.detach(window, pool, Keep::Spare, empty);
            }
        }
        self.memory.freed += sizes;
        self.usage.taken -= sizes;
        self.usage.live -= requested;
        self.memory.note_taken(self.usage.taken);
    }
}
