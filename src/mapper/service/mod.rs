// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor is another process that has our service: on this machine, with shared pages, or
//! anywhere, with content in messages.

mod batch;
mod change;
mod chunk;
mod descriptor_passing;
mod group;
mod initialize;
mod link;
mod reply;
mod unwind;

pub(crate) use group::{Candidate, GroupMapper};
pub use group::{GroupChange, GroupEvent, GroupExecutor, GroupObserver};
pub(crate) use unwind::IndexedFrames;

use super::custom::check_window;
use super::{
    Action, Capabilities, Chunk, Deinitialization, Discards, FrameCounts, Kind, MapperBase,
    MemoryMapper, Prepared, Registration, Reserved, SegmentContents, Teardown,
};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::lock::Mutex;
use crate::memory::pages::PageSet;
use crate::memory::placement::Placement;
use crate::memory::writer::Writer;
use crate::memory::writer_view::WriterView;
use crate::page::{AddressRange, Alignment, PACKING_GRANULE};
use crate::sys;
use crate::transport::limits::{Asked, Deadline, Patience};
use crate::transport::{ExecutorState, Transport};
use crate::wire::service::{At, Item, Reserve, ReservedAt, Step};
use crate::wire::sps::AddrRange;
use batch::Batches;
use change::Changes;
use chunk::Chunks;
use initialize::Initialize;
use link::Link;
use std::sync::Arc;
use unwind::Unwinding;

/// Bytes of a page on any machine.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 20;

/// A mapper over our executor service.
pub(crate) struct ServiceMapper {
    capabilities: Capabilities,
    shares: bool,
    link: Arc<Link>,
    changes: Changes,
    batches: Batches,
    chunks: Arc<Chunks>,
    unwinding: Arc<Unwinding>,
    windows: Arc<Mutex<Vec<AddressRange>>>,
}

impl ServiceMapper {
    /// Memory of another process on this machine, through shared pages: no byte of content is sent.
    /// `service` is the executor address of the service's `open`, `instance` its number.
    ///
    /// # Errors
    /// `Unsupported` if memfds can't be handed over, with every way that was tried; what the
    /// transport says.
    pub(crate) fn shared(
        transport: Arc<dyn Transport>,
        service: u64,
        instance: u64,
    ) -> Result<ServiceMapper> {
        Self::shared_with(transport, service, instance, false)
    }

    /// [`ServiceMapper::shared`]; `private` asks for data that is the executor's own once it is finalized, which
    /// an executor may choose by itself.
    ///
    /// # Errors
    /// As [`ServiceMapper::shared`]; `Unsupported` if the executor has no private data.
    pub(crate) fn shared_with(
        transport: Arc<dyn Transport>,
        service: u64,
        instance: u64,
        private: bool,
    ) -> Result<ServiceMapper> {
        let mut link = Link::open(transport, service, instance, private)?;
        let private_data = link.has_private_data();
        if private && !private_data {
            return Err(Error::new(
                Status::Unsupported,
                "open a session with private data: the executor's jitmem is an older release; use the \
                 same on both sides",
            ));
        }
        let passing = link.find_passing()?;
        let page_size = sys::page_size();
        if link.page_size() != page_size.bytes() {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "the executor's pages have {} bytes and the controller's {}: they can't share \
                     any",
                    link.page_size(),
                    page_size.bytes()
                ),
            ));
        }
        let failed = link.failed_passing();
        let capabilities = Capabilities {
            granule: PACKING_GRANULE,
            shared: true,
            // With private data the mapper looks at each allocation.
            coherent: link.is_coherent() && !private_data,
            private_data,
            // An executor that has chosen so by itself is supervised: it runs finalize actions again in each child.
            keeps_served: private_data && !private,
            fallback: (!failed.is_empty()).then(|| failed.join("; ")),
            ..Capabilities::new(Kind::Shared, passing.mapper_name(), page_size)
        };
        Ok(Self::over(link, capabilities, true))
    }

    /// Memory of a process on any machine: content travels in messages, zero-fill does not.
    ///
    /// # Errors
    /// What the transport says, and `Unsupported` for another version of the service.
    pub(crate) fn remote(
        transport: Arc<dyn Transport>,
        service: u64,
        instance: u64,
    ) -> Result<ServiceMapper> {
        let link = Link::open(transport, service, instance, false)?;
        if link.has_private_data() {
            return Err(Error::new(
                Status::Unsupported,
                "send content in messages: data is private in this executor, so it takes content from \
                 memfds alone; choose a mapper with shared pages",
            ));
        }
        let page_size = Alignment::new(link.page_size())
            .filter(|page| PAGE_SIZES.contains(&page.bytes()))
            .ok_or_else(|| {
                Error::new(
                    Status::MapperFailed,
                    format!(
                        "no page has {} bytes, as the executor says",
                        link.page_size()
                    ),
                )
            })?;
        let capabilities = Capabilities {
            granule: PACKING_GRANULE,
            ..Capabilities::new(Kind::Remote, "remote, content in messages", page_size)
        };
        Ok(Self::over(link, capabilities, false))
    }

    /// Says why a better mapper was not taken.
    pub(crate) fn instead_of(mut self, reason: String) -> ServiceMapper {
        self.capabilities.taken_instead(reason);
        self
    }

    fn over(link: Link, capabilities: Capabilities, shares: bool) -> ServiceMapper {
        let link = Arc::new(link);
        let changes = Changes::new(Arc::clone(&link));
        let frames = link.frame_functions();
        let private_data = capabilities.private_data;
        ServiceMapper {
            capabilities,
            shares,
            chunks: Arc::new(Chunks::new(changes.clone(), private_data)),
            unwinding: Arc::new(Unwinding::new(frames, shares)),
            changes,
            batches: Batches::new(Arc::clone(&link)),
            link,
            windows: Arc::default(),
        }
    }
}

