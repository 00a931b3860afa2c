// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Every system call made to fail.

use super::*;

/// Every system call of a manager's life fails once, with each of several errors: the error is
/// reported, nothing is lost, and the manager works afterwards.
#[test]
fn any_system_call_may_fail() {
    for kind in [TWO_VIEWS, MPROTECT] {
        for &errno in cases(&[libc::ENOMEM, libc::EPERM, libc::EMFILE, libc::EIO]) {
            let mut failed_calls = std::collections::BTreeSet::new();
            for skip in 0.. {
                let faults = Faults::one(skip, errno);
                let result = life(kind);
                let Some(call) = faults.failed() else {
                    result.unwrap();
                    break;
                };
                failed_calls.insert(call);
                if let Err(error) = &result {
                    assert_eq!(error.os_code(), Some(errno), "{call}: {error}");
                    assert!(error.to_string().len() > 30, "{call}: {error}");
                }
                drop(faults);
                life(kind).unwrap();
            }
            assert!(failed_calls.contains("mmap"), "{failed_calls:?}");
            let two_views = kind == TWO_VIEWS;
            assert_eq!(
                failed_calls.contains("mremap"),
                two_views,
                "{failed_calls:?}"
            );
            assert!(failed_calls.contains("mprotect"), "{failed_calls:?}");
        }
    }
}

/// Allocates, finalizes and frees enough to make and give back chunks. After an error the manager
/// must still do the same work.
fn life(kind: Kind) -> Result<()> {
    let manager = manager(
        kind,
        Options {
            window_size: 16 << 20,
            ..Options::default()
        },
    )?;
    let result = work(&manager);
    let stats = manager.stats();
    assert_eq!(
        (stats.live, stats.in_flight, stats.finalized),
        (0, 0, 0),
        "{stats:?}"
    );
    if result.is_err() {
        // The fault was consumed; the same manager goes on.
        work(&manager).unwrap();
    }
    result
}

fn work(manager: &Manager) -> Result<()> {
    let segments = [
        segment(100_000, 0, 16, Protection::READ_EXEC),
        segment(100, 100_000, 16, Protection::READ),
        segment(100, 90_000, 16, Protection::READ_WRITE),
    ];
    let mut handles = Vec::new();
    let mut result = Ok(());
    for _ in 0..3 {
        match allocate(manager, &segments).and_then(|a| finalize(manager, a.handle)) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // Under the mprotect mapper the traps may fail to be written; the memory is free all the same.
    match deallocate(manager, &handles) {
        Ok(()) => result,
        Err(error) => result.and(Err(error)),
    }
}

/// What is short while the automatic choice is made does not decide it; what is denied does.
#[test]
fn a_shortage_does_not_decide_which_mapper_serves() {
    let name = |errno, skip| {
        let faults = Faults::one(skip, errno);
        let mapper = InProcess::new(InProcessKind::Auto).unwrap();
        let failed = faults.failed();
        (failed, mapper.capabilities().name)
    };
    let mut failed_calls = std::collections::BTreeSet::new();
    for errno in [
        libc::EAGAIN,
        libc::EINTR,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
    ] {
        for skip in 0.. {
            let (failed, name) = name(errno, skip);
            assert_eq!(name, "in-process, two views", "{failed:?}");
            let Some(call) = failed else { break };
            failed_calls.insert(call);
        }
    }
    assert!(failed_calls.contains("mremap"), "{failed_calls:?}");
    let denied = Faults::all_after(0, libc::EPERM);
    let mapper = InProcess::new(InProcessKind::Auto).unwrap();
    drop(denied);
    assert_eq!(mapper.capabilities().name, "in-process, mprotect");
}

/// Pages that the system does not take back stay as they are, and go the next time.
#[test]
fn a_trim_may_fail() {
    for kind in [TWO_VIEWS, MPROTECT] {
        let manager = manager(kind, Options::default()).unwrap();
        let code = [segment(300_000, 0, 16, Protection::READ_EXEC)];
        let mut handles = Vec::new();
        for _ in 0..3 {
            let allocated = allocate(&manager, &code).unwrap();
            handles.push(finalize(&manager, allocated.handle).unwrap());
        }
        deallocate(&manager, &handles[1..2]).unwrap();
        let before = manager.stats();
        let faults = Faults::all_after(0, libc::EPERM);
        let error = manager.trim().unwrap_err();
        assert_eq!(error.os_code(), Some(libc::EPERM), "{error}");
        assert_eq!(faults.failed(), Some("madvise"));
        drop(faults);
        let after = manager.stats();
        assert_eq!(
            (after.committed, after.free),
            (before.committed, before.free)
        );
        let bytes = manager.trim().unwrap();
        let page = sys::page_size().bytes();
        assert!(bytes >= 300_000 - 4 * page, "{bytes}");
        assert_eq!(manager.stats().committed, before.committed - bytes);
        assert_eq!(manager.stats().failures, 1);
        deallocate(&manager, &[handles[0], handles[2]]).unwrap();
    }
}

/// What is short for a moment while pages are shared with an executor decides nothing: the error is told,
/// and the same manager, and another, do the same afterwards as if it had not been.
#[test]
fn a_shortage_out_of_process_passes() {
    let name = || mapper(Kind::Shared).unwrap().capabilities().name;
    let usual = name();
    let mut failed_calls = std::collections::BTreeSet::new();
    for &errno in cases(&[libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::ENOMEM]) {
        for skip in 0.. {
            let faults = Faults::one(skip, errno);
            let result = life(Kind::Shared);
            let Some(call) = faults.failed() else {
                result.unwrap();
                break;
            };
            drop(faults);
            failed_calls.insert(call);
            if let Err(error) = result {
                assert_eq!(error.os_code(), Some(errno), "{call}: {error}");
            }
            assert_eq!(name(), usual, "{call}");
        }
    }
    for call in ["memfd_create", "clone"] {
        assert!(failed_calls.contains(call), "{failed_calls:?}");
    }
}

/// What is denied stays denied.
#[test]
fn a_denial_out_of_process_decides() {
    let denied = Faults::all_after(0, libc::EPERM);
    let error = mapper(Kind::Shared).map(drop).unwrap_err();
    drop(denied);
    assert!(
        [Status::Unsupported, Status::Denied].contains(&error.status()),
        "{error}"
    );
}
