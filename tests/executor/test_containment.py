# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What jitmem-executor's bounds stop, tried by programs inside them; and what they let run."""

import itertools
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import programs
from catalogue import BARE, PROGRAMS
from controllers import MODES, jitlink, run
from sessions import MAPPER, READ, Case
from wire import Background, Failed, Session, sequence, u64

PROFILES = ("no-exec", "confined", "sealed")
# With what C and C++ programs load.
SYSTEM = "--read=/usr/lib"
BOUNDED = os.path.join(programs.WORK, "bounded")
CONTROLLER = os.path.join(programs.WORK, "controller")
# Every bound there is, with room for what runs here.
ALL = ("--rlimit-as=8G", "--rlimit-cpu=60", "--rlimit-core=0", "--die-with-parent")
counter = itertools.count()


def setUpModule():
    os.makedirs(BOUNDED, exist_ok=True)
    flags = {
        what: subprocess.check_output(["pkg-config", f"--{what}", "jitmem"], text=True).split()
        for what in ("cflags", "libs")
    }
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "controller.c")
    library = os.path.join(os.environ["EXECUTOR_TEST_PREFIX"], "lib")
    warnings = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    rest = [*flags["libs"], f"-Wl,-rpath,{library}", "-o", CONTROLLER]
    subprocess.run(["cc", *warnings, *flags["cflags"], source, *rest], check=True)


def bounded(*options, through=(), program=programs.PROGRAM):
    """An executor with options, for controllers that can't give any: its parent is theirs."""
    path = os.path.join(BOUNDED, str(next(counter)))
    with open(path, "w") as script:
        words = shlex.join([*through, program, *options])
        script.write(f'#!/bin/sh\nexec {words} "$@"\n')
    os.chmod(path, 0o755)
    return path


def attempts(llvm, *options):
    """What came of each attempt of `attempts.c`."""
    executor = bounded(*options)
    ran = jitlink(llvm, "generic", executor, programs.objects("attempts.o"))
    assert (ran.code, ran.status) == (42, 0), ran
    return dict(line.split() for line in ran.output.splitlines())


NEVER = set(
    """
    execve execveat ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp exec-in-child
    clone-namespace bpf perf_event_open userfaultfd io_uring_setup io_uring_enter
    io_uring_register keyctl add_key init_module finit_module delete_module kexec_load mount umount2
    open_tree move_mount fsopen pivot_root chroot unshare setns reboot swapon personality
    settimeofday open_by_handle_at seccomp setrlimit prctl-dumpable tiocsti tiocsti-wide x32-getpid
    x32-execve x32-open unknown device thread-execve ioctl-userfaultfd ioctl-kvm ioctl-vhost ioctl-loop
    ioctl-fuse ioctl-dm ioctl-tun socket-netlink socket-packet socket-raw socket-vsock socket-alg
    """.split()
)
UNSEALED = set(
    """
    fork kill-parent ask-parents-limit openat open openat2 creat fopen mkdir rename unlink rmdir link
    symlink truncate chmod chdir mkfifo access inotify_init1 shm_open shmget socket-unix socket-inet
    connect bind listen accept datagram-pair fcntl-owner thread-open executable
    """.split()
)
# What a confined program may do that a sealed one may not, where it reads what it may read.
READING = {"openat", "open", "fopen", "access", "thread-open", "executable"}


class Attempts(unittest.TestCase):
    """What a program tries, with and without a profile."""

    maxDiff = None

    def check(self, llvm):
        free = attempts(llvm)
        self.assertEqual(NEVER | UNSEALED, (NEVER | UNSEALED) & free.keys())
        if os.geteuid() == 0:
            # So it is the profile, and nothing else, that refuses.
            allowed = {name for name, outcome in free.items() if outcome != "EPERM"}
            self.assertEqual(free.keys() - allowed, set())
        for profile, refused in (
            ("no-exec", NEVER),
            ("confined", NEVER | UNSEALED - READING),
            ("sealed", NEVER | UNSEALED),
        ):
            with self.subTest(profile=profile):
                expected = {name: "EPERM" if name in refused else free[name] for name in free}
                expected["clone3"] = "ENOSYS"
                if profile != "no-exec":
                    # There is no child.
                    del expected["exec-in-child"]
                options = ["--read=/dev/null"] * (profile == "confined")
                self.assertEqual(attempts(llvm, f"--seccomp={profile}", *options), expected)

    def test_llvm_22(self):
        self.check(22)

    def test_llvm_16(self):
        self.check(16)

    def test_calls_by_another_architectures_numbers_end_the_process(self):
        for profile in PROFILES:
            with self.subTest(profile=profile):
                executor = bounded(f"--seccomp={profile}")
                ran = jitlink(22, "generic", executor, programs.objects("int80.o"))
                self.assertEqual((ran.code, ran.status, ran.output), (1, -signal.SIGSYS, "before\n"), ran)


RUN = """
    arguments stdio exceptions debug-info classes exit-handlers threads deep-stack signals zero-fill weak
    archive exit abort thread-segfault thread-uncaught
""".split()


