// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The windows of a session, the chunks in them, and what is written into pages of the executor's own.

use super::children::{self, ForChildren};
use super::files::open;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::fixed_code;
use crate::group::Protection;
use crate::memory::pages::PageSet;
use crate::memory::placement::{Placement, REACH};
use crate::memory::reservation::Reservation;
use crate::memory::view::{Pages, View};
use crate::memory::window::reserve_window;
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::sys::{self, AtForkMutex};
use crate::unwind::index;
use crate::unwind::registration::forget_within;
use crate::unwind::unwinder;
use crate::wire::service::{At, Content, Reply, Reserve, ReservedAt, Step};
use crate::wire::sps::AddrRange;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

pub(super) struct Windows {
    windows: AtForkMutex<Vec<SessionWindow>>,
    /// No page that linked code writes is another process's too.
    private_data: bool,
}

pub(super) struct SessionWindow {
    /// Where the unwinder looks for frames of code in it. Goes before the window does.
    index: Option<SessionIndex>,
    reservation: Reservation,
    /// By their first addresses.
    chunks: BTreeMap<u64, SessionChunk>,
    /// What the controller has given back, but the kernel would not take: until its place is wanted.
    refused: Vec<View>,
}

struct SessionIndex {
    _published: unwinder::PublishedIndex,
    entries: SessionChunk,
}

pub(super) struct SessionChunk {
    pub(super) view: View,
    pub(super) protection: Protection,
    pub(super) children: ForChildren,
}

fn range_of(range: AddrRange) -> Result<AddressRange> {
    range
        .range()
        .filter(|range| range.size() > 0)
        .ok_or_else(|| invalid_argument(format!("{range:x?} is no range of addresses")))
}

/// Windows take no more of a limit of address space than the programs' threads and heap leave: one part in so
/// many, unless the request needs more.
const PART_OF_LIMIT: u64 = 4;

fn fitting_window(size: u64, least: u64, limit: Option<u64>) -> u64 {
    let fitting = limit.map(|limit| sys::page_size().round_down(limit / PART_OF_LIMIT));
    fitting.map_or(size, |fitting| size.min(fitting.max(least)))
}

impl Windows {
    pub(super) fn new(private_data: bool) -> Windows {
        children::prepare();
        let windows = AtForkMutex::prepared(
            Vec::new(),
            |windows| children::copy(windows),
            children::forked,
        );
        Windows {
            windows,
            private_data,
        }
    }

    pub(super) fn reserve(&self, request: Reserve) -> Result<ReservedAt> {
        let page = sys::page_size();
        let Reserve { size, least, at } = request;
        if size == 0 || size > REACH || !page.divides(size) || least > size {
            return Err(invalid_argument(format!(
                "reserve {size} bytes, at least {least}: want a multiple of the executor's page \
                 size {}, below 2 GiB",
                page.bytes()
            )));
        }
        let placement = match at {
            At::Default {} => Placement::Default,
            At::Near { lowest, highest } => Placement::NearAll { lowest, highest },
            At::Fixed { address } => Placement::Fixed(address),
        };
        let size = fitting_window(size, least, sys::address_space_limit());
        let reservation = reserve_window(size, least, placement)?;
        let reserved = ReservedAt {
            range: reservation.range().into(),
            in_reach: reservation.in_reach(),
        };
        let mut windows = self.windows.lock();
        let room = windows.try_reserve(1);
        room.map_err(|_| sys::heap::exhausted("reserve a window"))?;
        windows.push(SessionWindow {
            index: None,
            reservation,
            chunks: BTreeMap::new(),
            refused: Vec::new(),
        });
        Ok(reserved)
    }

    pub(super) fn change(&self, steps: Vec<Step>, descriptors: Vec<OwnedFd>) -> Vec<Reply<()>> {
        let mut descriptors = descriptors.into_iter();
        let mut windows = self.windows.lock();
        let steps = steps.into_iter();
        let replies = steps
            .map(|step| self.step(&mut windows, step, &mut descriptors).into())
            .collect();
        drop(windows);
        unwinder::collect();
        replies
    }

