// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From a file to an allocation.

use super::format::{
    CallPlaces, ImageSegment, LARGEST_FILE, MAGIC, MOST_SEGMENTS, Place, Slot, SlotValue,
};
use super::key::Key;
use super::read::{Checked, check};
use super::recorder::of_file;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::manager::{InFlight, Label, Manager, Segment};
use crate::page::AddressRange;
use crate::sys::{self, Content, heap};
use std::ffi::CStr;
use std::fmt;
use std::path::Path;

/// A file that was read and checked whole.
pub struct Image {
    pub(super) file: Content,
    pub(super) tables: Checked,
}

/// A symbol of an image that is linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedExport {
    /// Its name.
    pub symbol: String,
    /// Its address in the executor.
    pub address: u64,
    /// What the host that stored it said of it.
    pub flags: u64,
}

/// A call of a wrapper function, for [`WrapperCall::new`](crate::WrapperCall::new): the host says that the file is right
/// in what it has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedCall {
    /// Where the function is in the executor.
    pub function: u64,
    /// Its serialized arguments.
    pub args: Vec<u8>,
}

/// What [`StoredAction`](super::StoredAction) has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedAction {
    /// To be run on finalize.
    pub finalize: Option<LinkedCall>,
    /// To be run on deallocate.
    pub dealloc: Option<LinkedCall>,
}

/// An image in a manager's memory.
#[derive(Debug)]
pub struct Linked {
    /// All of it: what is left to do is to finalize it.
    pub graph: InFlight,
    /// What may be looked up in it.
    pub exports: Vec<LinkedExport>,
    /// Sections of unwind information, for finalize actions that register them: in this process
    /// [`eh_frame_action`](crate::executor::eh_frame_action).
    pub frames: Vec<AddressRange>,
    /// Further actions for finalize, in their order, behind those that register frames.
    pub actions: Vec<LinkedAction>,
}

/// An image in a manager's memory, with the addresses of its exports in their order.
pub(crate) struct Placed {
    pub(crate) graph: InFlight,
    pub(crate) exports: Vec<u64>,
    pub(crate) frames: Vec<AddressRange>,
    pub(crate) actions: Vec<LinkedAction>,
}

impl Image {
    /// Reads a file that [`Recorder::store`](super::Recorder::store) has written, and checks all of it. Takes
    /// at most five system calls besides the heap's, and as much memory as the file has bytes; one of 512 KiB and more takes eight, and
    /// lies in huge pages where the system gives them.
    ///
    /// # Errors
    /// `Unsupported` if it was stored for another key, or in another format; `InvalidArgument` if it is none,
    /// or is torn or damaged; `Denied` if it belongs to another user than this one or root, or others may
    /// write it; `OutOfMemory`; what the system says of the file.
    pub fn open(path: impl AsRef<Path>, key: &Key) -> Result<Image> {
        let path = path.as_ref();
        let read = || {
            let file = sys::read_own_file(path, &MAGIC, LARGEST_FILE);
            Image::from_bytes(file.map_err(|error| of_file("read it", error))?, key)
        };
        read().map_err(|error| error.context(format!("open image {}", path.display())))
    }

    pub(super) fn from_bytes(file: Content, key: &Key) -> Result<Image> {
        let tables = check(&file, key)?;
        Ok(Image { file, tables })
    }

    /// The symbols that are outside of it, each once.
    pub fn imports(&self) -> impl ExactSizeIterator<Item = &str> {
        let symbols = self.tables.symbols.iter();
        symbols.map(|name| self.tables.name(*name))
    }

    /// The symbols that may be looked up in it, with what the host that stored it said of each, in the
    /// order of [`Linked::exports`].
    pub fn exports(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        let exports = self.tables.exports.iter();
        exports.map(|export| (self.tables.name(export.symbol), export.flags))
    }

    /// [`Image::imports`] as C has names.
    pub(crate) fn c_imports(&self) -> impl ExactSizeIterator<Item = &CStr> {
        let symbols = self.tables.symbols.iter();
        symbols.map(|name| self.tables.c_name(*name))
    }

