// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is stored of recorded graphs, and what does not fit together.

use super::*;

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

#[test]
fn what_is_stored_depends_on_no_address() {
    let file = stored();
    let tables = check_file(&file).unwrap();
    assert_eq!(tables.segments[0].size(), 132);
    assert_eq!(tables.segments[1].size(), 40);
    let contents = &file[tables.end as usize..];
    let (data, code) = contents.split_at(tables.segments[0].content as usize);
    // What is added to the addresses that are not known yet: where it is in the code, and the addend of an import.
    assert_eq!(data, [0, 20, 5, 0].map(u64::to_le_bytes).concat());
    // How far behind the start of the data, less how far the slot is behind that of the code.
    assert_eq!(code[4..8], (8 - 4i32).to_le_bytes());
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
