// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Files: changed by others, written and read.

use super::*;
use crate::image::format::{ActionPlaces, LEAST_IN_PAGES, seal};
use crate::image::recorder::of_file;
use crate::manager::InFlight;
use crate::sys;
use crate::sys::fault::Faults;
use crate::sys::testing::reading;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let name = format!("jitmem-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("image")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let file = stored();
    open(file.clone()).unwrap();
    for index in 0..file.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[index] ^= change;
            open(changed).unwrap_err();
        }
    }
}

/// One whose tables are more than what is read first of a large file, whose contents are more than one part, and whose
/// code is in pages.
pub(super) fn large() -> Vec<u8> {
    const SLOTS: u64 = 60_000;
    let mut recorder = Recorder::default();
    let mut data = pattern(40_503, DATA_SIZE);
    for (index, slot) in (0..SLOTS).zip(data.chunks_mut(8)) {
        slot.copy_from_slice(&(0x7000_0000_0000 + index).to_le_bytes());
    }
    let code = pattern(2_654_435_761, CODE_SIZE);
    let import = |index| Import {
        slot: DATA + 8 * index,
        symbol: "outside",
        addend: index as i64,
        kind: ReferenceKind::Absolute64,
    };
    let graph = Graph {
        name: "large",
        segments: &[
            GraphSegment {
                address: CODE,
                segment: segment(Protection::READ_EXEC, code.len() as u64, 0),
                content: &code,
            },
            GraphSegment {
                address: DATA,
                segment: segment(Protection::READ_WRITE, data.len() as u64, 0),
                content: &data,
            },
        ],
        imports: &(0..SLOTS).map(import).collect::<Vec<_>>(),
        ..Graph::default()
    };
    recorder.record(&graph).unwrap();
    file_of(&recorder)
}

pub(super) const CODE_SIZE: usize = 700_001;
const DATA_SIZE: usize = 900_000;

pub(super) fn pattern(seed: u32, size: usize) -> Vec<u8> {
    (0..size as u32)
        .map(|at| (at.wrapping_mul(seed) >> 7) as u8)
        .collect()
}

/// Where the contents of [`large`] are: data, and code.
fn places_in(file: &[u8]) -> [std::ops::Range<usize>; 2] {
    let places: Vec<_> = check_file(file).unwrap().content_places().collect();
    [&places[0], &places[1]].map(|place| place.start as usize..place.end as usize)
}

#[test]
fn what_stays_in_its_pages_has_whole_ones_in_the_file_with_zeros_in_front() {
    let file = large();
    let [data, code] = places_in(&file);
    let page = format::FILE_PAGE.bytes() as usize;
    assert_eq!(data.start, head(&file));
    assert!(code.start > data.end && code.start - data.end < page);
    assert_eq!([code.start % page, code.end % page], [0, 0]);
    assert!(file[data.end..code.start].iter().all(|byte| *byte == 0));
    assert_eq!(
        file[code.clone()][..CODE_SIZE],
        pattern(2_654_435_761, CODE_SIZE)
    );
    let behind = &file[code][CODE_SIZE..];
    assert!(behind.iter().all(|byte| sys::TRAP.contains(byte)));
    let too_small = LEAST_IN_PAGES as usize - 1;
    let file = of_code(&pattern(7, too_small));
    assert_eq!(file.len(), head(&file) + too_small);
}

/// The file of a graph of nothing but code.
pub(super) fn of_code(code: &[u8]) -> Vec<u8> {
    let mut recorder = Recorder::default();
    let segments = [GraphSegment {
        address: CODE,
        segment: segment(Protection::READ_EXEC, code.len() as u64, 0),
        content: code,
    }];
    let graph = Graph {
        name: "code",
        segments: &segments,
        ..Graph::default()
    };
    recorder.record(&graph).unwrap();
    file_of(&recorder)
}

/// What links a file.
type Open = fn(&[u8]) -> Result<Image>;

/// At once, and as larger files are read.
const OPENS: [Open; 2] = [
    |file| open(file.to_vec()),
    |file| Image::in_parts(OwnFile::holding(file), &key()),
];

/// That an image of [`large`] is linked right, and what its executor sees.
pub(super) fn check_linked(image: &Image, manager: &Manager) -> InFlight {
    let linked = image.link(manager, Dylib::NONE, |_| Ok(vec![1000]));
    let mut graph = linked.unwrap().graph;
    let addresses = [graph.address(0), graph.address(1)];
    let contents = graph.contents().unwrap();
    let (mut data, mut code) = (vec![0; DATA_SIZE], vec![0; CODE_SIZE]);
    contents.read(0, 0, &mut data);
    contents.read(1, 0, &mut code);
    let slots = 8 * 60_000;
    for (index, slot) in data[..slots].chunks(8).enumerate() {
        assert_eq!(slot, (1000 + index as u64).to_le_bytes());
    }
    assert!(data[slots..] == pattern(40_503, DATA_SIZE)[slots..]);
    assert!(code == pattern(2_654_435_761, CODE_SIZE));
    assert!(executor_sees(addresses[0], DATA_SIZE) == data);
    assert!(executor_sees(addresses[1], CODE_SIZE) == code);
    graph
}

