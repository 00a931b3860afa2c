// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From a file to an allocation.

use super::format::{CallPlaces, ImageSegment, LARGEST_FILE, MOST_SEGMENTS, Place, SlotValue};
use super::key::Key;
use super::read::{Checked, check};
use super::recorder::of_file;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::lock::Mutex;
use crate::manager::{Contents, InFlight, Label, Manager, Segment};
use crate::memory::staged::StagedFile;
use crate::page::AddressRange;
use crate::sys::{self, OwnFile, heap};
use crc32fast::Hasher;
use smallvec::SmallVec;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

/// Bytes of a content that are copied at once to be checked.
const CHECKED_AT_ONCE: usize = 16 << 10;

/// A file that was read and checked whole, and stays open.
pub struct Image {
    /// What it is called in errors.
    path: String,
    file: OwnFile,
    pub(super) tables: Checked,
    /// What was read at once. A link that is at work has it, and others read the file again.
    staged: Mutex<Option<StagedFile>>,
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
    /// at most nine system calls besides the heap's, and for more than 16 MiB one for each 4 MiB.
    ///
    /// The image takes as much memory as its tables have bytes, and the file stays open for [`Image::link`]. A file of 320 KiB
    /// to 8 MiB is read at once, into memory that the image has until it is linked. Two views of this process get the largest
    /// segment of 256 KiB to 2 MiB that is not writable out of that without a copy, and what is left then goes with the image.
    ///
    /// # Errors
    /// `Unsupported` if it was stored for another key, or in another format; `InvalidArgument` if it is none,
    /// or is torn or damaged; `Denied` if it belongs to another user than this one or root, or others may
    /// write it; `OutOfMemory`; what the system says of the file.
    pub fn open(path: impl AsRef<Path>, key: &Key) -> Result<Image> {
        let path = path.as_ref();
        let open = || {
            let file = sys::open_own_file(path, LARGEST_FILE);
            let file = file.map_err(|error| of_file("read it", error))?;
            Image::of(&path.to_string_lossy(), file, key)
        };
        open().map_err(|error| error.context(format!("open image {}", path.display())))
    }

    pub(super) fn of(path: &str, file: OwnFile, key: &Key) -> Result<Image> {
        let (tables, staged) = check(&file, key)?;
        Ok(Image {
            path: heap::text(path, "open an image")?,
            file,
            tables,
            staged: Mutex::new(staged),
        })
    }

