// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The command line.
//!
//! What LLVM's llvm-jitlink-executor takes is taken, with its messages: words that begin with `test-`,
//! then one word that names the endpoint (CHANNEL in the usage); what comes behind that is ignored, but for options of ours.

use crate::contain::{Containment, Limit, bytes, limited_by};
use crate::isolation::user;
use anyhow::{Context, Result, bail};
use jitmem::executor::containment::Profile;
use jitmem::executor::server::{Restarts, Unread};
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints, and what follows a mistake.
pub(crate) const USAGE: &str = "\
usage: jitmem-executor [options] CHANNEL

Runs what an ORC controller (llvm-jitlink, clang-repl, any program with SimpleRemoteEPC) links.

CHANNEL is one of
  filedescs=IN,OUT   inherited descriptors, which may be one socket; lli's form IN OUT is taken too
  listen=HOST:PORT   a TCP connection, the first that comes; without HOST, from any user of this
                     machine (127.0.0.1)
  unix=PATH          a Unix socket, of this user's processes only
  abstract=NAME      a Unix socket without a file, of this user's processes only

Options
  --llvm N           the controller's LLVM, 14 to 22. Default: the environment's
                     JITMEM_EXECUTOR_LLVM, else what LLVM a parent with filedescs= has loaded,
                     else 22
  --c-only           never load libstdc++ and libm
  --preload-cxx      load them at once, and not when a symbol is first missing
  --fork-memory MODE private: a child that linked code forks has linked code and data as they
                     are then, which is the default. shared: it sees what is written later, and
                     forks copy nothing; so does JITMEM_FORK_MEMORY=shared
  --seccomp PROFILE  refuse system calls once the session stands, and drop all capabilities.
                     no-exec, against code that goes astray: other programs, debugging of other
                     processes, devices, the system's administration; but the user's files can be
                     written. confined: that, new processes, sockets, and files but to read those of
                     --read. sealed, against code that attacks: that, all that is not open yet, and
                     code that changes (--mdwe); C++'s libraries are loaded before, unless --c-only
  --read PATH        what confined code can read, a file or a folder with all in it; repeatable
  --mdwe             no memory is writable and executable, and none that is there becomes executable
  --no-network       no sockets but Unix sockets
  --user UID[:GID]   be this user once the session stands, in no other group; takes root
  --root FOLDER      have this folder as root then; takes root, or a user namespace
  --isolate          have namespaces of its own: network, mount, IPC and UTS; for users other than root a
                     user namespace, too. What the system refuses is said. With any of these three all
                     capabilities are dropped
  --memory N         limit the memory of this process and its children, memfds included, by a control
                     group where one can be made; else less, which is said
  --tasks N          limit processes and threads, likewise
  --audit            refuse nothing of --seccomp, --mdwe and --no-network: the kernel logs it (audit,
                     else the kernel's log)
  --diagnose         say how each of these bounds holds here, and end
  --rlimit-NAME N    limit what this process uses, for good: as, core, cpu, data, fsize, memlock,
                     nofile, nproc, stack, as in setrlimit(2); N may end in K, M or G. as does not
                     count memfds, which fsize limits
  --stack-size N     stack of the thread that each program has. Default: what a main thread has,
                     8M at least; under --rlimit-as no more than an eighth of that divided by the
                     programs in flight, but 256K: 8M for 64 under 4G, 512K for the thousandth
  --token-file PATH  serve only a controller that sends first what this file has, which no other user
                     may read, or the environment's JITMEM_EXECUTOR_TOKEN: 16 bytes at least. It
                     sends their number in 8 bytes, lowest first, and them. Over TCP they are not
                     encrypted
  --serve[=N]        go on to serve one controller after another, each session in a process of its
                     own, at most N of them at a time (64); options above and below are for each
  --supervise[=N/S]  run linked code in a child of this process; when that crashes, exits or is at its
                     time limit, another one takes its place, with all that is linked at the same
                     addresses and data as it was finalized; at most N times within S seconds
                     (10/60). For controllers with jitmem
  --time-limit N     end this process when a program has run for N seconds; the controller is told
                     why, and the exit code is 124
  --exit-when-orphaned N
                     end this process, with exit code 1, when its controller has been gone for N
                     seconds and linked code still runs
  --unread N         what a controller that does not read may leave here, in bytes (64M); then linked
                     code and answers wait
  --unread-calls N   calls to the controller that wait then (1024); further ones fail
  --die-with-parent  have this process killed when its parent has ended, after 2 s to end by
                     itself; code that attacks can prevent it
  --help, --version
";

/// Where the controller is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Descriptors to read and to write.
    Descriptors(RawFd, RawFd),
    /// Host, empty for the default, and port to listen at.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
    /// A socket by name alone.
    Abstract(OsString),
}

