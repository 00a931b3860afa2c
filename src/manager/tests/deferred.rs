// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory that is used again only once the host says so, with every mapper.

use super::*;

fn deferring() -> Options {
    Options {
        defer_reclamation: true,
        ..Options::default()
    }
}

/// Finalized code full of one byte; its address and handle.
fn code_of(manager: &Manager, byte: u8) -> (u64, u64) {
    let allocated = allocate(manager, &[segment(100, 0, 16, Protection::READ_EXEC)]).unwrap();
    let written = manager.core.write(allocated.handle, 0, 0, &[byte; 100]);
    written.unwrap();
    finalize(manager, allocated.handle).unwrap();
    (allocated.segments[0].address, allocated.handle)
}

#[test]
fn what_is_deallocated_stays_until_it_is_reclaimed() {
    for kind in DIVIDING {
        let manager = manager(kind, deferring()).unwrap();
        let _keep = code_of(&manager, 1);
        let (address, handle) = code_of(&manager, 0x90);
        let before = manager.stats();
        deallocate(&manager, &[handle]).unwrap();
        assert_eq!(read(address, 100), [0x90; 100], "{kind:?}");
        let gone = deallocate(&manager, &[handle]).unwrap_err();
        assert_eq!(gone.status(), Status::InvalidHandle);
        let stats = manager.stats();
        assert_eq!((stats.finalized, stats.live), (1, 100));
        let page = sys::page_size().bytes();
        assert!(stats.waiting >= 100 && stats.waiting < 100 + page);
        assert_eq!(stats.free, before.free);
        assert_eq!(stats.padding + stats.waiting, before.padding + 100);
        let ranges = manager.layout();
        let ranges = ranges.iter().filter(|item| item.kind == LayoutKind::Range);
        assert_eq!(ranges.count(), 1, "it is in no picture");
        // Nothing else comes there.
        let others: Vec<_> = (0..300).map(|_| code_of(&manager, 2)).collect();
        assert!(
            others
                .iter()
                .all(|(other, _)| other.abs_diff(address) >= 100)
        );
        let epoch = manager.advance_epoch().unwrap();
        assert_eq!(read(address, 100), [0x90; 100]);
        assert_eq!(manager.reclaim(epoch).unwrap(), stats.waiting);
        assert_eq!(manager.stats().waiting, 0);
        assert!(
            read(address, 100).iter().all(|byte| *byte != 0x90),
            "it traps"
        );
        assert_eq!(manager.reclaim(epoch).unwrap(), 0);
        let again: Vec<_> = (0..300).map(|_| code_of(&manager, 2)).collect();
        assert!(again.iter().any(|(other, _)| *other == address), "{kind:?}");
    }
}

#[test]
fn each_epoch_is_reclaimed_with_those_before_it() {
    for kind in DIVIDING {
        let manager = manager(kind, deferring()).unwrap();
        let code: Vec<_> = (0..4).map(|_| code_of(&manager, 0x90)).collect();
        let there = |index: usize| read(code[index].0, 100) == [0x90; 100];
        let _keep = code_of(&manager, 1);
        let mut epochs = Vec::new();
        for (_, handle) in &code[..3] {
            deallocate(&manager, &[*handle]).unwrap();
            epochs.push(manager.advance_epoch().unwrap());
        }
        deallocate(&manager, &[code[3].1]).unwrap();
        assert_eq!(epochs, [1, 2, 3]);
        let early = manager.reclaim(4).unwrap_err();
        assert_eq!(early.status(), Status::InvalidArgument);
        assert!(early.message().contains("has ended is 3"), "{early}");
        assert!((0..4).all(there), "{kind:?}");
        manager.reclaim(1).unwrap();
        assert_eq!([0, 1, 2, 3].map(there), [false, true, true, true]);
        manager.reclaim(3).unwrap();
        assert_eq!([0, 1, 2, 3].map(there), [false, false, false, true]);
        // What is left goes with the manager.
    }
}

#[test]
fn an_error_of_want_of_room_names_what_waits() {
    let options = Options {
        window_size: SMALLEST_WINDOW,
        ..deferring()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let large = [segment(20 << 10, 0, 16, Protection::READ_WRITE)];
    let error = (0..100)
        .find_map(|_| {
            let allocated = allocate(&manager, &large).map_err(Some);
            let allocated = match allocated {
                Ok(allocated) => allocated,
                Err(error) => return error,
            };
            finalize(&manager, allocated.handle).unwrap();
            deallocate(&manager, &[allocated.handle]).unwrap();
            None
        })
        .expect("nothing is used again");
    assert_eq!(error.status(), Status::WindowFull);
    let waiting = manager.stats().waiting;
    let words = format!("{waiting} bytes are deallocated and wait");
    assert!(error.message().contains(&words), "{error}");
    let epoch = manager.advance_epoch().unwrap();
    assert_eq!(manager.reclaim(epoch).unwrap(), waiting);
    allocate(&manager, &large).unwrap();
}

#[test]
fn a_quota_counts_what_waits() {
    let options = Options {
        quota: Some(1 << 10),
        ..deferring()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let most = [segment(1 << 10, 0, 16, Protection::READ)];
    let first = allocate(&manager, &most).unwrap().handle;
    finalize(&manager, first).unwrap();
    deallocate(&manager, &[first]).unwrap();
    let error = allocate(&manager, &most).unwrap_err();
    assert_eq!(error.status(), Status::QuotaExceeded);
    assert!(
        error
            .message()
            .contains("1024 bytes are deallocated and wait")
    );
    let epoch = manager.advance_epoch().unwrap();
    manager.reclaim(epoch).unwrap();
    allocate(&manager, &most).unwrap();
}

#[test]
fn what_was_never_finalized_does_not_wait() {
    for kind in DIVIDING {
        let manager = manager(kind, deferring()).unwrap();
        let allocated = allocate(&manager, &small_graph()).unwrap();
        wait(|done| manager.core.abandon(allocated.handle, done)).unwrap();
        assert_eq!(manager.stats().waiting, 0, "{kind:?}");
    }
}

#[test]
fn a_batch_with_a_wrong_handle_has_nothing_wait() {
    for kind in DIVIDING {
        let manager = manager(kind, deferring()).unwrap();
        let (_, handle) = code_of(&manager, 1);
        for wrong in [vec![handle, handle], vec![handle, 1]] {
            assert!(deallocate(&manager, &wrong).is_err());
            assert_eq!(manager.stats().waiting, 0, "{kind:?}");
        }
        deallocate(&manager, &[handle]).unwrap();
        assert!(manager.stats().waiting > 0);
    }
}

#[test]
fn where_it_can_not_be_had_it_is_refused() {
    for kind in RESERVING {
        let error = manager(kind, deferring()).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
        let manager = manager(kind, Options::default()).unwrap();
        assert_eq!(
            manager.advance_epoch().unwrap_err().status(),
            Status::Unsupported
        );
        assert_eq!(
            manager.reclaim(0).unwrap_err().status(),
            Status::Unsupported
        );
    }
}
