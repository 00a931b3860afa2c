// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_image_recorder`: graphs that are to be stored as one image.

use super::guard;
use super::handle::{self, Handle};
use super::input::{self, Optional};
use super::request::{self, jitmem_segment};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Error, Result, invalid_argument};
use crate::image::{
    Export, Graph, GraphSegment, Import, Key, RecordedId, Recorder, Reference, ReferenceKind,
    StoredAction, StoredCall,
};
use crate::lock::Mutex;
use crate::page::AddressRange;
use crate::sys::heap::{self, Watch};
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// Copies of linked graphs, to be stored as one image: a file from which later processes have them without
/// linking. It takes as much memory as they have content. One thread at a time uses a recorder.
#[allow(non_camel_case_types)]
pub struct jitmem_image_recorder(Mutex<Recorder>);

static RECORDERS: handle::Pool<jitmem_image_recorder> =
    handle::Pool::new(handle::Kind::ImageRecorder);

impl Handle for jitmem_image_recorder {
    fn pool() -> &'static handle::Pool<Self> {
        &RECORDERS
    }
    const NAME: &'static str = "jitmem_image_recorder";
}

/// Something that code depends on besides jitmem's version and the processor: the linker and its version,
/// options, the build-id of a library whose structures the code knows.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_key {
    /// What it is.
    pub name: *const c_char,
    /// Which. An image is opened only where all names and values are those that it was stored with.
    pub value: *const c_char,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A segment of a graph where it was linked.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_segment {
    /// Where it is in the executor.
    pub address: u64,
    /// What the linker has written: as many bytes as the segment has content.
    pub content: *const c_void,
    /// What was asked for.
    pub segment: jitmem_segment,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// Bytes that say where something outside of the graph is: best a pointer of 8 bytes. Their content says where the symbol
/// was: if that is in another graph of the image, they depend on that graph, and later processes are not asked for the symbol.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_import {
    /// Their address: inside the content of a segment of the same graph.
    pub slot: u64,
    /// What they say where it is.
    pub symbol: *const c_char,
    /// What is added to the symbol's address, before the slot's is subtracted.
    pub addend: i64,
    /// JITMEM_IMAGE_DISTANCE_64: an address inside the segment that the distance is counted from. Else 0.
    pub origin: u64,
    /// One of jitmem_image_reference_kind. A distance of 4 bytes must fit in every process that links the image: the
    /// default place of windows has the process's own images in reach.
    pub kind: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 3],
}

/// How a slot says where its target is.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_image_reference_kind {
    /// 8 bytes: an address.
    JITMEM_IMAGE_ABSOLUTE_64 = 1,
    /// 4 bytes: a signed distance from the slot.
    JITMEM_IMAGE_RELATIVE_32 = 2,
    /// 8 bytes: a distance from the slot.
    JITMEM_IMAGE_RELATIVE_64 = 3,
    /// 8 bytes: a distance from `origin`.
    JITMEM_IMAGE_DISTANCE_64 = 4,
    /// 8 bytes: the distance from the slot to an address that is the same in all processes. The target does not count, and
    /// an import can't be of this kind.
    JITMEM_IMAGE_RELATIVE_FIXED_64 = 5,
}

/// Bytes that depend on where something of the image is. What refers to its own segment by a distance need not
/// be told.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_reference {
    /// Address of the bytes: inside the content of a segment of the same graph.
    pub slot: u64,
    /// An address inside the segment that is meant. The content of the slot says which of it: it may be another
    /// address of the segment, or one outside of it at some distance.
    pub target: u64,
    /// JITMEM_IMAGE_DISTANCE_64: an address inside the segment that the distance is counted from. Else 0.
    pub origin: u64,
    /// One of jitmem_image_reference_kind.
    pub kind: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 3],
}