impl Endpoint {
    /// The descriptors that the process which started this one has handed over.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Endpoint::Descriptors(input, output) => vec![*input, *output],
            _ => Vec::new(),
        }
    }

    /// Whether the controller is there from the start.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self, Endpoint::Descriptors(..))
    }
}

/// When the C++ runtime is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CxxRuntime {
    #[default]
    WhenNeeded,
    Ahead,
    Never,
}

/// The choices of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) endpoint: Endpoint,
    pub(crate) llvm: Option<u32>,
    pub(crate) cxx_runtime: CxxRuntime,
    /// Whether linked memory stays shared with forked children.
    pub(crate) share_with_children: bool,
    /// Where the token is that controllers have to send.
    pub(crate) token_file: Option<PathBuf>,
    /// How many sessions may run at a time, each in a process of its own, and the options of those; `None` if
    /// this process serves one controller.
    pub(crate) serve: Option<(usize, Vec<OsString>)>,
    /// How long linked code may run on when its controller is gone.
    pub(crate) exit_when_orphaned: Option<Duration>,
    /// How often a child that has ended is replaced, if linked code runs in one.
    pub(crate) supervise: Option<Restarts>,
    /// How long a program may run.
    pub(crate) time_limit: Option<Duration>,
    /// Bytes of stack of programs' threads, if not what fits.
    pub(crate) stack_size: Option<u64>,
    /// What a controller that does not read may leave.
    pub(crate) unread: Unread,
    pub(crate) containment: Containment,
    /// Whether the list of debug objects is printed, for LLVM's own tests.
    pub(crate) print_debug_list: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Serve(Options),
    /// To say how bounds hold.
    Diagnose(Containment),
    Help,
    Version,
}

/// The number of a release, of those that we know.
pub(crate) fn release(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(number @ 14..=22) => Ok(number),
        _ => bail!("\"{text}\" is no release of LLVM from 14 to 22"),
    }
}

