// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Collecting graphs while they are linked, and writing them to a file.

use super::format::{LARGEST_ALIGNMENT, encode, file_parts};
use super::graphs::Graphs;
use super::key::Key;
use super::plan::plan;
use super::{Graph, Reference, ReferenceKind, StoredAction};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Lifetime;
use crate::manager::Segment;
use crate::page::AddressRange;
use crate::sys::{self, Replaced, heap};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A segment that takes memory.
#[derive(Debug)]
pub(super) struct RecordedSegment {
    pub(super) range: AddressRange,
    pub(super) segment: Segment,
    pub(super) content: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct RecordedImport {
    pub(super) slot: u64,
    pub(super) symbol: String,
    pub(super) addend: i64,
    pub(super) kind: ReferenceKind,
}

#[derive(Debug)]
pub(super) struct RecordedExport {
    pub(super) symbol: String,
    pub(super) address: u64,
    pub(super) flags: u64,
}

/// A [`Graph`] of the recorder's own.
#[derive(Debug)]
pub(super) struct RecordedGraph {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) segments: Vec<RecordedSegment>,
    pub(super) imports: Vec<RecordedImport>,
    pub(super) references: Vec<Reference>,
    pub(super) exports: Vec<RecordedExport>,
    pub(super) frames: Vec<AddressRange>,
    pub(super) actions: Vec<StoredAction>,
    /// The name of a graph to which it refers, and which was forgotten.
    pub(super) refers_to_forgotten: Option<Arc<String>>,
}

impl RecordedGraph {
    /// How many imports and references it has.
    pub(super) fn references(&self) -> usize {
        self.imports.len() + self.references.len()
    }

    /// Where that is to which it refers: at most two addresses for each import and reference.
    pub(super) fn targets(&self) -> impl Iterator<Item = u64> {
        let imported = |import: &RecordedImport| {
            let (slot, kind) = (import.slot, import.kind);
            let segment = self.segments.iter().find(|one| one.has(slot))?;
            let content = segment
                .content
                .get((slot - segment.range.start()) as usize..)?;
            let says = (content.len() as u64 >= kind.size()).then(|| kind.meant(slot, content))?;
            Some(says.wrapping_sub(import.addend as u64))
        };
        let kinds = self.references.iter().map(|one| one.kind);
        let kinds = kinds.chain(self.imports.iter().map(|one| one.kind));
        let told = self.references.iter().map(|one| one.target);
        told.chain(self.imports.iter().filter_map(imported))
            .chain(kinds.filter_map(ReferenceKind::origin))
    }
}

impl RecordedSegment {
    fn has(&self, address: u64) -> bool {
        (self.range.start()..self.range.end()).contains(&address)
    }
}

/// Names a graph to its recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordedId(u64);

impl RecordedId {
    /// The same as a number, for C.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn of(number: u64) -> RecordedId {
        RecordedId(number)
    }
}

/// Copies of linked graphs, to be stored as one image. It takes as much memory as they have content.
#[derive(Debug, Default)]
pub struct Recorder {
    pub(super) graphs: Graphs,
    recorded: u64,
}

impl Recorder {
    /// Copies a graph that is linked: to be called once its content is written, for the addresses that it
    /// will have, and before it runs, since it would be stored as it is then.
    ///
    /// # Errors
    /// `InvalidArgument` if a segment's content is not as long as the segment says, its range ends beyond
    /// the last address, or it is aligned to more than 1 GiB; `Unsupported` for a segment that lives only
    /// until finalize; `OutOfMemory`. Nothing is recorded then.
    pub fn record(&mut self, graph: &Graph<'_>) -> Result<RecordedId> {
        let copied = copy(graph, self.recorded + 1);
        let copied = copied.map_err(|error| of_graph(error, graph.name))?;
        self.graphs.add(copied)?;
        self.recorded += 1;
        Ok(RecordedId(self.recorded))
    }

    /// Takes back the graph that was recorded last, and to which none can refer yet.
    pub(crate) fn take_back(&mut self) {
        self.graphs.take(self.recorded);
    }

    /// Forgets a graph: its allocation is gone, or about to go. Graphs that refer to it can't be stored from
    /// then on.
    ///
    /// # Errors
    /// `InvalidHandle` if it was forgotten before.
    pub fn forget(&mut self, graph: RecordedId) -> Result<()> {
        if self.graphs.forget(graph.0, self.recorded) {
            return Ok(());
        }
        let what = format!("recorded graph {}: it was forgotten before", graph.0);
        Err(Error::new(Status::InvalidHandle, what))
    }

