// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Images: linked code in a file, from which a later process has it without linking.
//!
//! A host tells a [`Recorder`] of each graph that it has linked, before the code runs: where its segments
//! are, what the linker has written there, and which of that depends on addresses. The recorder keeps a copy
//! and writes all of it to one file. [`Image::open`] reads the file in another process and checks all of it,
//! and [`Image::link`] puts it into a manager's memory: one allocation with a segment for each protection.
//!
//! ```
//! use jitmem::image::{Export, Graph, GraphSegment, Image, Import, Key, Recorder, ReferenceKind};
//! use jitmem::{Dylib, InProcessKind, Manager, Mapper, Options, Protection, Segment};
//!
//! # let path = std::env::temp_dir().join(format!("jitmem-image-example-{}", std::process::id()));
//! let mapper = Mapper::in_process(InProcessKind::Auto)?;
//! let manager = Manager::new(&mapper, Options::default())?;
//! let segment = Segment::new(Protection::READ_WRITE, 8);
//!
//! // A graph of one pointer, to what another library has.
//! let mut graph = manager.allocate([segment], Dylib::NONE)?;
//! let address = graph.address(0);
//! graph.write(0, 0, &0x7000_0000_0000u64.to_ne_bytes())?;
//! let mut recorder = Recorder::default();
//! recorder.record(&Graph {
//!     name: "pointer",
//!     segments: &[GraphSegment { address, segment, content: &0x7000_0000_0000u64.to_ne_bytes() }],
//!     imports: &[Import { slot: address, symbol: "puts", addend: 0, kind: ReferenceKind::Absolute64 }],
//!     exports: &[Export { symbol: "pointer", address, flags: 0 }],
//!     ..Graph::default()
//! })?;
//! graph.finalize([])?;
//! let key = Key::default().with("linker", "example 1");
//! recorder.store(&path, &key)?;
//!
//! // In another process, where the library is elsewhere.
//! let image = Image::open(&path, &key)?;
//! let linked = image.link(&manager, Dylib::NONE, |symbols| {
//!     assert_eq!(symbols, ["puts"]);
//!     Ok(vec![0x6000_0000_0000])
//! })?;
//! assert_eq!(linked.exports[0].symbol, "pointer");
//! linked.graph.finalize([])?;
//! # std::fs::remove_file(&path).unwrap();
//! # Ok::<(), jitmem::Error>(())
//! ```
//!
//! # What can be stored
//!
//! Whatever depends on an address must be a [`Reference`] or an [`Import`]: a pointer of 8 bytes, or a
//! distance of 4 or 8 bytes. A distance inside of one segment depends on none; one between two segments, to
//! what is outside, or to a fixed address does. A linker keeps the global offset table and the stubs of graphs that are to be
//! stored: a call or a load of what is outside then depends on one pointer, and not on how far away it is. Offsets of thread-local variables, addresses in 4 bytes and instructions that hold a part of an
//! address can't be stored; nor can segments that live only until finalize. Actions are stored as [`StoredAction`]s, and
//! [`Linked::frames`] names what is to be registered with the unwinder.
//!
//! # What a file is worth
//!
//! Its content is run. [`Image::open`] refuses a file that another user owns or may write, and one in which
//! anything is torn, changed by accident, inconsistent, or made for something else ([`Key`]). It can't tell
//! whether one of this user's own programs has put other code there on purpose.

mod format;
mod graphs;
mod key;
mod load;
mod plan;
mod read;
mod recorder;
#[cfg(test)]
mod tests;

pub use key::Key;
pub(crate) use load::Placed;
pub use load::{Image, Linked, LinkedAction, LinkedCall, LinkedExport};
pub use recorder::{RecordedId, Recorder};

use crate::manager::Segment;
use crate::page::AddressRange;

/// A segment of a graph where it was linked.
#[derive(Clone, Copy, Debug)]
pub struct GraphSegment<'a> {
    /// Where it is in the executor.
    pub address: u64,
    /// What was asked for.
    pub segment: Segment,
    /// What the linker has written: as many bytes as the segment has content.
    pub content: &'a [u8],
}

