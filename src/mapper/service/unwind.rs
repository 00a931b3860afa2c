// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Frames of linked code in an index that the executor reads, in place of actions that register them: so an
//! allocation that has no other actions needs no message.
//!
//! Each window has an index, which the executor is told of before it is told of the window's first chunk. Where
//! the executor asks for none or has no room for one, and for what an index can't name, the actions stay.

use super::change::Changes;
use crate::completion::Completion;
use crate::error::Result;
use crate::group::{Lifetime, Protection};
use crate::lock::Mutex;
use crate::mapper::{Action, FoundBy, FrameCounts, Registration, SegmentContent, WrapperCall};
use crate::memory::writer_view::WriterView;
use crate::page::AddressRange;
use crate::sys::{self, MemFile};
use crate::unwind::eh_frame::{Bytes, Function, Functions};
use crate::unwind::index::{self, Entered, IndexWriter};
use crate::wire::service::FrameFunctions;
use crate::wire::sps::{AddrRange, from_bytes};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The indexes of a session.
pub(super) struct Unwinding {
    functions: FrameFunctions,
    /// Windows have indexes that this process writes; else the executor has its own, which its actions enter frames
    /// into.
    shares: bool,
    indexes: Arc<Mutex<Vec<Arc<WindowIndex>>>>,
    indexed: AtomicU64,
    registered: AtomicU64,
    /// A window has no index though the executor asks for one.
    short: Arc<AtomicBool>,
}

pub(super) struct WindowIndex {
    window: AddressRange,
    writer: IndexWriter,
    /// What it is written through.
    _view: WriterView,
    /// The executor looks in it.
    ready: AtomicBool,
}

/// What an index has of one allocation, until it is taken out.
pub(crate) struct IndexedFrames {
    index: Arc<WindowIndex>,
    entered: Entered,
}

impl std::fmt::Debug for IndexedFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} functions", self.entered.len())
    }
}

impl IndexedFrames {
    /// They are not found from then on.
    pub(super) fn take_out(&self) {
        self.index.writer.take_out(&self.entered);
    }
}

impl Unwinding {
    /// For an executor that has said which calls an index stands for.
    pub(super) fn new(functions: FrameFunctions, shares: bool) -> Unwinding {
        Unwinding {
            functions,
            shares,
            indexes: Arc::default(),
            indexed: AtomicU64::new(0),
            registered: AtomicU64::new(0),
            short: Arc::default(),
        }
    }

    /// What makes the index of a window that is about to be reserved.
    pub(super) fn maker(&self, changes: &Changes) -> impl Fn(AddressRange) + Send + use<> {
        let (asked, changes) = (self.functions.asked && self.shares, changes.clone());
        let (indexes, short) = (Arc::clone(&self.indexes), Arc::clone(&self.short));
        move |window| {
            // Without it, frames are registered.
            let made = asked.then(|| make(window));
            match made {
                Some(Ok((index, file))) => {
                    indexes.lock().push(Arc::clone(&index));
                    let shown = index.when_shown(&short);
                    changes.index(window.into(), &file, shown);
                }
                Some(Err(_)) => short.store(true, Ordering::Relaxed),
                None => {}
            }
        }
    }

    /// An index for a window that several executors may have.
    pub(super) fn make_for_several(
        &self,
        window: AddressRange,
    ) -> Option<(Arc<WindowIndex>, MemFile)> {
        if !self.functions.asked {
            return None;
        }
        let made = make(window).ok();
        self.short.fetch_or(made.is_none(), Ordering::Relaxed);
        made
    }

    /// Has the index of a window, and gives what is called once all executors have been told of it.
    pub(super) fn add(&self, index: Arc<WindowIndex>) -> Completion<()> {
        self.indexes.lock().push(Arc::clone(&index));
        index.when_shown(&self.short)
    }

    /// Forgets the index of a window that is given back.
    pub(super) fn forget(&self, window: AddressRange) {
        self.indexes.lock().retain(|index| index.window != window);
    }

    /// What the executor has for sections that are in no index.
    pub(super) fn registration(&self) -> Option<Registration> {
        let FrameFunctions {
            register,
            deregister,
            ..
        } = self.functions;
        (register.0 != 0).then_some(Registration {
            register: register.0,
            deregister: deregister.0,
        })
    }

    /// How frames become known, and of how many allocations.
    pub(super) fn frames(&self) -> FrameCounts {
        FrameCounts {
            found_by: match (self.functions.asked, self.short.load(Ordering::Relaxed)) {
                (false, _) => FoundBy::UnwinderAsksNone,
                (true, true) => FoundBy::NoRoom,
                (true, false) => FoundBy::Index,
            },
            indexed: self.indexed.load(Ordering::Relaxed),
            registered: self.registered.load(Ordering::Relaxed),
        }
    }