    fn step(
        &self,
        windows: &mut Vec<SessionWindow>,
        step: Step,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<()> {
        match step {
            Step::Map { range, protection } => {
                let file = next(descriptors)?;
                self.check_shared(range, protection)?;
                Self::map(windows, range, protection, |window, range, protection| {
                    View::foreign(window, range, protection, file)
                })
            }
            Step::MapFile {
                range,
                protection,
                file,
            } => Self::map(windows, range, protection, |window, place, protection| {
                self.check_shared(range, protection.bits() as u8)?;
                let file = open(&file, protection.writable())?;
                View::foreign(window, place, protection, file)
            }),
            Step::MapPrivate { range, protection } => {
                let file = next(descriptors)?;
                Self::map(windows, range, protection, |window, range, protection| {
                    View::private(window, range, protection, file)
                })
            }
            Step::MapPrivateFile {
                range,
                protection,
                file,
            } => Self::map(windows, range, protection, |window, range, protection| {
                View::private(window, range, protection, open(&file, false)?)
            }),
            Step::MapOwn {
                range,
                protection,
                commit,
            } => Self::map(windows, range, protection, |window, range, protection| {
                if self.private_data {
                    return Err(not_private("pages of the executor's own", range));
                }
                if protection.writable() {
                    return View::one(window, range, protection, commit);
                }
                let two = |pages| View::two(pages, window, range, protection, commit);
                let view = two(Pages::Memfd).or_else(|error| match error.os_code() {
                    // RLIMIT_FSIZE admits no memfd of that size.
                    Some(libc::EFBIG) => two(Pages::Anonymous),
                    _ => Err(error),
                })?;
                if fixed_code::is_set() {
                    view.set_open(false)?;
                }
                Ok(view)
            }),
            Step::Unmap { range } => Self::unmap(windows, range_of(range)?),
            Step::Replace { range } => {
                let file = next(descriptors)?;
                Self::replace(windows, range_of(range)?, file)
            }
            Step::ReplaceFile { range, file } => {
                Self::replace(windows, range_of(range)?, open(&file, false)?)
            }
            Step::Keep { range, pages } => Self::keep(windows, range_of(range)?, pages),
            Step::Index { window } => {
                let file = next(descriptors)?;
                whole_window(windows, range_of(window)?)?.show_index(file)
            }
            Step::IndexFile { window, file } => {
                let window = whole_window(windows, range_of(window)?)?;
                window.show_index(open(&file, false)?)
            }
            Step::Release { range } => {
                let range = range_of(range)?;
                let position = windows
                    .iter()
                    .position(|window| window.reservation.range() == range);
                let position = position.ok_or_else(|| no_window(range))?;
                drop(windows.swap_remove(position));
                Ok(())
            }
        }
    }

    fn map(
        windows: &mut [SessionWindow],
        range: AddrRange,
        protection: u8,
        make: impl FnOnce(&Reservation, AddressRange, Protection) -> Result<View>,
    ) -> Result<()> {
        let range = range_of(range)?;
        let protection = Protection::from_bits(protection.into())?;
        let page = sys::page_size();
        if !page.divides(range.start()) || !page.divides(range.size()) {
            return Err(invalid_argument(format!(
                "chunk {range:?} does not consist of pages"
            )));
        }
        let window = window_of(windows, range)?;
        if let Some(view) = window.overlapping(range) {
            return Err(invalid_argument(format!(
                "chunk {range:?} overlaps the chunk at {:?}",
                view.executor()
            )));
        }
        window.clear(range)?;
        let view = make(&window.reservation, range, protection)?;
        let chunk = SessionChunk {
            view,
            protection,
            children: ForChildren::default(),
        };
        window.chunks.insert(range.start(), chunk);
        Ok(())
    }

    fn check_shared(&self, range: AddrRange, protection: u8) -> Result<()> {
        let writable = Protection::from_bits(protection.into())?.writable();
        match self.private_data && writable {
            true => Err(not_private("writable shared pages", range_of(range)?)),
            false => Ok(()),
        }
    }

    fn unmap(windows: &mut [SessionWindow], range: AddressRange) -> Result<()> {
        let window = window_of(windows, range)?;
        window.whole(range)?;
        let Some(chunk) = window.chunks.remove(&range.start()) else {
            return Ok(());
        };
        chunk.view.unmap().map_err(|(view, error)| {
            window.refused.push(view);
            error
        })
    }

    /// Another memfd in place of the one that a chunk has, which this process can't write: what is in use
    /// of it holds the same, so that threads may run it meanwhile.
    fn replace(windows: &mut [SessionWindow], range: AddressRange, file: OwnedFd) -> Result<()> {
        let chunk = window_of(windows, range)?.whole(range)?;
        if chunk.protection.writable() || !chunk.view.is_foreign() {
            return Err(invalid_argument(format!(
                "replace the memfd of the chunk at {range:?}: it has none of constant content"
            )));
        }
        chunk.view.replace(chunk.protection, file)
    }

    /// Gives the memory of a chunk of the executor's own pages back, but for some of them.
    fn keep(windows: &mut [SessionWindow], range: AddressRange, pages: Vec<u64>) -> Result<()> {
        let chunk = window_of(windows, range)?.whole(range)?;
        let keep = PageSet::of_words(pages);
        let size = range.size() / sys::page_size().bytes();
        if chunk.view.is_foreign() || u64::from(keep.all().end) < size {
            return Err(invalid_argument(format!(
                "keep {} pages of the chunk at {range:?}: they are not the executor's own, or not \
                 all of them were named",
                keep.count()
            )));
        }
        chunk.view.keep_only(chunk.protection, &keep)
    }

    /// Writes content into pages of our own; code in them is seen by the processor at once.
    pub(super) fn write(&self, content: &Content<'_>) -> Result<()> {
        let range = range_of(content.range)?;
        self.writing(range, |writer| {
            let size = content.bytes.0.len() as u64;
            if size > range.size() {
                return Err(invalid_argument(format!(
                    "{size} bytes of content for a segment of {} bytes",
                    range.size()
                )));
            }
            writer.write(0, content.bytes.0);
            if !content.zeroed {
                writer.zero(size, range.size() - size);
            }
            Ok(())
        })
    }

    /// Has private pages show what their memfd holds.
    pub(super) fn take_data(&self, range: AddrRange) -> Result<()> {
        let range = range_of(range)?;
        let mut windows = self.windows.lock();
        let chunk = window_of(&mut windows, range)?.chunk_with(range);
        match chunk.is_some_and(|view| view.take_content(range)) {
            true => Ok(()),
            false => Err(invalid_argument(format!(
                "{range:?} lies in no chunk of private data"
            ))),
        }
    }

    /// Makes code in pages of the executor's own trap.
    pub(super) fn trap(&self, range: AddrRange) -> Result<()> {
        self.writing(range_of(range)?, |writer| {
            writer.fill_with_traps();
            Ok(())
        })
    }

    fn writing(&self, range: AddressRange, write: impl FnOnce(Writer) -> Result<()>) -> Result<()> {
        let mut windows = self.windows.lock();
        let window = window_of(&mut windows, range)?;
        let chunk = window.chunk_with(range);
        let closed = chunk.filter(|_| fixed_code::is_set());
        closed.map_or(Ok(()), |view| view.set_open(true))?;
        // SAFETY: the lock is held, so the view stays until the writer goes. Data can be written, and
        // other pages of the executor's own have a view for it.
        let writer = chunk.and_then(|view| unsafe { view.writer() });
        let (Some(executor), Some(writer)) = (chunk.map(View::executor), writer) else {
            return Err(invalid_argument(format!(
                "{range:?} lies in no chunk of the executor's own pages"
            )));
        };
        let offset = range.start() - executor.start();
        // Windows are below 2 GiB, so both fit.
        let written = write(writer.part_of(offset as u32, range.size() as u32));
        closed.map_or(Ok(()), |view| view.set_open(false))?;
        written?;
        sys::flush_instruction_cache(range.start(), range.size());
        Ok(())
    }

    /// Makes code in shared pages seen by the processor.
    pub(super) fn flush(&self, range: AddrRange) -> Result<()> {
        let range = range_of(range)?;
        let mut windows = self.windows.lock();
        // Cache maintenance of what is not mapped would be a fault on AArch64; the lock keeps the chunk.
        if window_of(&mut windows, range)?.chunk_with(range).is_none() {
            let message = format!("make code at {range:?} seen: it lies in no chunk");
            return Err(invalid_argument(message));
        }
        sys::flush_instruction_cache(range.start(), range.size());
        Ok(())
    }

    /// Gives them all back with what is in them.
    pub(super) fn release_all(&self) {
        let windows = std::mem::take(&mut *self.windows.lock());
        for window in &windows {
            let range = window.reservation.range();
            forget_within(range);
            sys::deregister_debug_objects_within(range);
        }
        drop(windows);
        unwinder::collect();
    }

    /// Leaves them all as they are, for code still runs in one.
    pub(super) fn leave_all(&self) {
        std::mem::forget(std::mem::take(&mut *self.windows.lock()));
    }
}

fn not_private(what: &str, range: AddressRange) -> Error {
    Error::new(
        Status::Unsupported,
        format!(
            "map {what} at {range:?}: data is private in this session, so its memfds hold all that it \
             has; the controller must be able to make memfds of that size and to hand them over"
        ),
    )
}

fn next(descriptors: &mut impl Iterator<Item = OwnedFd>) -> Result<OwnedFd> {
    let few = || invalid_argument("a chunk without its memfd: the message carried too few");
    descriptors.next().ok_or_else(few)
}

fn window_of(windows: &mut [SessionWindow], range: AddressRange) -> Result<&mut SessionWindow> {
    let window = windows
        .iter_mut()
        .find(|window| window.reservation.range().contains(range));
    window.ok_or_else(|| invalid_argument(format!("{range:?} lies in no window of this session")))
}

fn no_window(range: AddressRange) -> Error {
    invalid_argument(format!("no window is reserved at {range:?}"))
}

fn whole_window(windows: &mut [SessionWindow], range: AddressRange) -> Result<&mut SessionWindow> {
    let window = windows
        .iter_mut()
        .find(|window| window.reservation.range() == range);
    window.ok_or_else(|| no_window(range))
}

impl SessionWindow {
    /// What other processes write: chunks, and the index.
    pub(super) fn chunks(&mut self) -> impl Iterator<Item = &mut SessionChunk> {
        let index = self.index.iter_mut().map(|index| &mut index.entries);
        self.chunks.values_mut().chain(index)
    }

