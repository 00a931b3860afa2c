// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An image that one process stores is run by others, each at an address of its own.
#![cfg(target_arch = "x86_64")]

use jitmem::image::{
    Export, Graph, GraphSegment, Image, Import, Key, Recorder, Reference, ReferenceKind,
};
use jitmem::{
    Dylib, InFlight, InProcessKind, Manager, Mapper, Options, Protection, Result, Segment,
};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// push rbx; mov rax, [rip + POINTER]; mov ebx, [rax]; call [rip + IMPORT]; add eax, ebx; pop rbx; ret
const ANSWER: [u8; 20] = [
    0x53, 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x8b, 0x18, 0xff, 0x15, 0, 0, 0, 0, 0x01, 0xd8, 0x5b, 0xc3,
];
const POINTER_SLOT: u64 = 4;
const IMPORT_SLOT: u64 = 12;

/// jmp ANSWER
const JUMP: [u8; 5] = [0xe9, 0, 0, 0, 0];

/// What the linked code calls.
extern "C" fn two() -> i32 {
    2
}

fn key() -> Key {
    Key::default().with("linker", "this test")
}

fn manager(kind: InProcessKind) -> Result<Manager> {
    Manager::new(&Mapper::in_process(kind)?, Options::default())
}

/// From the 4 bytes at `slot` to `target`, as an instruction says it that they end.
fn distance(slot: u64, target: u64) -> [u8; 4] {
    (target.wrapping_sub(slot + 4) as u32).to_le_bytes()
}

fn described<'a>(
    graph: &InFlight,
    segments: &[Segment],
    contents: &'a [Vec<u8>],
) -> Vec<GraphSegment<'a>> {
    let each = segments.iter().zip(contents).enumerate();
    each.map(|(index, (segment, content))| GraphSegment {
        address: graph.address(index),
        segment: *segment,
        content,
    })
    .collect()
}

fn write(graph: &mut InFlight, contents: &[Vec<u8>]) -> Result<()> {
    for (index, content) in contents.iter().enumerate() {
        graph.write(index, 0, content)?;
    }
    Ok(())
}

/// Links two graphs by hand, has them run, and stores them.
fn store(path: &Path) -> Result<()> {
    let manager = manager(InProcessKind::Auto)?;
    let mut recorder = Recorder::default();

    let segments = [
        Segment::new(Protection::READ_EXEC, 20),
        Segment::new(Protection::READ_WRITE, 16).zero_fill(64),
        Segment::new(Protection::READ, 8),
    ];
    let mut graph = manager.allocate(segments, Dylib(1))?;
    let [code, data, constants] = [0, 1, 2].map(|segment| graph.address(segment));
    let mut contents = [ANSWER.to_vec(), vec![0; 16], vec![0; 8]];
    contents[0][4..8].copy_from_slice(&distance(code + POINTER_SLOT, data));
    contents[0][12..16].copy_from_slice(&distance(code + IMPORT_SLOT, data + 8));
    contents[1][..8].copy_from_slice(&(constants + 4).to_le_bytes());
    contents[1][8..].copy_from_slice(&(two as *const () as u64).to_le_bytes());
    contents[2][4..].copy_from_slice(&40u32.to_le_bytes());
    write(&mut graph, &contents)?;
    let reference = |slot, target, kind| Reference { slot, target, kind };
    recorder.record(&Graph {
        name: "answer",
        segments: &described(&graph, &segments, &contents),
        imports: &[Import {
            slot: data + 8,
            symbol: "two",
            addend: 0,
            kind: ReferenceKind::Absolute64,
        }],
        references: &[
            reference(code + POINTER_SLOT, data, ReferenceKind::Relative32),
            reference(code + IMPORT_SLOT, data, ReferenceKind::Relative32),
            reference(data, constants, ReferenceKind::Absolute64),
        ],
        exports: &[Export {
            symbol: "answer",
            address: code,
            flags: 0,
        }],
        ..Graph::default()
    })?;
    graph.finalize([])?;

    let segments = [Segment::new(Protection::READ_EXEC, 5)];
    let mut graph = manager.allocate(segments, Dylib(1))?;
    let jump = graph.address(0);
    let mut contents = [JUMP.to_vec()];
    contents[0][1..].copy_from_slice(&distance(jump + 1, code));
    write(&mut graph, &contents)?;
    recorder.record(&Graph {
        name: "jump",
        segments: &described(&graph, &segments, &contents),
        references: &[reference(jump + 1, code, ReferenceKind::Relative32)],
        exports: &[Export {
            symbol: "jump",
            address: jump,
            flags: 0,
        }],
        ..Graph::default()
    })?;
    graph.finalize([])?;
    assert_eq!(run(jump), 42);
    recorder.store(path, &key())
}

fn run(address: u64) -> i32 {
    // SAFETY: one of the two functions, which are finalized.
    let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(address as usize) };
    function()
}

/// Loads and runs what another process has stored, and gives where it was.
fn load(path: &Path, kind: InProcessKind) -> Result<u64> {
    let manager = manager(kind)?;
    let image = Image::open(path, &key())?;
    let linked = image.link(&manager, Dylib(7), |symbols| {
        assert_eq!(symbols, ["two"]);
        Ok(vec![two as *const () as u64])
    })?;
    let allocation = linked.graph.finalize([])?;
    let [answer, jump] = &linked.exports[..] else {
        panic!("{:?}", linked.exports);
    };
    assert_eq!(
        (answer.symbol.as_str(), jump.symbol.as_str()),
        ("answer", "jump")
    );
    assert_eq!((run(answer.address), run(jump.address)), (42, 42));
    manager.deallocate([allocation])?;
    Ok(answer.address)
}

struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// So many address-space layouts: processes.
fn layouts() -> usize {
    let number = std::env::var("JITMEM_TEST_LAYOUTS");
    number.map_or(20, |number| number.parse().expect("a number"))
}

#[test]
fn other_processes_run_what_one_has_stored() {
    const PATH: &str = "JITMEM_TEST_IMAGE";
    const ANSWERED: &str = "answered at ";
    if let Some(path) = std::env::var_os(PATH) {
        let kinds = [InProcessKind::Auto, InProcessKind::Mprotect];
        let addresses = kinds.map(|kind| load(path.as_ref(), kind).unwrap());
        println!("{ANSWERED}{addresses:x?}");
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = File(folder.join(format!("image-{}", std::process::id())));
    store(&file.0).unwrap();
    let mut addresses = HashSet::new();
    for _ in 0..layouts() {
        let process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "other_processes_run_what_one_has_stored",
                "--nocapture",
            ])
            .env(PATH, &file.0)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&process.stdout);
        assert!(
            process.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&process.stderr)
        );
        let address = said
            .split(ANSWERED)
            .nth(1)
            .and_then(|rest| rest.lines().next());
        addresses.insert(address.expect("an address").to_owned());
    }
    println!("{} processes, {} addresses", layouts(), addresses.len());
    assert!(addresses.len() > layouts() / 2, "{addresses:?}");
}