pub(super) fn executor_sees(address: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    reading().read(address, size as u64, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_large_file_is_read_at_once_or_in_parts_and_every_part_is_checked() {
    let file = large();
    let head = head(&file);
    assert!(head > file.len() / 8, "{head}");
    let [data, code] = places_in(&file);
    for open in OPENS {
        drop(check_linked(&open(&file).unwrap(), &manager()));
        let ends = [head, file.len() / 8, data.end, code.start, file.len()];
        let parts = (1..7).map(|part| head + part * (256 << 10));
        for end in ends.into_iter().chain(parts) {
            for index in end - 2..(end + 2).min(file.len()) {
                let mut changed = file.clone();
                changed[index] ^= 1;
                open(&changed).unwrap_err();
                open(&file[..index]).unwrap_err();
            }
        }
    }
}

/// Not by rename: by what is no business of another program's.
#[test]
fn a_file_that_is_written_to_while_it_is_open_is_not_linked() {
    let folder = Folder::new("written");
    let path = folder.path();
    let whole = large();
    let changed = |index: usize| {
        let mut file = whole.clone();
        file[index] ^= 1;
        file
    };
    let (head, size) = (head(&whole), whole.len());
    let manager = manager();
    let in_parts = |path: &PathBuf| {
        let file = sys::open_own_file(path, u64::MAX).unwrap();
        Image::in_parts(file, &key()).unwrap()
    };
    for (later, says) in [
        (whole[..size - 1].to_vec(), "has fewer bytes"),
        (whole[..head].to_vec(), "has fewer bytes"),
        (Vec::new(), "has fewer bytes"),
        (changed(head), "has other content"),
        (changed(size - 1), "has other content"),
    ] {
        fs::write(&path, &whole).unwrap();
        let image = in_parts(&path);
        // What was read at once is linked as it was; a second time its code is read again.
        let at_once = Image::open(&path, &key()).unwrap();
        fs::write(&path, &later).unwrap();
        drop(check_linked(&at_once, &manager));
        let changed_code = later.get(size - 1) != whole.get(size - 1);
        for (image, fails) in [(&image, true), (&at_once, changed_code)] {
            let answer = image.link(&manager, Dylib::NONE, |_| Ok(vec![1000]));
            assert_eq!(answer.is_err(), fails);
            if let Err(error) = answer {
                assert!(error.message().contains(says), "{error}");
                assert!(error.message().contains("link image "), "{error}");
            }
        }
        assert_eq!(manager.stats().in_flight, 0);
        // Its tables are those that were checked.
        fs::write(&path, changed(head - 1)).unwrap();
        for image in [&image, &at_once] {
            drop(check_linked(image, &manager));
        }
    }
}

#[test]
fn whatever_call_fails_nothing_stays_allocated() {
    let folder = Folder::new("link-faults");
    let path = folder.path();
    fs::write(&path, large()).unwrap();
    let at_once: fn(&Path) -> Result<Image> = |path| Image::open(path, &key());
    let in_parts: fn(&Path) -> Result<Image> = |path| {
        let file = sys::open_own_file(path, u64::MAX);
        Image::in_parts(file.map_err(|error| of_file("read it", error))?, &key())
    };
    for (open, fallbacks, reads) in [
        (
            at_once,
            &[
                "memfd_create",
                "sendfile",
                "mmap",
                "madvise",
                "mprotect",
                "mremap",
                "munmap",
            ][..],
            1..=1,
        ),
        (in_parts, &["madvise"], 4..=9),
    ] {
        let manager = manager();
        let link = || open(&path)?.link(&manager, Dylib::NONE, |_| Ok(vec![1000]));
        drop(link().unwrap());
        let (mut failed, mut lost) = (Vec::new(), 0);
        for skip in 0.. {
            let faults = Faults::one(skip, libc::EIO);
            let answer = link();
            let call = faults.failed();
            drop(faults);
            let Some(call) = call else {
                drop(answer.unwrap());
                break;
            };
            failed.push(call);
            match answer {
                Ok(linked) => {
                    assert!(fallbacks.contains(&call), "{call}");
                    let code = executor_sees(linked.graph.address(1), CODE_SIZE);
                    assert!(code == pattern(2_654_435_761, CODE_SIZE), "{call}");
                }
                Err(error) if ["open", "fstat", "pread", "preadv"].contains(&call) => {
                    assert!(error.message().contains("read it"), "{error}");
                    assert_eq!(error.os_code(), Some(libc::EIO));
                }
                // The two views of a chunk would show different pages, so that it keeps this one for good.
                Err(error) if call == "mremap" => {
                    assert!(error.message().contains("max_map_count"), "{error}");
                    lost += 1;
                }
                Err(_) => {}
            }
            assert_eq!(manager.stats().in_flight, lost);
        }
        let read = |call: &&&str| ["pread", "preadv", "sendfile"].contains(call);
        let count = failed.iter().filter(read).count();
        assert!(reads.contains(&count), "{failed:?}");
        assert_eq!(lost, u64::from(failed.contains(&"sendfile")), "{failed:?}");
    }
}

#[test]
fn a_file_that_is_cut_or_goes_on_is_refused() {
    let file = stored();
    for size in 0..file.len() {
        open(file[..size].to_vec()).unwrap_err();
    }
    let mut longer = file;
    longer.push(0);
    let error = open(longer).unwrap_err();
    assert!(
        error
            .message()
            .contains("1 bytes follow its end; store it anew"),
        "{error}"
    );
}

/// The size of everything that the checksum of the tables is of, and of what is in front.
fn head(file: &[u8]) -> usize {
    check_file(file).unwrap().end as usize
}

/// So many changed files, unless a slow machine asks for fewer.
fn cases() -> u32 {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default().cases,
        None => 10_000,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// An attacker makes the checksum fit.
    #[test]
    fn tables_that_lie_are_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut file = stored();
        let head = head(&file);
        for (index, byte) in changes {
            // Mostly the records, whose numbers are small.
            file[16 + index.index(head - 16)] = byte;
        }
        seal(&mut file[..head]);
        if let Ok(tables) = check_file(&file) {
            prop_assert_eq!(tables.end, head as u64);
            let mut end = tables.end;
            for segment in &tables.segments {
                end += u64::from(segment.content);
                prop_assert!(!(segment.protection.writable() && segment.protection.executable()));
            }
            for name in tables.exports.iter().map(|export| export.symbol).chain(tables.symbols.iter().copied()) {
                prop_assert_eq!(std::ffi::CStr::from_bytes_with_nul(tables.c_name(name)).unwrap().to_str(), Ok(tables.name(name)));
            }
            prop_assert_eq!(end, file.len() as u64);
            let inside = |place: Place, size: u64| {
                let content = tables.segments[place.segment as usize].content;
                u64::from(place.offset) + size <= u64::from(content)
            };
            let slots: Vec<Slot> = slots(&tables).collect();
            for slot in &slots {
                prop_assert!(inside(slot.place, slot.value.size()));
            }
            for call in tables.actions.iter().flat_map(ActionPlaces::calls) {
                prop_assert!(inside(call.args, call.size.into()));
                let is_it = |slot: &Slot| slot.place == call.function && slot.value.is_pointer();
                prop_assert!(slots.iter().any(is_it));
            }
        }
    }

    #[test]
    fn random_bytes_are_no_image(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut file = stored()[..16].to_vec();
        file.extend(bytes);
        seal(&mut file);
        prop_assert!(open(file).is_err());
    }
}

/// Linked, but never run.
#[test]
fn an_image_whose_tables_lie_links_or_fails() {
    let manager = manager();
    let whole = stored();
    let head = head(&whole);
    let mut linked = 0;
    for index in 16..head {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut file = whole.clone();
            file[index] = byte;
            seal(&mut file[..head]);
            if let Ok(image) = open(file) {
                let answer =
                    image.link(&manager, Dylib::NONE, |symbols| Ok(vec![1; symbols.len()]));
                linked += u32::from(answer.is_ok());
            }
        }
    }
    // Flags and names may be anything.
    assert!(linked > 100, "{linked}");
}