    /// Has the unwinder look in an index of the controller's.
    fn show_index(&mut self, file: OwnedFd) -> Result<()> {
        let window = self.reservation.range();
        if self.index.is_some() {
            return Err(invalid_argument(format!("{window:?} has an index")));
        }
        let size = index::size_for(window, sys::page_size());
        let place = Reservation::far_from(window, size)?;
        let view = View::foreign(&place, place.range(), Protection::READ, file)?;
        self.index = Some(SessionIndex {
            _published: unwinder::publish(window, place),
            entries: SessionChunk {
                view,
                protection: Protection::READ,
                children: ForChildren::default(),
            },
        });
        Ok(())
    }

    /// The chunk that is exactly there.
    fn whole(&mut self, range: AddressRange) -> Result<&mut SessionChunk> {
        let chunk = self.chunks.get_mut(&range.start());
        chunk
            .filter(|chunk| chunk.view.executor() == range)
            .ok_or_else(|| invalid_argument(format!("no chunk is at {range:?}")))
    }

    fn overlapping(&self, range: AddressRange) -> Option<&View> {
        let (_, chunk) = self.chunks.range(..range.end()).next_back()?;
        let view = &chunk.view;
        view.executor().overlaps(range).then_some(view)
    }

    /// The chunk in which all of a range lies.
    fn chunk_with(&self, range: AddressRange) -> Option<&View> {
        let chunk = self.overlapping(range);
        chunk.filter(|view| view.executor().contains(range))
    }

