// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The system calls that are allowed.
//!
//! Not here, and so refused by all profiles: starting programs (execve, execveat); other processes'
//! memory and descriptors (ptrace, process_vm_readv, process_madvise, pidfd_getfd, kcmp,
//! move_pages); what runs code in the kernel or makes calls for others (bpf, perf_event_open,
//! userfaultfd, io_uring, modules, kexec); keys; mounts, namespaces, chroot, other filters; the
//! system's time, name, log, swap and quotas; opening files by handle; personality, modify_ldt, ports
//! (iopl); setrlimit.

use super::Conditional;
use super::Test::{self, Is, IsListener, IsNot, IsNull, IsOwn};
use libc::*;

/// The kernel's, in all of its architectures that this library is for; libc names them for glibc alone.
const SO_RCVTIMEO_NEW: c_int = 66;
const SO_SNDTIMEO_NEW: c_int = 67;

/// What stays in the process, or goes through what is open.
#[rustfmt::skip]
pub(super) const INSIDE: &[c_long] = &[
    // Reading, writing, waiting. fstat of today's C library is newfstatat, which takes names too.
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev,
    SYS_preadv2, SYS_pwritev2, SYS_lseek, SYS_close, SYS_close_range, SYS_dup, SYS_dup3, SYS_fstat,
    SYS_newfstatat, SYS_statx, SYS_fstatfs, SYS_flock, SYS_fsync, SYS_fdatasync,
    SYS_sync_file_range, SYS_ftruncate, SYS_fallocate, SYS_fadvise64, SYS_readahead, SYS_sendfile,
    SYS_copy_file_range, SYS_splice, SYS_tee, SYS_pipe2, SYS_eventfd2, SYS_memfd_create,
    SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2,
    SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_shutdown,
    SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_umask,
    // Memory.
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore, SYS_msync,
    SYS_mlock, SYS_mlock2, SYS_munlock, SYS_mlockall, SYS_munlockall, SYS_membarrier,
    SYS_pkey_mprotect, SYS_pkey_alloc, SYS_pkey_free, SYS_get_mempolicy,
    // Threads.
    SYS_clone3, SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_futex, SYS_futex_waitv,
    SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_getattr, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
    SYS_sched_rr_get_interval, SYS_getpriority, SYS_getcpu, SYS_exit, SYS_exit_group, SYS_wait4,
    SYS_waitid, SYS_restart_syscall,
    // Signals and time.
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend, SYS_sigaltstack, SYS_signalfd4, SYS_nanosleep, SYS_clock_nanosleep,
    SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_getitimer, SYS_setitimer,
    SYS_timer_create, SYS_timer_settime, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
    // What the process is.
    SYS_getpid, SYS_gettid, SYS_getppid, SYS_getpgid, SYS_getsid, SYS_getuid, SYS_geteuid,
    SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups, SYS_capget, SYS_getrusage,
    SYS_times, SYS_uname, SYS_sysinfo, SYS_getrandom,
    #[cfg(target_arch = "x86_64")] SYS_poll,
    #[cfg(target_arch = "x86_64")] SYS_select,
    #[cfg(target_arch = "x86_64")] SYS_pipe,
    #[cfg(target_arch = "x86_64")] SYS_dup2,
    #[cfg(target_arch = "x86_64")] SYS_epoll_create,
    #[cfg(target_arch = "x86_64")] SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] SYS_eventfd,
    #[cfg(target_arch = "x86_64")] SYS_signalfd,
    #[cfg(target_arch = "x86_64")] SYS_pause,
    #[cfg(target_arch = "x86_64")] SYS_alarm,
    #[cfg(target_arch = "x86_64")] SYS_time,
    #[cfg(target_arch = "x86_64")] SYS_getpgrp,
    #[cfg(target_arch = "x86_64")] SYS_getrlimit,
    #[cfg(target_arch = "x86_64")] SYS_arch_prctl,
];