class Ordinary(unittest.TestCase):
    """Programs that try nothing run as they do without bounds."""

    maxDiff = None

    def check(self, llvm, mode):
        for profile in PROFILES:
            executor = bounded(f"--seccomp={profile}", SYSTEM, *ALL)
            for name in RUN:
                program = PROGRAMS[name]
                self.assertIn(BARE, program.linked)
                with self.subTest(profile=profile, program=name):
                    words = [*program.options, *programs.objects(*program.files)]
                    words += ["-args", *program.args] if program.args else []
                    ran = jitlink(llvm, mode, executor, words, text=program.text)
                    found = (ran.code, ran.output, ran.status)
                    self.assertEqual(found, (program.code, program.output, program.status), ran)
                    self.assertIn(program.complaint, ran.complaint)

    def test_llvm_16_generic(self):
        self.check(16, "generic")

    def test_llvm_22_generic(self):
        self.check(22, "generic")

    def test_llvm_22_simple_remote(self):
        self.check(22, "simple-remote")

    def test_with_the_orc_runtime(self):
        names = ("exceptions", "streams", "constructors", "thread-locals", "threads")
        for profile in PROFILES:
            executor = bounded(f"--seccomp={profile}", *ALL)
            for name in names:
                program = PROGRAMS[name]
                with self.subTest(profile=profile, program=name):
                    objects = programs.objects(*program.files)
                    ran = jitlink(22, "generic", executor, objects, runtime=True, text=program.text)
                    found = (ran.code, ran.output, ran.status)
                    self.assertEqual(found, (program.code, program.output, program.status), ran)

    def test_no_exec_leaves_files_and_children_but_for_commands(self):
        executor = bounded("--seccomp=no-exec", *ALL)
        for name in ("library", "preloaded", "dlopen"):
            program = PROGRAMS[name]
            with self.subTest(program=name):
                words = [*program.options, *programs.objects(*program.files)]
                words += ["-args", *program.args] if program.args else []
                ran = jitlink(22, "generic", executor, words)
                self.assertEqual((ran.code, ran.output), (program.code, program.output), ran)
        ran = jitlink(22, "generic", executor, programs.objects("forks.o"))
        self.assertEqual((ran.code, ran.output), (42, "child 5 9 127\n"), ran)
        ran = jitlink(22, "shared", executor, programs.objects("catches.o", "throws.o"))
        self.assertEqual((ran.code, ran.status), (68, 0), ran)

    def test_sealed_has_no_libraries_but_those_that_are_loaded(self):
        executor = bounded("--seccomp=sealed")
        program = PROGRAMS["dlopen"]
        words = [*programs.objects(*program.files), "-args", *program.args]
        ran = jitlink(22, "generic", executor, words)
        self.assertNotEqual(ran.code, program.code, ran)
        self.assertEqual((ran.status, "Operation not permitted" in ran.output), (0, True), ran)
        # C++'s are, unless they are not wanted.
        for c_only in (False, True):
            executor = bounded("--seccomp=sealed", *["--c-only"] * c_only)
            ran = jitlink(22, "generic", executor, programs.objects("catches.o", "throws.o"))
            self.assertEqual(ran.code == 68, not c_only, ran)
            self.assertEqual("__cxa" in ran.complaint, c_only, ran)
            ran = jitlink(22, "generic", executor, programs.objects("threads.o"))
            self.assertEqual(ran.code, 42, ran)

    def test_llvms_shared_memory_needs_files(self):
        for llvm in (16, 22):
            with self.subTest(llvm=llvm):
                executor = bounded("--seccomp=sealed")
                ran = jitlink(llvm, "shared", executor, programs.objects("arguments.o"))
                # LLVM 22's controller says so and then crashes, in its debug object plugin.
                self.assertNotIn(ran.code, (0, 42), ran)
                self.assertEqual((ran.output, ran.status), ("", 0), ran)
                self.assertIn("shared memory: Operation not permitted", ran.complaint)
                self.assertEqual(ran.shared_memory, [])


