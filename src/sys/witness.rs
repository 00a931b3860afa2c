// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Whether children of earlier forks are still there.
//!
//! A witness is a page of System V shared memory that is attached for one fork. The child inherits it, as
//! do its own children, and the kernel counts the address spaces that have it attached. So once the
//! parent alone is left, no process has what its memory was at that fork. The count needs no
//! descriptor, which a host might close, no handler in the child, and is right when a child is killed.
//! No later child gets it (MADV_DONTFORK).

use super::gate;
use std::ptr;

/// More children of different forks than this share witnesses.
const MOST: usize = 64;

/// What children have attached. The segment is marked for removal, so it goes with the last of them.
#[derive(Clone, Copy, Debug)]
struct Segment {
    id: libc::c_int,
    address: *mut libc::c_void,
}

impl Segment {
    fn new() -> Option<Segment> {
        gate("shmget").ok()?;
        // SAFETY: a segment of our own is made and attached at an address that the kernel chooses.
        unsafe {
            let size = super::page_size().bytes() as usize;
            let id = libc::shmget(libc::IPC_PRIVATE, size, libc::IPC_CREAT | 0o600);
            if id < 0 {
                return None;
            }
            let address = libc::shmat(id, ptr::null(), libc::SHM_RDONLY);
            libc::shmctl(id, libc::IPC_RMID, ptr::null_mut());
            (address.addr() != usize::MAX).then_some(Segment { id, address })
        }
    }

    /// Whether any other process has it. If that can't be told, one has.
    fn is_shared(self) -> bool {
        // SAFETY: zeros are a value of it, and it is written by the kernel alone.
        let mut state: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let asked = unsafe { libc::shmctl(self.id, libc::IPC_STAT, &mut state) };
        asked != 0 || state.shm_nattch != 1
    }

    /// Lets children have it, or not.
    fn inherit(self, advice: libc::c_int) -> bool {
        let size = super::page_size().bytes() as usize;
        // SAFETY: the page is this segment's, and none accesses it.
        unsafe { libc::madvise(self.address, size, advice) == 0 }
    }
}

/// The forks that a segment was attached for.
#[derive(Clone, Copy, Debug)]
struct Witness {
    /// `None`: it could not be had, so that the children are taken to be there for ever.
    segment: Option<Segment>,
    first: u32,
    last: u32,
}

/// Forks by their epochs, of which children may still be there.
#[derive(Debug)]
pub(super) struct Witnesses {
    kept: [Option<Witness>; MOST],
    spare: Option<Segment>,
    /// What the children of the fork that is under way are to have.
    inherited: Option<Segment>,
}

// SAFETY: the address of a segment is only a number here.
unsafe impl Send for Witnesses {}

/// Which forks have children that may still be there.
#[derive(Debug)]
pub(crate) struct ForksInUse([Option<(u32, u32)>; MOST]);

impl ForksInUse {
    /// Whether a child of a fork later than `after` and not later than `until` may be there.
    pub(crate) fn any_between(&self, after: u32, until: u32) -> bool {
        let mut forks = self.0.iter().flatten();
        forks.any(|(first, last)| *first <= until && *last > after)
    }
}

impl Witnesses {
    pub(super) const NONE: Witnesses = Witnesses {
        kept: [None; MOST],
        spare: None,
        inherited: None,
    };

    /// Attaches a witness for the fork of this epoch.
    pub(super) fn before_fork(&mut self, epoch: u32) {
        self.forget_gone();
        let Some(place) = self.kept.iter().position(Option::is_none) else {
            return self.share_latest(epoch);
        };
        let again = self.spare.take();
        let segment = match again.filter(|segment| segment.inherit(libc::MADV_DOFORK)) {
            Some(segment) => Some(segment),
            None => Segment::new(),
        };
        self.inherited = segment;
        let unknown = |witness: &&mut Witness| witness.segment.is_none();
        match self.kept.iter_mut().flatten().find(unknown) {
            Some(witness) if segment.is_none() => witness.last = epoch,
            _ => {
                self.kept[place] = Some(Witness {
                    segment,
                    first: epoch,
                    last: epoch,
                });
            }
        }
    }

    fn share_latest(&mut self, epoch: u32) {
        let latest = self.kept.iter_mut().flatten();
        if let Some(witness) = latest.max_by_key(|witness| witness.last) {
            witness.last = epoch;
            self.inherited = witness.segment;
            let inherited = |segment: Segment| segment.inherit(libc::MADV_DOFORK);
            if !self.inherited.is_some_and(inherited) {
                (witness.segment, self.inherited) = (None, None);
            }
        }
    }

    pub(super) fn in_parent(&mut self) {
        if let Some(segment) = self.inherited.take() {
            segment.inherit(libc::MADV_DONTFORK);
        }
    }

    /// What the parent knows of its children is not the child's; what it has attached, it keeps.
    pub(super) fn in_child(&mut self) {
        *self = Witnesses::NONE;
    }

    fn forget_gone(&mut self) {
        for place in &mut self.kept {
            let segment = place.and_then(|witness| witness.segment);
            if let Some(segment) = segment.filter(|segment| !segment.is_shared()) {
                *place = None;
                if let Some(other) = self.spare.replace(segment) {
                    // SAFETY: attached by us, and accessed by none.
                    unsafe { libc::shmdt(other.address) };
                }
            }
        }
    }

    pub(super) fn in_use(&mut self) -> ForksInUse {
        self.forget_gone();
        ForksInUse(
            self.kept
                .map(|place| place.map(|witness| (witness.first, witness.last))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::atfork::{fork_epoch, forks_in_use, witness_forks};
    use super::super::fork::testing::in_a_child;
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A child that lives until its socket is closed, and answers once it runs.
    struct Child {
        process: libc::pid_t,
        socket: Option<UnixStream>,
        epoch: u32,
    }

    impl Child {
        fn fork() -> Child {
            let (ours, theirs) = UnixStream::pair().unwrap();
            // SAFETY: the child makes system calls and exits.
            let process = unsafe { libc::fork() };
            let (mut mine, other) = match process {
                0 => (theirs, ours),
                _ => (ours, theirs),
            };
            drop(other);
            if process == 0 {
                let _ = mine.read(&mut [0]);
                // SAFETY: nothing of the parent's is cleaned up.
                unsafe { libc::_exit(0) };
            }
            Child {
                process,
                socket: Some(mine),
                epoch: fork_epoch(),
            }
        }

        fn is_in_use(&self) -> bool {
            forks_in_use().any_between(self.epoch - 1, self.epoch)
        }

        fn end(&mut self) {
            let _ = self.socket.take().unwrap().write(&[0]);
            let mut status = 0;
            // SAFETY: a child of this test.
            unsafe { libc::waitpid(self.process, &mut status, 0) };
        }
    }

    #[test]
    fn it_is_known_of_which_forks_children_are_there() {
        // In a process where no other test forks.
        assert!(in_a_child(|| {
            fork_and_end();
            true
        }));
    }

    fn fork_and_end() {
        witness_forks();
        let mut children: Vec<Child> = (0..3).map(|_| Child::fork()).collect();
        assert!(children.iter().all(Child::is_in_use));
        // In any order.
        for index in [1, 2, 0] {
            children[index].end();
            assert!(!children[index].is_in_use());
        }
        let mut many: Vec<Child> = (0..MOST + 10).map(|_| Child::fork()).collect();
        assert!(many.iter().all(Child::is_in_use), "some share a witness");
        many.iter_mut().for_each(Child::end);
        assert!(!many.iter().any(Child::is_in_use));
    }
}