/// A symbol that later processes find.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_export {
    /// Its name.
    pub symbol: *const c_char,
    /// Its address, inside a segment of the graph; of an image that is not linked: 0.
    pub address: u64,
    /// What the host wants to know of it; kept as it is.
    pub flags: u64,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A section of unwind information (`.eh_frame`).
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_frames {
    /// Its address, inside the content of a segment.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A call of a wrapper function. Its parts lie in the graph, so that they are right wherever the image lies. All 0: no call.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_call {
    /// Address of a pointer to the function: the slot of an import or a reference of kind JITMEM_IMAGE_ABSOLUTE_64.
    pub function: u64,
    /// Address of its serialized arguments: inside the content of a segment of the same graph. What they have of addresses is told
    /// as references and imports.
    pub args: u64,
    /// Bytes of them.
    pub args_size: u64,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// An allocation action that later processes run too.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_action {
    /// Run on finalize.
    pub finalize: jitmem_image_call,
    /// Run on deallocate.
    pub dealloc: jitmem_image_call,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A linked graph: what jitmem_image_recorder_record copies. Set struct_size to sizeof(jitmem_image_graph) and
/// what it does not have to zero. Each array may be NULL if its count is 0.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_graph {
    /// sizeof(jitmem_image_graph).
    pub struct_size: usize,
    /// What errors call it; may be NULL.
    pub name: *const c_char,
    /// Its segments. Those without memory may be left out.
    pub segments: *const jitmem_image_segment,
    pub segment_count: usize,
    /// Pointers to what is outside of the image.
    pub imports: *const jitmem_image_import,
    pub import_count: usize,
    /// What depends on addresses inside of it.
    pub references: *const jitmem_image_reference,
    pub reference_count: usize,
    /// What later processes look up.
    pub exports: *const jitmem_image_export,
    pub export_count: usize,
    /// Its unwind information.
    pub frames: *const jitmem_image_frames,
    pub frames_count: usize,
    /// What is run when it is finalized and deallocated, besides what registers its frames.
    pub actions: *const jitmem_image_action,
    pub action_count: usize,
}

const LEAST: usize = offset_of!(jitmem_image_graph, frames_count) + size_of::<usize>();

/// Runs `body` on a recorder.
///
/// # Safety
/// `recorder` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
unsafe fn with_recorder(
    recorder: *const jitmem_image_recorder,
    error: *mut *mut jitmem_error,
    body: impl FnOnce(&mut Recorder) -> Result<()>,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let recorder = unsafe { handle::get(recorder) }?;
        // A wait might be for a thread that a forked child does not have.
        let mut recorder = recorder.0.try_lock().ok_or_else(|| {
            invalid_argument(
                "another thread uses this image recorder at the moment; record one graph after the other",
            )
        })?;
        heap::check()?;
        body(&mut recorder)
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a recorder without graphs.
///
/// On success `*recorder` is the new recorder, to be freed with jitmem_image_recorder_free. Thread-safe. Never
/// waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_OUT_OF_MEMORY.
///
/// # Safety
/// `recorder` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_recorder_create(
    recorder: *mut *mut jitmem_image_recorder,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let make = || Ok(jitmem_image_recorder(Mutex::new(Recorder::default())));
    // SAFETY: as the caller says.
    unsafe { guard::call(error, || handle::give_to(recorder, make)) }
}

/// Converts an array of C.
///
/// # Safety
/// `pointer` is NULL or points to `count` elements that stay as they are during `'a`.
unsafe fn converted<'a, C: 'a, T>(
    pointer: *const C,
    count: usize,
    name: &str,
    convert: impl Fn(&'a C) -> Result<T>,
) -> Result<Vec<T>> {
    // SAFETY: as the caller says.
    let given = unsafe { input::array(pointer, count, name) }?;
    let mut all = heap::room_for(given.len(), "record a graph")?;
    for one in given {
        all.push(convert(one)?);
    }
    Ok(all)
}

/// # Safety
/// The segment's content is NULL or as long as it says.
unsafe fn segment(given: &jitmem_image_segment) -> Result<GraphSegment<'_>> {
    input::unused(given.reserved, "jitmem_image_segment")?;
    let segment = request::segment(&given.segment)?;
    let size = usize::try_from(segment.content_size)
        .map_err(|_| invalid_argument("a segment has more content than memory"))?;
    Ok(GraphSegment {
        address: given.address,
        segment,
        // SAFETY: as the caller says.
        content: unsafe { input::array(given.content.cast(), size, "content") }?,
    })
}

fn reference(given: &jitmem_image_reference) -> Result<Reference> {
    Ok(Reference {
        slot: given.slot,
        target: given.target,
        kind: kind(
            given.kind,
            given.reserved,
            given.origin,
            "jitmem_image_reference",
        )?,
    })
}

