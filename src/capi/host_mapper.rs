// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What calls the callbacks of a host's mapper, and keeps what is lent to them.

use super::callback::Context;
use super::custom::{
    jitmem_mapper_callbacks, jitmem_mapper_chunk, jitmem_mapper_retired, jitmem_mapper_segment,
    jitmem_request,
};
use super::handle::{Kind, Waiting};
use super::request::{jitmem_action, jitmem_wrapper_call};
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::AllocGroup;
use crate::mapper::{
    Action, Chunk, CustomMapper, Deinitialization, Granularity, Prepared, SegmentContent,
    WrapperCall,
};
use crate::memory::placement::Placement;
use crate::page::{AddressRange, Alignment};
use crate::sys::heap;
use std::ffi::c_void;
use std::sync::Arc;

/// What a host answered.
pub(super) struct Answer {
    pub(super) value: u64,
    pub(super) size: u64,
}

/// A request under way: its completion, and what the host may still look at.
pub(super) struct Pending {
    done: Completion<Answer>,
    _lent: Lent,
}

impl Pending {
    pub(super) fn answer(self, answer: Result<Answer>) {
        let Pending { done, _lent } = self;
        done.complete(answer);
    }
}

#[derive(Default)]
struct Lent {
    _content: Vec<SegmentContent>,
    _calls: Vec<Action>,
    _segments: Vec<Vec<jitmem_mapper_segment>>,
    _actions: Vec<jitmem_action>,
    _retired: Vec<jitmem_mapper_retired>,
}

// SAFETY: the raw pointers in it point into the same Lent and are only read by the host.
unsafe impl Send for Lent {}

static PENDING: Waiting<Pending> = Waiting::new(Kind::Request);

/// The number of a request, for the host; if the heap is exhausted the request is answered so.
fn open(done: Completion<Answer>, lent: Lent) -> Option<jitmem_request> {
    let refused = match PENDING.add(Pending { done, _lent: lent }) {
        Ok(request) => return Some(request),
        Err(refused) => refused,
    };
    refused
        .done
        .complete(Err(heap::exhausted("request at a custom mapper")));
    None
}

/// Takes a request out, to be answered; what was lent for it goes with it.
pub(super) fn take_pending(request: jitmem_request) -> Option<Pending> {
    PENDING.take(request)
}

pub(super) struct Callbacks {
    granularity: Granularity,
    copied: bool,
    table: jitmem_mapper_callbacks,
    context: Arc<Context>,
}

// SAFETY: the table is documented to be called from any thread, several at a time.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

fn power_of_two(value: u64, name: &str) -> Result<Alignment> {
    Alignment::new(value)
        .filter(|value| value.bytes() <= 1 << 26)
        .ok_or_else(|| invalid_argument(format!("{name} {value} is no power of two up to 64 MiB")))
}

impl Callbacks {
    pub(super) fn new(table: jitmem_mapper_callbacks, context: Arc<Context>) -> Result<Callbacks> {
        let missing = [
            ("reserve", table.reserve.is_none()),
            (
                "prepare",
                table.prepare.is_none() && table.prepare_async.is_none(),
            ),
            ("initialize", table.initialize.is_none()),
            ("deinitialize", table.deinitialize.is_none()),
            (
                "reclaim",
                table.reclaim.is_none() && table.reclaim_async.is_none(),
            ),
            ("release", table.release.is_none()),
        ];
        if let Some((name, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            return Err(invalid_argument(format!(
                "jitmem_mapper_callbacks.{name} is NULL"
            )));
        }
        if table.prepare_async.is_some() != table.reclaim_async.is_some() {
            return Err(invalid_argument(
                "jitmem_mapper_callbacks has one of prepare_async and reclaim_async: give both or none",
            ));
        }
        if table.reserved != 0 {
            return Err(invalid_argument(
                "jitmem_mapper_callbacks.reserved is not 0",
            ));
        }
        let copied = match table.content {
            0 => false,
            1 => true,
            other => {
                return Err(invalid_argument(format!(
                    "content {other} is none of shared 0 and copied 1"
                )));
            }
        };
        let granularity = Granularity {
            page_size: power_of_two(table.page_size, "page_size")?,
            granule: power_of_two(table.granule, "granule")?,
        };
        Ok(Callbacks {
            granularity,
            copied,
            table,
            context,
        })
    }

    /// A completion that turns what the host answers into what the manager asked for. It keeps
    /// the host's context alive.
    fn answering<T: Send + 'static>(
        &self,
        done: Completion<T>,
        convert: impl FnOnce(Answer) -> Result<T> + Send + 'static,
    ) -> Completion<Answer> {
        let context = Arc::clone(&self.context);
        Completion::with_delivery(move |answer: Result<Answer>, delivery| {
            done.complete_with(answer.and_then(convert), delivery);
            drop(context);
        })
    }

