// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Compares jitmem's free-range structure with the well-kept allocator crates, on jitmem's use:
//! `cargo bench --bench ranges`. What the figures mean is in benches/README.md.

// Private modules of the library, which are arithmetic alone; their tests are not run here.
#[allow(dead_code, unused_imports)]
#[path = "../src/memory/paged.rs"]
mod paged;
#[allow(dead_code, unused_imports)]
#[path = "../src/memory/ranges/mod.rs"]
mod ranges;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::Arc;

/// What these modules need of the system.
mod sys {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::io;

    pub(crate) struct PageSize;

    impl PageSize {
        pub(crate) fn bytes(self) -> u64 {
            4096
        }
    }

    pub(crate) fn page_size() -> PageSize {
        PageSize
    }

    #[derive(Debug)]
    pub(crate) struct Pages {
        start: *mut u8,
        layout: Layout,
    }

    // SAFETY: it is an address; the tables that use it are one thread's here.
    unsafe impl Send for Pages {}
    // SAFETY: as above.
    unsafe impl Sync for Pages {}

    impl Pages {
        pub(crate) fn new(size: usize) -> io::Result<Pages> {
            let layout = Layout::from_size_align(size, 4096).expect("tables are small");
            // SAFETY: the size is not zero.
            let start = unsafe { System.alloc_zeroed(layout) };
            assert!(!start.is_null(), "the heap is full");
            Ok(Pages { start, layout })
        }

        pub(crate) fn pointer(&self) -> *mut u8 {
            self.start
        }

        #[allow(dead_code)]
        pub(crate) fn contains(&self, address: usize) -> bool {
            (self.start.addr()..self.start.addr() + self.layout.size()).contains(&address)
        }

        /// # Safety
        /// As in the library.
        #[allow(dead_code)]
        pub(crate) unsafe fn discard(&self, _start: usize, _size: usize) -> io::Result<()> {
            Ok(())
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: it was allocated with this layout.
            unsafe { System.dealloc(self.start, self.layout) }
        }
    }
}

/// Allocations of one pool start at multiples of this.
const GRANULE: u32 = 16;
const ROUNDS: usize = 15;
const MONOTONE: usize = 20_000;
const CHURN_STEPS: usize = 40_000;
const CHURN_LIVE: [usize; 2] = [500, 20_000];

#[derive(Clone, Copy)]
struct Request {
    size: u32,
    alignment: u32,
}

/// A range as the structure accounts for it, what it lost to rounding and alignment included.
#[derive(Clone, Copy)]
struct Extent {
    start: u32,
    size: u32,
}

/// What a structure does for jitmem: offsets out of one region, and their way back.
trait Structure {
    const NAME: &'static str;
    type Range: Copy;

    fn new(size: u32) -> Self;
    fn allocate(&mut self, request: Request) -> Option<Self::Range>;
    fn free(&mut self, range: Self::Range);
    /// First byte for the caller.
    fn start(&self, range: Self::Range) -> u32;
    fn extent(&self, range: Self::Range) -> Extent;

    /// Sizes of all free ranges, where `live` are the others.
    fn free_sizes(&self, region: u32, live: &[Self::Range]) -> Vec<u32> {
        let mut extents: Vec<Extent> = live.iter().map(|range| self.extent(*range)).collect();
        extents.sort_by_key(|extent| extent.start);
        let mut gaps = Vec::new();
        let mut end = 0;
        for extent in extents {
            assert!(extent.start >= end, "{}: ranges overlap", Self::NAME);
            gaps.push(extent.start - end);
            end = extent.start + extent.size;
        }
        gaps.push(region - end);
        gaps.retain(|gap| *gap > 0);
        gaps
    }
}

struct Ours(ranges::Ranges);

impl Structure for Ours {
    const NAME: &'static str = "jitmem's own";
    type Range = ranges::Handed;

    fn new(size: u32) -> Ours {
        let nodes = Arc::new(ranges::Nodes::new());
        nodes.make_spare(1 << 16).expect("the heap has room");
        let mut ranges = ranges::Ranges::new(GRANULE, nodes, 0);
        ranges.add_region(0, 0, size);
        Ours(ranges)
    }

    fn allocate(&mut self, request: Request) -> Option<ranges::Handed> {
        self.0.allocate(request.size, request.alignment)
    }

    fn free(&mut self, range: ranges::Handed) {
        self.0.free(range.id);
    }

