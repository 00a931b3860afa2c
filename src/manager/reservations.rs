// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocating where the mapper divides no window: each allocation has a reservation of its own, a
//! block, from allocate until it goes as a whole, segments of finalize lifetime included.
//!
//! Handles, records and their states are as ever. In place of taking ranges, a block is asked for
//! outside the lock, without knowing where it will lie, and looked at before it is handed out. An
//! allocation in flight has something to tear down already: its block.

use super::core::{Core, manager_freed};
use super::records::{Buffers, Key};
use super::request::{PlannedSegment, Request};
use super::space::{Space, heap_is_full};
use super::window::{Pieces, RequestLayout, Sums};
use super::{Allocated, GrowthPolicy, LayoutItem, LayoutKind, Options, SegmentMemory};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::mapper::{Reserved, SegmentContent, Teardown};
use crate::memory::buffer::BufferPool;
use crate::memory::placement::REACH;
use crate::memory::view::{Placement, WorkingPointer};
use crate::page::{AddressRange, Alignment};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Checks what a host wants of a mapper that divides no window.
pub(super) fn check(options: &Options) -> Result<()> {
    match options.placement {
        Placement::Fixed(address) => Err(Error::new(
            Status::Unsupported,
            format!(
                "a window at {address:#x}: with this mapper the executor chooses where each \
                 allocation lies; load libjitmem.so into the executor, or link jitmem's service"
            ),
        )),
        Placement::Default | Placement::Near(_) => Ok(()),
    }
}

/// The blocks, behind the manager's lock.
pub(super) struct Reservations {
    page: Alignment,
    /// What everything must be in reach of, besides itself.
    near: Option<u64>,
    /// Only what belongs to one JITDylib must be in reach of itself.
    apart: bool,
    live: HashMap<Key, OwnReservation>,
    /// First and end addresses of what is live, by JITDylib, each with how many it is one of.
    edges: BTreeMap<(u64, u64), u32>,
    /// Bytes of all blocks, those under way included.
    reserved: u64,
}

struct OwnReservation {
    range: AddressRange,
    parts: SmallVec<[PlacedSegment; 4]>,
    /// Bytes asked for.
    requested: u64,
    /// What it must be in reach of: the JITDylib that it belongs to, 0 if all of the manager.
    belongs: Option<u64>,
}

/// The place of a segment.
#[derive(Clone, Copy)]
struct PlacedSegment {
    range: AddressRange,
    planned: PlannedSegment,
}

/// What is made for a request before its block is reserved.
struct Draft {
    /// The segments with the smallest alignment first.
    request: Request,
    buffers: Buffers,
    size: u64,
}

impl Draft {
    fn new(mut request: Request, page: Alignment) -> Draft {
        // So that something lies at the start of the block wherever that is possible.
        request.planned.sort_by_key(|planned| planned.alignment);
        // At worst the block starts a page behind an aligned address.
        let slack = |planned: &PlannedSegment| alignment(planned, page).bytes() - page.bytes();
        let planned = request.planned.iter();
        let size: u64 = planned
            .map(|planned| pages(planned, page) + slack(planned))
            .sum();
        Draft {
            request,
            buffers: Buffers::new(),
            // A block without segments carries actions.
            size: size.max(page.bytes()),
        }
    }

    fn make_buffers(&mut self, pool: &Arc<BufferPool>) -> Result<()> {
        for planned in &self.request.planned {
            let buffer = pool.get(planned.content as usize);
            let buffer = buffer.map_err(|error| error.context("allocate"))?;
            self.buffers.push(Some(Box::new(buffer)));
        }
        Ok(())
    }