    /// [`Image::exports`] with names as C has them.
    pub(crate) fn c_exports(&self) -> impl ExactSizeIterator<Item = (&CStr, u64)> {
        let exports = self.tables.exports.iter();
        exports.map(|export| (self.tables.c_name(export.symbol), export.flags))
    }

    /// Allocates memory for all of the image, fills it in for the addresses that it has got, and gives it to
    /// be finalized. Waits for the mapper.
    ///
    /// `resolve` is called once if the image has imports. It gets the names of all symbols that are outside,
    /// each once, and answers their addresses in the executor in the same order.
    ///
    /// # Errors
    /// As [`Manager::allocate`]; what `resolve` answers; `InvalidArgument` if that is not one address for
    /// each symbol, if that of an action's function is 0, or if two segments are too far from each other for a distance of
    /// 4 bytes, where each segment has a reservation of its own. Nothing is left allocated then.
    pub fn link(
        &mut self,
        manager: &Manager,
        label: impl Into<Label>,
        resolve: impl FnOnce(&[&str]) -> Result<Vec<u64>>,
    ) -> Result<Linked> {
        let symbols = self.resolve(resolve)?;
        let placed = self.link_to(manager, label, &symbols)?;
        let mut exports = heap::room_for(placed.exports.len(), "link an image")?;
        for ((symbol, flags), address) in self.exports().zip(placed.exports) {
            exports.push(LinkedExport {
                symbol: heap::text(symbol, "link an image")?,
                address,
                flags,
            });
        }
        Ok(Linked {
            graph: placed.graph,
            exports,
            frames: placed.frames,
            actions: placed.actions,
        })
    }

    /// [`Image::link`] with an address for each import.
    pub(crate) fn link_to(
        &mut self,
        manager: &Manager,
        label: impl Into<Label>,
        symbols: &[u64],
    ) -> Result<Placed> {
        let wanted = self.tables.symbols.len();
        if symbols.len() != wanted {
            return Err(invalid_argument(format!(
                "link an image: {} addresses for the {wanted} symbols that it imports; give one for each",
                symbols.len()
            )));
        }
        let segments = self.tables.segments.iter().map(ImageSegment::request);
        let mut graph = manager.allocate(segments, label)?;
        self.fill_slots(&graph, symbols)?;
        for (index, content) in self.tables.contents.iter().enumerate() {
            graph.write(index, 0, &self.file[content.clone()])?;
        }
        let address =
            |place: Place| graph.address(place.segment as usize) + u64::from(place.offset);
        let (exported, sections) = (&self.tables.exports, &self.tables.frames);
        let mut exports = heap::room_for(exported.len(), "link an image")?;
        exports.extend(exported.iter().map(|export| address(export.place)));
        let mut frames = heap::room_for(sections.len(), "link an image")?;
        frames.extend(
            sections.iter().filter_map(|section| {
                AddressRange::new(address(section.place), section.size.into())
            }),
        );
        let mut actions = heap::room_for(self.tables.actions.len(), "link an image")?;
        for action in &self.tables.actions {
            actions.push(LinkedAction {
                finalize: self.linked_call(action.finalize)?,
                dealloc: self.linked_call(action.dealloc)?,
            });
        }
        Ok(Placed {
            graph,
            exports,
            frames,
            actions,
        })
    }

    /// A call, once slots are filled.
    fn linked_call(&self, call: Option<CallPlaces>) -> Result<Option<LinkedCall>> {
        let Some(call) = call else {
            return Ok(None);
        };
        let content = |place: Place, size: usize| {
            let start = self.tables.contents[place.segment as usize].start;
            &self.file[start + place.offset as usize..][..size]
        };
        let mut function = [0; size_of::<u64>()];
        function.copy_from_slice(content(call.function, size_of::<u64>()));
        match u64::from_le_bytes(function) {
            0 => Err(invalid_argument(
                "link an image: the function of an action is at address 0",
            )),
            function => Ok(Some(LinkedCall {
                function,
                args: heap::copy_of(content(call.args, call.size as usize), "link an image")?,
            })),
        }
    }