class OwnMappers(unittest.TestCase):
    """jitmem's own mappers find a way to hand memory over, whatever is refused."""

    def check(self, channel, mapper, options, way, reason=""):
        ran = run([CONTROLLER, channel, mapper, programs.PROGRAM, *options])
        self.assertEqual(ran.code, 0, ran)
        good, found, why, end = ran.output.splitlines()
        self.assertEqual((good, end), ("100 good", "executor 0"), ran)
        self.assertIn(way, found)
        self.assertTrue(why.startswith(reason) and bool(why) == bool(reason), ran)

    def test_over_a_unix_socket(self):
        way = "a socket that came with the connection"
        for profile in PROFILES:
            with self.subTest(profile=profile):
                self.check("unix", "shared", [f"--seccomp={profile}", *ALL], way)

    def test_over_tcp(self):
        self.check("tcp", "shared", ["--seccomp=no-exec", *ALL], "an abstract socket")
        # These may not connect, and accept a connection.
        way = "an abstract socket of the executor's"
        refused = "an abstract Unix socket: connect to the controller's socket: Operation not permitted"
        for profile in ("confined", "sealed"):
            for more in (), ("--isolate",):
                with self.subTest(profile=profile, more=more):
                    options = [f"--seccomp={profile}", *more, *ALL]
                    self.check("tcp", "shared", options, way, refused)

    def test_in_another_network_namespace(self):
        unshare = [shutil.which("unshare"), *["-r"] * (os.geteuid() != 0), "-n"]
        if run([*unshare, "true"]).code != 0:
            self.skipTest("no network namespace can be had")
        sealed = [*unshare, programs.PROGRAM, "--seccomp=sealed"]
        # A socket that goes along needs no name.
        ran = run([CONTROLLER, "unix", "shared", *sealed])
        self.assertIn("100 good", ran.output, ran)
        self.assertIn("a socket that came with the connection", ran.output)
        ran = run([CONTROLLER, "tcp", "shared", *sealed])
        self.assertNotEqual(ran.code, 0, ran)
        for why in (
            "an abstract Unix socket: connect to the controller's socket: Operation not permitted",
            "an abstract Unix socket of the executor's: connect to the executor's socket: Connection refused",
            "/proc/PID/fd: ",
            "in the same network or process namespace",
        ):
            self.assertIn(why, ran.output)
        ran = run([CONTROLLER, "tcp", "remote", *sealed])
        self.assertIn("100 good", ran.output, ran)
        # Without a profile the memfds are found.
        ran = run([CONTROLLER, "tcp", "shared", *unshare, programs.PROGRAM])
        self.assertIn("/proc/PID/fd", ran.output, ran)

    def test_as_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("only root can act as another user")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            program = shutil.copy(programs.PROGRAM, folder)
            other = [shutil.which("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", program]
            ran = run([CONTROLLER, "tcp", "shared", *other])
            self.assertNotEqual(ran.code, 0, ran)
            self.assertIn("the executor is a process of user 65534, and this one is of user 0", ran.output)
            ran = run([CONTROLLER, "tcp", "remote", *other])
            self.assertIn("100 good", ran.output)

    def test_content_in_messages(self):
        for profile in PROFILES:
            for channel in ("unix", "tcp"):
                with self.subTest(profile=profile, channel=channel):
                    self.check(channel, "remote", [f"--seccomp={profile}", *ALL], "content in messages")


OWN_CODE = set(
    """
    code-writable code-all code-by-key data-executable data-executable-by-key new-all new-executable
    new-shared-executable segment-executable read-implies-execute code-replaced
    """.split()
)


class Code(unittest.TestCase):
    """Linked code that attacks itself, where jitmem's mappers have put it."""

    maxDiff = None

    def attack(self, mapper, *options, through=()):
        library = os.path.join(programs.WORK, "objects", "libattacks.so")
        preload = ["/usr/bin/env", f"LD_PRELOAD={library}"]
        command = [CONTROLLER, "unix", f"attacked-{mapper}", *through, *preload, programs.PROGRAM]
        ran = run([*command, *options])
        self.assertEqual(ran.code, 0, ran)
        lines = ran.output.splitlines()
        self.assertIn("100 good", lines)
        self.assertEqual(lines[-1], "executor 0", ran)
        return dict(line.split() for line in lines if line.count(" ") == 1 and "good" not in line)

    def test_unbounded_code_can_replace_itself(self):
        for mapper, writer in (("shared", "none"), ("remote", "rw-s")):
            with self.subTest(mapper=mapper):
                found = self.attack(mapper)
                self.assertEqual((found["code-writable"], found["code-replaced"]), ("EACCES", "ok"))
                self.assertEqual(found["writer"], writer)

    def check_fixed(self, *options, **how):
        for mapper in ("shared", "remote"):
            with self.subTest(mapper=mapper):
                found = self.attack(mapper, *options, **how)
                # Remotely the writer's view is closed while nothing is written.
                writers = {"shared": ("none", "hidden"), "remote": ("---s", "hidden")}
                self.assertIn(found.pop("writer"), writers[mapper])
                found.pop("executor")
                self.assertEqual(found.keys(), OWN_CODE)
                self.assertEqual({name for name, outcome in found.items() if outcome == "ok"}, set())

    def test_fixed_code_stays(self):
        self.check_fixed("--mdwe")

    def test_fixed_code_stays_before_linux_6_3(self):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "without.py")
        through = [sys.executable, script, "mdwe"]
        diagnosed = run([*through, programs.PROGRAM, "--mdwe", "--diagnose"])
        self.assertIn("PR_SET_MDWE: not in force: prctl(PR_SET_MDWE): ", diagnosed.output)
        self.check_fixed("--mdwe", through=through)

    def test_sealed_code_stays(self):
        self.check_fixed("--seccomp=sealed")

    def test_llvms_own_manager_goes_on(self):
        for llvm in (16, 22):
            executor = bounded("--mdwe")
            for name in RUN:
                program = PROGRAMS[name]
                with self.subTest(llvm=llvm, program=name):
                    words = [*program.options, *programs.objects(*program.files)]
                    words += ["-args", *program.args] if program.args else []
                    ran = jitlink(llvm, "generic", executor, words, text=program.text)
                    found = (ran.code, ran.output, ran.status)
                    self.assertEqual(found, (program.code, program.output, program.status), ran)


