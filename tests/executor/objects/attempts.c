// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Tries what a contained program may not do, and what it may, and prints what came of each. Where
// nothing is refused the attempts do no harm: they fail for another reason, or change nothing.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 0x7ffffff0, X32 = 0x40000000 };

static const char NOWHERE[] = "/nonexistent/x";

static void said(const char *what, long result) {
  const char *error = result < 0 ? strerrorname_np(errno) : NULL;
  printf("%s %s\n", what, error ? error : result < 0 ? "?" : "ok");
}

#define TRY(what, ...) said(what, __VA_ARGS__)
#define CALL(name, ...) said(#name, syscall(SYS_##name, ##__VA_ARGS__))

static void programs_and_processes(void) {
  char *const none[] = {NULL};
  CALL(execve, NOWHERE, none, none);
  CALL(execveat, AT_FDCWD, NOWHERE, none, none, 0);
  CALL(ptrace, PTRACE_ATTACH, NOBODY, 0, 0);
  char byte = 1, other;
  struct iovec from = {&byte, 1}, to = {&other, 1};
  CALL(process_vm_readv, getpid(), &to, 1UL, &from, 1UL, 0UL);
  CALL(process_vm_writev, getpid(), &to, 1UL, &from, 1UL, 0UL);
  CALL(pidfd_getfd, -1, 0, 0);
  CALL(kcmp, getpid(), getpid(), 0, 0, 0);
  // A child that can't run a program.
  fflush(stdout);
  pid_t child = fork();
  if (!child)
    _exit(execl("/bin/true", "true", NULL) < 0 ? errno : 0);
  TRY("fork", child);
  int status;
  if (child > 0 && waitpid(child, &status, 0) == child) {
    errno = WEXITSTATUS(status);
    TRY("exec-in-child", status ? -1 : 0);
  }
  TRY("clone-namespace", syscall(SYS_clone, CLONE_NEWUSER | CLONE_FS, 0, 0, 0, 0));
  CALL(clone3, NULL, 0UL);
  TRY("kill-parent", kill(getppid(), 0));
  TRY("ask-parents-limit", prlimit(getppid(), RLIMIT_CORE, NULL, &(struct rlimit){0, 0}));
}