    /// Writes everything that is recorded to a file, in the place of one that is there. A process that
    /// opens it at any time has all of the old one or all of the new one, also after the system has crashed. Until it is
    /// whole the file is PATH.new; a process that stores to the same path at that time waits for its turn.
    /// Only this user may read or write it.
    ///
    /// # Errors
    /// `InvalidArgument` if what was recorded does not fit together: a slot outside of the content of its
    /// graph, slots or graphs that overlap, a reference to what is not recorded or to a graph that was forgotten, a name
    /// that means two places outside, an action whose function is in no slot;
    /// `WindowFull` for more than a window holds; `OutOfMemory`; what the system says of the file. Where that is said of
    /// its directory, the file is replaced, and may be the old one after a crash of the system.
    pub fn store(&self, path: impl AsRef<Path>, key: &Key) -> Result<()> {
        let path = path.as_ref();
        self.write(path, key)
            .map_err(|error| error.context(format!("store image {}", path.display())))
    }

    fn write(&self, path: &Path, key: &Key) -> Result<()> {
        let (tables, contents) = plan(&self.graphs, key)?;
        let head = encode(&tables)?;
        let parts = file_parts(&head, &tables.segments, &contents);
        let replaced = sys::replace_own_file(path, &parts);
        match replaced.map_err(|error| of_file("write it", error))? {
            Replaced::Durably => Ok(()),
            Replaced::NotDurably(error) => Err(of_file(
                "it is replaced, but its directory can't be synced",
                error,
            )
            .remedy("store it anew, or it may be the old one after a crash of the system")),
        }
    }
}

/// What the system says of a file.
pub(super) fn of_file(operation: &str, error: io::Error) -> Error {
    let status = match error.kind() {
        io::ErrorKind::PermissionDenied => Status::Denied,
        io::ErrorKind::OutOfMemory => Status::OutOfMemory,
        io::ErrorKind::InvalidInput => Status::InvalidArgument,
        _ => Status::System,
    };
    Error::system(status, operation, error)
}

pub(super) fn of_graph(error: Error, name: &str) -> Error {
    error.context(format!("graph {name:?}"))
}

fn copy(graph: &Graph<'_>, number: u64) -> Result<RecordedGraph> {
    let mut segments = heap::room_for(graph.segments.len(), "record a graph")?;
    for (index, given) in graph.segments.iter().enumerate() {
        let Segment {
            content_size,
            zero_fill_size,
            group,
            ..
        } = given.segment;
        if group.lifetime == Lifetime::NoAlloc {
            continue;
        }
        if group.lifetime == Lifetime::Finalize {
            let what = format!("segment {index} lives only until finalize, so it can't be stored");
            return Err(Error::new(Status::Unsupported, what));
        }
        let alignment = given.segment.alignment.bytes();
        if alignment > LARGEST_ALIGNMENT {
            return Err(invalid_argument(format!(
                "segment {index} is aligned to {alignment} bytes, those of an image to at most 1 GiB"
            )));
        }
        let size = content_size.checked_add(zero_fill_size);
        let range = size.and_then(|size| AddressRange::new(given.address, size));
        let range = range.ok_or_else(|| {
            let at = given.address;
            invalid_argument(format!(
                "segment {index} of {content_size} content and {zero_fill_size} zero-fill bytes at {at:#x}: \
                 it ends beyond the last address"
            ))
        })?;
        let content = given.content;
        if content.len() as u64 != content_size {
            return Err(invalid_argument(format!(
                "segment {index} of {content_size} content bytes: {} are given",
                content.len()
            )));
        }
        if range.size() > 0 {
            segments.push(RecordedSegment {
                range,
                segment: given.segment,
                content: heap::copy_of(content, "record a graph")?,
            });
        }
    }
    let what = "record a graph";
    let mut imports = heap::room_for(graph.imports.len(), what)?;
    for import in graph.imports {
        imports.push(RecordedImport {
            slot: import.slot,
            symbol: heap::text(import.symbol, what)?,
            addend: import.addend,
            kind: import.kind,
        });
    }
    let mut exports = heap::room_for(graph.exports.len(), what)?;
    for export in graph.exports {
        exports.push(RecordedExport {
            symbol: heap::text(export.symbol, what)?,
            address: export.address,
            flags: export.flags,
        });
    }
    Ok(RecordedGraph {
        number,
        name: heap::text(graph.name, what)?,
        segments,
        imports,
        references: heap::copy_of(graph.references, what)?,
        exports,
        frames: heap::copy_of(graph.frames, what)?,
        actions: heap::copy_of(graph.actions, what)?,
        refers_to_forgotten: None,
    })
}
