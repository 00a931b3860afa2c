// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The state behind the manager's one lock: windows, their chunks, and who has what.
//!
//! Everything here is arithmetic; nothing calls the mapper or the system.

use super::request::{Planned, Request};
use super::{Allocated, GrowthPolicy, Options, SegmentMemory};
use crate::error::{Error, Result, Status, invalid_handle};
use crate::group::{AllocGroup, Lifetime};
use crate::mapper::{Chunk, Prepared, Teardown, Working};
use crate::memory::ranges::{RangeId, Ranges, RegionId};
use crate::memory::runs::{From, Runs};
use crate::memory::view::{Buffer, WorkingPointer, Writer};
use crate::page::{AddressRange, Alignment};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};
use smallvec::SmallVec;
use std::collections::HashMap;

/// First size of a chunk; each further one of its group is twice as large, up to a share of the
/// window.
const FIRST_CHUNK: u64 = 64 << 10;
/// A chunk grows to at most this share of its window.
const CHUNK_SHARE: u64 = 64;
/// More chunks than this are never made in one window: each takes at most two views and leaves
/// at most one gap, so a window has fewer than 512 mappings.
const MOST_CHUNKS: usize = 160;
/// An empty chunk larger than this is never kept for reuse.
const LARGEST_SPARE: u32 = 1 << 20;
/// Pools of a window: protection (3 bits) and lifetime (1 bit).
const POOLS: usize = 16;
/// No manager opens more windows than this.
const MOST_WINDOWS: usize = 4096;
/// Segments may be aligned to this and no more.
pub(super) const LARGEST_ALIGNMENT: u64 = 1 << 30;

/// How far an allocation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    InFlight,
    Finalizing,
    Finalized,
    Deallocating,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::InFlight => "still in flight",
            State::Finalizing => "being finalized",
            State::Finalized => "finalized already",
            State::Deallocating => "being deallocated",
        }
    }
}

/// One range of an allocation and how it is written. Small, since it moves about.
pub(super) struct Piece {
    /// Its first executor address.
    address: u64,
    /// Bytes, rounding included.
    size: u32,
    /// Bytes asked for.
    requested: u32,
    /// Bytes of content among them.
    pub(super) content: u32,
    /// Bytes behind the content that may hold something from an earlier life.
    pub(super) dirty: u32,
    id: RangeId,
    region: RegionId,
    window: u16,
    pool: u8,
    pub(super) group: AllocGroup,
    /// Position in the request.
    pub(super) segment: u32,
    pub(super) memory: Memory,
}

/// Where a piece's content is written.
pub(super) enum Memory {
    Shared(WorkingPointer),
    /// `None` until the buffer is made, outside the lock, and after finalize has taken it.
    Copied(Option<Box<Buffer>>),
}

impl Piece {
    /// Its executor addresses, rounding included.
    pub(super) fn range(&self) -> AddressRange {
        AddressRange::new(self.address, self.size.into()).expect("windows end")
    }

    /// Where its bytes are written, if they are shared.
    pub(super) fn writer(&self) -> Option<Writer> {
        match self.memory {
            Memory::Shared(pointer) => Some(Writer::at(pointer, self.size)),
            Memory::Copied(_) => None,
        }
    }
}

pub(super) type Pieces = SmallVec<[Piece; 3]>;

const _: () = assert!(size_of::<Piece>() <= 64);

/// An allocation.
pub(super) struct Record {
    pub(super) state: State,
    pub(super) pieces: Pieces,
    pub(super) teardown: Teardown,
    dylib: u64,
    /// Grows with each finalize, so that what is left at the end goes last to first.
    pub(super) order: u64,
}

struct ChunkState {
    /// From the window's origin, as all offsets here.
    offset: u32,
    size: u32,
    working: Working,
    mappings: u64,
    /// Offset behind the last byte that was ever handed out.
    used_up_to: u32,
    /// Ranges handed out.
    live: u32,
}

struct Pool {
    group: AllocGroup,
    ranges: Ranges,
    chunks: Vec<Option<ChunkState>>,
    next_size: u64,
}

struct Window {
    range: AddressRange,
    /// What offsets count from: aligned to [`LARGEST_ALIGNMENT`], so that an aligned offset is an
    /// aligned address. At most that much below the window, so offsets fit 32 bits.
    origin: u64,
    in_reach: bool,
    runs: Runs,
    pools: [Option<Box<Pool>>; POOLS],
    chunks: usize,
}