def attacks(what, *options, **how):
    """What came of the attacks of `attacks.c`."""
    words = [*programs.objects("attacks.o"), "-args", *what]
    ran = jitlink(22, "generic", bounded(*options, **how), words)
    # It ends without telling the controller.
    assert ran.status == 0, ran
    return dict(line.split() for line in ran.output.splitlines())


def as_user(test):
    """How to start the executor as another user, who can read the program."""
    folder = test.enterContext(tempfile.TemporaryDirectory())
    os.chmod(folder, 0o755)
    program = shutil.copy(programs.PROGRAM, folder)
    return {"through": ["setpriv", "--reuid=54321", "--clear-groups"], "program": program}


class Machine(unittest.TestCase):
    """Linked code that attacks the machine."""

    maxDiff = None
    # What a profile lets be done, and the files that any program needs.
    FREE = {
        "no-exec": {"open-null", "open-zero", "read-core-pattern", "socket-inet", "socket-unix", "has-network"},
        "confined": set(),
        "sealed": set(),
    }

    def check(self, **how):
        free = attacks(["machine"], **how)
        for profile in PROFILES:
            with self.subTest(profile=profile):
                found = attacks(["machine"], f"--seccomp={profile}", **how)
                self.assertEqual(found.keys(), free.keys())
                found.pop("become-root")  # root is root already
                allowed = {name for name, outcome in found.items() if outcome == "ok"}
                self.assertEqual(allowed, self.FREE[profile])

    def test_as_root(self):
        if os.geteuid() != 0:
            self.skipTest("this is not root")
        free = attacks(["machine"])
        # So it is the profile that refuses.
        for name in ("write-parents-memory", "write-own-memory", "write-core-pattern"):
            self.assertEqual(free[name], "ok")
        self.check()

    def test_as_user(self):
        how = as_user(self) if os.geteuid() == 0 else {}
        self.check(**how)

    def test_before_landlock_no_exec_says_so_and_confined_refuses(self):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "without.py")
        through = [sys.executable, script, "landlock"]
        ran = run([*through, programs.PROGRAM, "--seccomp=no-exec", "--diagnose"])
        self.assertEqual(ran.code, 0, ran)
        self.assertIn("Landlock: not in force: ", ran.output)
        ran = run([*through, programs.PROGRAM, "--seccomp=confined", "--diagnose"])
        self.assertEqual((ran.code, ran.output), (1, ""), ran)
        self.assertIn("--seccomp=confined: Landlock: ", ran.complaint)
        found = attacks(["machine"], "--seccomp=no-exec", through=through)
        self.assertEqual(found["socket-unix"], "ok")

    def test_no_network(self):
        free = attacks(["machine"])
        found = attacks(["machine"], "--no-network")
        self.assertEqual((free["socket-inet"], found["socket-inet"]), ("ok", "EPERM"))
        self.assertEqual(found["socket-unix"], "ok")

    def test_the_listener_leads_nowhere_else(self):
        free = attacks(["listener"])
        self.assertEqual(free.pop("has-listener"), "EBADF")
        # So it is the profile that refuses.
        self.assertNotIn("EPERM", free.values())
        for profile in ("confined", "sealed"):
            with self.subTest(profile=profile):
                found = attacks(["listener"], f"--seccomp={profile}")
                allowed = {"has-listener", "pair", "move", "replace"}
                self.assertEqual({name for name, outcome in found.items() if outcome == "ok"}, allowed)
                # What lies there then is no socket that listens.
                self.assertEqual(found.pop("accept-at-the-replacement"), "EINVAL")
                self.assertEqual({found[name] for name in found.keys() - allowed}, {"EPERM"})

    def test_capabilities_are_gone(self):
        for profile in PROFILES:
            with Session([programs.PROGRAM, f"--seccomp={profile}"]) as session:
                session.ask(READ, sequence([]))
                for thread in os.listdir(f"/proc/{session.process.pid}/task"):
                    with open(f"/proc/{session.process.pid}/task/{thread}/status") as file:
                        state = dict(line.split(":\t") for line in file if line.count(":\t") == 1)
                    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                        self.assertEqual(int(state[name], 16), 0, (profile, name))
                    self.assertEqual(state["NoNewPrivs"].strip(), "1")
                    if os.geteuid() == 0:
                        self.assertEqual(int(state["CapBnd"], 16), 0)

    def test_confined_reads_what_it_may(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o777)
        os.mkdir(os.path.join(folder, "inside"), 0o777)
        with open(os.path.join(folder, "there"), "w") as file:
            file.write("x")
        os.chmod(file.name, 0o666)
        free = attacks([folder, "files"])
        self.assertEqual(set(free.values()), {"ok"})
        # It moves files between folders, as ever.
        self.assertEqual(attacks([folder, "files"], "--seccomp=no-exec"), free)
        found = attacks([folder, "files"], "--seccomp=confined", f"--read={folder}")
        self.assertEqual({name for name, outcome in found.items() if outcome == "ok"}, {"read-here"})
        with open(os.path.join(folder, "there")) as file:
            self.assertEqual(file.read(), "")  # truncated by the first, which might
        refused = attacks([folder, "files"], "--seccomp=confined", "--read=/usr/lib")
        self.assertNotIn("ok", refused.values())

    def test_a_path_that_is_not_there_is_an_error(self):
        ran = run([programs.PROGRAM, "--seccomp=confined", "--read=/nonexistent", "--diagnose"])
        told = "--seccomp=confined: a path to read, /nonexistent, can't be found"
        self.assertEqual((ran.code, ran.output, ran.complaint), (1, "", f"{programs.PROGRAM}: {told}\n"))

    def test_audit_refuses_nothing(self):
        free = attempts(22)
        for profile in PROFILES:
            with self.subTest(profile=profile):
                self.assertEqual(attempts(22, f"--seccomp={profile}", "--audit", "--mdwe"), free)