    fn start(&self, range: ranges::Handed) -> u32 {
        range.start
    }

    fn extent(&self, range: ranges::Handed) -> Extent {
        Extent {
            start: range.start,
            size: range.size,
        }
    }
}

/// In units of the granule; it knows no alignment, so larger ones take more than they need.
struct OffsetAllocator(offset_allocator::Allocator);

#[derive(Clone, Copy)]
struct OffsetRange {
    allocation: offset_allocator::Allocation,
    start: u32,
}

impl Structure for OffsetAllocator {
    const NAME: &'static str = "offset-allocator";
    type Range = OffsetRange;

    fn new(size: u32) -> OffsetAllocator {
        OffsetAllocator(offset_allocator::Allocator::new(size / GRANULE))
    }

    fn allocate(&mut self, request: Request) -> Option<OffsetRange> {
        let slack = request.alignment.max(GRANULE) - GRANULE;
        let units = (request.size + slack).div_ceil(GRANULE);
        let allocation = self.0.allocate(units)?;
        let start = (allocation.offset * GRANULE).next_multiple_of(request.alignment);
        Some(OffsetRange { allocation, start })
    }

    fn free(&mut self, range: OffsetRange) {
        self.0.free(range.allocation);
    }

    fn start(&self, range: OffsetRange) -> u32 {
        range.start
    }

    fn extent(&self, range: OffsetRange) -> Extent {
        Extent {
            start: range.allocation.offset * GRANULE,
            size: self.0.allocation_size(range.allocation) * GRANULE,
        }
    }
}

struct RangeAlloc(range_alloc::RangeAllocator<u32>);

impl Structure for RangeAlloc {
    const NAME: &'static str = "range-alloc";
    type Range = Extent;

    fn new(size: u32) -> RangeAlloc {
        RangeAlloc(range_alloc::RangeAllocator::new(0..size))
    }

    fn allocate(&mut self, request: Request) -> Option<Extent> {
        let size = request.size.next_multiple_of(GRANULE);
        let alignment = request.alignment.max(GRANULE);
        let range = self.0.allocate_range_aligned(size, alignment).ok()?;
        Some(Extent {
            start: range.start,
            size: range.end - range.start,
        })
    }

    fn free(&mut self, range: Extent) {
        self.0.free_range(range.start..range.start + range.size);
    }

    fn start(&self, range: Extent) -> u32 {
        range.start
    }

    fn extent(&self, range: Extent) -> Extent {
        range
    }
}

type Tlsf = rlsf::Tlsf<'static, u32, u16, 24, 16>;

/// Keeps its records in the memory that it divides, so it gets a real buffer of the same size.
struct Rlsf {
    tlsf: Tlsf,
    buffer: NonNull<[u8]>,
    layout: Layout,
}

#[derive(Clone, Copy)]
struct RlsfRange {
    pointer: NonNull<u8>,
    alignment: usize,
}

impl Structure for Rlsf {
    const NAME: &'static str = "rlsf";
    type Range = RlsfRange;

    fn new(size: u32) -> Rlsf {
        let layout = Layout::from_size_align(size as usize, LARGEST_ALIGNMENT as usize)
            .expect("a size below 4 GiB is a layout");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { System.alloc_zeroed(layout) }).expect("the heap is full");
        // Touched beforehand: page faults are not its cost.
        // SAFETY: the buffer has as many bytes.
        unsafe { start.write_bytes(1, layout.size()) };
        let buffer = NonNull::slice_from_raw_parts(start, layout.size());
        let mut tlsf = Tlsf::new();
        // SAFETY: the buffer lives until `tlsf` is dropped and has no other user.
        let taken = unsafe { tlsf.insert_free_block_ptr(buffer) };
        let taken = taken.expect("the buffer is large enough").get();
        let buffer = NonNull::slice_from_raw_parts(start, taken);
        Rlsf {
            tlsf,
            buffer,
            layout,
        }
    }

    fn allocate(&mut self, request: Request) -> Option<RlsfRange> {
        let alignment = request.alignment.max(GRANULE) as usize;
        let layout = Layout::from_size_align(request.size as usize, alignment).ok()?;
        let pointer = self.tlsf.allocate(layout)?;
        Some(RlsfRange { pointer, alignment })
    }

    fn free(&mut self, range: RlsfRange) {
        // SAFETY: it was allocated here with this alignment and is freed once.
        unsafe { self.tlsf.deallocate(range.pointer, range.alignment) }
    }

    fn start(&self, range: RlsfRange) -> u32 {
        let base = self.buffer.cast::<u8>().as_ptr() as usize;
        u32::try_from(range.pointer.as_ptr() as usize - base).expect("it lies in the buffer")
    }

    fn extent(&self, range: RlsfRange) -> Extent {
        // SAFETY: it is live.
        let size = unsafe { Tlsf::allocation_usable_size(range.pointer) };
        Extent {
            start: self.start(range),
            size: u32::try_from(size).expect("it lies in the buffer"),
        }
    }

    /// Headers and padding in front belong to no live range's bytes, so gaps would not tell.
    fn free_sizes(&self, _region: u32, _live: &[RlsfRange]) -> Vec<u32> {
        // SAFETY: this is the one buffer inserted, with the size that insertion returned.
        let blocks = unsafe { self.tlsf.iter_blocks(self.buffer) };
        blocks
            .filter(|block| !block.is_occupied())
            .map(|block| u32::try_from(block.size()).expect("it lies in the buffer"))
            .collect()
    }
}

