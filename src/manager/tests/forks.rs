// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Managers in forked children, and what children see of their parent's memory.

use super::writers::access;
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// A manager with the fork policy of its options.
fn manager(kind: Kind, options: Options) -> Result<Manager> {
    Manager::new(&mapper(kind)?, options)
}

/// A child that does its part once it is told to.
pub(super) struct Child {
    process: libc::pid_t,
    socket: UnixStream,
}

impl Child {
    pub(super) fn new(part: impl FnOnce() -> bool) -> Child {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // SAFETY: the child does what is under test, and leaves by _exit.
        let process = unsafe { libc::fork() };
        if process == 0 {
            drop(ours);
            // A panic must not go on into the parent's tests.
            let part = std::panic::AssertUnwindSafe(|| theirs.read(&mut [0]).is_ok() && part());
            let passed = std::panic::catch_unwind(part).unwrap_or(false);
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(i32::from(!passed)) };
        }
        assert!(process > 0);
        Child {
            process,
            socket: ours,
        }
    }

    /// Lets it do its part, and says whether it could.
    pub(super) fn passes(mut self) -> bool {
        self.socket.write_all(&[0]).unwrap();
        let mut status = -1;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(self.process, &mut status, 0) };
        status == 0
    }
}

/// Runs a test in a process in which no other forks.
pub(super) fn alone(test: impl FnOnce()) {
    let run = || {
        test();
        true
    };
    assert!(Child::new(run).passes());
}

/// A graph whose segments are full of a byte.
fn filled(manager: &Manager, byte: u8) -> (u64, [u64; 3]) {
    let allocated = allocate(manager, &small_graph()).unwrap();
    for (index, segment) in small_graph().iter().enumerate() {
        let bytes = vec![byte; segment.content_size as usize];
        let written = manager.core.write(allocated.handle, index, 0, &bytes);
        written.unwrap();
    }
    finalize(manager, allocated.handle).unwrap();
    let address = |index: usize| allocated.segments[index].address;
    (allocated.handle, [address(0), address(1), address(2)])
}

fn is_full_of(addresses: [u64; 3], byte: u8) -> bool {
    let whole = |(address, segment): (u64, &Segment)| {
        let bytes = read(address, segment.content_size);
        bytes.iter().all(|found| *found == byte)
    };
    addresses.into_iter().zip(&small_graph()).all(whole)
}

/// Graphs come and go in all of the manager's memory.
fn use_all_again(manager: &Manager) {
    let graphs: Vec<u64> = (0..2000).map(|_| filled(manager, 0x77).0).collect();
    deallocate(manager, &graphs).unwrap();
}

#[test]
fn children_give_back_what_was_empty_at_the_fork() {
    alone(|| {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        use_all_again(&manager);
        let before = manager.stats();
        assert!(before.live == 0 && before.chunks > 0);
        let trims = || {
            manager.trim().unwrap();
            let after = manager.stats();
            use_all_again(&manager);
            (after.chunks, after.chunk_bytes, after.frozen) == (0, 0, 0)
        };
        assert!(Child::new(trims).passes());
        assert_eq!(manager.stats().chunk_bytes, before.chunk_bytes);
    });
}

#[test]
fn what_children_saw_goes_back_through_views_that_are_closed() {
    alone(|| {
        let options = Options {
            close_writers: true,
            ..Options::default()
        };
        let manager = manager(TWO_VIEWS, options).unwrap();
        let stays = filled(&manager, 0x11);
        let (goes, addresses) = filled(&manager, 0x22);
        let child = Child::new(|| is_full_of(addresses, 0x22));
        deallocate(&manager, &[goes]).unwrap();
        assert!(manager.stats().frozen > 0);
        assert!(child.passes());
        manager.trim().unwrap();
        assert_eq!(manager.stats().frozen, 0);
        assert!(is_full_of(stays.1, 0x11));
    });
}

