// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which system calls this process may still make once linked code may run.
//!
//! The lists are of what is allowed. A list of what is refused would be passed by the x32 numbers of
//! the same calls, by io_uring, and by whatever the next kernel has. Conditions look at arguments in
//! registers only: memory that one points to may change between the look and the call.

mod calls;

use anyhow::{Context, Result, bail};
use calls::{HARMLESS_FCNTLS, HARMLESS_IOCTLS, HARMLESS_PRCTLS, INSIDE, OUTSIDE};
use libc::c_long;
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Other programs, other processes' memory, and the administration of the system.
    NoExec,
    /// That, other processes, and everything that is not open yet.
    Sealed,
}

const PROFILES: [(&str, Profile); 2] = [("no-exec", Profile::NoExec), ("sealed", Profile::Sealed)];

/// A system call, and lists of conditions of which one must hold.
type Conditional = (c_long, Vec<Vec<SeccompCondition>>);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Profile {
    pub(crate) fn parse(name: &str) -> Result<Profile> {
        let Some((_, profile)) = PROFILES.iter().find(|(known, _)| *known == name) else {
            bail!("--seccomp: \"{name}\" is no profile; there are no-exec and sealed");
        };
        Ok(*profile)
    }

    pub(crate) fn name(self) -> &'static str {
        let found = PROFILES.iter().find(|(_, known)| *known == self);
        found.map_or("?", |(name, _)| name)
    }

    /// Puts the profile in force, for good, for all threads and for those that they start.
    pub(crate) fn enter(self) -> Result<()> {
        // As if the kernel did not have it: the C library takes clone then, whose flags are in a
        // register. Of two filters the stricter answer holds.
        let absent = Rules::from([(libc::SYS_clone3, Vec::new())]);
        let absent = compile(absent, SeccompAction::Allow, error(libc::ENOSYS))?;
        let allowed = compile(self.rules()?, error(libc::EPERM), SeccompAction::Allow)?;
        for filter in [absent, allowed] {
            apply_filter_all_threads(&filter).context("install the filter")?;
        }
        Ok(())
    }

    fn rules(self) -> Result<Rules> {
        let outside = if self == Profile::NoExec {
            OUTSIDE
        } else {
            &[]
        };
        let always = INSIDE.iter().chain(outside);
        let mut rules: Rules = always.map(|call| (*call, Vec::new())).collect();
        for (call, alternatives) in self.conditional() {
            let alternatives = alternatives.into_iter().map(SeccompRule::new);
            rules.insert(call, alternatives.collect::<Result<_, _>>()?);
        }
        Ok(rules)
    }

    fn conditional(self) -> Vec<Conditional> {
        let prctl = (libc::SYS_prctl, one_of(0, &HARMLESS_PRCTLS));
        let mut conditional = match self {
            Profile::NoExec => no_exec(),
            Profile::Sealed => sealed(getpid().as_raw_nonzero().get().unsigned_abs().into()),
        };
        conditional.push(prctl);
        conditional
    }
}

/// Flags of clone that make namespaces, and the one that makes a child the controller's.
const ESTRANGING: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS
    | libc::CLONE_PARENT;

fn no_exec() -> Vec<Conditional> {
    // Whatever can be typed into a terminal can be made to run.
    let typing = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| is_not(1, request));
    // Devices are the system's.
    let kinds = |argument: u8| {
        let kinds = [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK].into_iter();
        let kinds = kinds.map(|kind| vec![masked(argument, libc::S_IFMT, kind)]);
        kinds.collect::<Vec<_>>()
    };
    vec![
        (libc::SYS_clone, vec![vec![masked(0, ESTRANGING as u32, 0)]]),
        (libc::SYS_ioctl, vec![typing.into()]),
        (libc::SYS_mknodat, kinds(2)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, kinds(1)),
        // Limits are asked for and not changed.
        (libc::SYS_prlimit64, vec![vec![is_null(2)]]),
    ]
}

