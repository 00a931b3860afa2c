// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which system calls this process may still make once linked code may run.
//!
//! The lists are of what is allowed. A list of what is refused would be passed by the x32 numbers of
//! the same calls, by io_uring, and by whatever the next kernel has. Conditions look at arguments in
//! registers only: memory that one points to may change between the look and the call.

mod calls;

use super::{Containment, Profile};
use crate::error::{Error, Result, Status};
use calls::{
    CODE, DEVICES, INSIDE, NETWORK, OUTSIDE, READING, SHARED_MEMORY, TO_OPEN, TO_PROCESSES, TO_READ,
};
use libc::c_long;
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;

/// A condition on an argument. Of those that are asked about by number the kernel looks at the lower
/// half only, and so do these.
enum Test {
    /// Of the argument these bits are one of these.
    Is(u8, u32, &'static [u32]),
    /// The argument is none of these.
    IsNot(u8, &'static [u32]),
    /// The argument is this process.
    IsOwn(u8),
    /// The pointer is null.
    IsNull(u8),
}

/// A system call that is allowed if all of its tests hold.
type Conditional = (c_long, &'static [Test]);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Status::Denied, format!("install a seccomp filter: {error}"))
}

/// Puts the filters in force, for good, for all threads and for those that they start. Says whether
/// there are any. Of two filters the stricter answer holds.
pub(super) fn enter(chosen: &Containment) -> Result<bool> {
    let denied = match chosen.audit {
        true => SeccompAction::Log,
        false => error(libc::EPERM),
    };
    let mut filters = Vec::new();
    let mut refuse = |calls: &[Conditional], answer: &SeccompAction| -> Result<()> {
        filters.push(compile(
            rules(&[], calls)?,
            SeccompAction::Allow,
            answer.clone(),
        )?);
        Ok(())
    };
    if let (Some(_), false) = (chosen.profile, chosen.audit) {
        // As if the kernel did not have it: the C library takes clone then, whose flags are in a
        // register.
        refuse(&[(libc::SYS_clone3, &[])], &error(libc::ENOSYS))?;
    }
    if chosen.profile.is_some() {
        refuse(DEVICES, &denied)?;
    }
    if chosen.fixed_code || chosen.profile == Some(Profile::Sealed) {
        refuse(CODE, &denied)?;
    }
    if chosen.no_network {
        refuse(NETWORK, &denied)?;
    }
    if chosen.no_shared_memory {
        refuse(SHARED_MEMORY, &denied)?;
    }
    if let Some(profile) = chosen.profile {
        filters.push(compile(profile.rules()?, denied, SeccompAction::Allow)?);
    }
    for filter in &filters {
        apply_filter_all_threads(filter).map_err(failed)?;
    }
    Ok(!filters.is_empty())
}

fn rules(always: &[c_long], conditional: &[Conditional]) -> Result<Rules> {
    let mut rules: Rules = always.iter().map(|call| (*call, Vec::new())).collect();
    for (call, tests) in conditional {
        let lists = alternatives(tests)?;
        let rule = rules.entry(*call).or_default();
        // A rule without conditions holds always.
        rule.extend(lists);
    }
    Ok(rules)
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

    fn rules(self) -> Result<Rules> {
        let (always, conditional) = self.calls();
        rules(&always.concat(), &conditional.concat())
    }
}

/// Lists of conditions: the tests hold if all of any one list do.
fn alternatives(tests: &[Test]) -> Result<Vec<SeccompRule>> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut lists = vec![Vec::new()];
    for test in tests {
        let mut one_of = Vec::new();
        let mut all_of = Vec::new();
        match *test {
            Test::Is(argument, mask, values) => {
                for value in values {
                    let how = MaskedEq(mask.into());
                    one_of.push(condition(argument, Dword, how, (*value).into())?);
                }
            }
            Test::IsNot(argument, values) => {
                for value in values {
                    all_of.push(condition(argument, Dword, Ne, (*value).into())?);
                }
            }
            Test::IsOwn(argument) => {
                let own = getpid().as_raw_nonzero().get().unsigned_abs();
                all_of.push(condition(argument, Dword, Eq, own.into())?);
            }
            Test::IsNull(argument) => {
                all_of.push(condition(argument, Qword, Eq, 0)?);
            }
        }
        lists
            .iter_mut()
            .for_each(|list| list.extend(all_of.iter().cloned()));
        if !one_of.is_empty() {
            let each = |list: Vec<SeccompCondition>| {
                let with = |condition| [&list[..], &[condition]].concat();
                one_of.iter().cloned().map(with).collect::<Vec<_>>()
            };
            lists = lists.into_iter().flat_map(each).collect();
        }
    }
    if tests.is_empty() {
        return Ok(Vec::new());
    }
    let rules = lists.into_iter().map(SeccompRule::new);
    rules.collect::<Result<_, _>>().map_err(failed)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    how: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition> {
    SeccompCondition::new(argument, length, how, value).map_err(failed)
}

fn error(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

/// Calls by another architecture's numbers (`int 0x80`) end the process, in any filter.
fn compile(rules: Rules, otherwise: SeccompAction, then: SeccompAction) -> Result<BpfProgram> {
    let architecture = ARCH.try_into().map_err(failed)?;
    let filter = SeccompFilter::new(rules, otherwise, then, architecture).map_err(failed)?;
    filter.try_into().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::PROFILES;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_is_allowed_twice_and_each_profile_allows_no_more_than_the_last() {
        let [no_exec, confined, sealed] = PROFILES.map(|(_, profile)| {
            let (always, conditional) = profile.calls();
            let (always, conditional) = (always.concat(), conditional.concat());
            let all = always
                .iter()
                .chain(conditional.iter().map(|(call, _)| call));
            let rules = profile.rules().unwrap();
            assert_eq!(rules.len(), all.count(), "{profile:?}");
            rules.into_keys().collect::<BTreeSet<_>>()
        });
        assert!(no_exec.is_superset(&confined), "{:?}", &confined - &no_exec);
        assert!(confined.is_superset(&sealed), "{:?}", &sealed - &confined);
    }

    #[test]
    fn each_value_is_an_alternative_and_what_must_hold_is_in_all() {
        let count = |tests| alternatives(tests).unwrap().len();
        assert_eq!(count(&[Test::IsOwn(0)]), 1);
        assert_eq!(count(&[Test::IsNot(1, &[1, 2, 3]), Test::IsNull(2)]), 1);
        assert_eq!(
            count(&[Test::Is(0, 1, &[0, 1]), Test::Is(1, 3, &[1, 2, 3])]),
            6
        );
    }

    #[test]
    fn what_would_undo_it_is_in_no_list() {
        for (_, profile) in PROFILES {
            let rules = profile.rules().unwrap();
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
                assert!(!rules.contains_key(&call), "{profile:?} has {call}");
            }
        }
    }
}
