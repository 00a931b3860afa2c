// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What keeps linked code, and this process with it, inside bounds. Nothing of it is on by default.

use crate::cgroup;
use crate::isolation::Isolation;
use anyhow::{Context, Result, bail, ensure};
use jitmem::executor::containment::{Containment as Refused, Layer, Profile};
use jitmem::executor::program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, getppid, getrlimit, getuid, kill_process,
    pidfd_open, setrlimit,
};
use std::ffi::c_int;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The choices of a command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Containment {
    pub(crate) refused: Refused,
    pub(crate) isolation: Isolation,
    pub(crate) limits: Vec<Limit>,
    /// Bytes of memory, of all that this process and its children have.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
    pub(crate) die_with_parent: bool,
    /// Linked code runs in a child, which is replaced when it ends: bounds that end a process end the child.
    pub(crate) supervised: bool,
}

/// One bound, and how it holds.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) text: String,
    /// Whether the user should know without asking for it.
    pub(crate) is_less: bool,
}

impl Bound {
    /// A means of the kernel's that holds, or that the system has refused.
    pub(crate) fn of(name: &str, result: Result<()>) -> Bound {
        match result {
            Ok(()) => Bound {
                text: format!("{name}: in force"),
                is_less: false,
            },
            Err(error) => Bound {
                text: format!("{name}: not in force: {error:#}"),
                is_less: true,
            },
        }
    }
}

impl From<Layer> for Bound {
    fn from(layer: Layer) -> Bound {
        let refused = layer.refused.map(anyhow::Error::from);
        Bound::of(layer.means.name(), refused.map_or(Ok(()), Err))
    }
}

impl Containment {
    /// Bounds that this program itself can be set up in. Called before there is a controller.
    pub(crate) fn begin(&mut self) -> Result<Vec<Bound>> {
        let mut bounds = self.isolation.begin();
        self.refused.no_capabilities = self.isolation.is_chosen();
        if self.memory.is_some() || self.tasks.is_some() {
            match cgroup::enter(self.memory, self.tasks, !self.supervised) {
                Ok(path) => bounds.push(Bound {
                    text: format!("--memory, --tasks: by control group {}", path.display()),
                    is_less: false,
                }),
                Err(error) => bounds.extend(self.without_group(&error)?),
            }
        }
        // The limits may leave no room for a thread.
        if self.die_with_parent {
            die_with_parent(self.refused.clone(), self.isolation.clone())
                .context("--die-with-parent")?;
        }
        let own = self.limits.iter().filter(|limit| !self.is_childs(limit));
        own.copied().try_for_each(Limit::set)?;
        self.refused.prepare();
        if self.refused.refuses_sockets() || self.isolation.namespaces {
            // It stays in the network namespace in which it was made.
            let listens = program::listen_for_controllers();
            let name = "listener for shared memory";
            bounds.push(Bound::of(name, listens.map_err(anyhow::Error::from)));
        }
        Ok(bounds)
    }

    /// What bounds memory and tasks where no control group can be made.
    fn without_group(&mut self, error: &anyhow::Error) -> Result<Vec<Bound>> {
        let mut bounds = Vec::new();
        if let Some(most) = self.memory {
            let resource = Resource::Data;
            self.limits.push(Limit { resource, most });
            self.refused.no_shared_memory = true;
            bounds.push(Bound {
                text: format!(
                    "--memory: by RLIMIT_DATA, for each process, and without memfds and shared memory of its \
                     own; files in memory, page tables, pipes and sockets are not counted: {error:#}"
                ),
                is_less: true,
            });
        }
        if let Some(most) = self.tasks {
            ensure!(
                !getuid().is_root(),
                "--tasks: no control group: {error:#}; and no other limit holds for root: start it as another \
                 user, or under systemd-run --scope -p TasksMax={most}"
            );
            let resource = Resource::Nproc;
            self.limits.push(Limit { resource, most });
            bounds.push(Bound {
                text: format!(
                    "--tasks: by RLIMIT_NPROC, which counts this user's other processes too: {error:#}"
                ),
                is_less: true,
            });
        }
        Ok(bounds)
    }