    fn resolve(&self, resolve: impl FnOnce(&[&str]) -> Result<Vec<u64>>) -> Result<Vec<u64>> {
        if self.tables.symbols.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = heap::room_for(self.tables.symbols.len(), "link an image")?;
        names.extend(self.imports());
        resolve(&names)
    }

    /// Computes every slot for the addresses of a graph, into the contents as they were read. Nothing of what
    /// was there before is used, so an image may be linked again.
    fn fill_slots(&mut self, graph: &InFlight, symbols: &[u64]) -> Result<()> {
        let mut starts = [0; MOST_SEGMENTS];
        for (index, start) in starts
            .iter_mut()
            .enumerate()
            .take(self.tables.segments.len())
        {
            *start = graph.address(index);
        }
        let start_of = |segment: u32| starts[segment as usize];
        let first = self.tables.contents.first();
        let head = first.map_or(self.file.len(), |content| content.start);
        let (head, contents) = self.file.split_at_mut(head);
        let mut starts_of_contents = [0; MOST_SEGMENTS];
        for (start, content) in starts_of_contents.iter_mut().zip(&self.tables.contents) {
            *start = content.start - head.len();
        }
        for slot in self.tables.slots(head) {
            let Place { segment, offset } = slot.place;
            let address = start_of(segment) + u64::from(offset);
            let symbol = |symbol: u32| symbols[symbol as usize];
            // What the value is, and what is taken from it.
            let (target, origin) = match slot.value {
                SlotValue::Import(number) => (symbol(number), 0),
                SlotValue::Absolute64(segment) => (start_of(segment), 0),
                SlotValue::Relative32(segment) | SlotValue::Relative64(segment) => {
                    (start_of(segment), address)
                }
                SlotValue::ImportRelative32(number) | SlotValue::ImportRelative64(number) => {
                    (symbol(number), address)
                }
                SlotValue::Distance64 { segment, from } => (start_of(segment), start_of(from)),
                SlotValue::ImportDistance64 {
                    symbol: number,
                    from,
                } => (symbol(number), start_of(from)),
                SlotValue::RelativeFixed64 => (0, address),
            };
            let value = target.wrapping_add_signed(slot.addend).wrapping_sub(origin);
            let start = starts_of_contents[segment as usize] + offset as usize;
            match slot.value.size() {
                4 => {
                    let near = i32::try_from(value as i64);
                    let near = near.map_err(|_| self.tables.too_far(slot, address, value))?;
                    contents[start..][..4].copy_from_slice(&near.to_le_bytes());
                }
                _ => contents[start..][..8].copy_from_slice(&value.to_le_bytes()),
            }
        }
        Ok(())
    }
}

impl Checked {
    #[cold]
    fn too_far(&self, slot: Slot, address: u64, distance: u64) -> Error {
        let distance = distance as i64;
        let of_symbol = |to: &str| {
            let what = format!(
                "link an image: {distance} bytes from {address:#x}{to} do not fit a distance of 4 bytes"
            );
            Error::new(Status::InvalidArgument, what)
        };
        match slot.value {
            SlotValue::ImportRelative32(symbol) => {
                let symbol = self.name(self.symbols[symbol as usize]);
                of_symbol(&format!(" to {symbol}")).remedy("place the window near it")
            }
            _ => of_symbol("").remedy("link it into a manager that has windows"),
        }
    }
}

impl ImageSegment {
    fn request(&self) -> Segment {
        Segment::new(self.protection, self.content.into())
            .zero_fill(self.zero_fill.into())
            .aligned(self.alignment)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("segments", &self.tables.segments)
            .field("symbols", &self.tables.symbols.len())
            .field("exports", &self.tables.exports.len())
            .finish()
    }
}
