// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor is another process that has our service: on this machine, with shared pages, or
//! anywhere, with content in messages.

mod batch;
mod change;
mod chunk;
mod descriptor_passing;
mod link;
mod reply;

use super::custom::check_window;
use super::{
    Action, Capabilities, Chunk, Kind, MemoryMapper, PACKING_GRANULE, Prepared, Reserved, Retired,
    SegmentContent, Teardown,
};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::memory::view::{Placement, WriterView};
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, MemFile};
use crate::transport::{RESPONSE_TIMEOUT, Transport};
use crate::wire::service::{At, Content, Item, Reserve, ReservedAt, Step};
use crate::wire::sps::{ActionPair, AddrRange, Bytes, Encode};
use batch::Batches;
use change::Changes;
use chunk::{ChunkState, Progress};
use descriptor_passing::DescriptorPassing;
use link::Link;
use parking_lot::Mutex;
use reply::decoded;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of a page on any machine.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 20;

/// A mapper over our executor service.
pub(crate) struct ServiceMapper {
    capabilities: Capabilities,
    shares: bool,
    link: Arc<Link>,
    changes: Changes,
    batches: Batches,
    chunks: Mutex<BTreeMap<u64, Arc<ChunkState>>>,
    windows: Arc<Mutex<Vec<AddressRange>>>,
    /// Chunks that the executor has not mapped yet.
    unsettled: Arc<AtomicUsize>,
}

impl ServiceMapper {
    /// Memory of another process on this machine, through shared pages: no byte of content is sent.
    /// `service` is the executor address of the service's `open`, `instance` its number.
    ///
    /// # Errors
    /// `Unsupported` if memfds can't be handed over, with every step that was tried; what the
    /// transport says.
    pub(crate) fn shared(
        transport: Arc<dyn Transport>,
        service: u64,
        instance: u64,
    ) -> Result<ServiceMapper> {
        let mut link = Link::open(transport, service, instance)?;
        link.attach()?;
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
        let name = match link.passing {
            DescriptorPassing::SharedSocket => {
                "shared memory, memfds over a socket that came with the connection"
            }
            DescriptorPassing::TakenSocket => "shared memory, memfds over a socket by pidfd_getfd",
            DescriptorPassing::Files => "shared memory, memfds by /proc/PID/fd",
            _ => "shared memory, memfds over an abstract socket",
        };
        let capabilities = Capabilities {
            name,
            kind: Kind::Shared,
            page_size,
            granule: PACKING_GRANULE,
            coherent: sys::COHERENT_FETCH,
            in_this_process: false,
            fallback: (!link.failed.is_empty()).then(|| link.failed.join("; ")),
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
        let link = Link::open(transport, service, instance)?;
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
            name: "remote, content in messages",
            kind: Kind::Remote,
            page_size,
            granule: PACKING_GRANULE,
            coherent: false,
            in_this_process: false,
            fallback: None,
        };
        Ok(Self::over(link, capabilities, false))
    }

    /// Says why a better mapper was not taken.
    pub(crate) fn instead_of(mut self, reason: String) -> ServiceMapper {
        let before = self.capabilities.fallback.take();
        let reasons = [Some(reason), before];
        self.capabilities.fallback = Some(
            reasons
                .into_iter()
                .flatten()
                .collect::<Vec<String>>()
                .join("; "),
        );
        self
    }

    fn over(link: Link, capabilities: Capabilities, shares: bool) -> ServiceMapper {
        let link = Arc::new(link);
        ServiceMapper {
            capabilities,
            shares,
            changes: Changes::new(Arc::clone(&link)),
            batches: Batches::new(Arc::clone(&link)),
            link,
            chunks: Mutex::default(),
            windows: Arc::default(),
            unsettled: Arc::default(),
        }
    }

