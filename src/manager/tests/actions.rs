// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocation actions: order and roll-back.

use super::*;
use crate::sys::testing::wrapper_call;

// Actions: wrapper functions of this process that keep a journal per test.

static JOURNAL: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// `CWrapperFunctionResult`.
#[repr(C)]
struct Answer(u64, usize);

/// Notes its first argument byte; fails if the second is not zero.
extern "C" fn note(args: *const u8, size: usize) -> Answer {
    // SAFETY: the tests pass two bytes.
    let args = unsafe { std::slice::from_raw_parts(args, size) };
    JOURNAL.lock().push(args[0].into());
    if args[1] == 0 {
        return Answer(0, 1);
    }
    let message = b"\x01\x03\0\0\0\0\0\0\0bad";
    // SAFETY: a block of the message's size, freed by the caller with free.
    let block = unsafe { libc::malloc(message.len()) };
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), block.cast(), message.len()) };
    Answer(block.expose_provenance() as u64, message.len())
}

fn call(number: u8, fails: bool) -> WrapperCall {
    wrapper_call(note as *const () as u64, vec![number, fails.into()])
}

#[test]
fn actions_run_in_order_and_roll_back() {
    let none = WrapperCall::default;
    for kind in all_kinds() {
        let manager = manager(kind, Options::default()).unwrap();
        let run = |actions| {
            JOURNAL.lock().clear();
            let handle = allocate(&manager, &small_graph()).unwrap().handle;
            wait(|done| manager.core.finalize(handle, actions, done))
        };
        let journal = || JOURNAL.lock().clone();
        let handle = run(vec![
            Action {
                finalize: call(1, false),
                dealloc: call(101, true),
            },
            Action {
                finalize: none(),
                dealloc: call(102, false),
            },
            Action {
                finalize: call(3, false),
                dealloc: none(),
            },
        ])
        .unwrap();
        assert_eq!(journal(), [1, 3]);
        let error = deallocate(&manager, &[handle]).unwrap_err();
        // LLVM's protocol gives words and no status.
        let status = match kind {
            Kind::Simple(_) => Status::MapperFailed,
            _ => Status::ActionFailed,
        };
        assert_eq!(error.status(), status);
        assert!(error.to_string().ends_with(": bad"), "{error}");
        assert_eq!(journal(), [1, 3, 102, 101]);
        let error = run(vec![
            Action {
                finalize: call(1, false),
                dealloc: call(101, true),
            },
            Action {
                finalize: call(2, false),
                dealloc: call(102, false),
            },
            Action {
                finalize: call(3, true),
                dealloc: call(103, false),
            },
            Action {
                finalize: call(4, false),
                dealloc: call(104, false),
            },
        ])
        .unwrap_err();
        assert_eq!(journal(), [1, 2, 3, 102, 101]);
        assert_eq!(
            error.to_string().matches(": bad").count(),
            2,
            "both are named: {error}"
        );
        let stats = manager.stats();
        assert_eq!((stats.live, stats.in_flight, stats.finalized), (0, 0, 0));
        // What is left when the manager goes, goes last to first.
        run(vec![Action {
            finalize: none(),
            dealloc: call(110, false),
        }])
        .unwrap();
        let handle = allocate(&manager, &small_graph()).unwrap().handle;
        let last = vec![Action {
            finalize: none(),
            dealloc: call(111, false),
        }];
        wait(|done| manager.core.finalize(handle, last, done)).unwrap();
        drop(manager);
        assert_eq!(journal(), [111, 110]);
    }
}
