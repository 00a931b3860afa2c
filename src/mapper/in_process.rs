// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor is this process.

use super::actions::{join, run_dealloc, run_finalize};
use super::in_place::InPlace;
use super::{
    Action, Capabilities, Chunk, Deinitialization, Discards, FoundBy, FrameCounts, Kind,
    MapperBase, MemoryMapper, Prepared, Registration, Reserved, SegmentContent, Teardown, Working,
};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::{AllocGroup, Protection};
use crate::memory::placement::Placement;
use crate::memory::reservation::Reservation;
use crate::memory::staged::Adoption;
use crate::memory::view::{Pages, View};
use crate::memory::window::reserve_window;
use crate::memory::writer::Writer;
use crate::page::{AddressRange, PACKING_GRANULE};
use crate::sys::{self, AtForkMutex};
use crate::unwind::{registration, unwinder};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Which in-process mapper to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InProcessKind {
    /// Two views if one probe shows that the system allows them and no debugger is there, else
    /// mprotect. A debugger is there if a process traces this one, or if the environment has
    /// `JITMEM_DEBUG=1`; with `JITMEM_DEBUG=0` none is.
    Auto,
    /// Two views of shared anonymous memory or, where the system refuses that, of sealed memfds.
    TwoViews,
    /// Private pages whose protection changes for each copy. Debuggers can set software breakpoints
    /// there. It takes whole pages and system calls per allocation, and code pages are writable for
    /// a moment.
    Mprotect,
    /// Private pages that are written at their own addresses until finalize gives them their protection, for
    /// linkers that know one address per section. Whole pages and a system call per segment of code or
    /// constants, at finalize and at deallocate. No page that was sealed becomes writable again: it is
    /// replaced. Systems that refuse to make written memory executable (`PR_SET_MDWE`, SELinux's
    /// `execmem`) refuse this mapper.
    InPlace,
}

/// Bytes of code from which on it is worth two system calls to know what was written of them.
const MUCH_CODE: u64 = 64 << 10;

/// The mapper of this process's own memory.
pub(crate) struct InProcess {
    capabilities: Capabilities,
    /// What two views are of; `None`: one view, by mprotect.
    two_views: Option<Pages>,
    /// One view, in place.
    in_place: Option<InPlace>,
    windows: AtForkMutex<Vec<MappedWindow>>,
}

struct MappedWindow {
    reservation: Reservation,
    /// By the address of the chunk.
    views: BTreeMap<u64, View>,
}

impl InProcess {
    /// Probes once if `kind` leaves the choice to us.
    ///
    /// # Errors
    /// With [`InProcessKind::TwoViews`] and [`InProcessKind::InPlace`], why the system refuses them.
    pub(crate) fn new(kind: InProcessKind) -> Result<InProcess> {
        let (two_views, fallback) = choose(kind)?;
        let in_place = match kind {
            InProcessKind::InPlace => Some(InPlace::new()?),
            _ => None,
        };
        let page_size = sys::page_size();
        let (name, kind, granule) = match two_views {
            Some(Pages::Anonymous) => ("in-process, two views", Kind::TwoViews, PACKING_GRANULE),
            Some(Pages::Memfd) => (
                "in-process, two views of memfds",
                Kind::TwoViews,
                PACKING_GRANULE,
            ),
            None if in_place.is_some() => ("in-process, in place", Kind::InPlace, page_size),
            None => ("in-process, mprotect", Kind::Mprotect, page_size),
        };
        let capabilities = Capabilities {
            granule,
            shared: two_views.is_some(),
            coherent: two_views.is_some() && sys::COHERENT_FETCH,
            in_this_process: true,
            fallback,
            ..Capabilities::new(kind, name, page_size)
        };
        Ok(InProcess {
            capabilities,
            two_views,
            in_place,
            windows: AtForkMutex::default(),
        })
    }

    fn add_window(&self, size: u64, least: u64, placement: Placement) -> Result<Reserved> {
        let reservation = reserve_window(size, least, placement)?;
        let reserved = Reserved {
            range: reservation.range(),
            in_reach: reservation.in_reach(),
        };
        self.windows.lock().push(MappedWindow {
            reservation,
            views: BTreeMap::new(),
        });
        Ok(reserved)
    }

