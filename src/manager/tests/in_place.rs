// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory that is written at its own address until finalize.

use super::*;
use crate::manager::{SectionGroup, SectionKind};
use crate::page::Alignment;

fn in_place(options: Options) -> Manager {
    manager(IN_PLACE, options).unwrap()
}

/// The protection of the page at an address, as /proc/self/maps has it.
fn protection_of(address: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        (number(start)..number(end))
            .contains(&address)
            .then(|| rest[..4].to_owned())
    });
    found.expect("it is mapped")
}

const SIXTEEN: Alignment = Alignment::new(16).unwrap();

fn section(group: &mut SectionGroup, kind: SectionKind, size: u64) -> u64 {
    group.allocate(kind, size, SIXTEEN).unwrap().addr() as u64
}

#[test]
fn an_address_is_written_until_it_is_sealed_and_is_new_afterwards() {
    let manager = in_place(Options::default());
    let allocated = allocate(&manager, &small_graph()).unwrap();
    for segment in &allocated.segments {
        assert_eq!(segment.working_memory.get().addr() as u64, segment.address);
        assert_eq!(protection_of(segment.address), "rw-p");
    }
    manager.core.write(allocated.handle, 0, 0, &[0xc3]).unwrap();
    let handle = finalize(&manager, allocated.handle).unwrap();
    let after = allocated.segments.iter().map(|s| protection_of(s.address));
    assert_eq!(after.collect::<Vec<_>>(), ["r-xp", "r--p", "rw-p"]);
    assert_eq!(read(allocated.segments[0].address, 1), [0xc3]);
    deallocate(&manager, &[handle]).unwrap();
    let again = allocate(&manager, &small_graph()).unwrap();
    assert_eq!(again.segments[0].address, allocated.segments[0].address);
    assert_eq!(protection_of(again.segments[0].address), "rw-p");
    assert_eq!(read(again.segments[0].address, 256), [0; 256]);
    wait(|done| manager.core.abandon(again.handle, done)).unwrap();
}

#[test]
fn what_the_system_refuses_to_replace_is_not_handed_out_sealed() {
    let manager = in_place(Options::default());
    let round = || {
        let allocated = allocate(&manager, &small_graph()).unwrap();
        finalize(&manager, allocated.handle).unwrap();
        allocated
    };
    let first = round();
    let faults = Faults::all_after(0, libc::ENOMEM);
    let refused = deallocate(&manager, &[first.handle]).unwrap_err();
    assert_eq!(refused.status(), Status::OutOfMemory, "{refused}");
    assert_eq!(protection_of(first.segments[0].address), "r-xp");
    // It is free all the same, and refused until the system gives new memory for it.
    let refused = allocate(&manager, &small_graph()).unwrap_err();
    assert_eq!(refused.status(), Status::OutOfMemory, "{refused}");
    assert!(faults.failed().is_some());
    drop(faults);
    assert_eq!(manager.stats().live, 0);
    let second = allocate(&manager, &small_graph()).unwrap();
    assert_eq!(second.segments[0].address, first.segments[0].address);
    assert_eq!(protection_of(second.segments[0].address), "rw-p");
    wait(|done| manager.core.abandon(second.handle, done)).unwrap();
}

#[test]
fn sections_of_a_kind_share_pages_and_a_sealed_page_takes_no_more() {
    let manager = in_place(Options::default());
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    let page = sys::page_size();
    let kinds = [SectionKind::Code, SectionKind::Constants, SectionKind::Data];
    for kind in kinds {
        let first = section(&mut group, kind, 24);
        let second = section(&mut group, kind, 24);
        assert_eq!(second, first + 32);
        group.finalize().unwrap();
        let third = section(&mut group, kind, 24);
        assert_ne!(page.round_down(third), page.round_down(first));
        assert_eq!(protection_of(third), "rw-p");
    }
    group.free().unwrap();
    assert_eq!(manager.stats().live, 0);
    assert_eq!(manager.stats().in_flight, 0);
}

#[test]
fn a_group_whose_action_fails_keeps_what_was_finalized_before() {
    let manager = in_place(Options::default());
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    let kept = section(&mut group, SectionKind::Code, 1);
    group.finalize().unwrap();
    let live = manager.stats().live;
    let data = section(&mut group, SectionKind::Data, 64);
    // Its first record would end outside of it.
    // SAFETY: the section is the group's, and is written by this thread alone.
    unsafe { std::ptr::with_exposed_provenance_mut::<u32>(data as usize).write(1 << 20) };
    // SAFETY: what is there is looked at before it is believed.
    group.on_finalize(unsafe { crate::executor::eh_frame_action(data, 64) });
    let refused = group.finalize().unwrap_err();
    assert_eq!(refused.status(), Status::ActionFailed, "{refused}");
    assert_eq!(manager.stats().live, live);
    assert_eq!(protection_of(kept), "r-xp");
    group.finalize().unwrap();
}

#[test]
fn a_mapper_that_writes_elsewhere_has_no_sections() {
    for kind in [TWO_VIEWS, MPROTECT, Kind::Shared] {
        let manager = manager(kind, Options::default()).unwrap();
        let refused = SectionGroup::new(&manager, Dylib::NONE).unwrap_err();
        assert_eq!(refused.status(), Status::Unsupported, "{refused}");
    }
}