/// New pages to share; `None` where RLIMIT_FSIZE admits no memfd of that size, so that the executor has
/// pages of its own there and content travels in messages.
fn shared_pages(
    executor: AddressRange,
    protection: Protection,
    commit: bool,
) -> Result<Option<(WriterView, sys::MemFile)>> {
    match WriterView::new(executor, protection, commit) {
        Err(error) if error.os_code() == Some(libc::EFBIG) => Ok(None),
        pages => pages.map(Some),
    }
}

impl Drop for ServiceMapper {
    fn drop(&mut self) {
        // Here and not with the last of those who share the link, which may be a thread of ours.
        self.link.close();
    }
}

impl MapperBase for ServiceMapper {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn patience(&self) -> Option<Patience> {
        // At the end of a channel there is nothing to wait for, and this thread may be the one that completes
        // what waits.
        let answers = self.link.has_channel() && !self.link.is_lost();
        answers.then(|| self.link.patience())
    }

    fn deadline(&self, asked: Asked) -> Option<Deadline> {
        self.link.session().deadline(asked)
    }

    fn transport(&self) -> Option<&Arc<dyn Transport>> {
        Some(self.link.transport())
    }

    fn traffic(&self) -> (u64, u64) {
        self.link.traffic()
    }

    fn registration(&self) -> Option<Registration> {
        self.unwinding.registration()
    }

    fn frames(&self) -> FrameCounts {
        self.unwinding.frames()
    }

    fn executor(&self) -> Option<Arc<ExecutorState>> {
        Some(Arc::clone(self.link.executor()))
    }
}

impl MemoryMapper for ServiceMapper {
    fn settled(&self) -> bool {
        self.chunks.settled() && !self.link.is_lost()
    }