    /// Nothing lies in a range any more.
    fn forget(&self, range: AddressRange) {
        if let Some(in_place) = &self.in_place {
            in_place.forget(range);
        }
    }

    /// Has something done with the view that holds a range.
    fn with_view<T>(
        &self,
        range: AddressRange,
        act: impl FnOnce(&mut View) -> Result<T>,
    ) -> Result<T> {
        let mut windows = self.windows.lock();
        let view = windows.iter_mut().find_map(|window| {
            let (_, view) = window.views.range_mut(..=range.start()).next_back()?;
            view.executor().contains(range).then_some(view)
        });
        act(view.ok_or_else(|| invalid_argument(format!("{range:?} lies in no chunk")))?)
    }

    /// The window that holds a range.
    fn reservation_of(&self, range: AddressRange) -> Result<Reservation> {
        let windows = self.windows.lock();
        Ok(windows[position(&windows, range)?].reservation.clone())
    }

    /// Opens the pages of a copied segment for writing; they are never executable meanwhile.
    #[allow(unsafe_code)]
    fn rewrite(range: AddressRange, group: AllocGroup, write: impl FnOnce(Writer)) -> Result<()> {
        let failed = |what: &str, error| {
            let (size, start) = (range.size(), range.start());
            sys::explain_mapping(format_args!("{what} {size} bytes at {start:#x}"), error)
        };
        let pages = range
            .rounded_out(sys::page_size())
            .expect("a mapped range ends below the last page");
        // SAFETY: the manager passes the places of its allocations, which lie in chunks of this
        // mapper and have their pages for themselves; linked code does not run there yet, or no
        // more.
        let protect = |protection| unsafe { sys::protect(pages.start(), pages.size(), protection) };
        protect(Protection::READ_WRITE).map_err(|error| failed("make writable", error))?;
        // SAFETY: as above; the pages were just opened, and the writer goes at once.
        write(unsafe { Writer::new(range.start(), range.size()) });
        protect(group.protection).map_err(|error| failed("set the protection of", error))
    }

    /// Copies one segment in.
    fn copy_in(segment: &SegmentContent, content: &[u8]) -> Result<()> {
        Self::rewrite(segment.range, segment.group, |writer| {
            writer.write(0, content);
            let written = content.len() as u64;
            if !segment.zeroed {
                writer.zero(written, segment.range.size() - written);
            }
        })
    }

    /// Makes a copied segment's code trap, as far as anything was ever written there.
    fn make_trap(range: AddressRange, group: AllocGroup) -> Result<()> {
        if !group.protection.executable() {
            return Ok(());
        }
        let written = match range.rounded_out(sys::page_size()) {
            Some(pages) if range.size() > MUCH_CODE => sys::touched(pages).ok(),
            _ => None,
        };
        if written.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        let written = written.unwrap_or_else(|| vec![range]);
        let parts = || {
            written.iter().map(|part| {
                let start = part.start().max(range.start());
                (start, part.end().min(range.end()) - start)
            })
        };
        let fill = |writer: Writer| {
            for (start, size) in parts() {
                // Windows are below 2 GiB, so both fit.
                let part = writer.part_of((start - range.start()) as u32, size as u32);
                part.fill_with_traps();
            }
        };
        Self::rewrite(range, group, fill)
            .map_err(|error| error.context("fill freed code with traps"))?;
        parts().for_each(|(start, size)| sys::flush_instruction_cache(start, size));
        Ok(())
    }

    fn initialize_here(
        &self,
        segments: &[SegmentContent],
        mut actions: Vec<Action>,
    ) -> Result<Teardown> {
        Registration::own().once(&mut actions);
        for (index, segment) in segments.iter().enumerate() {
            if let Err(error) = self.make_visible(segment) {
                return Err(self.undo(&segments[..=index], error));
            }
        }
        if segments.iter().any(|one| one.group.protection.executable()) {
            sys::synchronize_fetches();
        }
        let calls = actions.into_iter().map(|one| (one.finalize, one.dealloc));
        match run_finalize(calls) {
            Ok(dealloc) if dealloc.is_empty() => Ok(Teardown::Nothing),
            Ok(dealloc) => Ok(Teardown::Calls(Box::new(dealloc))),
            Err(error) => Err(self.undo(segments, error)),
        }
    }