/// Reads the arguments, the program's own name left out.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let mut parser = Parser::from_args(words.clone());
    let mut llvm = None;
    let mut cxx_runtime = CxxRuntime::default();
    let mut share_with_children = false;
    let mut token_file = None;
    let mut sessions = None;
    let mut exit_when_orphaned = None;
    let mut time_limit = None;
    let mut stack_size = None;
    let mut supervise = None;
    let mut unread = Unread::default();
    let mut containment = Containment::default();
    let mut print_debug_list = false;
    let mut diagnose = false;
    // Words that a server's sessions are not started with.
    let mut servers: Vec<Range<usize>> = Vec::new();
    let place = |parser: &mut Parser| -> Result<usize> {
        Ok(words.len() - parser.raw_args()?.as_slice().len())
    };
    loop {
        let start = place(&mut parser)?;
        let Some(argument) = parser.next()? else {
            break;
        };
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            Arg::Long("llvm") => llvm = Some(release(&parser.value()?.string()?)?),
            Arg::Long("c-only") => cxx_runtime = CxxRuntime::Never,
            Arg::Long("preload-cxx") => cxx_runtime = CxxRuntime::Ahead,
            Arg::Long("fork-memory") => {
                share_with_children = match parser.value()?.string()?.as_str() {
                    "private" => false,
                    "shared" => true,
                    other => bail!("--fork-memory: \"{other}\" is neither private nor shared"),
                };
            }
            Arg::Long("token-file") => {
                token_file = Some(PathBuf::from(parser.value()?));
                servers.push(start..place(&mut parser)?);
            }
            Arg::Long("serve") => {
                sessions = Some(match parser.optional_value() {
                    Some(most) => count("serve", &most.string()?)?,
                    None => SESSIONS,
                });
                servers.push(start..start + 1);
            }
            Arg::Long("exit-when-orphaned") => {
                let seconds = seconds("exit-when-orphaned", &parser.value()?.string()?)?;
                exit_when_orphaned = Some(seconds);
            }
            Arg::Long("time-limit") => {
                let seconds = count("time-limit", &parser.value()?.string()?)?;
                time_limit = Some(Duration::from_secs(seconds as u64));
            }
            Arg::Long("supervise") => {
                supervise = Some(match parser.optional_value() {
                    Some(text) => restarts(&text.string()?)?,
                    None => Restarts::default(),
                });
            }
            Arg::Long("stack-size") => {
                stack_size = Some(bytes("stack-size", &parser.value()?.string()?)?);
            }
            Arg::Long("unread") => {
                unread.bytes = usize::try_from(bytes("unread", &parser.value()?.string()?)?)?;
            }
            Arg::Long("unread-calls") => {
                unread.calls = count("unread-calls", &parser.value()?.string()?)?;
            }
            Arg::Long("seccomp") => {
                containment.refused.profile = Some(profile(&parser.value()?.string()?)?);
            }
            Arg::Long("read") => containment.refused.readable.push(parser.value()?.into()),
            Arg::Long("mdwe") => containment.refused.fixed_code = true,
            Arg::Long("user") => {
                containment.isolation.user = Some(user(&parser.value()?.string()?)?);
            }
            Arg::Long("root") => containment.isolation.root = Some(parser.value()?.into()),
            Arg::Long("isolate") => containment.isolation.namespaces = true,
            Arg::Long("no-network") => containment.refused.no_network = true,
            Arg::Long("audit") => containment.refused.audit = true,
            Arg::Long("memory") => {
                containment.memory = Some(bytes("memory", &parser.value()?.string()?)?);
            }
            Arg::Long("tasks") => {
                containment.tasks = Some(bytes("tasks", &parser.value()?.string()?)?);
            }
            Arg::Long("diagnose") => diagnose = true,
            Arg::Long("die-with-parent") => containment.die_with_parent = true,
            Arg::Long(option) if limited_by(option).is_some() => {
                let resource = limited_by(option).context("a resource")?;
                let limit = Limit::parse(resource, &parser.value()?.string()?)?;
                containment.limits.push(limit);
            }
            Arg::Value(_) if diagnose => continue,
            Arg::Value(word) => {
                let text = word.to_string_lossy();
                if text == "debug" || text.starts_with("test-") {
                    print_debug_list |= text == "test-jitloadergdb";
                    continue;
                }
                let behind: Vec<OsString> = parser.raw_args()?.collect();
                let endpoint = match two_words(&word, behind.first()) {
                    Some(descriptors) => descriptors,
                    None => endpoint(&word)?,
                };
                for word in &behind {
                    refuse_option(&word.to_string_lossy())?;
                }
                if endpoint.is_connected() && (token_file.is_some() || sessions.is_some()) {
                    bail!("--token-file and --serve are for channels that controllers connect to");
                }
                if supervise.is_some() {
                    refuse_with_supervise(&containment, share_with_children)?;
                }
                let own = for_sessions(&words[..start], &servers);
                return Ok(Command::Serve(Options {
                    endpoint,
                    token_file,
                    serve: sessions.map(|most| (most, own)),
                    exit_when_orphaned,
                    supervise,
                    time_limit,
                    llvm,
                    cxx_runtime,
                    share_with_children,
                    stack_size,
                    unread,
                    containment,
                    print_debug_list,
                }));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if diagnose {
        return Ok(Command::Diagnose(containment));
    }
    bail!("insufficient arguments")
}

/// How many within how many seconds.
fn restarts(text: &str) -> Result<Restarts> {
    let (most, within) = text.split_once('/').unwrap_or((text, "60"));
    Ok(Restarts {
        most: count("supervise", most)?,
        within: Duration::from_secs(count("supervise", within)? as u64),
    })
}

/// What can't be had in a process that goes on when linked code has ended another one.
fn refuse_with_supervise(containment: &Containment, share_with_children: bool) -> Result<()> {
    if containment.isolation.is_chosen() {
        bail!(
            "--supervise is not for --user, --root and --isolate: the process that supervises keeps its own; \
             start the whole program so"
        );
    }
    if share_with_children {
        bail!("--supervise has private data, and --fork-memory=shared shares it");
    }
    Ok(())
}

fn profile(name: &str) -> Result<Profile> {
    Profile::named(name).with_context(|| {
        format!("--seccomp: \"{name}\" is no profile; there are no-exec, confined and sealed")
    })
}

/// The options in front of the channel that are for each session's process: all but the server's own.
fn for_sessions(words: &[OsString], servers: &[Range<usize>]) -> Vec<OsString> {
    let words = words.iter().enumerate();
    let kept = words.filter(|(place, _)| !servers.iter().any(|own| own.contains(place)));
    kept.map(|(_, word)| word.clone()).collect()
}

/// An option that comes too late would be missed, where other words behind the channel mean nothing.
fn refuse_option(word: &str) -> Result<()> {
    const OPTIONS: &[&str] = &[
        "audit",
        "c-only",
        "diagnose",
        "die-with-parent",
        "exit-when-orphaned",
        "fork-memory",
        "isolate",
        "llvm",
        "mdwe",
        "memory",
        "no-network",
        "preload-cxx",
        "read",
        "supervise",
        "root",
        "seccomp",
        "serve",
        "stack-size",
        "tasks",
        "time-limit",
        "token-file",
        "unread",
        "unread-calls",
        "user",
    ];
    let name = word.strip_prefix("--").unwrap_or("");
    let name = name.split('=').next().unwrap_or("");
    if OPTIONS.contains(&name) || limited_by(name).is_some() {
        bail!("--{name} comes behind the channel: options come before it");
    }
    Ok(())
}

/// Sessions that `--serve` runs at a time.
const SESSIONS: usize = 64;

/// Reads a number of seconds.
fn seconds(option: &str, text: &str) -> Result<Duration> {
    let seconds = text
        .parse()
        .ok()
        .map(|seconds: u32| Duration::from_secs(seconds.into()));
    seconds.with_context(|| format!("--{option}: \"{text}\" is no number of seconds"))
}

/// Reads a number that is not 0.
fn count(option: &str, text: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|number: &u32| *number > 0);
    let number = number.with_context(|| format!("--{option}: \"{text}\" is no number from 1"))?;
    Ok(number as usize)
}