impl Drop for Rlsf {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and `tlsf` never touches it when dropped.
        unsafe { System.dealloc(self.buffer.cast().as_ptr(), self.layout) }
    }
}

/// xorshift64: the same requests for every structure, in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

const LARGEST_ALIGNMENT: u32 = 64 << 10;

/// Sizes 16 to 4096, equally many in each power of two. `mixed` alignment: 8 in 512 to a page, one
/// to 64 KiB, the others to 1 to 64; else all to the granule.
fn requests(count: usize, mixed: bool) -> Vec<Request> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut one = |_| {
        let power = 16 << random.below(8);
        let size = power + random.below(power as usize) as u32;
        let alignment = match random.below(512) {
            _ if !mixed => GRANULE,
            0 => LARGEST_ALIGNMENT,
            1..=8 => 4096,
            _ => 1 << random.below(7),
        };
        Request { size, alignment }
    };
    (0..count).map(&mut one).collect()
}

/// Nanoseconds of processor time.
fn now() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a place for the answer.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(answer, 0);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// What a live set costs in space.
#[derive(Clone, Copy, Default)]
struct Space {
    /// Bytes that are neither asked for nor free, per byte asked for.
    lost: f64,
    /// Largest free range, of all that is free.
    largest: f64,
    free_ranges: usize,
    /// From the first byte to the last one used, per byte asked for.
    span: f64,
    /// Requests that found no room.
    refused: usize,
}

fn space<S: Structure>(
    structure: &S,
    region: u32,
    live: &[(S::Range, Request)],
    refused: usize,
) -> Space {
    let asked: f64 = live
        .iter()
        .map(|(_, request)| f64::from(request.size))
        .sum();
    let ranges: Vec<S::Range> = live.iter().map(|(range, _)| *range).collect();
    for (range, request) in live {
        let (start, extent) = (structure.start(*range), structure.extent(*range));
        assert_eq!(start % request.alignment, 0, "{}", S::NAME);
        assert!(
            start + request.size <= extent.start + extent.size,
            "{}",
            S::NAME
        );
    }
    let sizes = structure.free_sizes(region, &ranges);
    let free: f64 = sizes.iter().copied().map(f64::from).sum();
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let end = |range: &S::Range| {
        let extent = structure.extent(*range);
        extent.start + extent.size
    };
    Space {
        lost: (f64::from(region) - free - asked) / asked,
        largest: f64::from(largest) / free,
        free_ranges: sizes.len(),
        span: f64::from(ranges.iter().map(end).max().unwrap_or(0)) / asked,
        refused,
    }
}

/// All rounds of one structure.
#[derive(Default)]
struct Figures {
    allocate: Vec<f64>,
    free: Vec<f64>,
    monotone: Space,
    churn: [Vec<f64>; CHURN_LIVE.len()],
    churned: [Space; CHURN_LIVE.len()],
}

fn monotone<S: Structure>(requests: &[Request], figures: &mut Figures) {
    const REGION: u32 = 64 << 20;
    let mut structure = S::new(REGION);
    let mut live = Vec::with_capacity(MONOTONE);
    let start = now();
    for request in &requests[..MONOTONE] {
        let range = structure
            .allocate(*request)
            .expect("the region is large enough");
        live.push((range, *request));
    }
    figures.allocate.push((now() - start) / MONOTONE as f64);
    figures.monotone = space(&structure, REGION, &live, 0);
    let start = now();
    for (range, _) in &live {
        structure.free(*range);
    }
    figures.free.push((now() - start) / MONOTONE as f64);
    let whole = structure.free_sizes(REGION, &[]);
    assert_eq!(whole.len(), 1, "{}: not all came back", S::NAME);
}