/// What reaches files, sockets and processes that are the user's anyway.
#[rustfmt::skip]
pub(super) const OUTSIDE: &[c_long] = &[
    // Files.
    SYS_openat, SYS_openat2, SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_getcwd, SYS_chdir,
    SYS_fchdir, SYS_renameat, SYS_renameat2, SYS_mkdirat, SYS_linkat, SYS_unlinkat, SYS_symlinkat,
    SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_truncate, SYS_utimensat,
    SYS_getdents64, SYS_statfs, SYS_sync, SYS_syncfs, SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr,
    SYS_getxattr, SYS_lgetxattr, SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr,
    SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr, SYS_inotify_init1, SYS_inotify_add_watch,
    SYS_inotify_rm_watch, SYS_fcntl, SYS_vmsplice, SYS_io_setup, SYS_io_destroy, SYS_io_submit,
    SYS_io_getevents, SYS_io_cancel,
    // Sockets and other ways between processes.
    SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4,
    SYS_setsockopt, SYS_shmget, SYS_shmat, SYS_shmdt, SYS_shmctl, SYS_semget, SYS_semop, SYS_semctl,
    SYS_semtimedop, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open, SYS_mq_unlink,
    SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify, SYS_mq_getsetattr,
    // Processes.
    SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pidfd_open,
    SYS_pidfd_send_signal, SYS_setpgid, SYS_setsid, SYS_setpriority, SYS_sched_setaffinity,
    SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_setattr, SYS_ioprio_get, SYS_ioprio_set,
    SYS_set_mempolicy, SYS_mbind, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid,
    SYS_setresuid, SYS_setresgid, SYS_setgroups, SYS_setfsuid, SYS_setfsgid, SYS_capset,
    #[cfg(target_arch = "x86_64")] SYS_open,
    #[cfg(target_arch = "x86_64")] SYS_creat,
    #[cfg(target_arch = "x86_64")] SYS_stat,
    #[cfg(target_arch = "x86_64")] SYS_lstat,
    #[cfg(target_arch = "x86_64")] SYS_access,
    #[cfg(target_arch = "x86_64")] SYS_readlink,
    #[cfg(target_arch = "x86_64")] SYS_rename,
    #[cfg(target_arch = "x86_64")] SYS_mkdir,
    #[cfg(target_arch = "x86_64")] SYS_rmdir,
    #[cfg(target_arch = "x86_64")] SYS_link,
    #[cfg(target_arch = "x86_64")] SYS_unlink,
    #[cfg(target_arch = "x86_64")] SYS_symlink,
    #[cfg(target_arch = "x86_64")] SYS_chmod,
    #[cfg(target_arch = "x86_64")] SYS_chown,
    #[cfg(target_arch = "x86_64")] SYS_lchown,
    #[cfg(target_arch = "x86_64")] SYS_utime,
    #[cfg(target_arch = "x86_64")] SYS_utimes,
    #[cfg(target_arch = "x86_64")] SYS_futimesat,
    #[cfg(target_arch = "x86_64")] SYS_getdents,
    #[cfg(target_arch = "x86_64")] SYS_inotify_init,
    #[cfg(target_arch = "x86_64")] SYS_fork,
    #[cfg(target_arch = "x86_64")] SYS_vfork,
];

/// What finds files and lists folders; Landlock refuses those that are not named.
#[rustfmt::skip]
pub(super) const READING: &[c_long] = &[
    SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_getcwd, SYS_getdents64, SYS_statfs,
    #[cfg(target_arch = "x86_64")] SYS_stat,
    #[cfg(target_arch = "x86_64")] SYS_lstat,
    #[cfg(target_arch = "x86_64")] SYS_access,
    #[cfg(target_arch = "x86_64")] SYS_readlink,
    #[cfg(target_arch = "x86_64")] SYS_getdents,
];

/// All bits of a number.
const ALL: u32 = u32::MAX;

/// Flags of clone that make namespaces, and the one that makes a child the controller's.
const ESTRANGING: u32 = (CLONE_NEWCGROUP
    | CLONE_NEWIPC
    | CLONE_NEWNET
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWUSER
    | CLONE_NEWUTS
    | CLONE_PARENT) as u32;

