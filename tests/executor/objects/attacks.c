// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Attacks of linked code on its own process, its machine and its memory; prints what came of each.
// As a program it takes the kind of attack; as a library it attacks the code at an address that a
// controller gives.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAGE = 4096, RX = PROT_READ | PROT_EXEC, RW = PROT_READ | PROT_WRITE, RWX = RW | PROT_EXEC };

static void said(const char *what, long result) {
  printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
}

static long mapped(void *at, int protection, int flags, int file) {
  return mmap(at, PAGE, protection, flags, file, 0) == MAP_FAILED ? -1 : 0;
}

// What makes memory executable, or code writable. `code` is a page of it.
static void on_code(char *code) {
  const int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
  said("code-writable", mprotect(code, PAGE, RW));
  said("code-all", mprotect(code, PAGE, RWX));
  said("code-by-key", syscall(SYS_pkey_mprotect, code, PAGE, RW, -1));
  char *pages = mmap(NULL, PAGE, RW, anonymous, -1, 0);
  said("data-executable", mprotect(pages, PAGE, RX));
  said("data-executable-by-key", syscall(SYS_pkey_mprotect, pages, PAGE, RX, -1));
  said("new-all", mapped(NULL, RWX, anonymous, -1));
  said("new-executable", mapped(NULL, RX, anonymous, -1));
  said("new-shared-executable", mapped(NULL, RX, MAP_SHARED | MAP_ANONYMOUS, -1));
  int segment = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0700);
  void *attached = segment < 0 ? (void *)-1 : shmat(segment, NULL, SHM_EXEC);
  said("segment-executable", attached == (void *)-1 ? -1 : 0);
  if (segment >= 0)
    shmctl(segment, IPC_RMID, NULL);
  int before = personality(0xffffffff);
  said("read-implies-execute", before < 0 ? -1 : personality(before | READ_IMPLIES_EXEC));
  if (before >= 0)
    personality(before);
  // A copy in its place, that is writable as well.
  static char copy[PAGE];
  memcpy(copy, code, PAGE);
  void *placed = mmap(code, PAGE, RWX, anonymous | MAP_FIXED, -1, 0);
  if (placed != MAP_FAILED)
    memcpy(code, copy, PAGE);
  said("code-replaced", placed == MAP_FAILED ? -1 : 0);
}

static void open_device(const char *name) {
  char what[80], path[80];
  snprintf(path, sizeof path, "/dev/%s", name);
  snprintf(what, sizeof what, "open-%s", name);
  for (char *c = what; *c; c++)
    *c = *c == '/' ? '-' : *c;
  int file = open(path, O_RDWR);
  said(what, file);
  if (file >= 0)
    close(file);
}

static void on_machine(void) {
  static const char *const devices[] = {"userfaultfd", "kvm",  "fuse", "net/tun",
                                        "null",        "zero", "shm"};
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    if (strcmp(devices[i], "shm"))
      open_device(devices[i]);
  char path[40];
  snprintf(path, sizeof path, "/proc/%d/mem", getppid());
  said("write-parents-memory", open(path, O_RDWR));
  said("read-parents-memory", open(path, O_RDONLY));
  snprintf(path, sizeof path, "/proc/%d/environ", getppid());
  said("read-parents-environment", open(path, O_RDONLY));
  said("write-own-memory", open("/proc/self/mem", O_RDWR));
  said("write-core-pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
  said("read-core-pattern", open("/proc/sys/kernel/core_pattern", O_RDONLY));
  int port = socket(AF_INET, SOCK_STREAM, 0);
  said("socket-inet", port);
  said("socket-unix", socket(AF_UNIX, SOCK_STREAM, 0));
  // Sends nothing: it asks for a way there.
  struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(9)};
  there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
  said("has-network",
       datagrams < 0 ? -1 : connect(datagrams, (struct sockaddr *)&there, sizeof there));
  said("change-root", chroot("/"));
  said("become-root", setuid(0));
}

// The first descriptor that listens, or -1.
static int listener(void) {
  for (int number = 3; number < 64; number++) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (!getsockopt(number, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && listens)
      return number;
  }
  return -1;
}