    fn quiesce(&self, done: Completion<()>, delivery: &mut Delivery) {
        // What goes through a channel of our own does not end with the host's transport.
        match self.link.has_channel() {
            true => done.complete_with(Ok(()), delivery),
            false => self.changes.when_done(done, delivery),
        }
    }

    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        let at = match placement {
            Placement::Default => At::Default {},
            Placement::Near(address) => At::Near {
                lowest: address,
                highest: address,
            },
            Placement::NearAll { lowest, highest } => At::Near { lowest, highest },
            Placement::Fixed(address) => At::Fixed { address },
        };
        let (windows, page) = (Arc::clone(&self.windows), self.capabilities.page_size);
        let make_index = self.unwinding.maker(&self.changes);
        let done = done.map(move |answer: Result<ReservedAt>| {
            let ReservedAt {
                range: at,
                in_reach,
            } = answer?;
            let range = at
                .range()
                .ok_or_else(|| invalid_argument(format!("the executor reserved {at:x?}")))?;
            let reserved = Reserved { range, in_reach };
            let mut windows = windows.lock();
            check_window(reserved, size, &windows, page.bytes())?;
            windows.push(range);
            drop(windows);
            make_index(range);
            Ok(reserved)
        });
        self.changes.reserve(Reserve { size, least, at }, done);
    }

    #[allow(unsafe_code)]
    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let Chunk {
            range,
            group,
            commit,
        } = chunk;
        let private = self.capabilities.private_data && group.protection.writable();
        let pages = match self.shares {
            true if private => Some(WriterView::new_private(range, commit)?),
            true if self.capabilities.private_data => {
                Some(WriterView::new(range, group.protection, commit)?)
            }
            true => shared_pages(range, group.protection, commit)?,
            false => None,
        };
        let prepared = match &pages {
            // Private pages have a mapping beside them that shows the memfd.
            // SAFETY: the view stays until `reclaim` or `release`, or until `keep_only` answers with
            // another one, when the manager writes there no more.
            Some((view, _)) => Prepared::written(unsafe { view.writer() }, 2 + u64::from(private)),
            None => Prepared::elsewhere(if group.protection.writable() { 1 } else { 2 }),
        };
        let discards = match &pages {
            // The executor's copies would stay.
            _ if commit || private => Discards::Nothing,
            Some(_) if group.protection.writable() => Discards::Pages,
            // The seal that keeps writers out of code keeps its pages there too.
            _ if self.link.gives_parts_back() => Discards::AllBut,
            _ => Discards::Nothing,
        };
        let prepared = prepared.discarding(discards);
        self.chunks.add(chunk, pages);
        Ok(prepared)
    }

    fn initialize(
        &self,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        let initialize = Initialize {
            segments,
            actions,
            coherent: self.link.is_coherent() && self.shares,
            private_data: self.capabilities.private_data,
            link: Arc::clone(&self.link),
            chunks: Arc::clone(&self.chunks),
            unwinding: Arc::clone(&self.unwinding),
            batches: self.batches.handle(),
            done,
        };
        initialize.start();
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let item = |allocation: &Deinitialization| {
            let key = allocation.key();
            let code = allocation.copied.iter();
            let code = code.filter(|(_, group)| group.protection.executable());
            let traps: Vec<AddrRange> = code.map(|(range, _)| (*range).into()).collect();
            (key != 0 || !traps.is_empty()).then_some(Item::Deinitialize { key, traps })
        };
        // One message, for the last one must have ended before the one before it begins.
        let items: Vec<Item<'_>> = allocations.iter().rev().filter_map(item).collect();
        let frames: Vec<IndexedFrames> = allocations
            .into_iter()
            .filter_map(Deinitialization::into_frames)
            .collect();
        // Actions may throw: frames leave the index after them, and before the memory is free.
        let done = Completion::with_delivery(move |answer, delivery| {
            frames.iter().for_each(IndexedFrames::take_out);
            done.complete_with(answer, delivery);
        });
        let all = join_all(items.len(), done, delivery).into_iter();
        let all = all.map(|done| done.map(|answer: Result<u64>| answer.map(drop)));
        self.batches.handle().submit_in_order(&items, all.collect());
    }

    fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        self.chunks.set_writers(windows, open)
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.chunks.remove(chunk)
    }

    fn discard(&self, pages: AddressRange) -> Result<()> {
        self.chunks.discard(pages)
    }

    fn collapse(&self, pages: AddressRange) -> Result<()> {
        self.chunks.collapse(pages)
    }

    fn keep_only(&self, chunk: AddressRange, keep: PageSet, done: Completion<Option<Writer>>) {
        self.chunks.keep_only(chunk, keep, done);
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.windows.lock().retain(|known| *known != window);
        self.chunks.forget_within(window);
        self.unwinding.forget(window);
        let range = window.into();
        self.changes.make(Step::Release { range }, done);
    }
}
