// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory section by section, for linkers that ask for one section after the other and know one address
//! of each.

use super::request::LARGEST_ALIGNMENT;
use super::{AllocationHandle, AllocationPhase, Core, InFlight, Label, Location, Manager, Segment};
use crate::completion::wait;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::mapper::{Action, Kind};
use crate::page::{AddressRange, Alignment};

/// Blocks of one kind grow to this.
const LARGEST_BLOCK: u64 = 1 << 20;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// Code: read and executed once it is finalized.
    Code,
    /// Constants: read once they are finalized.
    Constants,
    /// Data: read and written.
    Data,
}

impl SectionKind {
    fn protection(self) -> Protection {
        match self {
            SectionKind::Code => Protection::READ_EXEC,
            SectionKind::Constants => Protection::READ,
            SectionKind::Data => Protection::READ_WRITE,
        }
    }
}

/// The sections of one object, or of all objects of a host: they are finalized together and freed
/// together.
///
/// A section is written at its own address until [`SectionGroup::finalize`]; the sections of one kind
/// share pages until then. What is allocated after that lies in other pages and is finalized next. A label
/// with a JITDylib has all of it lie in one window, as a manager of one window does anyway. Dropping the
/// group frees it.
///
/// ```
/// use jitmem::{Alignment, Dylib, InProcessKind, Manager, Mapper, Options, SectionGroup, SectionKind};
///
/// let mapper = Mapper::in_process(InProcessKind::InPlace)?;
/// let manager = Manager::new(&mapper, Options::default())?;
/// let mut group = SectionGroup::new(&manager, Dylib(1))?;
/// let code = group.allocate(SectionKind::Code, 100, Alignment::of::<u128>())?;
/// // The linker writes at `code`, then:
/// group.finalize()?;
/// group.free()?;
/// # Ok::<(), jitmem::Error>(())
/// ```
pub struct SectionGroup {
    core: Core,
    label: Label,
    /// What sections are being put into, behind those that are [set aside](SectionGroup::set_aside).
    blocks: Vec<Block>,
    /// How many blocks are set aside.
    aside: usize,
    /// What the next finalize runs.
    actions: Vec<Action>,
    /// First to last.
    finalized: Vec<AllocationHandle>,
    /// Bytes of the blocks of each kind that there were since the last finalize.
    sizes: [u64; 3],
}

/// An allocation of one segment, into which sections of one kind are put.
struct Block {
    kind: SectionKind,
    in_flight: InFlight,
    start: u64,
    size: u64,
    used: u64,
}

impl Block {
    /// The offset of a section that fits.
    fn place(&self, size: u64, alignment: Alignment) -> Option<u64> {
        let offset = alignment.round_up(self.start + self.used)? - self.start;
        let end = offset.checked_add(size)?;
        (end <= self.size).then_some(offset)
    }
}