// What would lead from the one socket that listens, or from one that is there without asking, to
// another process.
static void on_listener(void) {
  const int listening = listener();
  said("has-listener", listening);
  int ends[2];
  said("pair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends));
  struct sockaddr_un there = {.sun_family = AF_UNIX};
  socklen_t size = sizeof there;
  if (listening >= 0)
    getsockname(listening, (struct sockaddr *)&there, &size);
  said("connect-to-listener", connect(ends[0], (struct sockaddr *)&there, size));
  const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  said("disconnect", connect(ends[0], &nowhere, sizeof nowhere));
  said("bind", bind(ends[0], (struct sockaddr *)&there, sizeof(sa_family_t)));
  said("listen", listen(ends[0], 1));
  said("accept", accept(ends[0], NULL, NULL));
  said("accept-elsewhere", accept4(ends[0], NULL, NULL, 0));
  if (listening < 0)
    return;
  int moved = dup(listening);
  said("move", moved);
  said("accept-where-it-was-moved", accept4(moved, NULL, NULL, 0));
  said("replace", dup2(ends[0], listening));
  said("accept-at-the-replacement", accept4(listening, NULL, NULL, 0));
}

static void on_files(const char *folder) {
  char path[400], other[400];
  snprintf(path, sizeof path, "%s/made", folder);
  snprintf(other, sizeof other, "%s/inside/moved", folder);
  int file = open(path, O_CREAT | O_WRONLY, 0600);
  said("create", file);
  said("move", rename(path, other));
  said("remove", unlink(other));
  snprintf(path, sizeof path, "%s/there", folder);
  said("read-here", open(path, O_RDONLY));
  said("write-here", open(path, O_WRONLY));
  said("read-and-truncate", open(path, O_RDONLY | O_TRUNC));
  said("nameless", open(folder, O_TMPFILE | O_WRONLY, 0600));
  said("read-elsewhere", open("/etc/passwd", O_RDONLY));
  said("list-elsewhere", open("/etc", O_RDONLY | O_DIRECTORY));
}

static void *in_thread(void *unused) {
  pause();
  return unused;
}

// Holds memfds of 16 MiB as far as that goes: as descriptors, and mapped without one.
static void on_memfds(void) {
  enum { SIZE = 16 << 20, MOST = 192 };
  static char full[1 << 20];
  memset(full, 1, sizeof full);
  long count = 0;
  for (int mapped = 1; count < MOST;) {
    int file = memfd_create("x", 0);
    if (file < 0)
      break;
    for (long size = 0; size < SIZE; size += sizeof full)
      if (write(file, full, sizeof full) != sizeof full)
        return;
    count++;
    mapped = mapped && mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0) != MAP_FAILED;
    if (mapped)
      close(file);
  }
  printf("memfds %ld\n", count * (SIZE >> 20));
}

// What on_memory takes by each way at most, in MiB.
enum { MOST_MEMORY = 3 << 10 };

// Takes memory that is mapped with these flags until there is no more, and gives it back.
static void take_mapped(const char *what, int flags) {
  static char *taken[MOST_MEMORY];
  long count = 0;
  for (; count < MOST_MEMORY; count++) {
    taken[count] = mmap(NULL, 1 << 20, RW, flags | MAP_ANONYMOUS, -1, 0);
    if (taken[count] == MAP_FAILED)
      break;
    memset(taken[count], 1, 1 << 20);
  }
  printf("%s %ld\n", what, count);
  while (count > 0)
    munmap(taken[--count], 1 << 20);
}

// Takes memory until there is no more, by each way that there is.
static void on_memory(void) {
  const long most = MOST_MEMORY;
  static char full[1 << 20];
  memset(full, 1, sizeof full);
  int file = memfd_create("x", 0);
  long count = 0;
  while (file >= 0 && count < most && write(file, full, sizeof full) == sizeof full)
    count++;
  printf("memfd %ld\n", count);
  if (file >= 0)
    close(file);
  count = 0;
  void *list = NULL;
  for (void **memory; count < most && (memory = malloc(1 << 20)); count++) {
    memset(memory, 1, 1 << 20);
    *memory = list;
    list = memory;
  }
  for (void *next; list; list = next) {
    next = *(void **)list;
    free(list);
  }
  printf("malloc %ld\n", count);
  take_mapped("shared", MAP_SHARED);
  // The kernel counts it as a stack.
  take_mapped("stack", MAP_PRIVATE | MAP_GROWSDOWN);
}

static void on_tasks(void) {
  long count = 0;
  pthread_t thread;
  while (count < 2000 && !pthread_create(&thread, NULL, in_thread, NULL))
    count++;
  printf("threads %ld\n", count);
}

// What the controller calls with an address of code: which other mapping of its pages there is, and
// what came of attacks on it.
struct result {
  char *data;
  size_t size;
};

struct result attack(const char *arguments, size_t size);

struct result attack(const char *arguments, size_t size) {
  uint64_t code;
  memcpy(&code, arguments, sizeof code);
  (void)size;
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[512], found[8] = "none";
  unsigned long own = 0;
  for (int round = 0; maps && round < 2; round++) {
    rewind(maps);
    while (fgets(line, sizeof line, maps)) {
      unsigned long start, end, offset, inode;
      char access[8], device[16];
      if (sscanf(line, "%lx-%lx %7s %lx %15s %lu", &start, &end, access, &offset, device, &inode) !=
          6)
        continue;
      int holds = start <= code && code < end;
      if (round == 0 && holds)
        own = inode;
      if (round == 1 && own && inode == own && !holds)
        memcpy(found, access, sizeof found);
    }
  }
  if (maps)
    fclose(maps);
  printf("writer %s\n", maps ? found : "hidden");
  on_code((char *)(uintptr_t)(code & -(uint64_t)PAGE));
  fflush(stdout);
  return (struct result){NULL, 0};
}

int main(int argc, char **argv) {
  // The kind of attack comes last; whether there is a program's name before it is the controller's
  // choice.
  const char *what = argv[argc - 1];
  if (!strcmp(what, "machine"))
    on_machine();
  if (!strcmp(what, "listener"))
    on_listener();
  if (!strcmp(what, "files"))
    on_files(argv[argc - 2]);
  if (!strcmp(what, "memory"))
    on_memory();
  if (!strcmp(what, "memfds"))
    on_memfds();
  if (!strcmp(what, "tasks"))
    on_tasks();
  fflush(stdout);
  _exit(0);
}