    fn make_visible(&self, segment: &SegmentContent) -> Result<()> {
        if self.in_place.is_some() && !segment.group.protection.writable() {
            let reservation = self.reservation_of(segment.range)?;
            InPlace::seal(&reservation, segment.range, segment.group.protection)?;
        }
        if let Some(content) = &segment.content {
            Self::copy_in(segment, content.content())?;
        }
        if segment.group.protection.executable() {
            sys::flush_instruction_cache(segment.range.start(), segment.range.size());
        }
        Ok(())
    }

    /// Has what was sealed replaced by new memory.
    fn make_new(&self, in_place: &InPlace, range: AddressRange, group: AllocGroup) -> Result<()> {
        match group.protection.writable() {
            true => Ok(()),
            false => in_place.make_new(&self.reservation_of(range)?, range),
        }
    }

    /// Makes code that was copied in trap again, and new what was sealed.
    fn undo(&self, segments: &[SegmentContent], mut error: Error) -> Error {
        if let Some(in_place) = &self.in_place {
            for segment in segments {
                if let Err(second) = self.make_new(in_place, segment.range, segment.group) {
                    error = error.join(second);
                }
            }
            return error;
        }
        for segment in segments.iter().filter(|segment| segment.content.is_some()) {
            if let Err(second) = Self::make_trap(segment.range, segment.group) {
                error = error.join(second);
            }
        }
        error
    }
}

/// Which window holds a range.
fn position(windows: &[MappedWindow], range: AddressRange) -> Result<usize> {
    let contains = |window: &MappedWindow| window.reservation.range().contains(range);
    windows.iter().position(contains).ok_or_else(|| {
        let message = format!("chunk {range:?} lies in no window of this mapper");
        Error::new(Status::Internal, message)
    })
}

/// What two views are to be of, and why nothing better is.
fn choose(kind: InProcessKind) -> Result<(Option<Pages>, Option<String>)> {
    match kind {
        InProcessKind::Mprotect | InProcessKind::InPlace => return Ok((None, None)),
        InProcessKind::Auto => {
            if let Some(reason) = sys::debugging() {
                return Ok((None, Some(reason)));
            }
        }
        InProcessKind::TwoViews => (),
    }
    let Err(anonymous) = probe(Pages::Anonymous) else {
        return Ok((Some(Pages::Anonymous), None));
    };
    let anonymous = format!("two views of anonymous memory are not to be had: {anonymous}");
    match probe(Pages::Memfd) {
        Ok(()) => Ok((Some(Pages::Memfd), Some(anonymous))),
        Err(memfd) if kind == InProcessKind::Auto => Ok((
            None,
            Some(format!(
                "{anonymous}; two views of a memfd neither: {memfd}"
            )),
        )),
        Err(memfd) => Err(memfd.context(anonymous)),
    }
}

/// Tries two views once, on one page. What is short for the moment is no refusal.
fn probe(pages: Pages) -> Result<()> {
    match try_two_views(pages) {
        Err(error) if error.is_passing() => Ok(()),
        other => other,
    }
}

fn try_two_views(pages: Pages) -> Result<()> {
    let page = sys::page_size().bytes();
    let reservation =
        Reservation::new(page, Placement::Default).or_else(|_| Reservation::anywhere(page))?;
    let (range, code) = (reservation.range(), Protection::READ_EXEC);
    let view = View::two(pages, &reservation, range, code, false)?;
    view.unmap().map_err(|(_, error)| error)
}

impl MapperBase for InProcess {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn registration(&self) -> Option<Registration> {
        Some(Registration::own())
    }

    fn frames(&self) -> FrameCounts {
        let (indexed, registered) = registration::counts();
        FrameCounts {
            found_by: match unwinder::asked() {
                true => FoundBy::Index,
                false => FoundBy::UnwinderAsksNone,
            },
            indexed,
            registered,
        }
    }
}

