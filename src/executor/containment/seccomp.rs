// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which system calls this process may still make once linked code may run.
//!
//! The lists are of what is allowed. A list of what is refused would be passed by the x32 numbers of
//! the same calls, by io_uring, and by whatever the next kernel has. Conditions look at arguments in
//! registers only: memory that one points to may change between the look and the call.

mod calls;
mod filter;

use super::{Containment, Profile};
use crate::error::Result;
use crate::sys::{explain, seccomp::filter_calls};
use calls::{
    CODE, DEVICES, INSIDE, NETWORK, OUTSIDE, READING, SHARED_MEMORY, TO_OPEN, TO_PROCESSES, TO_READ,
};
use filter::{Filter, answer};
use libc::c_long;

/// A condition on an argument. Of those that are asked about by number the kernel looks at the lower
/// half only, and so do these.
enum Test {
    /// Of the argument these bits are one of these.
    Is(u8, u32, &'static [u32]),
    /// The argument is none of these.
    IsNot(u8, &'static [u32]),
    /// The argument is this process.
    IsOwn(u8),
    /// The argument is the descriptor at which controllers connect. Linked code can put another of its
    /// descriptors there, but has none that listens.
    IsListener(u8),
    /// The pointer is null.
    IsNull(u8),
}

/// A system call that is allowed if all of its tests hold.
type Conditional = (c_long, &'static [Test]);

/// Puts the filters in force, for good, for all threads and for those that they start. Says whether
/// there are any. Of two filters the stricter answer holds.
#[cold]
pub(super) fn enter(chosen: &Containment) -> Result<bool> {
    let denied = match chosen.audit {
        true => libc::SECCOMP_RET_LOG,
        false => answer(libc::EPERM),
    };
    let mut filters = Vec::new();
    let mut refuse = |calls: &[Conditional], answer| {
        let mut filter = Filter::begin();
        filter.calls_if(calls, answer);
        filters.push(filter.end(libc::SECCOMP_RET_ALLOW));
    };
    if let (Some(_), false) = (chosen.profile, chosen.audit) {
        // As if the kernel did not have it: the C library takes clone then, whose flags are in a
        // register.
        refuse(&[(libc::SYS_clone3, &[])], answer(libc::ENOSYS));
    }
    if chosen.profile.is_some() {
        refuse(DEVICES, denied);
    }
    if chosen.fixed_code || chosen.profile == Some(Profile::Sealed) {
        refuse(CODE, denied);
    }
    if chosen.no_network {
        refuse(NETWORK, denied);
    }
    if chosen.no_shared_memory {
        refuse(SHARED_MEMORY, denied);
    }
    if let Some(profile) = chosen.profile {
        filters.push(profile.filter(denied));
    }
    for filter in &mut filters {
        let installed = filter_calls(filter);
        installed.map_err(|error| explain("install a filter of system calls", error))?;
    }
    Ok(!filters.is_empty())
}

impl Profile {
    /// What is allowed always, and what on conditions.
    fn calls(self) -> ([&'static [c_long]; 2], [&'static [Conditional]; 2]) {
        match self {
            Profile::NoExec => ([INSIDE, OUTSIDE], [TO_PROCESSES, &[]]),
            Profile::Confined => ([INSIDE, READING], [TO_OPEN, TO_READ]),
            Profile::Sealed => ([INSIDE, &[]], [TO_OPEN, &[]]),
        }
    }

    #[cold]
    fn filter(self, otherwise: u32) -> Vec<libc::sock_filter> {
        let (always, conditional) = self.calls();
        let mut filter = Filter::begin();
        for calls in always {
            filter.calls(calls, libc::SECCOMP_RET_ALLOW);
        }
        for calls in conditional {
            filter.calls_if(calls, libc::SECCOMP_RET_ALLOW);
        }
        filter.end(otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PROFILES;
    use super::*;
    use std::collections::BTreeSet;

    /// The calls that a profile has on any condition.
    fn listed(profile: Profile) -> Vec<c_long> {
        let (always, conditional) = profile.calls();
        let conditional = conditional.into_iter().flatten().map(|(call, _)| *call);
        always.concat().into_iter().chain(conditional).collect()
    }

    #[test]
    fn no_call_is_allowed_twice_and_each_profile_allows_no_more_than_the_last() {
        let [no_exec, confined, sealed] = PROFILES.map(|(_, profile)| {
            let all = listed(profile);
            let set: BTreeSet<_> = all.iter().copied().collect();
            assert_eq!(set.len(), all.len(), "{profile:?}");
            set
        });
        assert!(no_exec.is_superset(&confined), "{:?}", &confined - &no_exec);
        assert!(confined.is_superset(&sealed), "{:?}", &sealed - &confined);
    }

    #[test]
    fn what_would_undo_it_is_in_no_list() {
        for (_, profile) in PROFILES {
            let listed = listed(profile);
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_pidfd_getfd,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_userfaultfd,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_mount,
                libc::SYS_personality,
                libc::SYS_seccomp,
            ] {
                assert!(!listed.contains(&call), "{profile:?} has {call}");
            }
        }
    }
}
