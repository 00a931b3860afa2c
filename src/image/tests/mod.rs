// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is recorded and linked elsewhere, and what does not fit together.

mod files;

use super::read::check;
use super::*;
use crate::error::{Error, Result, Status};
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::manager::{Dylib, Manager, Options};
use crate::mapper::{InProcessKind, Mapper};
use crate::page::Alignment;
use crate::sys::Content;

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
    let mut file = format::encode(&tables).unwrap();
    contents.iter().for_each(|content| file.extend(content));
    file
}

fn stored() -> Vec<u8> {
    file_of(&recorder())
}

fn open(file: Vec<u8>) -> Result<Image> {
    Image::from_bytes(Content::Small(file), &key())
}

fn manager() -> Manager {
    let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
    let options = Options {
        window_size: 64 << 20,
        ..Options::default()
    };
    Manager::new(&mapper, options).unwrap()
}

fn slot_count(image: &Image) -> usize {
    image.tables.slots(&image.file).count()
}

/// The bytes of one segment after the slots were filled in.
fn content(image: &Image, segment: usize) -> &[u8] {
    &image.file[image.tables.contents[segment].clone()]
}

fn number(content: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(content[offset..offset + 8].try_into().unwrap())
}

fn distance(content: &[u8], offset: usize) -> u64 {
    let bytes = content[offset..offset + 4].try_into().unwrap();
    i64::from(i32::from_le_bytes(bytes)) as u64
}

#[test]
fn slots_are_filled_for_the_addresses_of_each_manager() {
    let mut image = open(stored()).unwrap();
    assert_eq!(image.imports().collect::<Vec<_>>(), ["outside"]);
    // The call between graphs is inside of one segment and needs no slot.
    assert_eq!(slot_count(&image), 4);
    for _ in 0..3 {
        let manager = manager();
        let linked = image.link(&manager, Dylib(1), |_| Ok(vec![0x1234_5678_9abc]));
        let linked = linked.unwrap();
        // Data comes before code: in the order of protections.
        let (data, code) = (linked.graph.address(0), linked.graph.address(1));
        let bytes = content(&image, 0);
        assert_eq!(number(bytes, 0), 0);
        assert_eq!(number(bytes, 8), code + 20);
        assert_eq!(number(bytes, 16), 0x1234_5678_9abc + 5);
        assert_eq!(number(bytes, 24), 0x1234_5678_9abc);
        let bytes = content(&image, 1);
        assert_eq!(
            code.wrapping_add(4).wrapping_add(distance(bytes, 4)),
            data + 8
        );
        let called = |function, args| Some(LinkedCall { function, args });
        let action = LinkedAction {
            finalize: called(0x1234_5678_9abc, (code + 20).to_le_bytes().to_vec()),
            dealloc: called(code + 20, Vec::new()),
        };
        assert_eq!(linked.actions, [action]);
        // The second graph's code lies behind the first's, aligned to 16.
        assert_eq!(distance(bytes, 32), (-32i64) as u64);
        let exports: Vec<_> = linked
            .exports
            .iter()
            .map(|export| (export.symbol.as_str(), export.address, export.flags))
            .collect();
        assert_eq!(exports, [("first", code + 2, 7), ("second", code + 32, 0)]);
        assert_eq!(linked.frames, [AddressRange::new(data, 8).unwrap()]);
        linked.graph.finalize([]).unwrap();
    }
}

/// The host is not asked for a symbol that another graph of the image has.
#[test]
fn an_import_from_another_graph_is_none_of_the_image() {
    let mut recorder = recorder();
    let content = (CODE + 2 + 7).to_le_bytes();
    recorder
        .record(&Graph {
            name: "third",
            segments: &[GraphSegment {
                address: 0x40_0000,
                segment: segment(Protection::READ, 8, 0),
                content: &content,
            }],
            imports: &[Import {
                slot: 0x40_0000,
                symbol: "first",
                addend: 7,
                kind: ReferenceKind::Absolute64,
            }],
            ..Graph::default()
        })
        .unwrap();
    let mut image = open(file_of(&recorder)).unwrap();
    assert_eq!(image.imports().collect::<Vec<_>>(), ["outside"]);
    let manager = manager();
    let linked = image.link(&manager, Dylib(1), |_| Ok(vec![1])).unwrap();
    let first = linked.exports[0].address;
    assert_eq!(number(content_of(&image, Protection::READ), 0), first + 7);
}