impl SectionGroup {
    /// A group without sections. Its label is that of all its allocations.
    ///
    /// # Errors
    /// `Unsupported` if the manager's memory is not written in place
    /// ([`InProcessKind::InPlace`](crate::InProcessKind::InPlace)); `InvalidHandle` in a forked child that
    /// may not use the manager.
    pub fn new(manager: &Manager, label: impl Into<Label>) -> Result<SectionGroup> {
        manager.check_process()?;
        let mapper = manager.core.mapper();
        if mapper.kind != Kind::InPlace {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "make a section group: the manager's mapper ({}) writes at other addresses than \
                     those where code runs; make the manager over a mapper that writes in place \
                     (JITMEM_IN_PROCESS_IN_PLACE)",
                    mapper.name
                ),
            ));
        }
        Ok(SectionGroup {
            core: manager.core.clone(),
            label: label.into(),
            blocks: Vec::new(),
            aside: 0,
            actions: Vec::new(),
            finalized: Vec::new(),
            sizes: [0; 3],
        })
    }

    /// Memory for a section, which reads zero. It is written there, at the address where it stays.
    ///
    /// # Errors
    /// As [`Manager::allocate`]; `InvalidArgument` for an alignment of more than 1 GiB.
    pub fn allocate(
        &mut self,
        kind: SectionKind,
        size: u64,
        alignment: Alignment,
    ) -> Result<*mut u8> {
        if alignment.bytes() > LARGEST_ALIGNMENT {
            return Err(invalid_argument(format!(
                "allocate: alignment {} is more than {LARGEST_ALIGNMENT}, the most that sections may have",
                alignment.bytes()
            )));
        }
        // Sections without bytes have addresses of their own.
        let size = size.max(1);
        let open = &mut self.blocks[self.aside..];
        let fitting = open.iter_mut().rev().find_map(|block| {
            let offset = block.place(size, alignment)?;
            (block.kind == kind).then_some((block, offset))
        });
        let (block, offset) = match fitting {
            Some(fitting) => fitting,
            None => (self.add_block(kind, size, alignment)?, 0),
        };
        block.used = offset + size;
        let memory = block.in_flight.working_memory(0);
        Ok(memory.wrapping_add(offset as usize))
    }

    /// Adds a block that has room for a section at its start.
    fn add_block(
        &mut self,
        kind: SectionKind,
        size: u64,
        alignment: Alignment,
    ) -> Result<&mut Block> {
        let no_room = |_| super::heap_is_full();
        self.blocks.try_reserve(1).map_err(no_room)?;
        // With those that finalize will add.
        let more = self.blocks.len() + 2;
        self.finalized.try_reserve(more).map_err(no_room)?;
        let page = self.core.mapper().page_size;
        let least = page
            .round_up(size)
            .ok_or_else(|| invalid_argument(format!("a section of {size} bytes: it overflows")))?;
        // With room for others, as much again as there is.
        let before = self.sizes[kind as usize];
        let most = least.max(before.min(LARGEST_BLOCK));
        let alignment = alignment.max(page);
        let block = match self.make_block(kind, most, alignment) {
            Err(error) if most > least && is_want_of_room(&error) => {
                self.make_block(kind, least, alignment)
            }
            made => made,
        }?;
        self.sizes[kind as usize] = before.saturating_add(block.size);
        self.blocks.push(block);
        Ok(self.blocks.last_mut().expect("it was just added"))
    }

    fn make_block(&self, kind: SectionKind, size: u64, alignment: Alignment) -> Result<Block> {
        let segment = Segment::new(kind.protection(), 0)
            .zero_fill(size)
            .aligned(alignment);
        let request = self.core.request([Ok(segment)], self.label.dylib().0);
        let request = self.core.labelled(request, self.label.clone())?;
        let allocated = self.core.allocate_and_wait(request)?;
        let in_flight = InFlight::new(&self.core, allocated);
        Ok(Block {
            kind,
            start: in_flight.address(0),
            in_flight,
            size,
            used: 0,
        })
    }

    /// Whether some bytes lie in a section, of this group or at least of its manager.
    pub(crate) fn holds(&self, bytes: AddressRange) -> bool {
        let block = |block: &Block| AddressRange::new(block.start, block.used);
        let is_finalized = |found: &Location| found.phase() == AllocationPhase::Finalized;
        let finalized = |found: Option<Location>| Some(found.filter(is_finalized)?.segment());
        let in_block =
            |range: Option<AddressRange>| range.is_some_and(|range| range.contains(bytes));
        self.blocks.iter().map(block).any(in_block)
            || in_block(finalized(self.core.lookup(bytes.start())))
    }

    /// Has the next finalize run an action, after the actions given before. Its twin runs when the group is
    /// freed. [`executor::eh_frame_action`](crate::executor::eh_frame_action) makes those that register frames
    /// for exceptions.
    pub fn on_finalize(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Gives all sections that were allocated since the last time their protection, then runs the actions,
    /// first to last.
    ///
    /// # Errors
    /// `OutOfMemory`, `Denied`, `ActionFailed`, as [`InFlight::finalize`]. The sections that were to be
    /// finalized are gone then, and what was finalized before stays.
    pub fn finalize(&mut self) -> Result<()> {
        let actions = std::mem::take(&mut self.actions);
        self.sizes = [0; 3];
        let before = self.finalized.len();
        let finalized = self.seal().and_then(|()| self.run(actions));
        if finalized.is_err() {
            self.blocks.truncate(self.aside);
            let gone: Vec<AllocationHandle> = self.finalized.drain(before..).collect();
            // They have no actions, and what the mapper says of it changes nothing.
            let _ = self.deallocate(&gone);
        }
        finalized
    }

    fn seal(&mut self) -> Result<()> {
        for block in self.blocks.drain(self.aside..) {
            self.finalized.push(block.in_flight.finalize_kept([])?);
        }
        Ok(())
    }

    /// Keeps the sections that were allocated since the last finalize as they are until the group is freed: readable,
    /// never executable, and in no page with what is allocated afterwards. For those that something may still read though they
    /// are never finalized.
    pub(crate) fn set_aside(&mut self) {
        self.aside = self.blocks.len();
        self.actions.clear();
        self.sizes = [0; 3];
    }

    /// Actions belong to an allocation without memory that is finalized last: so they are run when all is
    /// sealed, and undone before anything goes.
    fn run(&mut self, actions: Vec<Action>) -> Result<()> {
        if actions.is_empty() {
            return Ok(());
        }
        let request = self.core.request([], self.label.dylib().0);
        let request = self.core.labelled(request, self.label.clone())?;
        let allocated = self.core.allocate_and_wait(request)?;
        let in_flight = InFlight::new(&self.core, allocated);
        self.finalized.push(in_flight.finalize_kept(actions)?);
        Ok(())
    }

    fn deallocate(&self, allocations: &[AllocationHandle]) -> Result<()> {
        let numbers = super::numbers(allocations.iter().copied());
        match numbers.is_empty() {
            true => Ok(()),
            false => wait(|done| self.core.deallocate(&numbers, done)),
        }
    }

    /// Undoes the actions, last to first, and gives all sections back, those that are not finalized too.
    ///
    /// # Errors
    /// As [`Manager::deallocate`]; `OutOfMemory` may mean that nothing was done, and the group is as before.
    pub fn free(&mut self) -> Result<()> {
        self.blocks.clear();
        self.aside = 0;
        self.actions.clear();
        self.sizes = [0; 3];
        let freed = self.deallocate(&self.finalized);
        // What failed was before anything was done, or after all was.
        let core = &self.core;
        self.finalized
            .retain(|allocation| core.is_finalized(allocation.0));
        freed
    }
}

/// Whether less might be had.
fn is_want_of_room(error: &Error) -> bool {
    use Status::{OutOfMemory, QuotaExceeded, WindowFull};
    matches!(error.status(), WindowFull | QuotaExceeded | OutOfMemory)
}

impl Drop for SectionGroup {
    fn drop(&mut self) {
        // What could not be freed goes with the manager.
        let _ = self.free();
    }
}

impl std::fmt::Debug for SectionGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectionGroup")
            .field("in_flight", &self.blocks.len())
            .field("finalized", &self.finalized)
            .finish()
    }
}