#[test]
fn a_file_is_replaced_as_a_whole_and_read_back() {
    let folder = Folder::new("replaced");
    let path = folder.path();
    let recorder = recorder();
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..20 {
                    recorder.store(&path, &key()).unwrap();
                    Image::open(&path, &key()).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read(&path).unwrap(), stored());
    assert_eq!(
        fs::read_dir(&folder.0).unwrap().count(),
        1,
        "nothing else is left"
    );
    let error = Image::open(&path, &Key::default()).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().starts_with("open image /"), "{error}");
}

#[test]
fn a_file_with_the_features_of_another_processor_is_refused() {
    let mut others = key();
    let (name, features) = &mut others.0[2];
    assert_eq!(name, "processor features");
    // Names, as they were before.
    *features = "sse3 ssse3 sse4.1 sse4.2".to_owned();
    let folder = Folder::new("features");
    recorder().store(folder.path(), &others).unwrap();
    let error = Image::open(folder.path(), &key()).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().contains("processor features"), "{error}");
}

#[test]
fn files_that_others_may_write_and_what_is_no_file_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("others");
    let path = folder.path();
    recorder().store(&path, &key()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = |path: &PathBuf| Image::open(path, &key()).unwrap_err().status();
    for mode in [0o620, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Image::open(&path, &key()).unwrap_err();
        assert_eq!(error.status(), Status::Denied);
        assert!(error.message().contains("chmod go-w"), "{error}");
    }
    assert_eq!(refused(&folder.0), Status::InvalidArgument);
    assert_eq!(refused(&folder.0.join("none")), Status::System);
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.0.join("pipe"), 0o600.into()).unwrap();
    assert_eq!(refused(&folder.0.join("pipe")), Status::InvalidArgument);
}