    /// Has the executor map a chunk whose progress says that it is under way.
    fn map(&self, chunk: &Arc<ChunkState>) {
        let mapped = Arc::clone(chunk);
        let done = Completion::with_delivery(move |answer, delivery| {
            mapped.answered(answer, delivery);
        });
        let range = chunk.range.into();
        // The lock is not held while the request is made: it may be answered inside.
        let file = match &mut *chunk.progress.lock() {
            Progress::UnderWay(file, _) => file.as_ref().map(MemFile::try_clone),
            _ => None,
        };
        match file {
            Some(Ok(file)) => self.changes.map(range, chunk.protection, &file, done),
            Some(Err(error)) => done.complete(Err(sys::explain("duplicate a memfd", error))),
            None => {
                let (protection, commit) = (chunk.protection, chunk.commit);
                self.changes.make(
                    Step::MapOwn {
                        range,
                        protection,
                        commit,
                    },
                    done,
                );
            }
        }
    }

    /// The chunks of these segments that are not mapped yet.
    fn unsettled_chunks(&self, segments: &[SegmentContent]) -> SmallVec<[Arc<ChunkState>; 4]> {
        let mut found: SmallVec<[Arc<ChunkState>; 4]> = SmallVec::new();
        if self.settled() {
            return found;
        }
        let chunks = self.chunks.lock();
        for segment in segments {
            let chunk = chunks.range(..=segment.range.start()).next_back();
            let chunk = chunk.map(|(_, chunk)| chunk);
            if let Some(chunk) = chunk.filter(|chunk| !chunk.mapped()) {
                if !found.iter().any(|known| Arc::ptr_eq(known, chunk)) {
                    found.push(Arc::clone(chunk));
                }
            }
        }
        found
    }
}

impl Drop for ServiceMapper {
    fn drop(&mut self) {
        // Here and not with the last of those who share the link, which may be a thread of ours.
        self.link.close();
    }
}

/// An allocation's item without anything that lives elsewhere.
fn item<'a>(segments: &'a [SegmentContent], actions: &'a [Action], coherent: bool) -> Item<'a> {
    let content = segments.iter().filter_map(|segment| {
        let bytes = Bytes(segment.content()?);
        Some(Content {
            range: segment.range.into(),
            zeroed: segment.zeroed,
            bytes,
        })
    });
    // Code in pages of the executor's own is seen to where it is written.
    let code = segments.iter().filter(|segment| {
        !coherent && segment.content.is_none() && segment.group.protection.executable()
    });
    Item::Initialize {
        content: content.collect(),
        code: code.map(|segment| segment.range.into()).collect(),
        actions: actions.iter().map(ActionPair::from).collect(),
    }
}

