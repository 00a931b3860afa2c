// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What an image has become in a manager's memory.

use super::*;

fn slot_count(image: &Image) -> usize {
    slots(&image.tables).count()
}

/// The bytes of one segment after the slots were filled in.
fn content_of(image: &Image, linked: &mut Linked, segment: usize) -> Vec<u8> {
    let mut content = vec![0; image.tables.segments[segment].content as usize];
    let contents = linked.graph.contents().unwrap();
    contents.read(segment, 0, &mut content);
    content
}

fn segment_of(image: &Image, protection: Protection) -> usize {
    let mut segments = image.tables.segments.iter();
    let found = segments.position(|segment| segment.protection == protection);
    found.unwrap()
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
    let image = open(stored()).unwrap();
    assert_eq!(image.imports().collect::<Vec<_>>(), ["outside"]);
    // The call between graphs is inside of one segment and needs no slot.
    assert_eq!(slot_count(&image), 4);
    for _ in 0..3 {
        let manager = manager();
        let linked = image.link(&manager, Dylib(1), |_| Ok(vec![0x1234_5678_9abc]));
        let mut linked = linked.unwrap();
        // Data comes before code: in the order of protections.
        let (data, code) = (linked.graph.address(0), linked.graph.address(1));
        let bytes = &content_of(&image, &mut linked, 0);
        assert_eq!(number(bytes, 0), 0);
        assert_eq!(number(bytes, 8), code + 20);
        assert_eq!(number(bytes, 16), 0x1234_5678_9abc + 5);
        assert_eq!(number(bytes, 24), 0x1234_5678_9abc);
        let bytes = &content_of(&image, &mut linked, 1);
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

#[test]
fn code_of_one_hint_lies_together() {
    const GRAPHS: usize = 12;
    let mut recorder = Recorder::default();
    let names: Vec<String> = (0..GRAPHS).map(|graph| graph.to_string()).collect();
    for (index, name) in names.iter().enumerate() {
        let address = CODE + 64 * index as u64;
        let code = segment(Protection::READ_EXEC, 16, 0).hinted(CodeHint::ALL[index % 4]);
        let graph = Graph {
            name,
            segments: &[GraphSegment {
                address,
                segment: code,
                content: &[index as u8; 16],
            }],
            exports: &[Export {
                symbol: name,
                address,
                flags: 0,
            }],
            ..Graph::default()
        };
        recorder.record(&graph).unwrap();
    }
    let image = open(file_of(&recorder)).unwrap();
    let linked = image
        .link(&manager(), Dylib(1), |_| Ok(Vec::new()))
        .unwrap();
    let mut exports: Vec<_> = linked.exports.iter().collect();
    exports.sort_by_key(|export| export.address);
    let order: Vec<usize> = exports
        .iter()
        .map(|export| export.symbol.parse().unwrap())
        .collect();
    assert_eq!(order, [1, 5, 9, 0, 4, 8, 3, 7, 11, 2, 6, 10]);
    let span = exports[GRAPHS - 1].address - exports[0].address;
    assert_eq!(span, 16 * (GRAPHS as u64 - 1));
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
    let image = open(file_of(&recorder)).unwrap();
    assert_eq!(image.imports().collect::<Vec<_>>(), ["outside"]);
    let manager = manager();
    let mut linked = image.link(&manager, Dylib(1), |_| Ok(vec![1])).unwrap();
    let first = linked.exports[0].address;
    let constants = segment_of(&image, Protection::READ);
    let constants = content_of(&image, &mut linked, constants);
    assert_eq!(number(&constants, 0), first + 7);
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
    let image = open(file_of(&recorder)).unwrap();
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
        let mut linked = linked.unwrap();
        let code = segment_of(&image, Protection::READ_EXEC);
        let code = content_of(&image, &mut linked, code);
        let address = |protection| linked.graph.address(segment_of(&image, protection));
        let (table, data) = (address(Protection::READ), address(Protection::READ_WRITE));
        // Behind the code of the other graphs.
        let local = address(Protection::READ_EXEC) + 48;
        let first = linked.exports[0].address;
        let value = |slot: usize| number(&code, 48 + slot);
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
    let image = open(file_of(&recorder)).unwrap();
    let linked = image.link(&manager(), Dylib::NONE, |_| Ok(vec![7]));
    assert_eq!(linked.unwrap().actions.len(), 1000);
    let mut recorder = Recorder::default();
    sharing(&mut recorder, 1 << 20, 9);
    let error = plan::plan(&recorder.graphs, &key()).unwrap_err();
    assert!(error.message().contains("share large arguments"), "{error}");
    // A file that says so all the same.
    let mut recorder = Recorder::default();
    sharing(&mut recorder, 1 << 20, 8);
    let key = key();
    let (mut tables, contents) = plan::plan(&recorder.graphs, &key).unwrap();
    tables.actions.push(tables.actions[0]);
    let mut file = format::encode(&tables).unwrap();
    contents.iter().for_each(|content| file.extend(content));
    let error = open(file).unwrap_err();
    assert!(error.message().contains("many times"), "{error}");
}

#[test]
fn symbols_that_are_not_resolved_leave_nothing_allocated() {
    let manager = manager();
    let image = open(stored()).unwrap();
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