    /// [`Image::of`] for a file that is read as large ones are.
    #[cfg(test)]
    pub(super) fn in_parts(file: OwnFile, key: &Key) -> Result<Image> {
        Ok(Image {
            path: "test".to_owned(),
            tables: super::read::check_in_parts(&file, key)?,
            file,
            staged: Mutex::new(None),
        })
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

    /// [`Image::imports`] as C has names: each with a NUL behind it.
    pub(crate) fn c_imports(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let symbols = self.tables.symbols.iter();
        symbols.map(|name| self.tables.c_name(*name))
    }

    /// [`Image::exports`] with names as C has them.
    pub(crate) fn c_exports(&self) -> impl ExactSizeIterator<Item = (&[u8], u64)> {
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
    /// each symbol, if that of an action's function is 0, if two segments are too far from each other for a distance of
    /// 4 bytes, where each segment has a reservation of its own, or if the file was written to since it was opened; what
    /// the system says of the file. Nothing is left allocated then.
    pub fn link(
        &self,
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
        &self,
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
        let mut starts = [0; MOST_SEGMENTS];
        for (index, start) in starts.iter_mut().enumerate().take(graph.segments()) {
            *start = graph.address(index);
        }
        let mut contents = graph.contents()?;
        self.fill_contents(&mut contents)?;
        self.fill_slots(&mut contents, &starts, symbols)?;
        let mut actions = heap::room_for(self.tables.actions.len(), "link an image")?;
        for action in &self.tables.actions {
            actions.push(LinkedAction {
                finalize: linked_call(&contents, action.finalize)?,
                dealloc: linked_call(&contents, action.dealloc)?,
            });
        }
        let address = |place: Place| starts[place.segment as usize] + u64::from(place.offset);
        let (exported, sections) = (&self.tables.exports, &self.tables.frames);
        let mut exports = heap::room_for(exported.len(), "link an image")?;
        exports.extend(exported.iter().map(|export| address(export.place)));
        let mut frames = heap::room_for(sections.len(), "link an image")?;
        frames.extend(
            sections.iter().filter_map(|section| {
                AddressRange::new(address(section.place), section.size.into())
            }),
        );
        Ok(Placed {
            graph,
            exports,
            frames,
            actions,
        })
    }

    fn resolve(&self, resolve: impl FnOnce(&[&str]) -> Result<Vec<u64>>) -> Result<Vec<u64>> {
        if self.tables.symbols.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = heap::room_for(self.tables.symbols.len(), "link an image")?;
        names.extend(self.imports());
        resolve(&names)
    }

    /// Gives each segment its content: out of what was read at once when the image was opened, if that is there, or read
    /// again.
    fn fill_contents(&self, contents: &mut Contents<'_>) -> Result<()> {
        let mut filled = [false; MOST_SEGMENTS];
        // Never waits: in a forked child the lock may be held by a thread that is not there.
        let staged = self.staged.try_lock().and_then(|mut staged| staged.take());
        if let Some(mut staged) = staged.filter(StagedFile::is_here) {
            let adopted = self.adopt_largest(contents, &mut staged)?;
            for (index, place) in self.tables.content_places().enumerate() {
                if let Some(bytes) = staged.bytes(place) {
                    let written = contents.write_all(index, bytes);
                    written.map_err(|error| self.not_filled(error))?;
                    filled[index] = true;
                }
            }
            if let Some(index) = adopted {
                filled[index] = true;
                // For whatever links the image again, which reads what was taken from the file.
                if let Some(mut kept) = self.staged.try_lock() {
                    *kept = Some(staged);
                }
            }
        }
        let places = self.tables.content_places().enumerate();
        let left: SmallVec<[_; MOST_SEGMENTS]> =
            places.filter(|(index, _)| !filled[*index]).collect();
        let follows = |one: &(usize, Range<u64>), next: &(usize, Range<u64>)| {
            one.0 + 1 == next.0 && one.1.end == next.1.start
        };
        for run in left.chunk_by(follows) {
            let (first, place) = &run[0];
            self.read_again(*first..first + run.len(), place.start, contents)?;
        }
        Ok(())
    }

    /// Has the mapper take the pages of the segment for which that saves most: for each it takes seven system calls, one more
    /// than to make a chunk. Gives which one it was, if the mapper did.
    fn adopt_largest(
        &self,
        contents: &mut Contents<'_>,
        staged: &mut StagedFile,
    ) -> Result<Option<usize>> {
        let places = self
            .tables
            .segments
            .iter()
            .zip(self.tables.content_places());
        let largest = places
            .enumerate()
            .filter(|(_, (segment, _))| may_stay(segment))
            .max_by_key(|(_, (segment, _))| segment.content);
        let Some((index, (segment, place))) = largest else {
            return Ok(None);
        };
        let adopted = contents.adopt(index, segment.protection, staged, place);
        let adopted = adopted.map_err(|error| self.in_linking(error))?;
        Ok(adopted.then_some(index))
    }

    /// Reads the contents of some segments again, which are one behind the other in the file, and checks them.
    fn read_again(
        &self,
        segments: Range<usize>,
        at: u64,
        contents: &mut Contents<'_>,
    ) -> Result<()> {
        let read = contents.read_from(segments.clone(), &self.file, at);
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.has_changed("has fewer bytes"));
            }
            other => other.map_err(|error| self.not_filled(error))?,
        }
        for index in segments {
            let segment = &self.tables.segments[index];
            let (mut checksum, mut part) = (Hasher::new(), [0; CHECKED_AT_ONCE]);
            for start in (0..segment.content).step_by(part.len()) {
                let size = part.len().min((segment.content - start) as usize);
                contents.read(index, start.into(), &mut part[..size]);
                checksum.update(&part[..size]);
            }
            if checksum.finalize() != segment.checksum {
                return Err(self.has_changed("has other content"));
            }
        }
        Ok(())
    }

    #[cold]
    fn not_filled(&self, error: io::Error) -> Error {
        self.in_linking(match error.kind() {
            io::ErrorKind::OutOfMemory => {
                let error = Error::new(Status::OutOfMemory, "the system has no memory for it");
                error.remedy("free memory, or raise the memory limit")
            }
            _ => of_file("read it again", error),
        })
    }

    fn in_linking(&self, error: Error) -> Error {
        error.context(format!("link image {}", self.path))
    }

    #[cold]
    fn has_changed(&self, how: &str) -> Error {
        invalid_argument(format!(
            "link image {}: the file {how} than when it was opened: it was written to meanwhile",
            self.path
        ))
        .remedy("replace files of images by rename, and open it again")
    }

    /// Adds to every slot what it depends on.
    fn fill_slots(
        &self,
        contents: &mut Contents<'_>,
        starts: &[u64; MOST_SEGMENTS],
        symbols: &[u64],
    ) -> Result<()> {
        let start_of = |segment: u32| starts[segment as usize];
        let symbol = |number: u32| symbols[number as usize];
        for (group, offsets) in self.tables.slots() {
            let own = start_of(group.segment);
            // What is added, and what is taken off.
            let (target, origin) = match group.value {
                SlotValue::Import(number) => (symbol(number), 0),
                SlotValue::Absolute64(segment) => (start_of(segment), 0),
                SlotValue::Relative32(segment) | SlotValue::Relative64(segment) => {
                    (start_of(segment), own)
                }
                SlotValue::ImportRelative32(number) | SlotValue::ImportRelative64(number) => {
                    (symbol(number), own)
                }
                SlotValue::Distance64 { segment, from } => (start_of(segment), start_of(from)),
                SlotValue::ImportDistance64 {
                    symbol: number,
                    from,
                } => (symbol(number), start_of(from)),
                SlotValue::RelativeFixed64 => (0, own),
            };
            let added = target.wrapping_sub(origin);
            let segment = group.segment as usize;
            match group.value.size() {
                4 => {
                    for offset in offsets {
                        let stored = contents.read_array(segment, offset.into());
                        let distance =
                            (added as i64).wrapping_add(i32::from_le_bytes(stored).into());
                        let near = i32::try_from(distance).map_err(|_| {
                            self.tables
                                .too_far(group.value, own + u64::from(offset), distance)
                        })?;
                        contents.write(segment, offset.into(), &near.to_le_bytes());
                    }
                }
                _ => {
                    for offset in offsets {
                        let stored = contents.read_array(segment, offset.into());
                        let value = added.wrapping_add(u64::from_le_bytes(stored));
                        contents.write(segment, offset.into(), &value.to_le_bytes());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the pages that a content was read into may become those of its segment. What is larger than a huge page is
/// copied, so that it can be put into such.
fn may_stay(segment: &ImageSegment) -> bool {
    segment.is_in_pages() && u64::from(segment.content) < sys::huge_page_size().bytes()
}

/// A call, once slots are filled.
fn linked_call(contents: &Contents<'_>, call: Option<CallPlaces>) -> Result<Option<LinkedCall>> {
    let Some(call) = call else {
        return Ok(None);
    };
    let pointer = call.function;
    let pointer = contents.read_array(pointer.segment as usize, pointer.offset.into());
    let function = match u64::from_le_bytes(pointer) {
        0 => {
            return Err(invalid_argument(
                "link an image: the function of an action is at address 0",
            ));
        }
        function => function,
    };
    let size = call.size as usize;
    let mut args = heap::room_for(size, "link an image")?;
    args.resize(size, 0);
    contents.read(
        call.args.segment as usize,
        call.args.offset.into(),
        &mut args,
    );
    Ok(Some(LinkedCall { function, args }))
}

impl Checked {
    #[cold]
    fn too_far(&self, value: SlotValue, address: u64, distance: i64) -> Error {
        let of_symbol = |to: &str| {
            let what = format!(
                "link an image: {distance} bytes from {address:#x}{to} do not fit a distance of 4 bytes"
            );
            Error::new(Status::InvalidArgument, what)
        };
        match value {
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