const THREAD: u32 = CLONE_THREAD as u32;

/// Options that concern the caller alone and take nothing from a profile.
const PRCTL: Conditional = (
    SYS_prctl,
    &[Is(
        0,
        ALL,
        &[
            PR_SET_NAME as u32,
            PR_GET_NAME as u32,
            PR_SET_TIMERSLACK as u32,
            PR_GET_TIMERSLACK as u32,
            PR_GET_DUMPABLE as u32,
            PR_CAPBSET_READ as u32,
            PR_SET_NO_NEW_PRIVS as u32,
            PR_GET_NO_NEW_PRIVS as u32,
            PR_SET_VMA as u32,
        ],
    )],
);

/// Devices are the system's.
const PLAIN_FILES: &[u32] = &[S_IFREG, S_IFIFO, S_IFSOCK];

/// What reaches processes that are the user's anyway, but for some ways.
pub(super) const TO_PROCESSES: &[Conditional] = &[
    (SYS_clone, &[Is(0, ESTRANGING, &[0])]),
    // Whatever can be typed into a terminal can be made to run.
    (SYS_ioctl, &[IsNot(1, &[TIOCSTI as u32, TIOCLINUX as u32])]),
    #[cfg(target_arch = "x86_64")]
    (SYS_mknod, &[Is(1, S_IFMT, PLAIN_FILES)]),
    (SYS_mknodat, &[Is(2, S_IFMT, PLAIN_FILES)]),
    PRCTL,
    // Limits are asked for and not changed.
    (SYS_prlimit64, &[IsNull(2)]),
    // Of programs, not of the system: no netlink, packets, virtual machines' hosts or kernel cryptography.
    (
        SYS_socket,
        &[
            Is(0, ALL, &[AF_UNIX as u32, AF_INET as u32, AF_INET6 as u32]),
            NOT_RAW,
        ],
    ),
    (SYS_socketpair, &[Is(0, ALL, &[AF_UNIX as u32])]),
];

/// Sockets that carry what they are given.
const NOT_RAW: Test = Is(
    1,
    0xf,
    &[SOCK_STREAM as u32, SOCK_DGRAM as u32, SOCK_SEQPACKET as u32],
);

/// What opening a file may change.
const CHANGING: u32 = (O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE & !O_DIRECTORY) as u32;

/// Opens files to read them.
pub(super) const TO_READ: &[Conditional] = &[
    (SYS_openat, &[Is(2, CHANGING, &[O_RDONLY as u32])]),
    #[cfg(target_arch = "x86_64")]
    (SYS_open, &[Is(1, CHANGING, &[O_RDONLY as u32])]),
];

/// By the byte that ioctl's numbers have of their driver: what devices do that make memory and machines.
/// They may be open already.
pub(super) const DEVICES: &[Conditional] = &[
    (
        SYS_ioctl,
        &[Is(
            1,
            0xff00,
            &[
                0x4c00, // loop
                0xaa00, // userfaultfd
                0xae00, // kvm
                0xaf00, // vhost
                0xe500, // fuse
                0xfd00, // device mapper
            ],
        )],
    ),
    (SYS_ioctl, &[Is(1, ALL, &[TUNSETIFF as u32])]),
];

const EXECUTE: Test = Is(2, PROT_EXEC as u32, &[PROT_EXEC as u32]);

/// Mappings that are writable and executable, and what makes memory executable that is there. PR_SET_MDWE
/// (Linux 6.3) stops the same but for anonymous memory, which is no code of ours and could be mapped twice.
pub(super) const CODE: &[Conditional] = &[
    (
        SYS_mmap,
        &[Is(
            2,
            (PROT_WRITE | PROT_EXEC) as u32,
            &[(PROT_WRITE | PROT_EXEC) as u32],
        )],
    ),
    (
        SYS_mmap,
        &[
            EXECUTE,
            Is(3, MAP_ANONYMOUS as u32, &[MAP_ANONYMOUS as u32]),
        ],
    ),
    (SYS_mprotect, &[EXECUTE]),
    (SYS_pkey_mprotect, &[EXECUTE]),
    (SYS_shmat, &[Is(2, SHM_EXEC as u32, &[SHM_EXEC as u32])]),
    // READ_IMPLIES_EXEC; all bits ask what it is.
    (SYS_personality, &[IsNot(0, &[ALL])]),
];