impl MemoryMapper for ServiceMapper {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0 && !self.link.is_lost()
    }

    fn close_timeout(&self) -> Option<Duration> {
        // Nothing is to be waited for at the end of a channel; and there, this thread may be the one that
        // tells everybody of it.
        let answers = self.link.has_channel() && !self.link.is_lost();
        answers.then_some(RESPONSE_TIMEOUT)
    }

    fn quiesce(&self, done: Completion<()>, delivery: &mut Delivery) {
        // What goes through a channel of our own does not end with the host's transport.
        match self.link.has_channel() {
            true => done.complete_with(Ok(()), delivery),
            false => self.changes.when_done(done, delivery),
        }
    }

    fn traffic(&self) -> (u64, u64) {
        self.link.traffic()
    }

    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        let at = match placement {
            Placement::Default => At::Default {},
            Placement::Near(address) => At::Near { address },
            Placement::Fixed(address) => At::Fixed { address },
        };
        let mut message = self.link.message();
        Reserve { size, least, at }.encode(&mut message);
        let (windows, page) = (Arc::clone(&self.windows), self.capabilities.page_size);
        let done = done.map(move |answer: Result<Vec<u8>>| {
            let ReservedAt {
                range: at,
                in_reach,
            } = decoded(&answer?)?;
            let range = at
                .range()
                .ok_or_else(|| invalid_argument(format!("the executor reserved {at:x?}")))?;
            let reserved = Reserved { range, in_reach };
            let mut windows = windows.lock();
            check_window(reserved, size, &windows, page.bytes())?;
            windows.push(range);
            Ok(reserved)
        });
        self.link
            .call(self.link.functions().reserve, message, &[], done);
    }

    #[allow(unsafe_code)]
    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let Chunk {
            range,
            group,
            commit,
        } = chunk;
        let (view, file) = match self.shares {
            true => {
                let (view, file) = WriterView::new(range.size(), group.protection, commit)?;
                (Some(view), Some(file))
            }
            false => (None, None),
        };
        let prepared = match &view {
            // SAFETY: the view stays until `reclaim` or `release`, when the manager writes there no
            // more.
            Some(view) => Prepared::written(unsafe { view.writer() }, 2),
            None => Prepared::elsewhere(if group.protection.writable() { 1 } else { 2 }),
        };
        let state = Arc::new(ChunkState {
            range,
            protection: group.protection.bits() as u8,
            commit,
            _view: view,
            unsettled: Arc::clone(&self.unsettled),
            progress: Mutex::new(Progress::UnderWay(file, Vec::new())),
        });
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        self.chunks.lock().insert(range.start(), Arc::clone(&state));
        self.map(&state);
        Ok(prepared)
    }

    fn initialize(
        &self,
        segments: SmallVec<[SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        let coherent = self.capabilities.coherent;
        let done = done.map(|answer: Result<u64>| {
            Ok(match answer? {
                0 => Teardown::Nothing,
                key => Teardown::Key(key),
            })
        });
        let chunks = self.unsettled_chunks(&segments);
        let go = {
            let batches = self.batches.handle();
            let link = Arc::clone(&self.link);
            move |ready: Result<()>, delivery: &mut Delivery| match ready.and(link.check()) {
                Err(error) => done.complete_with(Err(error), delivery),
                Ok(()) if actions.is_empty() && coherent => done.complete_with(Ok(0), delivery),
                Ok(()) => batches.submit(&item(&segments, &actions, coherent), done),
            }
        };
        let delivery = &mut Delivery::Inline;
        let ready = join_all(chunks.len(), Completion::with_delivery(go), delivery);
        for (chunk, ready) in chunks.iter().zip(ready) {
            if chunk.when_mapped(ready) {
                self.map(chunk);
            }
        }
    }

    fn deinitialize(&self, retired: Vec<Retired>, done: Completion<()>, delivery: &mut Delivery) {
        let item = |retired: &Retired| {
            let key = match retired.teardown {
                Teardown::Key(key) => key,
                _ => 0,
            };
            let code = retired.copied.iter();
            let code = code.filter(|(_, group)| group.protection.executable());
            let traps: Vec<AddrRange> = code.map(|(range, _)| (*range).into()).collect();
            (key != 0 || !traps.is_empty()).then_some(Item::Deinitialize { key, traps })
        };
        // One message, for the last one must have ended before the one before it begins.
        let items: Vec<Item<'_>> = retired.iter().rev().filter_map(item).collect();
        let all = join_all(items.len(), done, delivery).into_iter();
        let all = all.map(|done| done.map(|answer: Result<u64>| answer.map(drop)));
        self.batches.handle().submit_in_order(&items, all.collect());
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        let state = self.chunks.lock().remove(&chunk.start());
        let Some(state) = state else {
            return Err(invalid_argument(format!(
                "no chunk starts at {:#x}",
                chunk.start()
            )));
        };
        if let Progress::Failed(_) = *state.progress.lock() {
            // The executor has nothing there.
            return Ok(());
        }
        // If the executor can't, the chunk that comes in its place is refused there, and says so.
        let range = chunk.into();
        self.changes
            .make(Step::Unmap { range }, Completion::new(move |_| drop(state)));
        Ok(())
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.windows.lock().retain(|known| *known != window);
        let inside = |start: &u64| window.start() <= *start && *start < window.end();
        self.chunks.lock().retain(|start, _| !inside(start));
        self.changes.make(
            Step::Release {
                range: window.into(),
            },
            done,
        );
    }
}