/// The window that holds a JITDylib's code.
struct Home {
    window: usize,
    allocations: usize,
}

/// A run of pages taken for a new chunk that has yet to be prepared.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) window: usize,
    pub(super) chunk: Chunk,
    alignment: Alignment,
}

/// A chunk that was taken out of its pool and has yet to be reclaimed.
pub(super) struct Detached {
    pub(super) window: usize,
    pub(super) range: AddressRange,
    group: AllocGroup,
    state: ChunkState,
}

/// What came of trying to allocate.
#[allow(clippy::large_enum_variant)] // the large one is the one that always comes
pub(super) enum Attempt {
    Done(Granted),
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

/// A new allocation.
pub(super) struct Granted {
    pub(super) key: DefaultKey,
    pub(super) allocated: Allocated,
    /// Zero-fill that must be zeroed before anyone sees it.
    pub(super) dirty: SmallVec<[(Writer, u32, u32); 1]>,
    /// Some of its pieces need buffers.
    pub(super) copied: bool,
}

/// Counters of the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) allocate: u64,
    pub(super) finalize: u64,
    pub(super) abandon: u64,
    pub(super) deallocate: u64,
    pub(super) failures: u64,
}

/// Sums over all windows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) reserved: u64,
    pub(super) committed: u64,
    pub(super) free: u64,
    pub(super) mappings: u64,
    pub(super) windows: u64,
    pub(super) chunks: u64,
    pub(super) span: u64,
    pub(super) out_of_reach: u64,
    pub(super) smallest_window: u64,
}

pub(super) struct Space {
    page: Alignment,
    granule: Alignment,
    commit: bool,
    quota: Option<u64>,
    windows: Vec<Window>,
    records: SlotMap<DefaultKey, Record>,
    /// Whether there may be more than one window, so that JITDylibs must be kept together.
    many_windows: bool,
    homes: HashMap<u64, Home>,
    /// Makes handles of one manager foreign to every other.
    cookie: u64,
    next_order: u64,
    /// Growths, reclaims and reservations under way outside the lock.
    pub(super) changes: usize,
    pub(super) counters: Counters,
    /// Bytes handed out, and those of them that were asked for.
    taken: u64,
    pub(super) live: u64,
    pub(super) in_flight: u64,
    pub(super) finalized: u64,
}

fn pool_index(group: AllocGroup) -> usize {
    let finalize = group.lifetime == Lifetime::Finalize;
    group.protection.bits() as usize | (usize::from(finalize) << 3)
}

impl Space {
    pub(super) fn new(
        page: Alignment,
        granule: Alignment,
        options: &Options,
        random: u64,
    ) -> Space {
        Space {
            page,
            granule,
            commit: options.commit,
            quota: options.quota,
            many_windows: options.growth == GrowthPolicy::AnotherWindow,
            windows: Vec::new(),
            records: SlotMap::new(),
            homes: HashMap::new(),
            // A live slot's version is odd, so bit 32 of a key is set. With bits 32 and 63 of the
            // cookie clear, no handle is 0 and none is all ones, which LLVM takes for "none".
            cookie: random & !(1 << 32) & !(1 << 63),
            next_order: 0,
            changes: 0,
            counters: Counters::default(),
            taken: 0,
            live: 0,
            in_flight: 0,
            finalized: 0,
        }
    }

    pub(super) fn add_window(&mut self, range: AddressRange, in_reach: bool) {
        self.windows.push(Window {
            range,
            origin: range.start() & !(LARGEST_ALIGNMENT - 1),
            in_reach,
            runs: Runs::new(range.size()),
            pools: Default::default(),
            chunks: 0,
        });
    }

    /// All windows, leaving none.
    pub(super) fn take_windows(&mut self) -> Vec<AddressRange> {
        self.windows.drain(..).map(|window| window.range).collect()
    }

    // ---- handles ----

    pub(super) fn handle(&self, key: DefaultKey) -> u64 {
        key.data().as_ffi() ^ self.cookie
    }

    /// The allocation of this handle, which must be in `state`.
    pub(super) fn find(&mut self, handle: u64, state: State) -> Result<(DefaultKey, &mut Record)> {
        let key = DefaultKey::from(KeyData::from_ffi(handle ^ self.cookie));
        match self.records.get_mut(key) {
            Some(record) if record.state == state => Ok((key, record)),
            Some(record) => Err(invalid_handle(format!(
                "allocation {handle:#x} is {}",
                record.state.name()
            ))),
            None => Err(invalid_handle(format!(
                "allocation {handle:#x} is not live in this manager: it was deallocated, \
                 abandoned or failed before, or is another manager's"
            ))),
        }
    }