#[test]
fn a_child_has_no_write_scopes_of_threads_that_are_not_there() {
    alone(|| {
        let options = Options {
            close_writers: true,
            ..Options::default()
        };
        let manager = Arc::new(manager(TWO_VIEWS, options).unwrap());
        let (handle, _) = filled(&manager, 0x11);
        let (begins, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = Arc::clone(&manager);
        let thread = std::thread::spawn(move || {
            let scope = other.write_scope(AllocationHandle(handle)).unwrap();
            begins.send(()).unwrap();
            ended.recv().unwrap();
            scope.end().unwrap();
        });
        begun.recv().unwrap();
        let child = Child::new(|| {
            // SAFETY: ends the child if it waits for ever.
            unsafe { libc::alarm(20) };
            let allocated = allocate(&manager, &small_graph()).unwrap();
            finalize(&manager, allocated.handle).unwrap();
            // Nor do they keep writer views open.
            let written = allocated.segments[0].working_memory.get() as u64;
            access(written) == "---s" && deallocate(&manager, &[handle]).is_ok()
        });
        assert!(child.passes());
        end.send(()).unwrap();
        thread.join().unwrap();
        deallocate(&manager, &[handle]).unwrap();
    });
}

#[test]
fn children_see_what_was_live_at_the_fork_for_as_long_as_they_live() {
    alone(|| {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        let stays = filled(&manager, 0x11);
        let (goes, addresses) = filled(&manager, 0x22);
        let both = || is_full_of(addresses, 0x22) && is_full_of(stays.1, 0x11);
        let children: Vec<Child> = (0..3).map(|_| Child::new(both)).collect();
        deallocate(&manager, &[goes]).unwrap();
        use_all_again(&manager);
        assert_eq!(manager.stats().frozen, 256 + 64);
        assert!(children.into_iter().all(Child::passes));
        // With the last child it is the parent's again, as soon as it needs room.
        let graphs: Vec<u64> = (0..9000).map(|_| filled(&manager, 0x33).0).collect();
        assert_eq!(manager.stats().frozen, 0);
        deallocate(&manager, &graphs).unwrap();
        assert!(is_full_of(stays.1, 0x11));
    });
}

/// A child is in the way of what was there when it was forked, and of nothing that came later.
#[test]
fn what_came_after_the_oldest_child_is_used_again_without_its_end() {
    alone(|| {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        // So that its chunks stay.
        filled(&manager, 0x11);
        let (first, seen) = filled(&manager, 0x22);
        let oldest = Child::new(|| is_full_of(seen, 0x22));
        // More generations than are told apart.
        for round in 0..10 {
            let (later, addresses) = filled(&manager, 0x40 + round);
            let child = Child::new(|| is_full_of(addresses, 0x40 + round));
            let (latest, _) = filled(&manager, 0x30);
            deallocate(&manager, &[later, latest]).unwrap();
            assert_eq!(
                manager.stats().frozen,
                256 + 64,
                "the latest is seen by none"
            );
            use_all_again(&manager);
            manager.trim().unwrap();
            assert!(child.passes());
            manager.trim().unwrap();
            assert_eq!(manager.stats().frozen, 0);
        }
        // One that is there through many forks.
        let (long, addresses) = filled(&manager, 0x50);
        let (mut children, mut gone) = (Vec::new(), vec![long, first]);
        for round in 0..10 {
            gone.push(filled(&manager, 0x60 + round).0);
            children.push(Child::new(|| is_full_of(addresses, 0x50)));
        }
        deallocate(&manager, &gone).unwrap();
        use_all_again(&manager);
        assert!(children.into_iter().all(Child::passes));
        manager.trim().unwrap();
        assert_eq!(
            manager.stats().frozen,
            256 + 64,
            "the oldest child sees the first"
        );
        assert!(oldest.passes());
        manager.trim().unwrap();
        assert_eq!(manager.stats().frozen, 0);
    });
}

#[test]
fn the_guarantee_can_be_given_up() {
    alone(|| {
        let options = Options {
            fork: ForkPolicy::Reuse,
            ..Options::default()
        };
        let manager = manager(TWO_VIEWS, options).unwrap();
        let (goes, _) = filled(&manager, 0x22);
        let child = Child::new(|| true);
        deallocate(&manager, &[goes]).unwrap();
        assert_eq!(manager.stats().frozen, 0);
        assert!(child.passes());
    });
}

#[test]
fn a_childs_manager_goes_on() {
    alone(|| {
        for kind in [TWO_VIEWS, MPROTECT] {
            let manager = manager(kind, Options::default()).unwrap();
            let (first, seen) = filled(&manager, 0x22);
            let (second, other) = filled(&manager, 0x23);
            let child = Child::new(|| {
                deallocate(&manager, &[first]).unwrap();
                use_all_again(&manager);
                let (_, new) = filled(&manager, 0x44);
                // Children of children.
                let grandchild = Child::new(|| {
                    let (_, newer) = filled(&manager, 0x55);
                    is_full_of(new, 0x44) && is_full_of(newer, 0x55) && is_full_of(other, 0x23)
                });
                use_all_again(&manager);
                grandchild.passes() && is_full_of(new, 0x44) && is_full_of(other, 0x23)
            });
            assert!(child.passes(), "{kind:?}");
            let child = Child::new(|| {
                deallocate(&manager, &[first, second]).unwrap();
                drop(manager_and_all(&manager));
                true
            });
            // What the child did changed nothing here.
            assert!(child.passes(), "{kind:?}");
            assert!(is_full_of(seen, 0x22) && is_full_of(other, 0x23));
            deallocate(&manager, &[first, second]).unwrap();
            assert_eq!(manager.stats().live, 0);
        }
    });
}

/// A copy of the last handle that the child may drop.
fn manager_and_all(manager: &Manager) -> Manager {
    // SAFETY: in a child that leaves by _exit, so that the parent's is not dropped there.
    unsafe { std::ptr::read(manager) }
}

#[test]
fn a_fork_between_changes_leaves_mappings_bounded() {
    alone(|| {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        let mut live = std::collections::VecDeque::new();
        let mut most = 0;
        for round in 0..rounds(2000) {
            for _ in 0..20 {
                live.push_back(filled(&manager, 0x66).0);
            }
            assert!(Child::new(|| true).passes());
            while live.len() > 200 {
                deallocate(&manager, &[live.pop_front().unwrap()]).unwrap();
            }
            if round >= 100 {
                most = most.max(manager.stats().chunks);
            }
        }
        assert!(most <= 20, "{most} chunks");
    });
}

/// A write scope would change what the other process runs, but for writable data.
#[test]
fn write_scopes_leave_alone_what_the_other_process_sees() {
    alone(|| {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        let (old, [code, constants, data]) = filled(&manager, 1);
        let refused = |manager: &Manager| {
            let mut scope = manager.write_scope(AllocationHandle(old)).unwrap();
            let error = scope.store_4(code, 2).unwrap_err();
            error.status() == Status::Unsupported
                && error.message().contains("forked")
                && scope.store_4(constants, 2).is_err()
                && scope.store_4(data, 2).is_ok()
                && scope.end().is_ok()
        };
        let mut open = manager.write_scope(AllocationHandle(old)).unwrap();
        let child = Child::new(|| refused(&manager) && read(code, 1) == [1]);
        assert!(open.store_4(code, 2).is_err(), "begun before the fork");
        open.store_4(data, 2).unwrap();
        open.end().unwrap();
        assert!(refused(&manager));
        assert!(child.passes());
        let (new, [code, ..]) = filled(&manager, 3);
        let mut scope = manager.write_scope(AllocationHandle(new)).unwrap();
        scope.store_4(code, 0x0404_0404).unwrap();
        scope.end().unwrap();
        assert_eq!(read(code, 1), [4]);
    });
}