#[test]
fn a_name_that_means_two_places_outside_is_refused() {
    let graph = |recorder: &mut Recorder, place: u64, address: u64| {
        let content = address.to_le_bytes();
        let graph = Graph {
            name: "user",
            segments: &[GraphSegment {
                address: place,
                segment: segment(Protection::READ, 8, 0),
                content: &content,
            }],
            imports: &[Import {
                slot: place,
                symbol: "config",
                addend: 0,
                kind: ReferenceKind::Absolute64,
            }],
            ..Graph::default()
        };
        recorder.record(&graph).unwrap();
    };
    let mut recorder = Recorder::default();
    graph(&mut recorder, 0x1000, 0x7000_0000);
    // One that is not filled says nothing.
    graph(&mut recorder, 0x2000, 0);
    graph(&mut recorder, 0x3000, 0x7000_0000);
    file_of(&recorder);
    graph(&mut recorder, 0x4000, 0x7000_1000);
    let error = plan::plan(&recorder.graphs, &key()).unwrap_err();
    let says = "\"config\" is at 0x70001000 here and at 0x70000000";
    assert!(error.message().contains(says), "{error}");
}

/// Whatever lies there by then.
#[test]
fn what_counts_from_a_forgotten_graph_is_refused_by_name() {
    const PLACE: u64 = 0x40_0000;
    let kind = ReferenceKind::Distance64 { origin: CODE + 2 };
    let to_itself = Reference {
        slot: PLACE,
        target: PLACE,
        kind,
    };
    let to_outside = Import {
        slot: PLACE,
        symbol: "outside",
        addend: 0,
        kind,
    };
    let segments = |address, content| {
        [GraphSegment {
            address,
            segment: segment(Protection::READ, 8, 0),
            content,
        }]
    };
    let content = (PLACE - CODE - 2).to_le_bytes();
    for (references, imports) in [(&[to_itself][..], &[][..]), (&[], &[to_outside])] {
        let mut recorder = Recorder::default();
        let first = Graph {
            name: "first",
            segments: &segments(CODE, &[1; 8]),
            ..Graph::default()
        };
        let gone = recorder.record(&first).unwrap();
        let second = Graph {
            name: "second",
            segments: &segments(PLACE, &content),
            references,
            imports,
            ..Graph::default()
        };
        recorder.record(&second).unwrap();
        plan::plan(&recorder.graphs, &key()).unwrap();
        recorder.forget(gone).unwrap();
        // Another one that is where it was.
        recorder.record(&first).unwrap();
        let error = plan::plan(&recorder.graphs, &key()).unwrap_err();
        assert!(error.message().contains("which was forgotten"), "{error}");
    }
}

#[test]
fn an_import_whose_slot_is_not_filled_stays_one() {
    for kind in [
        ReferenceKind::Absolute64,
        ReferenceKind::Relative32,
        ReferenceKind::Relative64,
        ReferenceKind::Distance64 { origin: CODE },
    ] {
        let mut recorder = Recorder::default();
        let graph = Graph {
            name: "not filled",
            segments: &[GraphSegment {
                address: CODE,
                segment: segment(Protection::READ, 64, 0),
                content: &[0; 64],
            }],
            imports: &[Import {
                slot: CODE + 8,
                symbol: "outside",
                addend: -4,
                kind,
            }],
            ..Graph::default()
        };
        recorder.record(&graph).unwrap();
        let key = key();
        let (tables, _) = plan::plan(&recorder.graphs, &key).unwrap();
        assert_eq!(tables.symbols, ["outside"], "{kind:?}");
        assert_eq!(tables.slots.len(), 1, "{kind:?}");
    }
}

