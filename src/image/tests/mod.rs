// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Graphs that are recorded, and managers to link them into.

mod files;
mod linking;
mod pages;
mod recording;

use super::format::{Place, Slot};
use super::read::{Checked, check};
use super::*;
use crate::error::{Error, Result, Status};
use crate::group::{AllocGroup, CodeHint, Lifetime, Protection};
use crate::manager::{Dylib, Manager, Options};
use crate::mapper::{InProcessKind, Mapper};
use crate::page::Alignment;
use crate::sys::OwnFile;

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const OTHER: u64 = 0x30_0000;

fn segment(protection: Protection, content: u64, zero_fill: u64) -> Segment {
    Segment::new(protection, content).zero_fill(zero_fill)
}

fn call(function: u64, args: u64, size: u64) -> StoredCall {
    let args = AddressRange::new(args, size).unwrap();
    StoredCall { function, args }
}

/// Code that refers to data and data that refers to code, of two graphs.
fn recorder() -> Recorder {
    let mut recorder = Recorder::default();
    let mut code = [0x90; 24];
    // DATA + 8, from CODE + 4.
    code[4..8].copy_from_slice(&((DATA + 8 - CODE - 4) as u32).to_le_bytes());
    let mut data = [0; 32];
    data[8..16].copy_from_slice(&(CODE + 20).to_le_bytes());
    let segments = [
        GraphSegment {
            address: CODE,
            segment: segment(Protection::READ_EXEC, 24, 0),
            content: &code,
        },
        GraphSegment {
            address: DATA,
            segment: segment(Protection::READ_WRITE, 32, 100).aligned(Alignment::of::<u64>()),
            content: &data,
        },
    ];
    let first = Graph {
        name: "first",
        segments: &segments,
        imports: &[
            Import {
                slot: DATA + 16,
                symbol: "outside",
                addend: 5,
                kind: ReferenceKind::Absolute64,
            },
            Import {
                slot: DATA + 24,
                symbol: "outside",
                addend: 0,
                kind: ReferenceKind::Absolute64,
            },
        ],
        references: &[
            Reference {
                slot: CODE + 4,
                target: DATA,
                kind: ReferenceKind::Relative32,
            },
            Reference {
                slot: DATA + 8,
                target: CODE,
                kind: ReferenceKind::Absolute64,
            },
        ],
        exports: &[Export {
            symbol: "first",
            address: CODE + 2,
            flags: 7,
        }],
        frames: &[AddressRange::new(DATA, 8).unwrap()],
        // One of what is outside, which is told where code is; and one of code.
        actions: &[StoredAction {
            finalize: Some(call(DATA + 24, DATA + 8, 8)),
            dealloc: Some(call(DATA + 8, 0, 0)),
        }],
    };
    recorder.record(&first).unwrap();
    let mut code = [0x90; 8];
    code[..4].copy_from_slice(&((CODE as u32).wrapping_sub(OTHER as u32)).to_le_bytes());
    let second = Graph {
        name: "second",
        segments: &[GraphSegment {
            address: OTHER,
            segment: segment(Protection::READ_EXEC, 8, 0),
            content: &code,
        }],
        references: &[Reference {
            slot: OTHER,
            target: CODE,
            kind: ReferenceKind::Relative32,
        }],
        exports: &[Export {
            symbol: "second",
            address: OTHER,
            flags: 0,
        }],
        ..Graph::default()
    };
    recorder.record(&second).unwrap();
    recorder
}

fn key() -> Key {
    Key::default().with("test", "1")
}

/// The file of what was recorded.
fn file_of(recorder: &Recorder) -> Vec<u8> {
    let key = key();
    let (tables, contents) = plan::plan(&recorder.graphs, &key).unwrap();
    let head = format::encode(&tables).unwrap();
    format::file_parts(&head, &tables.segments, &contents).concat()
}

fn stored() -> Vec<u8> {
    file_of(&recorder())
}

fn check_file(file: &[u8]) -> Result<Checked> {
    let (tables, _) = check(&OwnFile::holding(file), &key())?;
    Ok(tables)
}

fn slots(tables: &Checked) -> impl Iterator<Item = Slot> {
    tables.slots().flat_map(|(group, offsets)| {
        offsets.map(move |offset| Slot {
            place: Place {
                segment: group.segment,
                offset,
            },
            value: group.value,
        })
    })
}

fn open(file: Vec<u8>) -> Result<Image> {
    Image::of("test", OwnFile::holding(&file), &key())
}

fn manager() -> Manager {
    let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
    let options = Options {
        window_size: 64 << 20,
        ..Options::default()
    };
    Manager::new(&mapper, options).unwrap()
}