    pub(super) fn record(&mut self, key: DefaultKey) -> &mut Record {
        &mut self.records[key]
    }

    /// Marks it finalized.
    pub(super) fn finish_finalize(&mut self, key: DefaultKey, teardown: Teardown) -> Pieces {
        self.next_order += 1;
        self.counters.finalize += 1;
        let record = &mut self.records[key];
        record.state = State::Finalized;
        record.order = self.next_order;
        record.teardown = teardown;
        self.in_flight -= 1;
        self.finalized += 1;
        let mut done_with = Pieces::new();
        if record
            .pieces
            .iter()
            .any(|piece| piece.group.lifetime == Lifetime::Finalize)
        {
            let (gone, kept) = std::mem::take(&mut record.pieces)
                .into_iter()
                .partition(|piece| piece.group.lifetime == Lifetime::Finalize);
            record.pieces = kept;
            done_with = gone;
        }
        done_with
    }

    /// Forgets an allocation whose pieces were taken out of its record.
    pub(super) fn forget(&mut self, key: DefaultKey) {
        let Some(record) = self.records.remove(key) else {
            return;
        };
        match record.state {
            State::InFlight | State::Finalizing => self.in_flight -= 1,
            State::Finalized | State::Deallocating => self.finalized -= 1,
        }
        if record.dylib != 0 {
            if let Some(home) = self.homes.get_mut(&record.dylib) {
                home.allocations -= 1;
                if home.allocations == 0 {
                    self.homes.remove(&record.dylib);
                }
            }
        }
    }

    /// What is finalized and still there, oldest first.
    pub(super) fn take_finalized(&mut self) -> Vec<Record> {
        let mut left: Vec<Record> = self
            .records
            .drain()
            .map(|(_, record)| record)
            .filter(|record| record.state == State::Finalized)
            .collect();
        left.sort_by_key(|record| record.order);
        left
    }

    // ---- allocating ----

    pub(super) fn allocate(&mut self, request: &Request) -> Attempt {
        let home = (self.many_windows && request.dylib != 0)
            .then(|| self.homes.get(&request.dylib))
            .flatten();
        let (first, last) = match home {
            Some(home) => (home.window, home.window + 1),
            None => (0, self.windows.len()),
        };
        let bound = home.is_some();
        let wanted: u64 = request
            .planned
            .iter()
            .map(|planned| {
                self.granule
                    .round_up(planned.size.max(1).into())
                    .unwrap_or(u64::MAX)
            })
            .fold(0, u64::saturating_add);
        if let Some(quota) = self.quota {
            if self.taken.saturating_add(wanted) > quota {
                return Attempt::Refused(Error::new(
                    Status::QuotaExceeded,
                    format!(
                        "allocate {wanted} bytes: {} of a quota of {quota} bytes are in use; \
                         deallocate something or raise the quota",
                        self.taken
                    ),
                ));
            }
        }
        for index in first..last {
            match self.windows[index].take_all(&request.planned, index) {
                Ok(pieces) => return Attempt::Done(self.admit(request, index, pieces)),
                Err(short) => {
                    if let Some(growth) = self.grow(index, short) {
                        return Attempt::Grow(growth);
                    }
                }
            }
        }
        if self.changes > 0 {
            return Attempt::Wait;
        }
        let mut empty = Vec::new();
        for index in first..last {
            self.detach_empty(index, 0, &mut empty);
        }
        if !empty.is_empty() {
            return Attempt::Reclaim(empty);
        }
        let full = self.full(request, wanted, first..last, bound);
        if bound || !self.many_windows || self.windows.len() >= MOST_WINDOWS {
            Attempt::Refused(full)
        } else {
            Attempt::Full(full)
        }
    }

    fn full(
        &self,
        request: &Request,
        wanted: u64,
        windows: std::ops::Range<usize>,
        bound: bool,
    ) -> Error {
        let windows = &self.windows[windows];
        let largest = windows
            .iter()
            .map(|window| window.runs.largest())
            .max()
            .unwrap_or(0);
        let size: u64 = windows.iter().map(|window| window.range.size()).sum();
        let crowded = windows.iter().any(|window| window.chunks >= MOST_CHUNKS);
        let why = if bound {
            format!(
                "the window that holds JITDylib {:#x} is full and a JITDylib never straddles two",
                request.dylib
            )
        } else {
            format!(
                "{} window(s) of {size} bytes in all are full",
                windows.len()
            )
        };
        let crowded = if crowded {
            format!(" and {MOST_CHUNKS} chunks, the most for one window, are in use")
        } else {
            String::new()
        };
        Error::new(
            Status::WindowFull,
            format!(
                "allocate {wanted} bytes in {} segment(s): {why} ({} bytes handed out, largest \
                 free run {largest} bytes){crowded}; deallocate something, choose a larger window \
                 (below 2 GiB), or let the manager open another window",
                request.planned.len(),
                self.taken
            ),
        )
    }