fn kind(kind: u32, reserved: [u32; 3], origin: u64, of: &str) -> Result<ReferenceKind> {
    if reserved != [0; 3] {
        return Err(invalid_argument(format!("{of}.reserved is not 0")));
    }
    if origin != 0 && kind != jitmem_image_reference_kind::JITMEM_IMAGE_DISTANCE_64 as u32 {
        return Err(invalid_argument(format!(
            "{of}.origin is {origin:#x} and not 0, and the kind is no distance from it"
        )));
    }
    match kind {
        1 => Ok(ReferenceKind::Absolute64),
        2 => Ok(ReferenceKind::Relative32),
        3 => Ok(ReferenceKind::Relative64),
        4 => Ok(ReferenceKind::Distance64 { origin }),
        5 => Ok(ReferenceKind::RelativeFixed64),
        other => Err(invalid_argument(format!(
            "{of}: reference kind {other} is none of absolute 1, relative 32 2, relative 64 3, distance 64 4 \
             and relative fixed 64 5"
        ))),
    }
}

fn frames(given: &jitmem_image_frames) -> Result<AddressRange> {
    input::unused(given.reserved, "jitmem_image_frames")?;
    let (start, size) = (given.start, given.size);
    AddressRange::new(start, size).ok_or_else(|| {
        invalid_argument(format!(
            "frames of {size} bytes at {start:#x} end beyond the last address"
        ))
    })
}

fn call(given: &jitmem_image_call) -> Result<Option<StoredCall>> {
    input::unused(given.reserved, "jitmem_image_call")?;
    let (function, start, size) = (given.function, given.args, given.args_size);
    if (function, start, size) == (0, 0, 0) {
        return Ok(None);
    }
    let args = AddressRange::new(start, size).ok_or_else(|| {
        invalid_argument(format!(
            "arguments of {size} bytes at {start:#x} end beyond the last address"
        ))
    })?;
    Ok(Some(StoredCall { function, args }))
}

fn action(given: &jitmem_image_action) -> Result<StoredAction> {
    input::unused(given.reserved, "jitmem_image_action")?;
    Ok(StoredAction {
        finalize: call(&given.finalize)?,
        dealloc: call(&given.dealloc)?,
    })
}

/// Copies a graph that is linked: to be called once its content is written, for the addresses that it will have, and
/// before it runs, since it would be stored as it is then. `*id` names it to the recorder; `id` may be NULL.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, unknown kinds, names that are not UTF-8, a range beyond the last address,
/// alignment to more than 1 GiB), JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED for a segment that lives only until finalize;
/// JITMEM_OUT_OF_MEMORY. Nothing is recorded then. Whether graphs fit together is checked when they are stored.
///
/// # Safety
/// `recorder` is NULL or a handle of this library; `graph` is NULL or points to a struct of the size that it says, whose arrays
/// have as many entries, and contents as many bytes, as it says, and whose names are NULL or NUL-terminated; `id` is
/// NULL or a place for a number; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_recorder_record(
    recorder: *const jitmem_image_recorder,
    graph: *const jitmem_image_graph,
    id: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |recorder: &mut Recorder| {
        // SAFETY: plain numbers and pointers; the caller vouches for the size.
        let given = unsafe { input::versioned(graph, LEAST, "jitmem_image_graph") }?;
        // SAFETY: as the caller says.
        let id = unsafe { Optional::new(id, "id") }?;
        let heap = Watch::begin()?;
        // SAFETY: the caller says that the arrays and strings are as the graph says.
        let name = unsafe { input::optional_text(given.name, "name") }?;
        // SAFETY: as above.
        let segments = unsafe {
            converted(given.segments, given.segment_count, "segments", |one| {
                segment(one)
            })
        }?;
        let import = |one: &jitmem_image_import| {
            Ok(Import {
                kind: kind(one.kind, one.reserved, one.origin, "jitmem_image_import")?,
                slot: one.slot,
                // SAFETY: as above.
                symbol: unsafe { input::text(one.symbol, "symbol") }?,
                addend: one.addend,
            })
        };
        // SAFETY: as above.
        let imports = unsafe { converted(given.imports, given.import_count, "imports", import) }?;
        // SAFETY: as above.
        let references = unsafe {
            converted(
                given.references,
                given.reference_count,
                "references",
                reference,
            )
        }?;
        let export = |one: &jitmem_image_export| {
            input::unused(one.reserved, "jitmem_image_export")?;
            Ok(Export {
                // SAFETY: as above.
                symbol: unsafe { input::text(one.symbol, "symbol") }?,
                address: one.address,
                flags: one.flags,
            })
        };
        // SAFETY: as above.
        let exports = unsafe { converted(given.exports, given.export_count, "exports", export) }?;
        // SAFETY: as above.
        let frames = unsafe { converted(given.frames, given.frames_count, "frames", frames) }?;
        // SAFETY: as above.
        let actions = unsafe { converted(given.actions, given.action_count, "actions", action) }?;
        let recorded = recorder.record(&Graph {
            name: name.unwrap_or("without a name"),
            segments: &segments,
            imports: &imports,
            references: &references,
            exports: &exports,
            frames: &frames,
            actions: &actions,
        })?;
        if let Err(error) = heap.check("record a graph") {
            recorder.take_back();
            return Err(error);
        }
        id.set(recorded.number());
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_recorder(recorder, error, body) }
}