LISTENER = "listener for shared memory"
NAMESPACES = {"net": "network", "mnt": "mount", "ipc": "IPC", "uts": "UTS"}


class Isolation(unittest.TestCase):
    """Another user, another root folder, namespaces."""

    maxDiff = None

    def threads(self, *options, through=(), program=programs.PROGRAM):
        """What the kernel says of each thread of an executor: its status, and its namespaces."""
        with Session([*through, program, *options]) as session:
            session.ask(READ, sequence([]))
            tasks = f"/proc/{session.process.pid}/task"
            found = []
            for thread in os.listdir(tasks):
                with open(f"{tasks}/{thread}/status") as file:
                    state = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
                own = {kind: os.readlink(f"{tasks}/{thread}/ns/{kind}") for kind in (*NAMESPACES, "user")}
                found.append((state, own, os.readlink(f"{tasks}/{thread}/root")))
            self.assertEqual(session.finish(), (0, "", ""))
        return found

    def without(self, what):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "without.py")
        return [sys.executable, script, what]

    def check_no_rights(self, state):
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            self.assertEqual(int(state[name], 16), 0, name)

    def test_user(self):
        if os.geteuid() != 0:
            ran = run([programs.PROGRAM, "--user=54321", "--diagnose"])
            self.assertEqual((ran.code, ran.output), (1, ""))
            told = "--user: become user 54321 of group 54321, which takes root: Operation not permitted"
            self.assertIn(told, ran.complaint)
            return
        for option, user, group in (("--user=54321", 54321, 54321), ("--user=54321:77", 54321, 77)):
            for state, _, _ in self.threads(option, "--die-with-parent"):
                self.assertEqual(state["Uid"].split(), [str(user)] * 4)
                self.assertEqual(state["Gid"].split(), [str(group)] * 4)
                self.assertEqual(state["Groups"].split(), [])
                self.check_no_rights(state)
        # Nor can linked code go back.
        found = attacks(["machine"], "--user=54321")
        self.assertEqual((attacks(["machine"])["become-root"], found["become-root"]), ("ok", "EPERM"))
        self.assertEqual(found["write-parents-memory"], "EACCES")

    def check_root(self, **how):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o755)
        # C++'s libraries are loaded before.
        executor = bounded(f"--root={folder}", **how)
        ran = jitlink(22, "generic", executor, programs.objects("catches.o", "throws.o"))
        self.assertEqual((ran.code, ran.status), (68, 0), ran)
        found = attacks([folder, "files"], f"--root={folder}", **how)
        self.assertEqual(set(found.values()), {"ENOENT"})
        found = attacks(["machine"], f"--root={folder}", **how)
        self.assertEqual((found["change-root"], found["open-null"]), ("EPERM", "ENOENT"))
        for state, _, root in self.threads(f"--root={folder}", "--die-with-parent", **how):
            self.assertEqual(root, folder)
            self.check_no_rights(state)

    def test_root(self):
        self.check_root()

    def test_root_as_user(self):
        self.check_root(**(as_user(self) if os.geteuid() == 0 else {}))

    def test_a_root_that_can_not_be_had_is_an_error(self):
        for through, root, why in (
            ([], "/nonexistent", "No such file or directory"),
            (self.without("chroot"), "/", "Operation not permitted"),
        ):
            ran = run([*through, programs.PROGRAM, f"--root={root}", "filedescs=0,1"])
            told = f"{programs.PROGRAM}: --root: have {root} as root folder: {why}"
            self.assertEqual((ran.code, ran.output), (1, ""))
            self.assertTrue(ran.complaint.startswith(told), ran)

    def check_namespaces(self, has_user, **how):
        own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in (*NAMESPACES, "user")}
        for profile in ((), ("--seccomp=sealed",)):
            for state, found, _ in self.threads("--isolate", "--die-with-parent", *profile, **how):
                changed = {kind for kind in own if found[kind] != own[kind]}
                self.assertEqual(changed, {*NAMESPACES, *["user"] * has_user})
                self.check_no_rights(state)
        free, found = attacks(["machine"], **how), attacks(["machine"], "--isolate", **how)
        self.assertEqual((free["has-network"], found["has-network"]), ("ok", "ENETUNREACH"))
        words = [*how.get("through", ()), how.get("program", programs.PROGRAM)]
        ran = run([*words, "--isolate", "--diagnose"])
        names = (*["user namespace"] * has_user, LISTENER, *[f"{name} namespace" for name in NAMESPACES.values()])
        lines = [f"{name}: in force" for name in (*names, "capabilities")]
        self.assertEqual(ran.output.splitlines(), lines, ran)

    def test_namespaces(self):
        self.check_namespaces(os.geteuid() != 0)

    def test_namespaces_as_user(self):
        self.check_namespaces(True, **(as_user(self) if os.geteuid() == 0 else {}))

    def test_namespaces_that_are_refused_are_named(self):
        for how in (as_user(self) if os.geteuid() == 0 else {}), {}:
            through = [*self.without("namespaces"), *how.get("through", ())]
            program = how.get("program", programs.PROGRAM)
            ran = run([*through, program, "--isolate", "--diagnose"])
            names = ["user"] * (bool(how) or os.geteuid() != 0) + [*NAMESPACES.values()]
            refused = [f"{name} namespace: not in force: Operation not permitted (os error 1)" for name in names]
            refused.insert(len(names) - len(NAMESPACES), f"{LISTENER}: in force")
            self.assertEqual(ran.output.splitlines(), [*refused, "capabilities: in force"], ran)
            # And it serves.
            executor = bounded("--isolate", through=through, program=program)
            ran = jitlink(22, "generic", executor, programs.objects("threads.o"))
            self.assertEqual(ran.code, 42, ran)
            self.assertIn("network namespace: not in force", ran.complaint)

    def test_jitmems_own_mappers_go_on(self):
        options = ["--isolate", "--root=/usr", *["--user=54321"] * (os.geteuid() == 0)]
        for profile in (), ("--seccomp=sealed",):
            for mapper in ("shared", "remote"):
                with self.subTest(profile=profile, mapper=mapper):
                    ran = run([CONTROLLER, "unix", mapper, programs.PROGRAM, *options, *profile, *ALL])
                    self.assertEqual((ran.code, ran.output.splitlines()[0]), (0, "100 good"), ran)