/// Frees one of `count` at random and allocates another, in a region twice as large as needed.
fn churn<S: Structure>(requests: &[Request], count: usize) -> (f64, Space) {
    let region = (count as u32 * 2048).next_multiple_of(LARGEST_ALIGNMENT);
    let mut structure = S::new(region);
    let mut live: Vec<Option<(S::Range, Request)>> = vec![None; count];
    let mut refused = 0;
    let mut random = Random(0xbf58_476d_1ce4_e5b9);
    let mut step = |victim: usize, request: Request, refused: &mut usize| {
        if let Some((range, _)) = live[victim] {
            structure.free(range);
        }
        live[victim] = structure.allocate(request).map(|range| (range, request));
        *refused += usize::from(live[victim].is_none());
    };
    let (warm_up, measured) = requests.split_at(requests.len() - CHURN_STEPS);
    for (victim, request) in (0..count).zip(warm_up) {
        step(victim, *request, &mut refused);
    }
    // Each range has been replaced several times when measuring begins.
    for request in &warm_up[count..5 * count] {
        step(random.below(count), *request, &mut refused);
    }
    refused = 0;
    let start = now();
    for request in measured {
        step(random.below(count), *request, &mut refused);
    }
    let time = (now() - start) / CHURN_STEPS as f64;
    let live: Vec<(S::Range, Request)> = live.into_iter().flatten().collect();
    (time, space(&structure, region, &live, refused))
}

fn round<S: Structure>(requests: &[Request], figures: &mut Figures) {
    monotone::<S>(requests, figures);
    for (index, count) in CHURN_LIVE.into_iter().enumerate() {
        let (time, space) = churn::<S>(requests, count);
        figures.churn[index].push(time);
        figures.churned[index] = space;
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

type Contender = (&'static str, fn(&[Request], &mut Figures));

fn contender<S: Structure>() -> Contender {
    (S::NAME, round::<S>)
}

fn compare(contenders: &[Contender], requests: &[Request]) -> Vec<Figures> {
    let none = || contenders.iter().map(|_| Figures::default()).collect();
    let mut figures: Vec<Figures> = none();
    for turn in 0..=ROUNDS {
        if turn == 1 {
            // The first one was to warm up.
            figures = none();
        }
        for place in 0..contenders.len() {
            let index = (turn + place) % contenders.len();
            contenders[index].1(requests, &mut figures[index]);
        }
    }
    figures
}

fn print_times(contenders: &[Contender], figures: &[Figures]) {
    println!("| | allocate | free in order | churn at 500 | churn at 20,000 |");
    println!("|---|--:|--:|--:|--:|");
    for ((name, _), figures) in contenders.iter().zip(figures) {
        let [small, large] = &figures.churn;
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} |",
            median(&figures.allocate),
            median(&figures.free),
            median(small),
            median(large)
        );
    }
}

fn print_space(contenders: &[Contender], figures: &[Figures]) {
    println!("| | after | lost | span | free ranges | largest of all free | refused |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for ((name, _), figures) in contenders.iter().zip(figures) {
        let [small, large] = figures.churned;
        let states = [
            ("allocate", figures.monotone),
            ("churn at 500", small),
            ("churn at 20,000", large),
        ];
        for (after, space) in states {
            println!(
                "| {name} | {after} | {:.1} % | {:.2} | {} | {:.1} % | {} |",
                space.lost * 100.0,
                space.span,
                space.free_ranges,
                space.largest * 100.0,
                space.refused
            );
        }
    }
}

fn main() {
    let contenders = [
        contender::<Ours>(),
        contender::<OffsetAllocator>(),
        contender::<RangeAlloc>(),
        contender::<Rlsf>(),
    ];
    println!("# Free-range structures");
    for (title, mixed) in [("Alignments mixed", true), ("All aligned to 16", false)] {
        let requests = requests(5 * CHURN_LIVE[1] + CHURN_STEPS, mixed);
        let figures = compare(&contenders, &requests);
        println!("\n{title}: ns of processor time per operation, then space\n");
        print_times(&contenders, &figures);
        println!();
        print_space(&contenders, &figures);
    }
}