/// Descriptors to read and to write as lli gives them to its child: two numbers.
fn two_words(input: &OsString, output: Option<&OsString>) -> Option<Endpoint> {
    let number = |word: &OsString| descriptor(word.to_str()?).ok();
    Some(Endpoint::Descriptors(number(input)?, number(output?)?))
}

fn endpoint(word: &OsString) -> Result<Endpoint> {
    let text = word.to_string_lossy();
    let (kind, value) = text.split_once('=').unwrap_or((&text, ""));
    match kind {
        "filedescs" => {
            let (input, output) = value.split_once(',').unwrap_or((value, ""));
            Ok(Endpoint::Descriptors(
                descriptor(input)?,
                descriptor(output)?,
            ))
        }
        "listen" => {
            let (host, port) = value.rsplit_once(':').unwrap_or((value, ""));
            let port = port
                .parse()
                .ok()
                .with_context(|| format!("port number '{port}' is not a valid integer"))?;
            let host = host.strip_prefix('[').unwrap_or(host);
            let host = host.strip_suffix(']').unwrap_or(host);
            Ok(Endpoint::Tcp(host.to_owned(), port))
        }
        "unix" | "abstract" if value.is_empty() => bail!("{kind}= lacks the socket's name"),
        "unix" => Ok(Endpoint::Unix(rest(word, "unix=").into())),
        "abstract" => Ok(Endpoint::Abstract(rest(word, "abstract="))),
        _ => bail!("invalid specifier type \"{kind}\""),
    }
}

fn descriptor(text: &str) -> Result<RawFd> {
    let number = text.parse().ok().filter(|number| *number >= 0);
    number.with_context(|| format!("{text} is not a valid file descriptor"))
}