    /// Where the segments lie in a block that starts at `next`.
    fn place(&self, mut next: u64, page: Alignment) -> Option<SmallVec<[PlacedSegment; 4]>> {
        let mut parts = SmallVec::new();
        for planned in &self.request.planned {
            let start = alignment(planned, page).round_up(next)?;
            let range = AddressRange::new(start, pages(planned, page))?;
            next = range.end();
            let planned = *planned;
            parts.push(PlacedSegment { range, planned });
        }
        Some(parts)
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
fn extent(parts: &[PlacedSegment]) -> Option<AddressRange> {
    let (first, last) = (parts.first()?.range, parts.last()?.range);
    AddressRange::new(first.start(), last.end() - first.start())
}

impl Reservations {
    pub(super) fn new(page: Alignment, options: &Options) -> Reservations {
        Reservations {
            page,
            near: match options.placement {
                Placement::Near(address) => Some(address),
                Placement::Default | Placement::Fixed(_) => None,
            },
            apart: options.growth == GrowthPolicy::AnotherWindow,
            live: HashMap::new(),
            edges: BTreeMap::new(),
            reserved: 0,
        }
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

    /// Fails if something is too far away from a new allocation for 32-bit references.
    fn check_reach(&self, new: AddressRange, belongs: Option<u64>) -> Result<()> {
        let [lowest, highest] = belongs.map_or([None; 2], |belongs| self.bounds(belongs));
        let edges = [
            (self.near, "which it was wanted near"),
            (lowest, "the lowest address in use"),
            (highest, "the end of what is in use"),
        ];
        let mut edges = edges
            .into_iter()
            .filter_map(|(edge, what)| Some((edge?, what)));
        let far = edges.find(|(edge, _)| {
            let (low, high) = (new.start().min(*edge), new.end().max(*edge));
            high - low > REACH
        });
        let Some((far, what)) = far else {
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
                 reach of 32-bit references from {far:#x}, {what}",
                new.size()
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

    /// Where the working memory of a segment stands in its record, and how large it is.
    pub(super) fn find(&self, key: Key, segment: usize) -> Option<(usize, u64)> {
        let parts = &self.live.get(&key)?.parts;
        let position = parts
            .iter()
            .position(|part| part.planned.index as usize == segment)?;
        Some((position, parts[position].planned.content.into()))
    }

    /// What the mapper needs to finalize an allocation. Something lies at the start of its block.
    pub(super) fn content(
        &self,
        key: Key,
        buffers: Option<Box<Buffers>>,
    ) -> SmallVec<[SegmentContent; 4]> {
        let mut content = SmallVec::new();
        let Some(OwnReservation { range, parts, .. }) = self.live.get(&key) else {
            return content;
        };
        if parts
            .first()
            .is_none_or(|part| part.range.start() != range.start())
        {
            content.push(SegmentContent {
                range: range.part(0, self.page.bytes()).unwrap_or(*range),
                group: AllocGroup {
                    protection: Protection::READ,
                    lifetime: Lifetime::Standard,
                },
                content: None,
                zeroed: true,
            });
        }
        let buffers = buffers.map_or(Buffers::new(), |buffers| *buffers);
        content.extend(
            parts
                .iter()
                .zip(buffers)
                .map(|(part, buffer)| SegmentContent {
                    range: part.range,
                    group: part.planned.group,
                    content: buffer,
                    zeroed: true,
                }),
        );
        content
    }

    // ---- looking ----

    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    pub(super) fn add_to(&self, sums: &mut Sums) {
        sums.reserved += self.reserved;
        sums.committed += self.reserved;
        for block in self.live.values() {
            sums.chunks += block.parts.len() as u64;
            // Each segment, and what is left between or before them.
            sums.mappings += 2 * block.parts.len() as u64 + 1;
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
    }

    pub(super) fn visit(&self, visit: &mut impl FnMut(LayoutItem)) {
        for block in self.live.values() {
            visit(LayoutItem {
                kind: LayoutKind::Window,
                range: block.range,
                group: None,
            });
            for part in &block.parts {
                for kind in [LayoutKind::Chunk, LayoutKind::Range] {
                    visit(LayoutItem {
                        kind,
                        range: part.range,
                        group: Some(part.planned.group),
                    });
                }
            }
        }
    }
}

impl Space {
    fn blocks(&mut self) -> &mut Reservations {
        self.blocks.as_mut().expect("the mapper divides no window")
    }

    /// Counts a block that is about to be reserved.
    fn set_aside(&mut self, size: u64) -> Result<()> {
        if let Some(error) = self.beyond_quota(size) {
            return Err(error);
        }
        self.taken += size;
        self.blocks().reserved += size;
        Ok(())
    }

    /// A block that was set aside is not there, or is there no more.
    fn not_aside(&mut self, size: u64) {
        self.taken -= size;
        self.blocks().reserved -= size;
    }

    /// Makes an allocation of a block that was set aside.
    fn admit_block(&mut self, draft: &mut Draft, range: AddressRange) -> Result<Allocated> {
        let blocks = self.blocks();
        let belongs = blocks.belongs(draft.request.dylib);
        let parts = draft.place(range.start(), blocks.page);
        let parts = parts
            .filter(|parts| extent(parts).is_none_or(|extent| range.contains(extent)))
            .ok_or_else(|| {
                let message = format!("{range:?} was reserved for {} bytes", draft.size);
                Error::new(Status::MapperFailed, message)
            })?;
        let extent = extent(&parts);
        if let Some(extent) = extent {
            blocks.check_reach(extent, belongs)?;
        }
        if blocks.live.try_reserve(1).is_err() || !self.records.make_spare() {
            return Err(heap_is_full());
        }
        let nothing = SegmentMemory {
            address: 0,
            working_memory: WorkingPointer::NULL,
        };
        let mut segments = SmallVec::from_elem(nothing, draft.request.segments);
        for (part, buffer) in parts.iter().zip(&draft.buffers) {
            let working_memory = buffer.as_ref().map(|buffer| buffer.pointer());
            segments[part.planned.index as usize] = SegmentMemory {
                address: part.range.start(),
                working_memory: working_memory.unwrap_or(WorkingPointer::NULL),
            };
        }
        let requested = parts.iter().map(|part| u64::from(part.planned.size)).sum();
        let layout = RequestLayout {
            live: requested,
            ..RequestLayout::default()
        };
        let (key, handle) = self.admit(&draft.request, 0, Pieces::new(), &layout);
        let record = self.records.get(key);
        record.teardown = Some(Box::new(Teardown::Key(range.start())));
        record.buffers = Some(Box::new(std::mem::take(&mut draft.buffers)));
        let blocks = self.blocks();
        if let (Some(belongs), Some(extent)) = (belongs, extent) {
            blocks.note_edges(belongs, extent);
        }
        let block = OwnReservation {
            range,
            parts,
            requested,
            belongs,
        };
        blocks.live.insert(key, block);
        Ok(Allocated { handle, segments })
    }

    /// Forgets the block of an allocation that goes. Before the executor is told, which may give the
    /// addresses to somebody else before its answer is here.
    #[cold]
    pub(super) fn drop_block(&mut self, key: Key) {
        let blocks = self.blocks();
        let Some(block) = blocks.live.remove(&key) else {
            return;
        };
        if let (Some(belongs), Some(extent)) = (block.belongs, extent(&block.parts)) {
            blocks.forget_edges(belongs, extent);
        }
        self.live -= block.requested;
        self.not_aside(block.range.size());
    }
}

impl Core {
    pub(super) fn allocate_undivided(
        self: &Arc<Self>,
        request: Request,
        done: Completion<Allocated>,
    ) {
        let mut draft = Draft::new(request, self.mapper.capabilities().page_size);
        let size = draft.size;
        let counted = self.space.lock().set_aside(size);
        if let Err(error) = counted {
            return self.failed(error, done, &mut Delivery::Inline);
        }
        if let Err(error) = draft.make_buffers(&self.buffers) {
            self.space.lock().not_aside(size);
            return self.failed(error, done, &mut Delivery::Inline);
        }
        let core = Arc::clone(self);
        let reserved = Completion::with_delivery(move |answer, delivery| {
            core.reserved(draft, answer, done, delivery);
        });
        let mapper = Arc::clone(&self.mapper);
        mapper.reserve(size, size, self.options.placement, reserved);
    }

    /// Hands a new block out, or gives it back.
    fn reserved(
        self: Arc<Self>,
        mut draft: Draft,
        answer: Result<Reserved>,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        let size = draft.size;
        let range = match answer {
            Ok(reserved) => reserved.range,
            Err(error) => {
                self.space.lock().not_aside(size);
                let error = error.context(format!("reserve {size} bytes for an allocation"));
                return self.give_up(error, done, delivery);
            }
        };
        let allocated = match self.is_closed() {
            true => Err(manager_freed()),
            false => self.space.lock().admit_block(&mut draft, range),
        };
        let error = match allocated {
            Ok(allocated) => {
                drop(self);
                return done.complete_with(Ok(allocated), delivery);
            }
            Err(error) => error,
        };
        self.space.lock().not_aside(size);
        let mapper = Arc::clone(&self.mapper);
        let released = Completion::with_delivery(move |answer: Result<()>, delivery| {
            let error = match answer {
                Ok(()) => error,
                Err(second) => error.join(second),
            };
            self.give_up(error, done, delivery);
        });
        mapper.release(range, released);
    }

    /// Answers with an error. A callback that frees the manager finds it the last holder.
    fn give_up<T>(self: Arc<Self>, error: Error, done: Completion<T>, delivery: &mut Delivery) {
        let answer = self.counted(Err(error));
        drop(self);
        done.complete_with(answer, delivery);
    }
}