#[test]
fn more_alignment_than_an_image_can_have_is_not_recorded() {
    let record = |alignment: u64| {
        let asked = segment(Protection::READ, 8, 0);
        let graph = Graph {
            name: "aligned",
            segments: &[GraphSegment {
                address: CODE,
                segment: asked.aligned(Alignment::try_from(alignment).unwrap()),
                content: &[0; 8],
            }],
            ..Graph::default()
        };
        let mut recorder = Recorder::default();
        recorder.record(&graph).map(|_| recorder)
    };
    open(file_of(&record(1 << 30).unwrap())).unwrap();
    let error = record(1 << 31).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.message().contains("at most 1 GiB"), "{error}");
}

#[test]
fn what_refers_to_a_forgotten_graph_is_refused_by_name() {
    const PLACE: u64 = 0x40_0000;
    let mut recorder = recorder();
    let content = (CODE + 2).to_le_bytes();
    let third = Graph {
        name: "third",
        segments: &[GraphSegment {
            address: PLACE,
            segment: segment(Protection::READ, 8, 0),
            content: &content,
        }],
        imports: &[Import {
            slot: PLACE,
            symbol: "first",
            addend: 0,
            kind: ReferenceKind::Absolute64,
        }],
        ..Graph::default()
    };
    let third = recorder.record(&third).unwrap();
    recorder.forget(RecordedId::of(1)).unwrap();
    let other = Graph {
        name: "other",
        segments: &[GraphSegment {
            address: CODE,
            segment: segment(Protection::READ_EXEC, 8, 0),
            content: &[0; 8],
        }],
        ..Graph::default()
    };
    recorder.record(&other).unwrap();
    for (number, name) in [(RecordedId::of(2), "second"), (third, "third")] {
        let error = plan::plan(&recorder.graphs, &key()).unwrap_err();
        let says = format!("graph \"{name}\": it refers to graph \"first\", which was forgotten");
        assert!(error.message().contains(&says), "{error}");
        recorder.forget(number).unwrap();
    }
    file_of(&recorder);
}