class Budgets(unittest.TestCase):
    """Bounds on memory and tasks."""

    # MiB.
    MOST = 300

    def has_group(self, **how):
        """Whether a control group can be made here."""
        words = [*how.get("through", ()), how.get("program", programs.PROGRAM)]
        return "by control group" in run([*words, "--memory=1G", "--diagnose"]).output

    def test_memory(self):
        free = attacks(["memory"])
        self.assertTrue(all(int(count) == 3072 for count in free.values()), free)
        if self.has_group():
            words = [*programs.objects("attacks.o"), "-args", "memory"]
            ran = jitlink(22, "generic", bounded(f"--memory={self.MOST}M"), words)
            self.assertEqual(ran.status, -signal.SIGKILL, ran)
            return
        for options in ((), ("--seccomp=no-exec",), ("--seccomp=confined",)):
            with self.subTest(options=options):
                found = attacks(["memory"], f"--memory={self.MOST}M", *options)
                self.assertEqual([found[way] for way in ("memfd", "shared", "stack")], ["0"] * 3)
                self.assertTrue(0 < int(found["malloc"]) <= self.MOST, found)

    def test_memfds_without_a_group(self):
        self.assertEqual(attacks(["memfds"])["memfds"], "3072")
        limits = ["--rlimit-as=1G", "--rlimit-fsize=16M", "--rlimit-nofile=32"]
        # LLVM's own memory manager, whose code is in memfds then, works with these.
        held = int(attacks(["memfds"], "--seccomp=sealed", *limits)["memfds"])
        self.assertTrue(0 < held <= 1024 + 32 * 16, held)

    def test_code_that_needs_memfds_is_refused_without_a_group(self):
        if self.has_group():
            self.skipTest("a control group bounds memfds")
        for llvm in (16, 22):
            ran = jitlink(llvm, "generic", bounded("--seccomp=sealed", "--memory=1G"), programs.objects("threads.o"))
            self.assertEqual(ran.code, 1, ran)
            self.assertIn("into a memfd: Operation not permitted", ran.complaint)
        # The shared mapper's memfds are the controller's.
        ran = run([CONTROLLER, "unix", "shared", programs.PROGRAM, "--seccomp=sealed", "--memory=1G"])
        self.assertEqual((ran.code, ran.output.splitlines()[0]), (0, "100 good"), ran)

    def test_what_holds_is_said(self):
        for options in (["--memory=1G"], ["--memory=1G", "--seccomp=sealed"]):
            ran = run([programs.PROGRAM, *options, "--diagnose"])
            self.assertEqual(ran.code, 0, ran)
            self.assertRegex(ran.output, "--memory(, --tasks)?: by (control group|RLIMIT_DATA)")

    def test_tasks(self):
        how = as_user(self) if os.geteuid() == 0 else {}
        if not how and not self.has_group():
            self.skipTest("they count together with this user's other processes")
        found = attacks(["tasks"], "--tasks=40", **how)
        self.assertTrue(10 <= int(found["threads"]) < 40, found)

    def test_tasks_of_root_need_a_group(self):
        if os.geteuid() != 0 or self.has_group():
            self.skipTest("this is not root, or has control groups")
        ran = run([programs.PROGRAM, "--tasks=40", "filedescs=0,1"])
        self.assertEqual((ran.code, ran.output), (1, ""))
        self.assertIn("no other limit holds for root", ran.complaint)