    /// The signals by which the kernel enforces some of the limits.
    pub(crate) fn signals(&self) -> impl Iterator<Item = c_int> {
        self.limits.iter().filter_map(|limit| match limit.resource {
            Resource::Cpu => Some(libc::SIGXCPU),
            Resource::Fsize => Some(libc::SIGXFSZ),
            _ => None,
        })
    }

    /// Whether libraries may be out of reach once the bounds are closed.
    pub(crate) fn refuses_files(&self) -> bool {
        let refusing = [Some(Profile::Confined), Some(Profile::Sealed)];
        let refuses = refusing.contains(&self.refused.profile) && !self.refused.audit;
        refuses || self.isolation.root.is_some()
    }

    /// Whether only the process that runs linked code has a limit: one of time, which each child has from its start.
    fn is_childs(&self, limit: &Limit) -> bool {
        self.supervised && limit.resource == Resource::Cpu
    }

    /// The bounds that leave no way to set anything up. Called before there is linked code, where that will run.
    pub(crate) fn close(&self) -> Result<Vec<Bound>> {
        if self.supervised {
            // Where memory is short the kernel ends this process before its supervisor. That holds where /proc is
            // there to say so, and until code that may open files takes it back.
            let _ = fs::write("/proc/self/oom_score_adj", "1000");
        }
        let childs = self.limits.iter().filter(|limit| self.is_childs(limit));
        childs.copied().try_for_each(Limit::set)?;
        let mut bounds = self.isolation.enter()?;
        let layers = self.refused.enter().with_context(|| {
            let profile = self.refused.profile;
            profile.map_or("contain".to_owned(), |profile| {
                format!("--seccomp={}", profile.name())
            })
        })?;
        bounds.extend(layers.into_iter().map(Bound::from));
        Ok(bounds)
    }
}

/// A limit of the process's, soft and hard. Only for processor time the hard one is higher: there the
/// kernel kills, and a second before that it sends a signal that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    resource: Resource,
    most: u64,
}

/// By the names of the options, which are the manual's without their prefix.
const RESOURCES: [(&str, Resource); 9] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("stack", Resource::Stack),
];

/// The resource that an option limits, its dashes left out.
pub(crate) fn limited_by(option: &str) -> Option<Resource> {
    let name = option.strip_prefix("rlimit-")?;
    let found = RESOURCES.iter().find(|(known, _)| *known == name);
    found.map(|(_, resource)| *resource)
}

fn name_of(resource: Resource) -> &'static str {
    let found = RESOURCES.iter().find(|(_, known)| *known == resource);
    found.map_or("?", |(name, _)| name)
}

/// Reads an option's number, which may have a unit behind it.
pub(crate) fn bytes(option: &str, text: &str) -> Result<u64> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    ensure!(
        !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()),
        "--{option}: \"{text}\" is no number, with K, M or G behind it for 1024 and its powers"
    );
    let number: Option<u64> = digits.parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(unit));
    bytes.with_context(|| format!("--{option}: {text} is too large"))
}

impl Limit {
    pub(crate) fn parse(resource: Resource, text: &str) -> Result<Limit> {
        let most = bytes(&format!("rlimit-{}", name_of(resource)), text)?;
        Ok(Limit { resource, most })
    }

    fn set(self) -> Result<()> {
        let Limit { resource, most } = self;
        let hard = match resource {
            Resource::Cpu => {
                let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
                most.saturating_add(1).min(allowed.max(most))
            }
            _ => most,
        };
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(hard),
        };
        let result = setrlimit(resource, limit);
        result.with_context(|| {
            let name = name_of(resource);
            match getrlimit(resource).maximum {
                Some(hard) if hard < most => format!(
                    "--rlimit-{name}: set it to {most}, above the hard limit {hard}, which takes \
                     CAP_SYS_RESOURCE to raise"
                ),
                _ => format!("--rlimit-{name}: set it to {most}"),
            }
        })
    }
}

