// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A mapper made of a host's callbacks.

use super::callback::{Context, jitmem_destroy_fn};
use super::handle::{Kind, Waiting};
use super::mapper::jitmem_mapper;
use super::request::{jitmem_action, jitmem_wrapper_call};
use super::status::{jitmem_error, jitmem_status};
use super::{guard, handle, input};
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument, invalid_handle};
use crate::group::AllocGroup;
use crate::mapper::{
    Action, Chunk, CustomMapper, Deinitialization, Granularity, Mapper, Prepared, SegmentContent,
    WrapperCall,
};
use crate::memory::placement::Placement;
use crate::page::{AddressRange, Alignment};
use crate::sys::heap;
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::sync::Arc;

/// How content gets into the executor.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_content {
    /// `prepare` gives memory that the executor sees.
    JITMEM_CONTENT_SHARED = 0,
    /// `initialize` receives the content and copies it.
    JITMEM_CONTENT_COPIED = 1,
}

/// Names one request to a custom mapper, which it answers with jitmem_mapper_complete.
#[allow(non_camel_case_types)]
pub type jitmem_request = u64;

/// One segment on its way into, or out of, a custom mapper's executor.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_segment {
    /// First executor address.
    pub address: u64,
    /// Bytes, zero-fill and rounding included.
    pub size: u64,
    /// The content, valid until the request is completed; NULL if it is in place or on the way out.
    pub content: *const c_void,
    /// Bytes of content.
    pub content_size: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// 1: what follows the content is known to be zero; 0: the mapper must make it so.
    pub zeroed: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 5],
}

/// One allocation on its way out.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_retired {
    /// What `initialize` answered; 0 if it had nothing to remember.
    pub key: u64,
    /// Its copied segments; valid until the request is completed.
    pub segments: *const jitmem_mapper_segment,
    /// Number of them.
    pub segment_count: usize,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A chunk that a custom mapper makes usable.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_chunk {
    /// First executor address.
    pub address: u64,
    /// Bytes, a multiple of page_size.
    pub size: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// 1: jitmem_manager_options.commit: take the pages now, so that a shortage is an error here. 0: they
    /// may be taken when they are touched.
    pub commit: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 5],
}

/// A mapper made by the host. Set struct_size to sizeof(jitmem_mapper_callbacks).
///
/// The functions are called with no lock held, from any thread, several at a time. Those that take a
/// jitmem_request answer it, now or later, from any thread, with jitmem_mapper_complete, exactly
/// once. Arrays are valid until then. None may be NULL but destroy, and prepare and reclaim or their
/// asynchronous twins; none may throw. They may call any function of this library; jitmem_manager_allocate from inside `prepare` or `reclaim` never waits for what
/// these are about to change, and answers JITMEM_WINDOW_FULL where it would have to.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_callbacks {
    /// sizeof(jitmem_mapper_callbacks).
    pub struct_size: usize,
    /// Chunks are multiples of this power of two.
    pub page_size: u64,
    /// Allocations are kept multiples of this power of two apart, at most page_size.
    pub granule: u64,
    /// One of jitmem_content.
    pub content: u32,
    /// 0.
    pub reserved: u32,
    /// Passed to every function.
    pub ctx: *mut c_void,
    /// Called once when nothing uses the mapper any more; may be NULL.
    pub destroy: jitmem_destroy_fn,
    /// Reserves a window of `size` bytes (a smaller multiple of page_size will do) as `placement`
    /// and `address` say; near several addresses, `address` is in their middle, and a window that does
    /// not reach them all is given back. Answers its address as `value` and, in `size`, its size.
    pub reserve: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            size: u64,
            placement: u32,
            address: u64,
            request: jitmem_request,
        ),
    >,
    /// Makes a chunk usable; with shared content, `*working_memory` is where all its bytes are
    /// written, all zero now. Returns a jitmem_status. May be NULL if there is a prepare_async.
    pub prepare: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            address: u64,
            size: u64,
            protection: u32,
            lifetime: u32,
            working_memory: *mut *mut c_void,
        ) -> u32,
    >,
    /// Makes an allocation visible and runs the finalize actions first to last, remembering the
    /// deallocation actions. Answers a key for deinitialize as `value`; 0 if there is nothing to
    /// do then.
    pub initialize: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            segments: *const jitmem_mapper_segment,
            segment_count: usize,
            actions: *const jitmem_action,
            action_count: usize,
            request: jitmem_request,
        ),
    >,
    /// Runs the deallocation actions of allocations, last to first.
    pub deinitialize: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            retired: *const jitmem_mapper_retired,
            count: usize,
            request: jitmem_request,
        ),
    >,
    /// Takes the pages of an empty chunk back. Returns a jitmem_status; on failure the chunk stays. May be
    /// NULL if there is a reclaim_async.
    pub reclaim: Option<unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64) -> u32>,
    /// Gives a window back with all that is in it.
    pub release: Option<
        unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64, request: jitmem_request),
    >,
    /// Called in place of prepare; NULL: prepare is called. Makes a chunk usable, which is described
    /// during this call, and answers, in this call or later, working memory as `value` (0 with copied
    /// content), or a failure with its reason. An allocation that needs a chunk then waits for the
    /// answer, and jitmem_manager_try_allocate declines it. Given with reclaim_async, or not at all.
    pub prepare_async: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            chunk: *const jitmem_mapper_chunk,
            request: jitmem_request,
        ),
    >,
    /// Called in place of reclaim; NULL: reclaim is called. On failure the chunk stays.
    pub reclaim_async: Option<
        unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64, request: jitmem_request),
    >,
}

