// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A mapper from outside: every answer is checked before the manager believes it.

use super::{
    Action, Capabilities, Chunk, MemoryMapper, Prepared, Reserved, Retired, SegmentContent,
    Teardown,
};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::memory::view::Placement;
use crate::page::AddressRange;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;

/// Wraps a mapper that a host supplied.
pub struct CustomMapper {
    host: Arc<dyn MemoryMapper>,
    windows: Arc<Mutex<Vec<AddressRange>>>,
}

impl CustomMapper {
    /// Checks everything that `host` says of itself.
    ///
    /// # Errors
    /// `InvalidArgument` for a granule above the page size.
    pub fn new(host: Arc<dyn MemoryMapper>) -> Result<CustomMapper> {
        let Capabilities {
            page_size, granule, ..
        } = *host.capabilities();
        if granule > page_size || page_size.bytes() > 1 << 26 {
            return Err(crate::error::invalid_argument(format!(
                "custom mapper with granule {} and page size {}: the granule may not exceed the \
                 page size, and the page size not 64 MiB",
                granule.bytes(),
                page_size.bytes()
            )));
        }
        Ok(CustomMapper {
            host,
            windows: Arc::default(),
        })
    }
}

fn broken(message: String) -> Error {
    Error::new(Status::MapperFailed, message)
        .remedy("the custom mapper's callback, or the executor, breaks its contract")
}

/// A window that others made must be aligned, not larger than asked for, and apart from all others.
pub(super) fn check_window(
    reserved: Reserved,
    size: u64,
    others: &[AddressRange],
    page: u64,
) -> Result<()> {
    let range = reserved.range;
    let aligned = range.start() % page == 0 && range.size() % page == 0;
    if range.start() == 0 || range.size() == 0 || !aligned || range.size() > size {
        return Err(broken(format!(
            "reserve of {size} bytes answered {range:?}: want a multiple of {page}, not 0, and no \
             more than was asked for"
        )));
    }
    match others.iter().find(|other| other.overlaps(range)) {
        Some(other) => Err(broken(format!(
            "reserve of {size} bytes answered {range:?}, which overlaps the window {other:?}"
        ))),
        None => Ok(()),
    }
}

impl MemoryMapper for CustomMapper {
    fn capabilities(&self) -> &Capabilities {
        self.host.capabilities()
    }

    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        let windows = Arc::clone(&self.windows);
        let page = self.capabilities().page_size.bytes();
        let checked = done.map(move |answer: Result<Reserved>| {
            let reserved = answer?;
            let mut windows = windows.lock();
            // A window that can't be is not released either: who knows whose it is.
            check_window(reserved, size, &windows, page)?;
            windows.push(reserved.range);
            Ok(reserved)
        });
        self.host.reserve(size, least, placement, checked);
    }

    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        self.host.prepare(chunk)
    }

    fn initialize(
        &self,
        segments: SmallVec<[SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        self.host.initialize(segments, actions, done);
    }

    fn deinitialize(&self, retired: Vec<Retired>, done: Completion<()>, delivery: &mut Delivery) {
        self.host.deinitialize(retired, done, delivery);
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.host.reclaim(chunk)
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.windows.lock().retain(|known| *known != window);
        self.host.release(window, done);
    }
}