/// Forgets a graph: its allocation is gone, or about to go. Graphs that refer to it can't be stored from then on.
/// Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE (also for an `id` that was forgotten before).
///
/// # Safety
/// `recorder` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_recorder_forget(
    recorder: *const jitmem_image_recorder,
    id: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |recorder: &mut Recorder| recorder.forget(RecordedId::of(id));
    // SAFETY: as the caller says.
    unsafe { with_recorder(recorder, error, body) }
}

/// The key of an image: what jitmem adds, and what the host has said.
///
/// # Safety
/// `parts` is NULL or has `count` entries, whose strings are NULL or NUL-terminated.
pub(super) unsafe fn key(parts: *const jitmem_image_key, count: usize) -> Result<Key> {
    // SAFETY: as the caller says.
    let parts = unsafe { input::array(parts, count, "key") }?;
    parts.iter().try_fold(Key::default(), |key, part| {
        input::unused(part.reserved, "jitmem_image_key")?;
        // SAFETY: as the caller says.
        let (name, value) = unsafe {
            (
                input::text(part.name, "jitmem_image_key.name")?,
                input::text(part.value, "jitmem_image_key.value")?,
            )
        };
        let part = |text| heap::text(text, "make the key of an image");
        Ok::<_, Error>(key.with(part(name)?, part(value)?))
    })
}

/// Writes everything that is recorded to the file `path`, in the place of one that is there. A process that opens it at any time
/// has all of the old one or all of the new one, also after the system has crashed. Until it is whole the file is PATH.new; a
/// process that stores to the same path at that time waits for its turn. Only this user may read or write it.
///
/// `key` has what else the code depends on; it may be NULL if `key_count` is 0. Waits for the disk.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; what was recorded does not fit together: a slot outside of the content of its graph,
/// slots or graphs that overlap, a reference to what is not recorded or to a graph that was forgotten, a name that means two
/// places outside, an action whose function is in no slot),
/// JITMEM_INVALID_HANDLE, JITMEM_WINDOW_FULL for more than a window holds, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_SYSTEM: what
/// the system says of the file. Where that is said of its directory, the file is replaced, and may be the old one after a crash of
/// the system.
///
/// # Safety
/// `recorder` is NULL or a handle of this library; `path` is NULL or NUL-terminated; `key` is NULL or has `key_count` entries,
/// whose strings are NULL or NUL-terminated; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_recorder_store(
    recorder: *const jitmem_image_recorder,
    path: *const c_char,
    key: *const jitmem_image_key,
    key_count: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |recorder: &mut Recorder| {
        // SAFETY: as the caller says.
        let path = unsafe { input::text(path, "path") }?;
        // SAFETY: as the caller says.
        recorder.store(path, &unsafe { self::key(key, key_count) }?)
    };
    // SAFETY: as the caller says.
    unsafe { with_recorder(recorder, error, body) }
}

/// Frees a recorder and its copies. NULL and one that was freed before: does nothing.
///
/// # Safety
/// `recorder` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_recorder_free(recorder: *mut jitmem_image_recorder) {
    // SAFETY: as the caller says.
    unsafe { guard::free(recorder) }
}