    /// Unmaps what lies in a range that is about to be mapped anew, though it was given back before.
    fn clear(&mut self, range: AddressRange) -> Result<()> {
        let overlaps = |view: &View| view.executor().overlaps(range);
        while let Some(index) = self.refused.iter().position(overlaps) {
            if let Err((view, error)) = self.refused.swap_remove(index).unmap() {
                self.refused.push(view);
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fault::Faults;
    use crate::wire::sps::ExecutorAddr;
    use std::os::fd::AsFd;

    fn outcome(windows: &Windows, step: Step) -> Result<()> {
        let [Reply(reply)] = windows.change(vec![step], Vec::new()).try_into().unwrap();
        reply.map_err(Error::from)
    }

    #[test]
    fn windows_fit_the_limit_of_address_space() {
        let fitting = |least, limit| fitting_window(1 << 30, least, limit);
        assert_eq!(fitting(0, None), 1 << 30);
        assert_eq!(fitting(0, Some(4 << 30)), 1 << 30);
        assert_eq!(fitting(0, Some(1 << 30)), 256 << 20);
        // What a request needs is tried.
        assert_eq!(fitting(512 << 20, Some(1 << 30)), 512 << 20);
    }

    #[test]
    fn a_place_that_was_given_back_can_be_taken_though_the_kernel_refused_it() {
        let windows = Windows::new(false);
        let page = sys::page_size().bytes();
        let (size, least, at) = (64 * page, 64 * page, At::Default {});
        let window = windows.reserve(Reserve { size, least, at }).unwrap().range;
        let part = |first: u64, pages: u64| AddrRange {
            start: ExecutorAddr(window.start.0 + first * page),
            end: ExecutorAddr(window.start.0 + (first + pages) * page),
        };
        let map = |range| Step::MapOwn {
            range,
            protection: 1,
            commit: false,
        };
        outcome(&windows, map(part(0, 8))).unwrap();
        let kept = Faults::one(0, libc::ENOMEM);
        let error = outcome(&windows, Step::Unmap { range: part(0, 8) }).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(kept.failed().is_some());
        drop(kept);
        // It was given back all the same.
        let again = outcome(&windows, Step::Unmap { range: part(0, 8) }).unwrap_err();
        assert!(again.message().contains("no chunk is at"), "{again}");
        {
            let _faults = Faults::all_after(0, libc::ENOMEM);
            assert!(outcome(&windows, map(part(4, 8))).is_err());
        }
        outcome(&windows, map(part(4, 8))).unwrap();
        outcome(&windows, map(part(0, 4))).unwrap();
        let overlap = outcome(&windows, map(part(3, 2))).unwrap_err();
        assert!(overlap.message().contains("overlaps"), "{overlap}");
    }

    /// Windows of which there is one, of a page.
    fn with_a_page() -> (Windows, AddrRange) {
        let windows = Windows::new(false);
        let size = sys::page_size().bytes();
        let (least, at) = (size, At::Default {});
        let reserved = windows.reserve(Reserve { size, least, at });
        let page = reserved.unwrap().range;
        (windows, page)
    }

    #[test]
    fn code_that_lies_in_no_chunk_is_not_made_seen() {
        let (windows, range) = with_a_page();
        let error = windows.flush(range).unwrap_err();
        assert!(error.message().contains("lies in no chunk"), "{error}");
        let map = Step::MapOwn {
            range,
            protection: 1,
            commit: false,
        };
        outcome(&windows, map).unwrap();
        windows.flush(range).unwrap();
    }

    #[test]
    fn memfds_that_could_shrink_are_refused() {
        let (windows, range) = with_a_page();
        let file = sys::MemFile::holding(c"jitmem", &vec![0; range.size() as usize]).unwrap();
        let take = || {
            let file = file.as_fd().try_clone_to_owned().unwrap();
            let map = Step::Map {
                range,
                protection: 1,
            };
            let [Reply(reply)] = windows.change(vec![map], vec![file]).try_into().unwrap();
            reply.map_err(Error::from)
        };
        let error = take().unwrap_err();
        assert!(error.message().contains("not sealed"), "{error}");
        file.close_to_writers().unwrap();
        take().unwrap();
    }
}