/// Sockets that are not of this machine.
pub(super) const NETWORK: &[Conditional] = &[(SYS_socket, &[IsNot(0, &[AF_UNIX as u32])])];

/// Memory that RLIMIT_DATA does not count.
pub(super) const SHARED_MEMORY: &[Conditional] = &[
    (SYS_memfd_create, &[]),
    (SYS_memfd_secret, &[]),
    (SYS_shmget, &[]),
    (
        SYS_mmap,
        &[Is(
            3,
            (MAP_TYPE | MAP_ANONYMOUS) as u32,
            &[(MAP_SHARED | MAP_ANONYMOUS) as u32],
        )],
    ),
    // The kernel takes such a mapping for a stack.
    (
        SYS_mmap,
        &[Is(3, MAP_GROWSDOWN as u32, &[MAP_GROWSDOWN as u32])],
    ),
];

/// What concerns this process and what it has open.
pub(super) const TO_OPEN: &[Conditional] = &[
    (SYS_accept4, &[IsListener(0)]),
    (SYS_clone, &[Is(0, THREAD | ESTRANGING, &[THREAD])]),
    // Those that send no signal.
    (
        SYS_fcntl,
        &[Is(
            1,
            ALL,
            &[
                F_DUPFD as u32,
                F_DUPFD_CLOEXEC as u32,
                F_GETFD as u32,
                F_SETFD as u32,
                F_GETFL as u32,
                F_SETFL as u32,
                F_GETLK as u32,
                F_SETLK as u32,
                F_SETLKW as u32,
                F_OFD_GETLK as u32,
                F_OFD_SETLK as u32,
                F_OFD_SETLKW as u32,
                F_GETPIPE_SZ as u32,
                F_SETPIPE_SZ as u32,
                F_ADD_SEALS as u32,
                F_GET_SEALS as u32,
            ],
        )],
    ),
    // Those that ask, or change how a descriptor is read and written.
    (
        SYS_ioctl,
        &[Is(
            1,
            ALL,
            &[
                TCGETS as u32,
                TIOCGWINSZ as u32,
                TIOCGPGRP as u32,
                TIOCOUTQ as u32,
                FIONREAD as u32,
                FIONBIO as u32,
                FIOCLEX as u32,
                FIONCLEX as u32,
            ],
        )],
    ),
    (SYS_kill, &[IsOwn(0)]),
    PRCTL,
    (SYS_prlimit64, &[Is(0, ALL, &[0]), IsNull(2)]),
    (SYS_rt_sigqueueinfo, &[IsOwn(0)]),
    (SYS_rt_tgsigqueueinfo, &[IsOwn(0)]),
    (SYS_sched_setaffinity, &[Is(0, ALL, &[0])]),
    (
        SYS_setsockopt,
        &[
            Is(1, ALL, &[SOL_SOCKET as u32]),
            Is(
                2,
                ALL,
                &[
                    SO_SNDTIMEO as u32,
                    SO_RCVTIMEO as u32,
                    SO_SNDTIMEO_NEW as u32,
                    SO_RCVTIMEO_NEW as u32,
                    SO_SNDBUF as u32,
                    SO_RCVBUF as u32,
                ],
            ),
        ],
    ),
    // Datagram sockets reach others without being connected to them.
    (
        SYS_socketpair,
        &[
            Is(0, ALL, &[AF_UNIX as u32]),
            Is(1, 0xf, &[SOCK_STREAM as u32, SOCK_SEQPACKET as u32]),
        ],
    ),
    (SYS_tgkill, &[IsOwn(0)]),
];