    fn status(operation: &str, code: u32) -> Result<()> {
        match host_status(code) {
            None => Ok(()),
            Some(status) => Err(Error::new(
                status,
                format!("custom mapper: {operation} answered status {code}"),
            )),
        }
    }
}

/// The failure that a host's status says, if any. What only jitmem itself may say is the mapper's
/// failure when a host says it.
pub(super) fn host_status(code: u32) -> Option<Status> {
    match Status::from_code(code) {
        None if code == 0 => None,
        None | Some(Status::Internal | Status::WouldBlock) => Some(Status::MapperFailed),
        known => known,
    }
}

/// What a host's prepare has answered.
///
/// # Safety
/// `working` is NULL, or as [`Prepared::shared`] has it.
unsafe fn prepared(chunk: Chunk, copied: bool, working: *mut c_void) -> Result<Prepared> {
    if copied {
        return Ok(Prepared::copied());
    }
    if working.is_null() {
        return Err(Error::new(
            Status::MapperFailed,
            "custom mapper: prepare answered success and no working memory",
        ));
    }
    // SAFETY: as the caller says.
    Ok(unsafe { Prepared::shared(chunk, working.cast()) })
}

fn c_segment(range: AddressRange, group: AllocGroup) -> jitmem_mapper_segment {
    jitmem_mapper_segment {
        address: range.start(),
        size: range.size(),
        content: std::ptr::null(),
        content_size: 0,
        protection: group.protection.bits(),
        lifetime: group.lifetime as u32,
        zeroed: 0,
        reserved: [0; 5],
    }
}

fn c_call(call: &WrapperCall) -> jitmem_wrapper_call {
    jitmem_wrapper_call {
        function: call.function(),
        args: call.args().as_ptr().cast(),
        args_size: call.args().len(),
    }
}

fn pointer_and_count<T>(items: &[T]) -> (*const T, usize) {
    (
        if items.is_empty() {
            std::ptr::null()
        } else {
            items.as_ptr()
        },
        items.len(),
    )
}

const CHECKED: &str = "checked when the mapper was made";