impl MemoryMapper for InProcess {
    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        done.complete(self.add_window(size, least, placement));
    }

    #[allow(unsafe_code)]
    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let Chunk {
            range,
            group,
            commit,
        } = chunk;
        let protection = group.protection;
        let reservation = self.reservation_of(range)?;
        // Data that the executor may write is private to the process and written in place.
        let pages = self.two_views.filter(|_| !protection.writable());
        let sealed_later = self.in_place.is_some() && !protection.writable();
        let copied = pages.is_none() && !protection.writable() && !sealed_later;
        let view = match pages {
            Some(pages) => View::two(pages, &reservation, range, protection, commit)?,
            None if sealed_later => View::unsealed(&reservation, range, commit)?,
            None => View::one(&reservation, range, protection, commit)?,
        };
        // SAFETY: the view stays until `reclaim` or `release`, when the manager writes there no more;
        // and pages that are written in place are writable: those that will be sealed until then.
        let writer = (!copied).then(|| unsafe { view.writer() }).flatten();
        let working = match writer {
            Some(writer) if sealed_later => Working::InPlace(writer),
            Some(writer) => Working::Shared(writer),
            None => Working::Copied,
        };
        let prepared = Prepared {
            working,
            mappings: view.mappings(),
            // Pages that were to be had at once stay, and a sealed memfd lets none go.
            discards: match commit || pages == Some(Pages::Memfd) {
                true => Discards::Nothing,
                false => Discards::Pages,
            },
        };
        let mut windows = self.windows.lock();
        let window = position(&windows, range)?;
        windows[window].views.insert(range.start(), view);
        Ok(prepared)
    }

    fn open(&self, memory: AddressRange) -> Result<()> {
        let Some(in_place) = &self.in_place else {
            return Ok(());
        };
        let reservation = || self.reservation_of(memory);
        in_place.open(reservation, memory)
    }

    fn initialize(
        &self,
        segments: SmallVec<[SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        done.complete(self.initialize_here(&segments, actions));
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let mut result = Ok(());
        for allocation in allocations.iter().rev() {
            if let Teardown::Calls(calls) = &allocation.teardown {
                result = join(result, run_dealloc(calls));
            }
            for (range, group) in &allocation.copied {
                let freed = match &self.in_place {
                    Some(in_place) => self.make_new(in_place, *range, *group),
                    None => Self::make_trap(*range, *group),
                };
                result = join(result, freed);
            }
        }
        done.complete_with(result, delivery);
    }

    fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        let mapped = self.windows.lock();
        let mapped = mapped
            .iter()
            .filter(|window| windows.contains(&window.reservation.range()));
        let mut views = mapped.flat_map(|window| window.views.values());
        views.try_for_each(|view| view.set_open(open))
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        let mut windows = self.windows.lock();
        let window = windows
            .iter_mut()
            .find(|window| window.reservation.range().contains(chunk));
        let Some(window) = window else {
            return Err(invalid_argument(format!(
                "chunk {chunk:?} lies in no window"
            )));
        };
        let Some(view) = window.views.remove(&chunk.start()) else {
            return Err(invalid_argument(format!(
                "no chunk starts at {:#x}",
                chunk.start()
            )));
        };
        view.unmap().map_err(|(view, error)| {
            window.views.insert(chunk.start(), view);
            error
        })?;
        self.forget(chunk);
        Ok(())
    }

    fn discard(&self, pages: AddressRange) -> Result<()> {
        self.with_view(pages, |view| view.discard(pages))
    }

    fn collapse(&self, pages: AddressRange) -> Result<()> {
        self.with_view(pages, |view| view.collapse(pages))
    }

    fn adopt(&self, adoption: Adoption<'_>) -> Result<bool> {
        match self.two_views {
            Some(Pages::Anonymous) => self.with_view(adoption.part, |view| view.adopt(adoption)),
            // Sealed pages stay so.
            Some(Pages::Memfd) | None => Ok(false),
        }
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        let mut windows = self.windows.lock();
        let position = windows
            .iter()
            .position(|known| known.reservation.range() == window);
        let released = position.map(|index| windows.swap_remove(index));
        drop(windows);
        self.forget(window);
        done.complete(match released {
            Some(_) => Ok(()),
            None => Err(invalid_argument(format!(
                "no window is reserved at {window:?}"
            ))),
        });
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if !sys::children_are_known() {
            // A lock may be held for ever, and the child may still run code in its copy of the windows.
            std::mem::forget(std::mem::take(&mut self.windows));
        }
    }
}