/// What a parent that has ended leaves this process: it hangs up as well, and programs that are about
/// to end have output to write.
const GRACE: Duration = Duration::from_secs(2);

/// How often the parent is looked for where the kernel can't tell of its end.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Has this process killed when its parent has ended. The kernel's own PR_SET_PDEATHSIG comes when
/// the thread ends that has started this process, though others of the parent may go on.
fn die_with_parent(refused: Refused, isolation: Isolation) -> Result<()> {
    let Some(parent) = getppid() else {
        bail!("the parent can't be seen from this process's PID namespace");
    };
    ensure!(
        parent != Pid::INIT,
        "the parent is process 1: what started this program is gone already, or it is the first process of its \
         namespace, with which all others end anyway; then leave the option out"
    );
    let watched = match pidfd_open(parent, PidfdFlags::empty()) {
        Err(Errno::NOSYS) => None, // before Linux 5.3
        watched => Some(watched.with_context(|| format!("pidfd_open of process {parent}"))?),
    };
    let now = Timespec::default();
    let ended = watched
        .as_ref()
        .map(|watched| has_ended(watched, Some(&now)));
    // Its number may have been given to another process before that; an orphan has a new parent.
    ensure!(
        getppid() == Some(parent) && !ended.transpose()?.unwrap_or(false),
        "the parent, process {parent}, is gone already"
    );
    let own = getpid();
    let (tell, told) = mpsc::channel();
    let watch = move || {
        // It needs no rights, and linked code could use those that it has.
        let isolated = isolation.enter();
        let _ = tell.send(isolated.and_then(|_| Ok(refused.restrict_helper()?)));
        match watched {
            // Also if that has failed: nothing would watch the parent from here on.
            Some(watched) => drop(has_ended(&watched, None)),
            None => {
                while getppid() == Some(parent) {
                    thread::sleep(BETWEEN_LOOKS);
                }
            }
        }
        thread::sleep(GRACE);
        let _ = kill_process(own, Signal::KILL);
    };
    program::start_thread("jitmem-parent", watch)?;
    // Before a profile refuses it.
    told.recv()??;
    Ok(())
}

/// Whether a process ends before the time is over.
fn has_ended(process: &OwnedFd, timeout: Option<&Timespec>) -> Result<bool> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    loop {
        match poll(&mut polled, timeout) {
            Err(Errno::INTR) => continue,
            ready => return Ok(ready.context("poll of the parent's pidfd")? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(text: &str) -> Result<u64> {
        Limit::parse(Resource::As, text).map(|limit| limit.most)
    }

    #[test]
    fn numbers_may_have_units() {
        let cases = [
            ("0", 0),
            ("17", 17),
            ("3K", 3 << 10),
            ("3m", 3 << 20),
            ("2G", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, number) in cases {
            assert_eq!(most(text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "K", "-1", "+1", "1.5G", "1T", "0x10", "unlimited", "1 "] {
            let refused = most(text).unwrap_err().to_string();
            let expected = format!("--rlimit-as: \"{text}\" is no number");
            assert!(refused.starts_with(&expected), "{refused}");
        }
        for text in ["18446744073709551616", "17179869184G"] {
            let refused = most(text).unwrap_err().to_string();
            assert_eq!(refused, format!("--rlimit-as: {text} is too large"));
        }
    }

    #[test]
    fn options_name_resources() {
        assert_eq!(limited_by("rlimit-nofile"), Some(Resource::Nofile));
        assert_eq!(limited_by("rlimit-"), None);
        assert_eq!(limited_by("rlimit-rss"), None);
        assert_eq!(limited_by("as"), None);
    }
}