/// What is behind the prefix, which need not be UTF-8.
fn rest(word: &OsString, prefix: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    OsString::from_vec(word.as_bytes()[prefix.len()..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command> {
        parse(words.iter().map(OsString::from))
    }

    fn served(words: &[&str]) -> Options {
        match parsed(words).unwrap() {
            Command::Serve(options) => options,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    fn refused(words: &[&str]) -> String {
        parsed(words).unwrap_err().to_string()
    }

    #[test]
    fn sessions_get_what_is_not_the_servers() {
        let kept = |words: &[&str]| served(words).serve.unwrap().1;
        let words = [
            "--serve=3",
            "--llvm",
            "22",
            "--token-file",
            "f",
            "--serve",
            "--c-only",
            "listen=:0",
        ];
        assert_eq!(kept(&words), ["--llvm", "22", "--c-only"]);
        assert!(kept(&["--token-file=x", "--serve", "listen=:0"]).is_empty());
        // What looks like an option may be a value.
        let words = ["--serve", "--read", "--serve", "--mdwe", "listen=:0"];
        assert_eq!(kept(&words), ["--read", "--serve", "--mdwe"]);
        let words = ["--token-file", "--serve", "--serve", "listen=:0"];
        assert!(kept(&words).is_empty());
    }

    #[test]
    fn endpoints_are_of_four_kinds() {
        let endpoint = |word| served(&[word]).endpoint;
        assert_eq!(endpoint("filedescs=3,6"), Endpoint::Descriptors(3, 6));
        assert_eq!(endpoint("filedescs=4,4"), Endpoint::Descriptors(4, 4));
        assert_eq!(served(&["3", "6"]).endpoint, Endpoint::Descriptors(3, 6));
        assert_eq!(refused(&["3", "x"]), "invalid specifier type \"3\"");
        assert_eq!(refused(&["3"]), "invalid specifier type \"3\"");
        assert_eq!(endpoint("listen=host:80"), Endpoint::Tcp("host".into(), 80));
        assert_eq!(endpoint("listen=:80"), Endpoint::Tcp("".into(), 80));
        assert_eq!(endpoint("listen=[::1]:80"), Endpoint::Tcp("::1".into(), 80));
        assert_eq!(endpoint("unix=a=b"), Endpoint::Unix("a=b".into()));
        assert_eq!(endpoint("abstract=x"), Endpoint::Abstract("x".into()));
    }

    #[test]
    fn mistakes_have_the_stock_executors_words() {
        let cases = [
            (&[][..], "insufficient arguments"),
            (&["test-jitloadergdb"], "insufficient arguments"),
            (&["filedescs=x,1"], "x is not a valid file descriptor"),
            (&["filedescs=1,-2"], "-2 is not a valid file descriptor"),
            (&["filedescs=1"], " is not a valid file descriptor"),
            (
                &["listen=host:no"],
                "port number 'no' is not a valid integer",
            ),
            (&["listen=host"], "port number '' is not a valid integer"),
            (
                &["listen=host:65536"],
                "port number '65536' is not a valid integer",
            ),
            (&["pipe=1"], "invalid specifier type \"pipe\""),
            (&["unix="], "unix= lacks the socket's name"),
            (
                &["--llvm", "13", "filedescs=0,1"],
                "\"13\" is no release of LLVM from 14 to 22",
            ),
            (
                &["--llvm=x", "filedescs=0,1"],
                "\"x\" is no release of LLVM from 14 to 22",
            ),
            (
                &["--no-such", "filedescs=0,1"],
                "invalid option '--no-such'",
            ),
        ];
        for (words, message) in cases {
            assert_eq!(refused(words), message, "{words:?}");
        }
    }

    #[test]
    fn options_come_before_the_endpoint_and_nothing_counts_behind_it() {
        let words = [
            "debug",
            "--llvm",
            "16",
            "test-jitloadergdb",
            "--c-only",
            "filedescs=0,1",
        ];
        let options = served(&words);
        assert_eq!(options.llvm, Some(16));
        assert_eq!(options.cxx_runtime, CxxRuntime::Never);
        assert!(options.print_debug_list);
        let options = served(&["filedescs=0,1", "--no-such", "listen=x"]);
        assert_eq!(options.endpoint, Endpoint::Descriptors(0, 1));
        assert!(!options.print_debug_list);
        for late in ["--seccomp=sealed", "--rlimit-as", "--die-with-parent"] {
            let error = refused(&["filedescs=0,1", "word", late]);
            assert!(error.ends_with("options come before it"), "{error}");
        }
        assert_eq!(parsed(&["--help"]).unwrap(), Command::Help);
        assert_eq!(parsed(&["--version", "x"]).unwrap(), Command::Version);
    }

    #[test]
    fn memory_is_private_in_children_unless_asked_for() {
        let shared = |words: &[&str]| served(words).share_with_children;
        assert!(!shared(&["filedescs=0,1"]));
        assert!(!shared(&["--fork-memory=private", "filedescs=0,1"]));
        assert!(shared(&["--fork-memory", "shared", "filedescs=0,1"]));
        let error = refused(&["--fork-memory=both", "filedescs=0,1"]);
        assert!(error.contains("neither private nor shared"), "{error}");
    }

    #[test]
    fn servers_give_their_sessions_the_other_options() {
        let words = [
            "--serve=2",
            "--llvm=22",
            "--token-file",
            "t",
            "--time-limit=3",
            "unix=s",
            "x",
        ];
        let options = served(&words);
        let kept = ["--llvm=22", "--time-limit=3"].map(OsString::from);
        assert_eq!(options.serve, Some((2, kept.to_vec())));
        assert_eq!(options.token_file, Some("t".into()));
        assert_eq!(options.time_limit, Some(Duration::from_secs(3)));
        assert_eq!(
            served(&["--serve", "unix=s"]).serve,
            Some((SESSIONS, Vec::new()))
        );
        let orphaned = served(&["--exit-when-orphaned=0", "unix=s"]).exit_when_orphaned;
        assert_eq!(orphaned, Some(Duration::ZERO));
        for words in [
            ["--serve", "filedescs=0,1"],
            ["--token-file=x", "filedescs=0,1"],
        ] {
            assert!(refused(&words).contains("channels that controllers connect to"));
        }
        for words in [["--serve=0", "unix=s"], ["--time-limit=0", "unix=s"]] {
            assert!(refused(&words).contains("\"0\" is no number from 1"));
        }
        assert!(refused(&["--exit-when-orphaned=x", "unix=s"]).contains("number of seconds"));
    }

    #[test]
    fn what_may_stay_unread_has_a_most() {
        let unread = |words: &[&str]| served(words).unread;
        assert_eq!(unread(&["filedescs=0,1"]), Unread::default());
        let chosen = unread(&["--unread=1M", "--unread-calls", "7", "filedescs=0,1"]);
        let expected = Unread {
            bytes: 1 << 20,
            calls: 7,
        };
        assert_eq!(chosen, expected);
        assert!(refused(&["--unread-calls=0", "filedescs=0,1"]).contains("no number from 1"));
    }

    #[test]
    fn bounds_are_off_unless_asked_for() {
        assert_eq!(
            served(&["filedescs=0,1"]).containment,
            Containment::default()
        );
        let words = ["--seccomp=sealed", "--rlimit-cpu", "5", "--rlimit-as=2G"];
        let all = [&words[..], &["--die-with-parent", "filedescs=0,1"]].concat();
        let found = served(&all).containment;
        assert_eq!(found.refused.profile, Some(Profile::Sealed));
        assert!(found.die_with_parent);
        let limits = [("rlimit-cpu", "5"), ("rlimit-as", "2G")];
        let limits = limits.map(|(name, most)| {
            let resource = limited_by(name).unwrap();
            Limit::parse(resource, most).unwrap()
        });
        assert_eq!(found.limits, limits);
        let refused = |words| parsed(words).unwrap_err().to_string();
        assert!(refused(&["--seccomp", "x"]).contains("\"x\" is no profile"));
        assert!(refused(&["--rlimit-as", "x"]).contains("\"x\" is no number"));
        assert!(refused(&["--rlimit-rss", "1"]).contains("invalid option"));
    }
}