/// What the large code model has: distances from a table, which is not where the slot is, and from the slot to 0.
#[test]
fn distances_between_any_places_are_stored() {
    const TABLE: u64 = 0x40_0000;
    const LOCAL: u64 = 0x50_0000;
    const ABSENT: u64 = 0x7000_0000_0000;
    let mut recorder = recorder();
    let mut code = [0; 48];
    let mut put = |slot: usize, value: u64| {
        code[slot..slot + 8].copy_from_slice(&value.to_le_bytes());
    };
    let fixed = 0x1234u64;
    put(0, (TABLE + 8).wrapping_sub(LOCAL));
    put(8, (DATA + 3).wrapping_sub(TABLE + 4));
    put(16, 12);
    put(24, (ABSENT + 6).wrapping_sub(TABLE + 4));
    put(32, (CODE + 2 + 1).wrapping_sub(TABLE));
    put(40, fixed.wrapping_sub(LOCAL + 40));
    let from = |origin| ReferenceKind::Distance64 { origin };
    let reference = |slot, target, kind| Reference { slot, target, kind };
    let import = |slot, symbol, addend, kind| Import {
        slot,
        symbol,
        addend,
        kind,
    };
    recorder
        .record(&Graph {
            name: "large",
            segments: &[
                GraphSegment {
                    address: LOCAL,
                    segment: segment(Protection::READ_EXEC, 48, 0),
                    content: &code,
                },
                GraphSegment {
                    address: TABLE,
                    segment: segment(Protection::READ, 24, 0),
                    content: &[0; 24],
                },
            ],
            references: &[
                reference(LOCAL, TABLE, ReferenceKind::Relative64),
                reference(LOCAL + 8, DATA, from(TABLE + 4)),
                reference(LOCAL + 16, TABLE, from(TABLE + 4)),
                reference(LOCAL + 40, 0, ReferenceKind::RelativeFixed64),
            ],
            imports: &[
                import(LOCAL + 24, "absent", 6, from(TABLE + 4)),
                // Another graph has it.
                import(LOCAL + 32, "first", 1, from(TABLE)),
            ],
            ..Graph::default()
        })
        .unwrap();
    let mut image = open(file_of(&recorder)).unwrap();
    // The one from the table to itself needs no slot.
    assert_eq!(slot_count(&image), 4 + 5);
    let absent = 0x6000_0000_0000;
    let mut places = std::collections::HashSet::new();
    let mut earlier = Vec::new();
    for _ in 0..3 {
        let manager = manager();
        let linked = image.link(&manager, Dylib(1), |symbols| {
            let address = |symbol: &&str| if *symbol == "absent" { absent } else { 1 };
            Ok(symbols.iter().map(address).collect())
        });
        let linked = linked.unwrap();
        let segment_of = |protection| {
            let mut segments = image.tables.segments.iter();
            segments
                .position(|one| one.protection == protection)
                .unwrap()
        };
        let address = |protection| linked.graph.address(segment_of(protection));
        let (table, data) = (address(Protection::READ), address(Protection::READ_WRITE));
        // Behind the code of the other graphs.
        let local = address(Protection::READ_EXEC) + 48;
        let first = linked.exports[0].address;
        let value = |slot: usize| number(content_of(&image, Protection::READ_EXEC), 48 + slot);
        assert_eq!(value(0), (table + 8).wrapping_sub(local));
        assert_eq!(value(8), (data + 3).wrapping_sub(table + 4));
        assert_eq!(value(16), 12);
        assert_eq!(value(24), (absent + 6).wrapping_sub(table + 4));
        assert_eq!(value(32), (first + 1).wrapping_sub(table));
        assert_eq!(value(40), fixed.wrapping_sub(local + 40));
        places.insert(local);
        earlier.push((manager, linked));
    }
    assert_eq!(places.len(), 3);
}

