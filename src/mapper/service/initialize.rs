// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An allocation on its way into the executor, in steps. Each completes the one before it:
//!
//! 1. [`Initialize::start`] waits until the chunks that hold the segments are mapped there;
//! 2. [`Initialize::chunks_mapped`] hands an item to the group commit, if anything is to be told;
//! 3. `Batches` sends it with others, and completes each when the message is answered;
//! 4. [`initialized`] is what the manager is told.

use super::batch::Submit;
use super::chunk::Chunks;
use super::link::Link;
use super::unwind::{IndexedFrames, Unwinding};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::Result;
use crate::mapper::{Action, SegmentContent, Teardown};
use crate::wire::service::{Content, Item};
use crate::wire::sps::{ActionPair, AddrRange, Bytes};
use smallvec::SmallVec;
use std::sync::Arc;

/// What the steps hand on.
pub(super) struct Initialize {
    pub(super) segments: SmallVec<[SegmentContent; 4]>,
    pub(super) actions: Vec<Action>,
    /// What is written to shared pages is there for the executor at once.
    pub(super) coherent: bool,
    /// Data that is written there is not: the executor takes it when it is told.
    pub(super) private_data: bool,
    pub(super) link: Arc<Link>,
    pub(super) chunks: Arc<Chunks>,
    pub(super) unwinding: Arc<Unwinding>,
    pub(super) batches: Submit,
    pub(super) done: Completion<Teardown>,
}

impl Initialize {
    pub(super) fn start(self) {
        let chunks = Arc::clone(&self.chunks);
        let segments: SmallVec<[_; 4]> = self.segments.iter().map(|one| one.range).collect();
        let mapped = Completion::with_delivery(move |answer, delivery| {
            self.chunks_mapped(answer, delivery);
        });
        chunks.when_mapped(&segments, mapped);
    }

    /// Whether there is nothing that the executor must be told.
    fn is_seen_already(&self) -> bool {
        let private = |segment: &SegmentContent| self.private_data && segment.is_writable();
        let shared = |segment: &SegmentContent| segment.content.is_none() && !private(segment);
        self.coherent && self.actions.is_empty() && self.segments.iter().all(shared)
    }

    fn chunks_mapped(mut self, answer: Result<()>, delivery: &mut Delivery) {
        if let Err(error) = answer.and_then(|()| self.link.check()) {
            return self.done.complete_with(Err(error), delivery);
        }
        let (actions, chunks) = (&mut self.actions, &self.chunks);
        let read = |section, see: &mut dyn FnMut(_)| {
            let _ = chunks.read(section, see);
        };
        let frames = self.unwinding.enter(actions, &self.segments, &read);
        let seen = self.is_seen_already();
        let done = self.done.map(move |answer| initialized(answer, frames));
        if seen {
            return done.complete_with(Ok(0), delivery);
        }
        let (segments, actions) = (&self.segments, &self.actions);
        let item = match self.private_data {
            true => item_with_data(segments, actions, self.coherent),
            false => item(segments, actions, self.coherent),
        };
        self.batches.submit(&item, done);
    }
}

/// What is left to do for an allocation after the executor's answer, which is a key.
fn initialized(answer: Result<u64>, frames: Option<IndexedFrames>) -> Result<Teardown> {
    match (answer, frames) {
        (Ok(key), frames) => Ok(Teardown::new(key, frames)),
        (Err(error), frames) => {
            if let Some(frames) = frames {
                frames.take_out();
            }
            Err(error)
        }
    }
}

/// What the executor is told of an allocation: what it does not see already.
pub(super) fn item<'a>(
    segments: &'a [SegmentContent],
    actions: &'a [Action],
    coherent: bool,
) -> Item<'a> {
    let content = segments.iter().filter_map(|segment| {
        let bytes = Bytes(segment.content()?);
        Some(Content {
            range: segment.range.into(),
            zeroed: segment.zeroed,
            bytes,
        })
    });
    Item::Initialize {
        content: content.collect(),
        code: code_to_flush(segments, coherent),
        actions: actions.iter().map(ActionPair::from).collect(),
    }
}

/// The same where data is private.
fn item_with_data<'a>(
    segments: &'a [SegmentContent],
    actions: &'a [Action],
    coherent: bool,
) -> Item<'a> {
    let data = segments.iter().filter(|segment| segment.is_writable());
    Item::InitializeData {
        data: data.map(|segment| segment.range.into()).collect(),
        code: code_to_flush(segments, coherent),
        actions: actions.iter().map(ActionPair::from).collect(),
    }
}

/// The executor sees to the instruction cache for pages of its own where it writes them.
fn code_to_flush(segments: &[SegmentContent], coherent: bool) -> Vec<AddrRange> {
    let code = segments.iter().filter(|segment| {
        !coherent && segment.content.is_none() && segment.group.protection.executable()
    });
    code.map(|segment| segment.range.into()).collect()
}