#[test]
fn a_system_that_lets_nothing_become_executable_is_named() {
    let faults = Faults::all_after(1, libc::EACCES);
    let refused = InProcess::new(InProcessKind::InPlace).err().unwrap();
    assert!(faults.failed().is_some());
    assert_eq!(refused.status(), Status::Denied, "{refused}");
    assert!(refused.to_string().contains("PR_SET_MDWE"), "{refused}");
}

#[test]
fn many_objects_take_few_mappings() {
    let manager = in_place(Options::default());
    let mut groups = Vec::new();
    for _ in 0..2000 {
        let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
        for kind in [SectionKind::Code, SectionKind::Constants, SectionKind::Data] {
            section(&mut group, kind, 200);
        }
        group.finalize().unwrap();
        groups.push(group);
    }
    let window = manager.layout()[0].range;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = maps.lines().filter(|line| {
        let start = line.split('-').next().unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        window.start() <= start && start < window.end()
    });
    let count = inside.count();
    assert!(count < 100, "{count} mappings");
}

#[test]
fn parent_and_child_go_on_with_memory_of_their_own() {
    let manager = in_place(Options::default());
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    let code = section(&mut group, SectionKind::Code, 16);
    let written = std::ptr::with_exposed_provenance_mut::<u8>(code as usize);
    let child_went_on = sys::in_a_child(|| {
        // SAFETY: the child's copy of the section, which is not sealed yet.
        unsafe { written.write(7) };
        group.finalize().is_ok() && protection_of(code) == "r-xp" && read(code, 1) == [7]
    });
    assert!(child_went_on);
    assert_eq!(protection_of(code), "rw-p");
    assert_eq!(read(code, 1), [0]);
    group.finalize().unwrap();
}

#[test]
fn what_the_system_refuses_to_replace_is_replaced_before_it_is_handed_out() {
    let manager = in_place(Options::default());
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    let large = 8 * sys::page_size().bytes();
    let code = section(&mut group, SectionKind::Code, large);
    group.finalize().unwrap();
    let faults = Faults::one(0, libc::ENOMEM);
    let refused = group.free().unwrap_err();
    assert_eq!(faults.failed(), Some("mmap"), "{refused}");
    drop(faults);
    assert_eq!(refused.status(), Status::OutOfMemory, "{refused}");
    // All was deallocated, so that the group goes on with what comes.
    assert_eq!(manager.stats().live, 0);
    assert_eq!(protection_of(code), "r-xp");
    let again = section(&mut group, SectionKind::Code, large);
    assert_eq!((again, protection_of(again)), (code, "rw-p".to_owned()));
    group.finalize().unwrap();
    group.free().unwrap();
    assert_eq!(manager.stats().live, 0);
}

#[test]
fn two_threads_are_handed_out_parts_of_what_is_being_replaced() {
    let manager = Arc::new(in_place(Options::default()));
    let page = sys::page_size().bytes();
    let mut group = SectionGroup::new(&manager, Dylib(1)).unwrap();
    section(&mut group, SectionKind::Code, 8 * page);
    group.finalize().unwrap();
    let faults = Faults::one(0, libc::ENOMEM);
    group.free().unwrap_err();
    drop(faults);
    let (sender, receiver) = std::sync::mpsc::channel();
    let other = Arc::clone(&manager);
    // The other thread may have its part before the system call is done, or waits for it.
    let faults = Faults::before(0, move || {
        let (has_it, seen) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut group = SectionGroup::new(&other, Dylib(1)).unwrap();
            let part = section(&mut group, SectionKind::Code, page);
            let protection = protection_of(part);
            let _ = has_it.send(());
            protection
        });
        let _ = seen.recv_timeout(std::time::Duration::from_millis(100));
        sender.send(thread).unwrap();
    });
    section(&mut group, SectionKind::Code, page);
    assert_eq!(faults.failed(), Some("mmap"));
    drop(faults);
    let thread = receiver.recv().unwrap();
    assert_eq!(thread.join().unwrap(), "rw-p");
}

#[test]
fn a_group_that_is_finalized_often_takes_what_it_needs() {
    let manager = in_place(Options::default());
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    for _ in 0..1000 {
        section(&mut group, SectionKind::Code, 100);
        section(&mut group, SectionKind::Constants, 20);
        group.finalize().unwrap();
    }
    assert_eq!(manager.stats().live, 2000 * sys::page_size().bytes());
    group.free().unwrap();
}

#[test]
fn a_section_gets_the_room_that_is_left() {
    let page = sys::page_size().bytes();
    let quota = Options {
        quota: Some(7 * page),
        ..Options::default()
    };
    let manager = in_place(quota);
    let mut group = SectionGroup::new(&manager, Dylib::NONE).unwrap();
    for _ in 0..7 {
        section(&mut group, SectionKind::Data, page);
    }
    let refused = group.allocate(SectionKind::Data, 1, SIXTEEN).unwrap_err();
    assert_eq!(refused.status(), Status::QuotaExceeded, "{refused}");
}