    fn admit(&mut self, request: &Request, window: usize, pieces: Pieces) -> Granted {
        let nothing = SegmentMemory {
            address: 0,
            working_memory: WorkingPointer::NULL,
        };
        let mut segments: SmallVec<[SegmentMemory; 4]> =
            SmallVec::from_elem(nothing, request.segments);
        let mut dirty = SmallVec::new();
        let mut copied = false;
        for piece in &pieces {
            self.taken += u64::from(piece.size);
            self.live += u64::from(piece.requested);
            let segment = &mut segments[piece.segment as usize];
            segment.address = piece.address;
            match piece.memory {
                Memory::Shared(pointer) => {
                    segment.working_memory = pointer;
                    if piece.dirty > 0 {
                        dirty.push((Writer::at(pointer, piece.size), piece.content, piece.dirty));
                    }
                }
                Memory::Copied(_) => copied = true,
            }
        }
        self.in_flight += 1;
        self.counters.allocate += 1;
        let dylib = if self.many_windows { request.dylib } else { 0 };
        if dylib != 0 {
            let home = self.homes.entry(dylib).or_insert(Home {
                window,
                allocations: 0,
            });
            home.allocations += 1;
        }
        let key = self.records.insert(Record {
            state: State::InFlight,
            pieces,
            teardown: Teardown::Nothing,
            dylib,
            order: 0,
        });
        let allocated = Allocated {
            handle: self.handle(key),
            segments,
        };
        Granted {
            key,
            allocated,
            dirty,
            copied,
        }
    }

    /// Takes a run of pages for a segment that fits no chunk, if the window has one.
    fn grow(&mut self, index: usize, short: Planned) -> Option<Growth> {
        let (page, granule, commit) = (self.page, self.granule, self.commit);
        let window = &mut self.windows[index];
        if window.chunks >= MOST_CHUNKS {
            return None;
        }
        let most = page.round_down((window.range.size() / CHUNK_SHARE).max(FIRST_CHUNK));
        let group = short.group;
        let pool = window.pool(group, granule);
        // Room to align inside the chunk, and, before code, room that a function sanitizer reads.
        let slack = u64::from(short.alignment).saturating_sub(granule.bytes());
        let guard = if group.protection.executable() {
            granule.bytes()
        } else {
            0
        };
        let need = page.round_up(u64::from(short.size.max(1)) + slack + guard)?;
        let mut size = page.round_up(pool.next_size.max(need))?;
        pool.next_size = (pool.next_size * 2).min(most);
        let from = if group.protection.executable() {
            From::Bottom
        } else {
            From::Top
        };
        let offset = loop {
            match window.runs.take(size, page, from) {
                Some(offset) => break offset,
                None if size > need => size = page.round_up(size / 2)?.max(need),
                None => return None,
            }
        };
        window.chunks += 1;
        self.changes += 1;
        let range = window
            .range
            .part(offset, size)
            .expect("runs lie inside their window");
        Some(Growth {
            window: index,
            chunk: Chunk {
                range,
                group,
                commit,
            },
            alignment: granule,
        })
    }

    /// Adds the chunk that the mapper prepared.
    pub(super) fn grown(&mut self, growth: &Growth, prepared: Prepared) {
        self.changes -= 1;
        let window = &mut self.windows[growth.window];
        window.add_chunk(
            growth.chunk.range,
            growth.chunk.group,
            growth.alignment,
            prepared,
        );
    }

    /// Gives the run back that the mapper could not prepare.
    pub(super) fn not_grown(&mut self, growth: &Growth) {
        self.changes -= 1;
        let window = &mut self.windows[growth.window];
        window.chunks -= 1;
        let range = growth.chunk.range;
        window
            .runs
            .give(range.start() - window.range.start(), range.size());
    }

    // ---- freeing ----