impl CustomMapper for Callbacks {
    fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn reserve(&self, size: u64, placement: Placement, done: Completion<AddressRange>) {
        let (code, address) = match placement {
            Placement::Default => (0, 0),
            Placement::Near(address) => (1, address),
            // What is not in reach is refused by the manager.
            Placement::NearAll { lowest, highest } => (1, lowest + (highest - lowest) / 2),
            Placement::Fixed(address) => (2, address),
        };
        let done = self.answering(done, |answer: Answer| {
            AddressRange::new(answer.value, answer.size).ok_or_else(|| {
                Error::new(
                    Status::MapperFailed,
                    "custom mapper: the window's end overflows",
                )
            })
        });
        let Some(request) = open(done, Lent::default()) else {
            return;
        };
        let reserve = self.table.reserve.expect(CHECKED);
        // SAFETY: the host says that its function takes these.
        unsafe { reserve(self.context.pointer(), size, code, address, request) }
    }

    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let Chunk { range, group, .. } = chunk;
        let prepare = self.table.prepare.expect(CHECKED);
        let mut working = std::ptr::null_mut();
        let (protection, lifetime) = (group.protection.bits(), group.lifetime as u32);
        let ctx = self.context.pointer();
        // SAFETY: the host says that its function takes these; `working` outlives the call.
        let code = unsafe {
            prepare(
                ctx,
                range.start(),
                range.size(),
                protection,
                lifetime,
                &mut working,
            )
        };
        Self::status("prepare", code)?;
        // SAFETY: the host says that all bytes are written there until the chunk goes.
        unsafe { prepared(chunk, self.copied, working) }
    }

    fn answers_later(&self) -> bool {
        self.table.prepare_async.is_some()
    }

    fn prepare_async(&self, chunk: Chunk, done: Completion<Prepared>) {
        let copied = self.copied;
        let done = self.answering(done, move |answer: Answer| {
            let working = std::ptr::with_exposed_provenance_mut(answer.value as usize);
            // SAFETY: the host says that all bytes are written there until the chunk goes.
            unsafe { prepared(chunk, copied, working) }
        });
        let Some(request) = open(done, Lent::default()) else {
            return;
        };
        let described = jitmem_mapper_chunk {
            address: chunk.range.start(),
            size: chunk.range.size(),
            protection: chunk.group.protection.bits(),
            lifetime: chunk.group.lifetime as u32,
            commit: chunk.commit.into(),
            reserved: [0; 5],
        };
        let prepare = self.table.prepare_async.expect(CHECKED);
        // SAFETY: the host says that its function takes these; the chunk lives through the call.
        unsafe { prepare(self.context.pointer(), &described, request) }
    }

    fn reclaim_async(&self, chunk: AddressRange, done: Completion<()>) {
        let Some(request) = open(self.answering(done, |_| Ok(())), Lent::default()) else {
            return;
        };
        let reclaim = self.table.reclaim_async.expect(CHECKED);
        let ctx = self.context.pointer();
        // SAFETY: the host says that its function takes these.
        unsafe { reclaim(ctx, chunk.start(), chunk.size(), request) }
    }

    fn initialize(
        &self,
        segments: Vec<SegmentContent>,
        actions: Vec<Action>,
        done: Completion<u64>,
    ) {
        let c_segments: Vec<_> = segments
            .iter()
            .map(|segment| {
                let mut item = c_segment(segment.range, segment.group);
                if let Some(content) = segment.content() {
                    item.content = content.as_ptr().cast();
                    item.content_size = content.len() as u64;
                }
                item.zeroed = segment.zeroed.into();
                item
            })
            .collect();
        let c_actions: Vec<_> = actions
            .iter()
            .map(|action| jitmem_action {
                finalize: c_call(&action.finalize),
                dealloc: c_call(&action.dealloc),
                reserved: [0; 2],
            })
            .collect();
        let (first_segment, segment_count) = pointer_and_count(&c_segments);
        let (first_action, action_count) = pointer_and_count(&c_actions);
        let done = self.answering(done, |answer: Answer| Ok(answer.value));
        let lent = Lent {
            _content: segments,
            _calls: actions,
            _segments: vec![c_segments],
            _actions: c_actions,
            ..Lent::default()
        };
        let Some(request) = open(done, lent) else {
            return;
        };
        let initialize = self.table.initialize.expect(CHECKED);
        let ctx = self.context.pointer();
        // SAFETY: the host says that its function takes these; PENDING keeps the arrays alive.
        unsafe {
            initialize(
                ctx,
                first_segment,
                segment_count,
                first_action,
                action_count,
                request,
            );
        }
    }

    fn deinitialize(&self, retired: Vec<Deinitialization>, done: Completion<()>) {
        let segments: Vec<Vec<_>> = retired
            .iter()
            .map(|retired| {
                retired
                    .segments()
                    .iter()
                    .map(|(range, group)| c_segment(*range, *group))
                    .collect()
            })
            .collect();
        let c_retired: Vec<_> = retired
            .iter()
            .zip(&segments)
            .map(|(retired, segments)| {
                let (segments, segment_count) = pointer_and_count(segments);
                jitmem_mapper_retired {
                    key: retired.key(),
                    segments,
                    segment_count,
                    reserved: [0; 2],
                }
            })
            .collect();
        let (first, count) = pointer_and_count(&c_retired);
        let done = self.answering(done, |_| Ok(()));
        let lent = Lent {
            _segments: segments,
            _retired: c_retired,
            ..Lent::default()
        };
        let Some(request) = open(done, lent) else {
            return;
        };
        let deinitialize = self.table.deinitialize.expect(CHECKED);
        // SAFETY: the host says that its function takes these; PENDING keeps the arrays alive.
        unsafe { deinitialize(self.context.pointer(), first, count, request) }
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        let reclaim = self.table.reclaim.expect(CHECKED);
        // SAFETY: the host says that its function takes these.
        let code = unsafe { reclaim(self.context.pointer(), chunk.start(), chunk.size()) };
        Self::status("reclaim", code)
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        let Some(request) = open(self.answering(done, |_| Ok(())), Lent::default()) else {
            return;
        };
        let release = self.table.release.expect(CHECKED);
        // SAFETY: the host says that its function takes these.
        unsafe {
            release(
                self.context.pointer(),
                window.start(),
                window.size(),
                request,
            )
        }
    }
}