/// Bytes that say where something outside of the graph is: best a pointer of 8 bytes. Their content says where the symbol was: if
/// that is in another graph of the image, they depend on that graph, and later processes are not asked for the symbol.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// Where they are: inside the content of a segment of the same graph.
    pub slot: u64,
    /// What they say where it is.
    pub symbol: &'a str,
    /// What is added to the symbol's address, before the slot's is subtracted.
    pub addend: i64,
    /// How they say it. A distance of 4 bytes must fit in every process that links the image: the default place of
    /// windows has the process's own images in reach.
    pub kind: ReferenceKind,
}

/// How a slot says where its target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// 8 bytes: an address.
    Absolute64,
    /// 4 bytes: a signed distance from the slot.
    Relative32,
    /// 8 bytes: a distance from the slot.
    Relative64,
    /// 8 bytes: a distance from `origin`, an address inside the segment that is meant.
    Distance64 {
        /// Where the distance is counted from, when the graph was linked.
        origin: u64,
    },
    /// 8 bytes: the distance from the slot to an address that is the same in all processes. What the
    /// reference calls its target does not count; an import can't be of this kind.
    RelativeFixed64,
}

impl ReferenceKind {
    /// Bytes of a slot.
    fn size(self) -> u64 {
        match self {
            ReferenceKind::Relative32 => 4,
            _ => 8,
        }
    }

    /// Where a distance is counted from, if not from the slot.
    fn origin(self) -> Option<u64> {
        match self {
            ReferenceKind::Distance64 { origin } => Some(origin),
            _ => None,
        }
    }

    /// The address that a slot at `slot` says, whose bytes `content` begins with.
    fn meant(self, slot: u64, content: &[u8]) -> u64 {
        let mut bytes = [0; size_of::<u64>()];
        let size = self.size() as usize;
        bytes[..size].copy_from_slice(&content[..size]);
        let says = u64::from_le_bytes(bytes);
        match self {
            ReferenceKind::Absolute64 => says,
            ReferenceKind::Relative32 => slot.wrapping_add_signed((says as u32 as i32).into()),
            ReferenceKind::Relative64 | ReferenceKind::RelativeFixed64 => slot.wrapping_add(says),
            ReferenceKind::Distance64 { origin } => origin.wrapping_add(says),
        }
    }
}

/// Bytes that depend on where something of the image is. What refers to its own segment by a distance need
/// not be told.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// Where the bytes are: inside the content of a segment of the same graph.
    pub slot: u64,
    /// An address inside the segment that is meant. The content of the slot says which of it: it may be
    /// another address of the segment, or one outside of it at some distance.
    pub target: u64,
    /// How the content says it.
    pub kind: ReferenceKind,
}

/// A symbol that a later process finds.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// Its name.
    pub symbol: &'a str,
    /// Its address, inside a segment of the graph.
    pub address: u64,
    /// What the host wants to know of it; kept as it is.
    pub flags: u64,
}

/// A call of a wrapper function, as [`WrapperCall`](crate::WrapperCall) has it. Its parts lie in the graph, so
/// that they are right wherever the image lies.
#[derive(Clone, Copy, Debug)]
pub struct StoredCall {
    /// Where a pointer to the function is: the slot of an import or a reference of kind
    /// [`Absolute64`](ReferenceKind::Absolute64).
    pub function: u64,
    /// Its serialized arguments, inside the content of a segment of the same graph. What they have of addresses is
    /// told as references and imports. Without arguments: any range of 0 bytes.
    pub args: AddressRange,
}

/// An allocation action that later processes run too.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoredAction {
    /// Run on finalize.
    pub finalize: Option<StoredCall>,
    /// Run on deallocate.
    pub dealloc: Option<StoredCall>,
}

/// A linked graph: what [`Recorder::record`] copies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Graph<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// Its segments. Those without memory may be left out.
    pub segments: &'a [GraphSegment<'a>],
    /// Pointers to what is outside of the image.
    pub imports: &'a [Import<'a>],
    /// What depends on addresses inside of it.
    pub references: &'a [Reference],
    /// What later processes look up.
    pub exports: &'a [Export<'a>],
    /// Sections of unwind information (`.eh_frame`), inside the content of a segment.
    pub frames: &'a [AddressRange],
    /// What is run when it is finalized and deallocated, besides what registers its frames.
    pub actions: &'a [StoredAction],
}