    /// Takes pieces back. Chunks that are empty now, but for a small one of each pool, come out to
    /// be reclaimed.
    pub(super) fn free(&mut self, pieces: &Pieces, empty: &mut Vec<Detached>) {
        for piece in pieces {
            self.taken -= u64::from(piece.size);
            self.live -= u64::from(piece.requested);
            let window = &mut self.windows[piece.window as usize];
            let pool = window.pools[piece.pool as usize]
                .as_mut()
                .expect("pieces have a pool");
            pool.ranges.free(piece.id);
            let chunk = pool.chunks[piece.region as usize]
                .as_mut()
                .expect("pieces have a chunk");
            chunk.live -= 1;
            if chunk.live == 0 {
                self.detach_pool(piece.window as usize, piece.pool as usize, 1, empty);
            }
        }
    }

    fn detach_empty(&mut self, window: usize, keep: usize, empty: &mut Vec<Detached>) {
        for pool in 0..POOLS {
            self.detach_pool(window, pool, keep, empty);
        }
    }

    /// Takes the empty chunks of a pool out, the largest first, until at most `keep` are left and
    /// none of those is large.
    fn detach_pool(&mut self, window: usize, pool: usize, keep: usize, out: &mut Vec<Detached>) {
        let granule = self.granule;
        let Window { origin, pools, .. } = &mut self.windows[window];
        let Some(pool_state) = pools[pool].as_mut() else {
            return;
        };
        loop {
            let empty = pool_state
                .chunks
                .iter()
                .enumerate()
                .filter_map(|(index, chunk)| {
                    let chunk = chunk.as_ref()?;
                    (chunk.live == 0).then_some((chunk.size, index))
                });
            let (count, largest) = empty.fold((0, None), |(count, largest), chunk| {
                (count + 1, largest.max(Some(chunk)))
            });
            let Some((size, index)) = largest else { return };
            if count <= keep && size <= LARGEST_SPARE {
                return;
            }
            let state = pool_state.chunks[index].take().expect("it was just found");
            let (start, size) = usable(&state, pool_state.group, granule);
            let removed = pool_state.ranges.remove_region(start, size);
            debug_assert!(removed, "an empty chunk is one free range");
            self.changes += 1;
            let range = addresses(*origin, state.offset, state.size);
            out.push(Detached {
                window,
                range,
                group: pool_state.group,
                state,
            });
        }
    }

    /// Returns the run of a chunk that the mapper has reclaimed.
    pub(super) fn reclaimed(&mut self, detached: Detached) {
        self.changes -= 1;
        let window = &mut self.windows[detached.window];
        window.chunks -= 1;
        let range = detached.range;
        window
            .runs
            .give(range.start() - window.range.start(), range.size());
    }

    /// Puts a chunk back that the mapper could not reclaim.
    pub(super) fn not_reclaimed(&mut self, detached: Detached) {
        self.changes -= 1;
        let granule = self.granule;
        let window = &mut self.windows[detached.window];
        window.restore_chunk(detached.group, granule, detached.state);
    }

    // ---- looking ----

    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn sums(&self) -> Sums {
        let windows = self.windows.len() as u64;
        let mut sums = Sums {
            windows,
            smallest_window: u64::MAX,
            ..Sums::default()
        };
        for window in &self.windows {
            sums.reserved += window.range.size();
            sums.smallest_window = sums.smallest_window.min(window.range.size());
            sums.out_of_reach += u64::from(!window.in_reach);
            sums.mappings += window.runs.count() as u64;
            let mut live = (u64::MAX, 0);
            for pool in window.pools.iter().flatten() {
                sums.free += pool.ranges.free_bytes();
                for chunk in pool.chunks.iter().flatten() {
                    sums.chunks += 1;
                    sums.committed += u64::from(chunk.size);
                    sums.mappings += chunk.mappings;
                    if chunk.live > 0 {
                        live.0 = live.0.min(chunk.offset.into());
                        live.1 = live.1.max(chunk.used_up_to.into());
                    }
                }
            }
            sums.span = sums.span.max(u64::saturating_sub(live.1, live.0));
        }
        sums
    }

    /// Calls `visit` with every window, every chunk and every handed-out range.
    pub(super) fn visit(&self, mut visit: impl FnMut(super::LayoutItem)) {
        use super::{LayoutItem, LayoutKind};
        for window in &self.windows {
            visit(LayoutItem {
                kind: LayoutKind::Window,
                range: window.range,
                group: None,
            });
            for pool in window.pools.iter().flatten() {
                for chunk in pool.chunks.iter().flatten() {
                    let range = addresses(window.origin, chunk.offset, chunk.size);
                    visit(LayoutItem {
                        kind: LayoutKind::Chunk,
                        range,
                        group: Some(pool.group),
                    });
                }
            }
        }
        for record in self.records.values() {
            for piece in &record.pieces {
                let (range, group) = (piece.range(), Some(piece.group));
                visit(LayoutItem {
                    kind: LayoutKind::Range,
                    range,
                    group,
                });
            }
        }
    }
}