def limited(what, *options, **how):
    words = [*programs.objects("limits.o"), "-args", what]
    return jitlink(22, "generic", bounded(*options, **how), words)


class Limits(Case):
    """Resource limits, run into."""

    def test_all_are_set_soft_and_hard(self):
        wanted = {
            **{"as": "9G", "core": "0", "cpu": "100", "data": "8G", "fsize": "1G", "memlock": "64K"},
            **{"nofile": "200", "nproc": "10000", "stack": "16M"},
        }
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        lines = ""
        for name, text in wanted.items():
            most = int(text.rstrip("KMG")) * units.get(text[-1], 1)
            lines += f"{name} {most} {most + (name == 'cpu')}\n"
        ran = limited("print", *(f"--rlimit-{name}={text}" for name, text in wanted.items()))
        self.assertEqual((ran.code, ran.output), (42, lines), ran)

    def test_processor_time(self):
        ran = limited("spin", "--rlimit-cpu=1")
        self.assertEqual((ran.code, ran.status), (1, -signal.SIGXCPU), ran)
        self.assertIn(f"killed by signal {signal.SIGXCPU.value} (SIGXCPU)\n", ran.complaint)
        # A program that ignores that has a second left.
        ran = limited("spin", "--rlimit-cpu=1", through=["env", "--ignore-signal=XCPU"])
        self.assertEqual((ran.code, ran.status), (1, -signal.SIGKILL), ran)

    def stops(self, what, option, least, most, why, **how):
        ran = limited(what, option, **how)
        self.assertEqual(ran.status, 0, ran)
        count, error = ran.output.split()
        self.assertEqual(error, why, ran)
        self.assertTrue(least <= int(count) <= most, ran)

    def test_address_space(self):
        self.stops("as", "--rlimit-as=2G", 1000, 2048, "ENOMEM")

    def test_data(self):
        self.stops("data", "--rlimit-data=512M", 300, 512, "ENOMEM")

    def test_descriptors(self):
        self.stops("nofile", "--rlimit-nofile=40", 20, 40, "EMFILE")

    def test_locked_memory(self):
        # With its capabilities root may lock what it likes.
        through = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] * (os.geteuid() == 0)
        self.stops("memlock", "--rlimit-memlock=64K", 16, 16, "ENOMEM", through=through)

    def test_threads(self):
        if os.geteuid() != 0:
            # They count together with this user's other processes, so there is none to be had.
            ran = limited("nproc", "--rlimit-nproc=1")
            self.assertEqual((ran.code, ran.status), (1, 1), ran)
            self.assertIn("start a thread", ran.complaint)
            return
        # Root is not limited; another user has to be able to read the program.
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            program = shutil.copy(programs.PROGRAM, folder)
            through = ["setpriv", "--reuid=54321", "--clear-groups"]
            how = {"through": through, "program": program}
            self.stops("nproc", "--rlimit-nproc=20", 10, 19, "EAGAIN", **how)

    def test_file_size(self):
        ran = limited("write", "--rlimit-fsize=64K")
        self.assertEqual((ran.code, ran.status), (1, -signal.SIGXFSZ), ran)
        self.assertIn(f"killed by signal {signal.SIGXFSZ.value} (SIGXFSZ)\n", ran.complaint)

    def test_core(self):
        with open("/proc/sys/kernel/core_pattern") as pattern:
            if pattern.read().startswith("|"):
                self.skipTest("core dumps go to a program here, which no limit stops")
        for option, dumped in ((), True), (("--rlimit-core=0",), False):
            with self.subTest(option=option):
                self.assertEqual(self.aborted_with_core(option), dumped)

    def aborted_with_core(self, options):
        """Whether there was a core when the program had aborted."""

        def allow():
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # shells ignore it for what they leave running

        with Session([programs.PROGRAM, *options], cwd=BOUNDED, preexec_fn=allow) as session:
            session.start(READ, sequence([]))
            os.kill(session.process.pid, signal.SIGQUIT)
            ended = os.waitid(os.P_PID, session.process.pid, os.WEXITED | os.WNOWAIT)
        for name in os.listdir(BOUNDED):
            if name.startswith("core"):
                os.remove(os.path.join(BOUNDED, name))
        self.assertIn(ended.si_code, (os.CLD_DUMPED, os.CLD_KILLED))
        return ended.si_code == os.CLD_DUMPED

    def test_stacks_of_programs_grow_with_the_limit(self):
        ran = jitlink(22, "generic", bounded("--rlimit-stack=64M"), programs.objects("deep.o"))
        self.assertEqual(ran.code, 42, ran)

    def test_root_can_not_raise_them_under_a_profile(self):
        free = attempts(22, "--rlimit-core=0")
        self.assertEqual(free["setrlimit"], "ok")
        for profile in PROFILES:
            self.assertEqual(attempts(22, "--rlimit-core=0", f"--seccomp={profile}")["setrlimit"], "EPERM")

    def test_what_can_not_be_set_is_told(self):
        command = [programs.PROGRAM, "--rlimit-nofile=5000000000", "filedescs=0,1"]
        ran = run(command)
        self.assertEqual((ran.code, ran.output), (1, ""))
        told = f"{programs.PROGRAM}: --rlimit-nofile: set it to 5000000000"
        self.assertTrue(ran.complaint.startswith(told), ran)