#[test]
fn what_another_one_has_left_is_made_ones_own_or_is_not_written() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("left");
    let (path, unfinished) = (folder.path(), folder.0.join("image.new"));
    fs::write(&unfinished, "left").unwrap();
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o666)).unwrap();
    recorder().store(&path, &key()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = folder.0.join("other");
    fs::write(&other, "other").unwrap();
    fs::hard_link(&other, &unfinished).unwrap();
    let error = recorder().store(&path, &key()).unwrap_err();
    assert_eq!(error.status(), Status::Denied);
    assert!(error.message().contains("has another name"), "{error}");
    assert_eq!(fs::read(&other).unwrap(), b"other");
    Image::open(&path, &key()).unwrap();
}

#[test]
fn what_is_another_users_is_refused_before_its_lock_is_waited_for() {
    let folder = Folder::new("locked");
    let (other, unfinished) = (folder.0.join("other"), folder.0.join("image.new"));
    fs::write(&other, "other").unwrap();
    fs::hard_link(&other, &unfinished).unwrap();
    let faults = Faults::one(1, libc::EIO);
    let error = recorder().store(folder.path(), &key()).unwrap_err();
    assert_eq!((error.status(), faults.failed()), (Status::Denied, None));
}

/// Calls of a store in front of that of its directory's opening, and of its syncing.
const OPENING: u32 = 7;
const SYNCING: u32 = 9;

#[test]
fn a_directory_that_is_not_synced_leaves_the_new_file_and_those_of_others() {
    let folder = Folder::new("directory");
    let (path, unfinished) = (folder.path(), folder.0.join("image.new"));
    // Another process writes the next one meanwhile.
    let next = unfinished.clone();
    let faults = Faults::one_while(SYNCING, libc::EIO, move || fs::write(next, "next").unwrap());
    let error = recorder().store(&path, &key()).unwrap_err();
    drop(faults);
    assert_eq!(error.os_code(), Some(libc::EIO));
    assert!(error.message().contains("it is replaced"), "{error}");
    Image::open(&path, &key()).unwrap();
    assert_eq!(fs::read(&unfinished).unwrap(), b"next");
}

#[test]
fn a_file_is_replaced_in_a_directory_that_can_not_be_read_or_synced() {
    let folder = Folder::new("unreadable");
    let path = folder.path();
    for (call, errno) in [(OPENING, libc::EACCES), (SYNCING, libc::EINVAL)] {
        let faults = Faults::one(call, errno);
        recorder().store(&path, &key()).unwrap();
        assert!(faults.failed().is_some());
        drop(faults);
        Image::open(&path, &key()).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn whatever_call_fails_the_old_file_stays_or_the_new_one_is_whole() {
    let folder = Folder::new("faults");
    let path = folder.path();
    recorder().store(&path, &key()).unwrap();
    let old = stored();
    let newer = key().with("newer", "1");
    let mut failed = Vec::new();
    for skip in 0.. {
        let faults = Faults::one(skip, libc::EIO);
        let answer = recorder().store(&path, &newer);
        let call = faults.failed();
        drop(faults);
        let Some(call) = call else {
            answer.unwrap();
            break;
        };
        failed.push(call);
        assert_eq!(answer.unwrap_err().os_code(), Some(libc::EIO), "{call}");
        // What is not locked may be another process's.
        if failed.len() > 2 {
            assert!(!folder.0.join("image.new").exists(), "{call}");
        }
        if failed.len() <= SYNCING as usize {
            assert!(fs::read(&path).unwrap() == old, "{call}");
        }
    }
    let calls = [
        "open",
        "flock",
        "ftruncate",
        "write",
        "write",
        "write",
        "fsync",
        "open",
        "rename",
        "fsync",
    ];
    assert_eq!(failed, calls);
    Image::open(&path, &newer).unwrap();
    let calls: Vec<_> = (0..3)
        .map(|skip| {
            let faults = Faults::one(skip, libc::EIO);
            Image::open(&path, &newer).unwrap_err();
            faults.failed().unwrap()
        })
        .collect();
    assert_eq!(calls, ["open", "fstat", "pread"]);
}