static void system_calls_of_the_system(void) {
  CALL(bpf, BPF_MAP_CREATE, NULL, 0);
  CALL(perf_event_open, NULL, 0, -1, -1, 0UL);
  CALL(userfaultfd, -1);
  CALL(io_uring_setup, 0, NULL);
  CALL(io_uring_enter, -1, 0, 0, 0, NULL, 0UL);
  CALL(io_uring_register, -1, 0, NULL, 0);
  CALL(keyctl, -1, 0, 0, 0, 0);
  CALL(add_key, NULL, NULL, NULL, 0UL, 0);
  CALL(init_module, NULL, 0UL, NULL);
  CALL(finit_module, -1, "", 0);
  CALL(delete_module, NULL, 0);
  CALL(kexec_load, 0UL, -1UL, NULL, 0UL);
  CALL(mount, NULL, NOWHERE, NULL, 0UL, NULL);
  CALL(umount2, NOWHERE, 0);
  CALL(open_tree, -1, NOWHERE, 0);
  CALL(move_mount, -1, NOWHERE, -1, NOWHERE, 0);
  CALL(fsopen, NULL, 0);
  CALL(pivot_root, NOWHERE, NOWHERE);
  CALL(chroot, NOWHERE);
  CALL(unshare, 0);
  CALL(setns, -1, 0);
  CALL(reboot, 0, 0, 0, NULL);
  CALL(swapon, NOWHERE, 0);
  CALL(personality, 0xffffffffUL);
  CALL(settimeofday, NULL, NULL);
  CALL(open_by_handle_at, -1, NULL, 0);
  CALL(seccomp, -1, 0, NULL);
  struct rlimit limit;
  getrlimit(RLIMIT_CORE, &limit);
  TRY("setrlimit", setrlimit(RLIMIT_CORE, &limit));
  TRY("prctl-dumpable", prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
  TRY("tiocsti", ioctl(-1, TIOCSTI, ""));
  TRY("tiocsti-wide", syscall(SYS_ioctl, -1, TIOCSTI | 1L << 32, ""));
  static const struct {
    const char *name;
    unsigned long number;
  } devices[] = {{"ioctl-userfaultfd", 0xaa00}, {"ioctl-kvm", 0xae01},
                 {"ioctl-vhost", 0xaf01},       {"ioctl-loop", 0x4c82},
                 {"ioctl-fuse", 0x8004e500},    {"ioctl-dm", 0xc138fd00},
                 {"ioctl-tun", 0x400454ca}};
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    TRY(devices[i].name, ioctl(-1, devices[i].number, NULL));
  TRY("socket-netlink", socket(AF_NETLINK, SOCK_RAW, 0));
  TRY("socket-packet", socket(AF_PACKET, SOCK_RAW, 0));
  TRY("socket-raw", socket(AF_INET, SOCK_RAW, 1));
  TRY("socket-vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
  TRY("socket-alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
  TRY("x32-getpid", syscall(X32 | SYS_getpid));
  TRY("x32-execve", syscall(X32 | 520, NOWHERE, NULL, NULL));
  TRY("x32-open", syscall(X32 | SYS_open, NOWHERE, O_RDONLY));
  // A number that no kernel has yet.
  TRY("unknown", syscall(4000));
}

static void what_is_not_open_yet(void) {
  struct open_how how = {.flags = O_RDONLY};
  TRY("openat", open("/dev/null", O_RDONLY));
  CALL(open, "/dev/null", O_RDONLY);
  CALL(openat2, AT_FDCWD, "/dev/null", &how, sizeof how);
  CALL(creat, NOWHERE, 0600);
  TRY("fopen", fopen("/dev/null", "r") ? 0 : -1);
  TRY("mkdir", mkdir(NOWHERE, 0700));
  TRY("rename", rename(NOWHERE, NOWHERE));
  TRY("unlink", unlink(NOWHERE));
  TRY("rmdir", rmdir(NOWHERE));
  TRY("link", link(NOWHERE, NOWHERE));
  TRY("symlink", symlink("x", NOWHERE));
  TRY("truncate", truncate(NOWHERE, 0));
  TRY("chmod", chmod(NOWHERE, 0));
  TRY("chdir", chdir(NOWHERE));
  TRY("mkfifo", mkfifo(NOWHERE, 0600));
  TRY("device", mknod(NOWHERE, S_IFCHR | 0600, 0));
  TRY("access", access("/", R_OK));
  CALL(inotify_init1, 0);
  TRY("shm_open", shm_open("/nonexistent-x", O_RDWR, 0));
  TRY("shmget", shmget(IPC_PRIVATE - 1, 1, 0));
  TRY("socket-unix", socket(AF_UNIX, SOCK_STREAM, 0));
  TRY("socket-inet", socket(AF_INET, SOCK_STREAM, 0));
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  TRY("connect", connect(-1, (struct sockaddr *)&address, sizeof address));
  TRY("bind", bind(-1, (struct sockaddr *)&address, sizeof address));
  TRY("listen", listen(-1, 1));
  TRY("accept", accept(-1, NULL, NULL));
  int pair[2];
  TRY("datagram-pair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  TRY("fcntl-owner", fcntl(0, F_SETOWN, getpid()));
}

static volatile sig_atomic_t caught;

static void note(int signal) { caught = signal; }

static void *in_a_thread(void *unused) {
  char *const none[] = {NULL};
  TRY("thread-execve", syscall(SYS_execve, NOWHERE, none, none));
  TRY("thread-open", open("/dev/null", O_RDONLY));
  return unused;
}

static void what_stays(void) {
  int pair[2];
  char byte = 0;
  TRY("pair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
  TRY("send", send(pair[0], "x", 1, 0));
  TRY("receive", recv(pair[1], &byte, 1, 0) == 1 && byte == 'x' ? 0 : -1);
  TRY("pipe", pipe(pair));
  TRY("write", write(pair[1], "y", 1));
  TRY("read", read(pair[0], &byte, 1) == 1 && byte == 'y' ? 0 : -1);
  int file = memfd_create("x", MFD_CLOEXEC);
  TRY("memfd", file);
  TRY("ftruncate", ftruncate(file, 4096));
  char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  TRY("mmap", code == MAP_FAILED ? -1 : 0);
  memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
  TRY("executable", mprotect(code, 4096, PROT_READ | PROT_EXEC));
  TRY("mprotect", mprotect(code, 4096, PROT_READ));
  TRY("mremap", mremap(code, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
  TRY("malloc", malloc(64 << 20) ? 0 : -1);
  TRY("event", eventfd(0, EFD_CLOEXEC));
  TRY("timer", timerfd_create(CLOCK_MONOTONIC, 0));
  TRY("epoll", epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN};
  TRY("epoll-wait", epoll_wait(epoll_create1(0), &event, 1, 0));
  struct timespec time = {0, 1};
  TRY("clock", clock_gettime(CLOCK_REALTIME, &time));
  TRY("sleep", nanosleep(&(struct timespec){0, 1}, NULL));
  TRY("random", getentropy(&byte, 1));
  struct sigaction action = {.sa_handler = note};
  sigaction(SIGUSR1, &action, NULL);
  TRY("raise", raise(SIGUSR1));
  TRY("caught", caught == SIGUSR1 ? 0 : -1);
  TRY("signal-self", kill(getpid(), 0));
  struct stat state;
  TRY("fstat", fstat(1, &state));
  TRY("name", prctl(PR_SET_NAME, "contained", 0, 0, 0));
  TRY("limits", getrlimit(RLIMIT_NOFILE, &(struct rlimit){0, 0}));
  pthread_t thread;
  errno = pthread_create(&thread, NULL, in_a_thread, NULL);
  TRY("thread", errno ? -1 : pthread_join(thread, NULL));
}

int main(void) {
  programs_and_processes();
  system_calls_of_the_system();
  what_is_not_open_yet();
  what_stays();
  return 42;
}