/// `process`: this one, for no other comes of it.
fn sealed(process: u64) -> Vec<Conditional> {
    let thread = libc::CLONE_THREAD as u32;
    let unix = libc::AF_UNIX as u64;
    let socket = libc::SOL_SOCKET as u64;
    // Datagram sockets reach others without being connected to them.
    let pairs = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].into_iter();
    let pairs = pairs.map(|kind| vec![is(0, unix), masked(1, 0xf, kind as u32)]);
    let options = [
        libc::SO_SNDTIMEO,
        libc::SO_RCVTIMEO,
        libc::SO_SNDBUF,
        libc::SO_RCVBUF,
    ];
    let options = options.into_iter();
    let options = options.map(|option| vec![is(1, socket), is(2, option as u64)]);
    vec![
        (
            libc::SYS_clone,
            vec![vec![masked(0, thread | ESTRANGING as u32, thread)]],
        ),
        (libc::SYS_fcntl, one_of(1, &HARMLESS_FCNTLS)),
        (libc::SYS_ioctl, one_of(1, &HARMLESS_IOCTLS)),
        (libc::SYS_kill, one_of(0, &[process])),
        (libc::SYS_prlimit64, vec![vec![is(0, 0), is_null(2)]]),
        (libc::SYS_rt_sigqueueinfo, one_of(0, &[process])),
        (libc::SYS_rt_tgsigqueueinfo, one_of(0, &[process])),
        (libc::SYS_sched_setaffinity, one_of(0, &[0])),
        (libc::SYS_setsockopt, options.collect()),
        (libc::SYS_socketpair, pairs.collect()),
        (libc::SYS_tgkill, one_of(0, &[process])),
    ]
}

/// A condition on the lower half of an argument, which is all that the kernel looks at in those
/// that are asked about here.
fn half(argument: u8, how: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)
        .expect("system calls have six arguments")
}

fn is(argument: u8, value: u64) -> SeccompCondition {
    half(argument, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> SeccompCondition {
    half(argument, SeccompCmpOp::Ne, value)
}

fn masked(argument: u8, mask: u32, value: u32) -> SeccompCondition {
    half(argument, SeccompCmpOp::MaskedEq(mask.into()), value.into())
}

fn is_null(argument: u8) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
        .expect("system calls have six arguments")
}

fn one_of(argument: u8, values: &[u64]) -> Vec<Vec<SeccompCondition>> {
    let conditions = values.iter().map(|value| vec![is(argument, *value)]);
    conditions.collect()
}

fn error(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

/// Calls by another architecture's numbers (`int 0x80`) end the process, in any filter.
fn compile(rules: Rules, otherwise: SeccompAction, then: SeccompAction) -> Result<BpfProgram> {
    let architecture = ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, then, architecture)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn profiles_have_names() {
        for (name, profile) in PROFILES {
            assert_eq!(Profile::parse(name).unwrap(), profile);
            assert_eq!(profile.name(), name);
        }
        let refused = Profile::parse("none").unwrap_err().to_string();
        let expected = "--seccomp: \"none\" is no profile; there are no-exec and sealed";
        assert_eq!(refused, expected);
    }

    #[test]
    fn no_call_is_allowed_twice_and_sealed_allows_no_more_than_no_exec() {
        let [no_exec, sealed] = PROFILES.map(|(_, profile)| {
            let listed = if profile == Profile::NoExec {
                OUTSIDE
            } else {
                &[]
            };
            let conditional = profile.conditional().into_iter().map(|(call, _)| call);
            let all: Vec<c_long> = INSIDE
                .iter()
                .chain(listed)
                .copied()
                .chain(conditional)
                .collect();
            let rules = profile.rules().unwrap();
            assert_eq!(rules.len(), all.len(), "{profile:?}");
            rules.into_keys().collect::<BTreeSet<_>>()
        });
        assert!(no_exec.is_superset(&sealed), "{:?}", &sealed - &no_exec);
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