const LEAST: usize = offset_of!(jitmem_mapper_callbacks, release) + size_of::<usize>();

/// What a host answered.
struct Answer {
    value: u64,
    size: u64,
}

/// A request under way: its completion, and what the host may still look at.
struct Pending {
    done: Completion<Answer>,
    _lent: Lent,
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

/// Answers a request to a custom mapper, from any thread.
///
/// `status` is a jitmem_status; if it is not 0, `message` (NULL or UTF-8 text, copied) says why.
/// `value` and `size` are what the callback's documentation asks for, else 0. The requester's
/// callback may run inside this call. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a request that was answered before or never made.
///
/// # Safety
/// `message` is NULL or a NUL-terminated string; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_complete(
    request: jitmem_request,
    status: u32,
    message: *const c_char,
    value: u64,
    size: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        let Some(Pending { done, _lent }) = PENDING.take(request) else {
            return Err(invalid_handle(format!(
                "request {request:#x} was completed before or never made"
            )));
        };
        done.complete(match host_status(status) {
            None => Ok(Answer { value, size }),
            Some(status) => {
                // SAFETY: as the caller says.
                let text = unsafe { input::message(message) };
                Err(Error::new(status, format!("custom mapper: {text}")))
            }
        });
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

struct Callbacks {
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
    fn new(table: jitmem_mapper_callbacks, context: Arc<Context>) -> Result<Callbacks> {
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
fn host_status(code: u32) -> Option<Status> {
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

/// Makes a mapper of the host's callbacks.
///
/// `callbacks` is copied. `destroy` is called with `ctx` once, when nothing uses the mapper any more
/// or if this call fails. On success `*mapper` is the new mapper, to be freed with
/// jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, a wrong struct_size, a missing function, page_size or
/// granule that is no power of two, an unknown content. If the struct can't be read (NULL, a
/// wrong struct_size, fields that this library does not know) `destroy` is not called.
///
/// # Safety
/// `callbacks` is NULL or points to a struct of the size that it says, whose functions may be called
/// as documented; `mapper` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_custom(
    callbacks: *const jitmem_mapper_callbacks,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: numbers, pointers and optional functions; the caller vouches for the size.
        let table = unsafe { input::versioned(callbacks, LEAST, "jitmem_mapper_callbacks") }?;
        let context = Arc::new(Context::new(table.ctx, table.destroy));
        let make = || Mapper::custom(Callbacks::new(table, context)?).map(jitmem_mapper);
        // SAFETY: as the caller says.
        unsafe { handle::give_to(mapper, make) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