fn addresses(origin: u64, offset: u32, size: u32) -> AddressRange {
    AddressRange::new(origin + u64::from(offset), size.into()).expect("windows end")
}

/// The part of a chunk that is handed out: code keeps off the first bytes, because the function
/// sanitizer reads 8 bytes before a function.
fn usable(chunk: &ChunkState, group: AllocGroup, granule: Alignment) -> (u32, u32) {
    let guard = if group.protection.executable() {
        granule.bytes() as u32
    } else {
        0
    };
    (chunk.offset + guard, chunk.size - guard)
}

impl Window {
    fn pool(&mut self, group: AllocGroup, granule: Alignment) -> &mut Pool {
        self.pools[pool_index(group)].get_or_insert_with(|| {
            Box::new(Pool {
                group,
                ranges: Ranges::new(granule.bytes() as u32),
                chunks: Vec::new(),
                next_size: FIRST_CHUNK,
            })
        })
    }

    fn add_chunk(
        &mut self,
        range: AddressRange,
        group: AllocGroup,
        granule: Alignment,
        prepared: Prepared,
    ) {
        let narrow = |value: u64| u32::try_from(value).expect("windows are below 2 GiB");
        let offset = narrow(range.start() - self.origin);
        let state = ChunkState {
            offset,
            size: narrow(range.size()),
            working: prepared.working,
            mappings: prepared.mappings,
            used_up_to: offset,
            live: 0,
        };
        self.restore_chunk(group, granule, state);
    }

    fn restore_chunk(&mut self, group: AllocGroup, granule: Alignment, state: ChunkState) {
        let pool = self.pool(group, granule);
        let region = match pool.chunks.iter().position(Option::is_none) {
            Some(vacant) => vacant,
            None => {
                pool.chunks.push(None);
                pool.chunks.len() - 1
            }
        };
        let (start, size) = usable(&state, group, granule);
        pool.ranges.add_region(region as RegionId, start, size);
        pool.chunks[region] = Some(state);
    }

    /// Takes a range for each segment, or none at all and says which segment found no room.
    fn take_all(&mut self, planned: &[Planned], index: usize) -> Result<Pieces, Planned> {
        let mut pieces = Pieces::new();
        for planned in planned {
            match self.take(planned, index) {
                Some(piece) => pieces.push(piece),
                None => {
                    for piece in &pieces {
                        let pool = self.pools[piece.pool as usize].as_mut();
                        pool.expect("it was just used").ranges.free(piece.id);
                    }
                    return Err(*planned);
                }
            }
        }
        for piece in &mut pieces {
            let pool = self.pools[piece.pool as usize]
                .as_mut()
                .expect("it was just used");
            let chunk = pool.chunks[piece.region as usize]
                .as_mut()
                .expect("it was just used");
            let start = (piece.address - self.origin) as u32;
            let end = start + piece.size;
            let content_end = start + piece.content;
            piece.dirty = chunk.used_up_to.clamp(content_end, end.max(content_end)) - content_end;
            chunk.used_up_to = chunk.used_up_to.max(end);
            chunk.live += 1;
        }
        Ok(pieces)
    }

    fn take(&mut self, planned: &Planned, index: usize) -> Option<Piece> {
        let pool_index = pool_index(planned.group);
        let pool = self.pools[pool_index].as_mut()?;
        let handed = pool.ranges.allocate(planned.size, planned.alignment)?;
        let chunk = pool.chunks[handed.region as usize]
            .as_ref()
            .expect("regions are chunks");
        let memory = match chunk.working {
            Working::Shared(writer) => {
                let part = writer.part_of(handed.start - chunk.offset, handed.size);
                Memory::Shared(part.pointer())
            }
            Working::Copied => Memory::Copied(None),
        };
        Some(Piece {
            address: self.origin + u64::from(handed.start),
            size: handed.size,
            requested: planned.size,
            content: planned.content,
            dirty: 0,
            id: handed.id,
            region: handed.region,
            window: index as u16,
            pool: pool_index as u8,
            group: planned.group,
            segment: planned.index as u32,
            memory,
        })
    }
}