# Asks for what kernels before 5.3 lack.
PIDFD = "import os; os.pidfd_open(os.getpid())"
# Longer than what a parent that has ended leaves its executor.
GRACE = 3


class Parents(unittest.TestCase):
    """Death with the parent."""

    def start_spinning(self, *options, through=()):
        """A controller whose program never ends, and a pidfd of its executor."""
        executor = bounded(*options, through=through)
        command = [programs.controller(22), f"-oop-executor={executor}"]
        command += [*programs.objects("limits.o"), "-args", "spin"]
        controller = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        pid = int(controller.stdout.readline())
        executor = os.pidfd_open(pid)
        self.addCleanup(os.close, executor)
        self.addCleanup(self.end, executor)
        self.addCleanup(controller.stdout.close)
        return controller, executor, pid

    def end(self, executor):
        """Leaves no program behind that spins, whatever has failed."""
        try:
            signal.pidfd_send_signal(executor, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def ended(self, executor, seconds):
        return bool(select.select([executor], [], [], seconds)[0])

    def test_a_killed_parents_program_is_gone(self):
        for profile in ([], ["--seccomp=no-exec"], ["--seccomp=sealed"]):
            with self.subTest(profile=profile):
                controller, executor, pid = self.start_spinning("--die-with-parent", *profile)
                self.assertFalse(self.ended(executor, 0.2))
                controller.kill()
                controller.wait()
                self.assertTrue(self.ended(executor, 60))
                # This process adopts it: controllers.py.
                _, status = os.waitpid(pid, 0)
                self.assertEqual(os.waitstatus_to_exitcode(status), -signal.SIGKILL)

    def test_a_killed_parents_program_is_gone_before_linux_5_3(self):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "without.py")
        through = [sys.executable, script, "pidfd"]
        self.assertIn("Function not implemented", run([*through, sys.executable, "-c", PIDFD]).complaint)
        controller, executor, pid = self.start_spinning("--die-with-parent", through=through)
        self.assertFalse(self.ended(executor, GRACE))
        controller.kill()
        controller.wait()
        self.assertTrue(self.ended(executor, 60))
        os.waitpid(pid, 0)

    def test_without_it_the_program_goes_on(self):
        controller, executor, pid = self.start_spinning()
        controller.kill()
        controller.wait()
        self.assertFalse(self.ended(executor, GRACE))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def test_the_thread_that_started_it_may_end(self):
        start = lambda: Session([programs.PROGRAM, "--die-with-parent"])
        with Background(start).get() as session:
            self.assertEqual(session.ask(READ, sequence([])).u64(), 0)
            executor = os.pidfd_open(session.process.pid)
            self.assertFalse(self.ended(executor, GRACE))
            os.close(executor)
            self.assertEqual(session.ask(READ, sequence([])).u64(), 0)
            self.assertEqual(session.finish(), (0, "", ""))

    def test_a_parent_that_can_not_be_watched_is_an_error(self):
        inside = ["unshare", *["--user"] * (os.geteuid() != 0), "--pid", "--fork"]
        executor = [programs.PROGRAM, "--die-with-parent", "filedescs=0,1"]
        ran = run([*inside, "true"])
        if ran.code:
            self.skipTest(f"no PID namespace is to be had here: {ran.complaint}")
        ran = run([*inside, *executor])
        told = "--die-with-parent: the parent can't be seen from this process's PID namespace"
        self.assertEqual((ran.code, ran.complaint), (1, f"{programs.PROGRAM}: {told}\n"))
        ran = run([*inside, "sh", "-c", f"{shlex.join(executor)}; exit $?"])
        self.assertEqual(ran.code, 1)
        told = f"{programs.PROGRAM}: --die-with-parent: the parent is process 1:"
        self.assertTrue(ran.complaint.startswith(told), ran)


class Sealed(Case):
    """Services of a sealed executor."""

    def test_what_needs_files_says_so(self):
        with Session([programs.PROGRAM, "--seccomp=sealed"]) as session:
            instance = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", instance + u64(4096))
            with self.assertRaisesRegex(Failed, "shared memory: Operation not permitted"):
                answer.expected(answer.u64)
            self.assertEqual(session.finish(), (0, "", ""))


if __name__ == "__main__":
    unittest.main()