    /// Enters the frames that one of the actions would register, and removes that. The chunks of the
    /// segments are mapped.
    pub(super) fn enter(
        &self,
        actions: &mut Vec<Action>,
        segments: &[SegmentContent],
        read: Read<'_>,
    ) -> Option<IndexedFrames> {
        self.registration()?.once(actions);
        let (place, section) = self.registering(actions)?;
        let frames = self.entered(section, segments, read);
        let by_action = self.functions.asked && !self.shares;
        let count = match frames.is_some() || by_action {
            true => &self.indexed,
            false => &self.registered,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let frames = frames?;
        actions.remove(place);
        Some(frames)
    }

    /// The action that registers a section, if there is exactly one.
    fn registering(&self, actions: &[Action]) -> Option<(usize, AddressRange)> {
        let mut all = actions
            .iter()
            .enumerate()
            .filter_map(|(place, action)| Some((place, self.section(action)?)));
        let first = all.next()?;
        all.next().is_none().then_some(first)
    }

    fn section(&self, action: &Action) -> Option<AddressRange> {
        if self.functions.register.0 == 0 {
            return None;
        }
        let range = |call: &WrapperCall, function: u64| {
            let matches = call.function() == function;
            matches.then(|| from_bytes::<AddrRange>(call.args()).ok()?.range())?
        };
        let section = range(&action.finalize, self.functions.register.0)?;
        let other = range(&action.dealloc, self.functions.deregister.0)?;
        (section == other).then_some(section)
    }

    fn entered(
        &self,
        section: AddressRange,
        segments: &[SegmentContent],
        read: Read<'_>,
    ) -> Option<IndexedFrames> {
        let index = {
            let indexes = self.indexes.lock();
            let index = indexes.iter().find(|index| index.window.contains(section));
            Arc::clone(index.filter(|index| index.ready.load(Ordering::Acquire))?)
        };
        let within = |part: AddressRange, kind: fn(Protection) -> bool| {
            segments.iter().any(|segment| {
                let lasting = segment.group.lifetime == Lifetime::Standard;
                lasting && kind(segment.group.protection) && segment.range.contains(part)
            })
        };
        if !within(section, |protection| !protection.writable()) {
            return None;
        }
        let mut found: Option<SmallVec<[Function; 4]>> = None;
        read(section, &mut |bytes| {
            let functions = Functions::from(bytes, section.start());
            let lasting = |function: &Function| within(function.code, Protection::executable);
            found = functions
                .map(|function| function.ok().filter(lasting))
                .collect();
        });
        let functions = found?;
        if overlap(&functions, segments) {
            return None;
        }
        let entered = index.writer.enter(&functions)?;
        Some(IndexedFrames { index, entered })
    }
}

/// Whether functions have more code than there is. To enter those costs time by their code's size, which a section
/// of a few bytes for each may make as large as it likes; the executor's unwinder gets them as they are.
fn overlap(functions: &[Function], segments: &[SegmentContent]) -> bool {
    let code = segments
        .iter()
        .filter(|segment| segment.group.protection.executable());
    let there: u64 = code.map(|segment| segment.range.size()).sum();
    let said: u64 = functions.iter().map(|function| function.code.size()).sum();
    said > there
}

/// Shows what is written to a section, if it is in shared pages.
pub(super) type Read<'a> = &'a dyn Fn(AddressRange, &mut dyn FnMut(Bytes));

impl WindowIndex {
    /// What is called with the executor's answer.
    fn when_shown(self: Arc<Self>, short: &Arc<AtomicBool>) -> Completion<()> {
        let short = Arc::clone(short);
        Completion::new(move |answer: Result<()>| {
            self.ready.store(answer.is_ok(), Ordering::Release);
            short.fetch_or(answer.is_err(), Ordering::Relaxed);
        })
    }
}

#[allow(unsafe_code)]
fn make(window: AddressRange) -> Result<(Arc<WindowIndex>, MemFile)> {
    let size = index::size_for(window, sys::page_size());
    // The executor maps it where it likes; here it is as far from the window as what is written there.
    let place =
        AddressRange::new(window.start(), size).expect("an index is smaller than its window");
    let (view, file) = WriterView::new(place, Protection::READ, false)?;
    // SAFETY: the view is new, so it is zero, and stays as long as the writer.
    let writer = unsafe { IndexWriter::new(window, window.start(), view.address()) };
    let index = Arc::new(WindowIndex {
        window,
        writer,
        _view: view,
        ready: AtomicBool::new(false),
    });
    Ok((index, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_overlap_are_not_entered() {
        let segment = |start, protection: Protection| SegmentContent {
            range: AddressRange::new(start, 4096).unwrap(),
            group: protection.into(),
            content: None,
            zeroed: true,
        };
        let segments = [
            segment(0x10_0000, Protection::READ_EXEC),
            segment(0x20_0000, Protection::READ),
        ];
        let functions = |sizes: &[u64]| -> Vec<Function> {
            let function = |size: &u64| Function {
                code: AddressRange::new(0x10_0000, *size).unwrap(),
                description: 0x20_0000,
            };
            sizes.iter().map(function).collect()
        };
        assert!(!overlap(&functions(&[4000, 96]), &segments));
        assert!(overlap(&functions(&[4000, 97]), &segments));
        assert!(overlap(&functions(&[4096; 1000]), &segments));
    }
}
