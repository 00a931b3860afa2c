// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Writing what is finalized, with every mapper.

use super::*;

/// The mappers with which all segments are written in place.
const IN_PLACE: [Kind; 2] = [TWO_VIEWS, Kind::Shared];

fn finalized(manager: &Manager) -> Allocated {
    let allocated = allocate(manager, &small_graph()).unwrap();
    finalize(manager, allocated.handle).unwrap();
    allocated
}

#[test]
fn what_is_stored_is_there_for_the_executor() {
    for kind in IN_PLACE {
        let manager = manager(kind, Options::default()).unwrap();
        let allocated = finalized(&manager);
        let mut scope = manager
            .write_scope(AllocationHandle(allocated.handle))
            .unwrap();
        for segment in &allocated.segments {
            let start = segment.address;
            scope.store_16(start, u128::MAX / 5).unwrap();
            scope.store_8(start + 16, u64::MAX / 3).unwrap();
            scope.store_4(start + 24, 0x0102_0304).unwrap();
            scope.write(start + 29, &[1, 2, 3]).unwrap();
            let there = read(start, 32);
            assert_eq!(there[..16], [0x33; 16], "{kind:?}");
            assert_eq!(there[16..24], [0x55; 8]);
            assert_eq!(there[24..28], 0x0102_0304u32.to_ne_bytes());
            assert_eq!(there[29..], [1, 2, 3]);
        }
        scope.end().unwrap();
        deallocate(&manager, &[allocated.handle]).unwrap();
    }
}

#[test]
fn what_is_not_written_in_place_is_refused_by_name() {
    for kind in [Kind::Remote].into_iter().chain(RESERVING) {
        let manager = manager(kind, Options::default()).unwrap();
        let allocated = finalized(&manager);
        let error = manager
            .write_scope(AllocationHandle(allocated.handle))
            .unwrap_err();
        assert_eq!(error.status(), Status::Unsupported, "{kind:?}");
        assert!(error.message().contains("shared pages"), "{error}");
        deallocate(&manager, &[allocated.handle]).unwrap();
    }
    let manager = manager(MPROTECT, Options::default()).unwrap();
    let allocated = finalized(&manager);
    let mut scope = manager
        .write_scope(AllocationHandle(allocated.handle))
        .unwrap();
    let [code, constants, data] = [0, 1, 2].map(|index| allocated.segments[index].address);
    for address in [code, constants] {
        let error = scope.store_4(address, 1).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
    }
    scope.store_4(data, 0x0101_0101).unwrap();
    assert_eq!(read(data, 4), [1; 4]);
}

#[test]
fn a_scope_ends_where_the_system_has_no_barrier() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let allocated = finalized(&manager);
    for skip in 0..3 {
        let mut scope = manager
            .write_scope(AllocationHandle(allocated.handle))
            .unwrap();
        scope.store_4(allocated.segments[0].address, skip).unwrap();
        let faults = Faults::all_after(skip, libc::ENOSYS);
        scope.end().unwrap();
        assert!(skip > 0 || faults.failed() == Some("membarrier"));
    }
    deallocate(&manager, &[allocated.handle]).unwrap();
}

#[test]
fn a_change_of_data_enters_the_kernel_never() {
    for kind in IN_PLACE {
        let manager = manager(kind, Options::default()).unwrap();
        let allocated = finalized(&manager);
        let faults = Faults::all_after(0, libc::ENOSYS);
        for value in 0..100 {
            let mut scope = manager
                .write_scope(AllocationHandle(allocated.handle))
                .unwrap();
            scope.store_8(allocated.segments[1].address, value).unwrap();
            scope.end().unwrap();
        }
        assert_eq!(faults.failed(), None, "{kind:?}");
        drop(faults);
        deallocate(&manager, &[allocated.handle]).unwrap();
    }
}

#[test]
fn a_deallocation_waits_until_the_last_scope_has_ended() {
    for kind in IN_PLACE {
        let manager = manager(kind, Options::default()).unwrap();
        let allocated = finalized(&manager);
        let handle = AllocationHandle(allocated.handle);
        let scopes = [0, 1].map(|_| manager.write_scope(handle).unwrap());
        assert!(manager.try_deallocate([handle]).is_none());
        let refused = manager.deallocate([handle]).unwrap_err();
        assert_eq!(refused.status(), Status::InvalidArgument);
        let answer = Arc::new(Mutex::new(None));
        let told = Arc::clone(&answer);
        manager.deallocate_async([handle], move |result| *told.lock() = Some(result));
        assert!(manager.write_scope(handle).is_err());
        for scope in scopes {
            assert!(answer.lock().is_none(), "{kind:?}");
            assert_eq!(manager.stats().finalized, 1);
            drop(scope);
        }
        answer
            .lock()
            .take()
            .expect("the last scope has ended")
            .unwrap();
        assert_eq!(manager.stats().finalized, 0);
    }
}

#[test]
fn a_freed_manager_refuses_what_waits_for_a_scope() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let allocated = finalized(&manager);
    let handle = AllocationHandle(allocated.handle);
    let mut scope = manager.write_scope(handle).unwrap();
    let answer = Arc::new(Mutex::new(None));
    let told = Arc::clone(&answer);
    manager.deallocate_async([handle], move |result| *told.lock() = Some(result));
    drop(manager);
    let error = answer
        .lock()
        .take()
        .expect("nothing waits for ever")
        .unwrap_err();
    assert_eq!(error.status(), Status::InvalidHandle);
    scope.store_4(allocated.segments[2].address, 7).unwrap();
    assert_eq!(read(allocated.segments[2].address, 4), 7u32.to_ne_bytes());
}