/// Registered at once, however many graphs there are; a section that has an end of its own ends the joined one.
#[test]
fn frames_of_all_graphs_become_one_section() {
    let mut recorder = Recorder::default();
    let record = [8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let ended = [&record[..], &[0; 4]].concat();
    let kinds = [&record[..], &record[..], &ended[..], &record[..]];
    for (number, frames) in (1..).zip(kinds) {
        let address = number * 0x10_0000;
        let size = frames.len() as u64;
        let one = |address, content| GraphSegment {
            address,
            segment: segment(Protection::READ, size, 0).aligned(Alignment::of::<u32>()),
            content,
        };
        recorder
            .record(&Graph {
                segments: &[
                    one(address, &vec![0xff; frames.len()]),
                    one(address + 64, frames),
                ],
                frames: &[AddressRange::new(address + 64, size).unwrap()],
                ..Graph::default()
            })
            .unwrap();
    }
    let key = key();
    let (tables, contents) = plan::plan(&recorder.graphs, &key).unwrap();
    let places: Vec<_> = tables
        .frames
        .iter()
        .map(|one| (one.place.offset, one.size))
        .collect();
    assert_eq!(places, [(0, 40), (40, 16)]);
    // What follows the last one is an end, too.
    let all = [&record[..], &record, &ended, &record, &[0; 4], &[0xff; 12]].concat();
    assert_eq!(contents[0][..all.len()], all);
}

fn content_of(image: &Image, protection: Protection) -> &[u8] {
    let mut segments = image.tables.segments.iter();
    let found = segments.position(|segment| segment.protection == protection);
    content(image, found.unwrap())
}

#[test]
fn what_is_stored_depends_on_no_address() {
    let file = stored();
    let tables = check(&file, &key()).unwrap();
    let contents = &tables.contents;
    assert_eq!(tables.segments[0].size(), 132);
    assert_eq!(tables.segments[1].size(), 40);
    assert!(file[contents[0].clone()].iter().all(|byte| *byte == 0));
    let code = &file[contents[1].clone()];
    assert_eq!(code[4..8], [0; 4]);
    let gap: Vec<u8> = crate::sys::traps(32)[24..].to_vec();
    assert_eq!(code[24..32], gap);
}

fn refused(graph: &Graph<'_>, named: &str) -> Error {
    let mut recorder = recorder();
    let planned = recorder
        .record(graph)
        .and_then(|_| plan::plan(&recorder.graphs, &key()).map(drop));
    let error = planned.unwrap_err();
    assert!(error.message().starts_with("graph \"bad\": "), "{error}");
    assert!(error.message().contains(named), "{error}");
    error
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let address = 0x40_0000;
    let data = segment(Protection::READ_WRITE, 8, 8);
    let segments = [GraphSegment {
        address,
        segment: data,
        content: &[0; 8],
    }];
    let bad = Graph {
        name: "bad",
        segments: &segments,
        ..Graph::default()
    };
    let import = |slot| Import {
        slot,
        symbol: "x",
        addend: 0,
        kind: ReferenceKind::Absolute64,
    };
    let outside = "is outside of the graph's content";
    for slot in [address + 1, address + 8, address - 1, DATA, u64::MAX] {
        let imports = &[import(slot)];
        refused(&Graph { imports, ..bad }, outside);
    }
    let kind = ReferenceKind::Distance64 {
        origin: OTHER + 400,
    };
    let imports = &[Import {
        kind,
        ..import(address)
    }];
    refused(&Graph { imports, ..bad }, "which is in no recorded graph");
    let kind = ReferenceKind::RelativeFixed64;
    let imports = &[Import {
        kind,
        ..import(address)
    }];
    refused(&Graph { imports, ..bad }, "tell that as a reference");
    let reference = |target| Reference {
        slot: address,
        target,
        kind: ReferenceKind::Absolute64,
    };
    for target in [0, address + 16, OTHER + 8, u64::MAX] {
        let references = &[reference(target)];
        refused(&Graph { references, ..bad }, "in no recorded graph");
    }
    for address in [address + 16, DATA] {
        let exports = &[Export {
            symbol: "x",
            address,
            flags: 0,
        }];
        refused(&Graph { exports, ..bad }, "symbol \"x\" at");
    }
    let frames = &[AddressRange::new(address, 9).unwrap()];
    refused(&Graph { frames, ..bad }, outside);
    let imports = &[import(address)];
    for (one, named) in [
        (call(address, address, 9), outside),
        (call(DATA + 24, address, 8), outside),
        (call(address + 1, address, 0), outside),
    ] {
        let finalize = Some(one);
        let actions = &[StoredAction {
            finalize,
            dealloc: None,
        }];
        let bad = Graph {
            imports,
            actions,
            ..bad
        };
        refused(&bad, named);
    }
    let actions = &[StoredAction {
        finalize: None,
        dealloc: Some(call(address, address, 8)),
    }];
    refused(&Graph { actions, ..bad }, "depends on no address");
    let lifetime = AllocGroup::new(Protection::READ, Lifetime::Finalize);
    for (segment, content, status) in [
        (Segment::new(lifetime, 1), &[0][..], Status::Unsupported),
        (data, &[0][..], Status::InvalidArgument),
        (
            segment(Protection::READ, 1, u64::MAX),
            &[0][..],
            Status::InvalidArgument,
        ),
        (
            segment(Protection::READ, 0, 4 << 30),
            &[][..],
            Status::WindowFull,
        ),
    ] {
        let segments = &[GraphSegment {
            address,
            segment,
            content,
        }];
        assert_eq!(refused(&Graph { segments, ..bad }, "").status(), status);
    }
}

/// A graph of one pointer and arguments, with which so many actions are called twice.
fn sharing(recorder: &mut Recorder, args: usize, actions: usize) {
    let content = vec![1; 8 + args];
    let shared = Some(call(OTHER, OTHER + 8, args as u64));
    let (finalize, dealloc) = (shared, shared);
    let actions = vec![StoredAction { finalize, dealloc }; actions];
    let graph = Graph {
        segments: &[GraphSegment {
            address: OTHER,
            segment: segment(Protection::READ, content.len() as u64, 0),
            content: &content,
        }],
        imports: &[Import {
            slot: OTHER,
            symbol: "called",
            addend: 0,
            kind: ReferenceKind::Absolute64,
        }],
        actions: &actions,
        ..Graph::default()
    };
    recorder.record(&graph).unwrap();
}

#[test]
fn actions_may_share_arguments_and_not_ask_for_much_memory() {
    let mut recorder = Recorder::default();
    sharing(&mut recorder, 16, 1000);
    let mut image = open(file_of(&recorder)).unwrap();
    let linked = image.link(&manager(), Dylib::NONE, |_| Ok(vec![7]));
    assert_eq!(linked.unwrap().actions.len(), 1000);
    let mut recorder = Recorder::default();
    sharing(&mut recorder, 1 << 20, 9);
    let error = plan::plan(&recorder.graphs, &key()).unwrap_err();
    assert!(error.message().contains("share large arguments"), "{error}");
    // A file that says so all the same.
    recorder.graphs[0].actions.truncate(8);
    let key = key();
    let (mut tables, contents) = plan::plan(&recorder.graphs, &key).unwrap();
    tables.actions.push(tables.actions[0]);
    let mut file = format::encode(&tables).unwrap();
    contents.iter().for_each(|content| file.extend(content));
    let error = open(file).unwrap_err();
    assert!(error.message().contains("many times"), "{error}");
}

#[test]
fn slots_and_graphs_that_overlap_are_refused() {
    let mut recorder = recorder();
    let content = [0; 16];
    let graph = |address| GraphSegment {
        address,
        segment: segment(Protection::READ_WRITE, 16, 0),
        content: &content,
    };
    let imports = [0x40_0000, 0x40_0004].map(|slot| Import {
        slot,
        symbol: "x",
        addend: 0,
        kind: ReferenceKind::Absolute64,
    });
    let overlapping = Graph {
        segments: &[graph(0x40_0000)],
        imports: &imports,
        ..Graph::default()
    };
    let id = recorder.record(&overlapping).unwrap();
    let plan = |recorder: &Recorder| plan::plan(&recorder.graphs, &key()).map(drop);
    let error = plan(&recorder).unwrap_err();
    assert!(
        error.message().contains("two slots overlap at 0x400004"),
        "{error}"
    );
    recorder.forget(id).unwrap();
    assert_eq!(
        recorder.forget(id).unwrap_err().status(),
        Status::InvalidHandle
    );
    plan(&recorder).unwrap();
    let again = Graph {
        name: "again",
        segments: &[graph(DATA + 128)],
        ..Graph::default()
    };
    recorder.record(&again).unwrap();
    let error = plan(&recorder).unwrap_err();
    assert!(
        error.message().contains("\"first\" and \"again\" overlap"),
        "{error}"
    );
}

#[test]
fn symbols_that_are_not_resolved_leave_nothing_allocated() {
    let manager = manager();
    let mut image = open(stored()).unwrap();
    let missing = || Error::new(Status::System, "no symbol \"outside\"");
    let error = image.link(&manager, Dylib::NONE, |_| Err(missing()));
    assert_eq!(error.unwrap_err(), missing());
    let error = image.link(&manager, Dylib::NONE, |_| Ok(Vec::new()));
    let error = error.unwrap_err();
    assert!(
        error.message().contains("0 addresses for the 1 symbols"),
        "{error}"
    );
    assert_eq!(manager.stats().in_flight, 0);
}
