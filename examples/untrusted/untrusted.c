// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "untrusted.h"
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define UNTRUSTED __attribute__((section("untrusted"), used, noinline))

// A system call, without the C library, which this code can't call.
__attribute__((always_inline)) static inline long ask(long number, long a, long b, long c, long d,
                                                      long e, long f) {
#ifdef __aarch64__
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
#else
  register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "+a"(number)
                   : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return number;
#endif
}

// A place in the code that runs.
__attribute__((always_inline)) static inline char *here(void) {
  char *place;
#ifdef __aarch64__
  __asm__ volatile("adr %0, ." : "=r"(place));
#else
  __asm__ volatile("lea 0(%%rip), %0" : "=r"(place));
#endif
  return place;
}

enum { PAGE = 4096, MIB = 1 << 20, RW = PROT_READ | PROT_WRITE };

UNTRUSTED int32_t twice(int32_t number) { return number + number; }

UNTRUSTED int32_t crash(int32_t address) {
  *(volatile char *)(intptr_t)address = 1;
  return 0;
}

UNTRUSTED int32_t loop(int32_t unused) {
  (void)unused;
  for (;;)
    __asm__ volatile("");
}

UNTRUSTED int32_t allocate(int32_t most) {
  int32_t count = 0;
  while (count < most) {
    long memory = ask(SYS_mmap, 0, MIB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory < 0 && memory > -PAGE)
      break;
    count++;
  }
  return count;
}

UNTRUSTED int32_t hold_files(int32_t most) {
  char name = 0;
  long file = ask(SYS_memfd_create, (long)&name, 0, 0, 0, 0, 0);
  if (file < 0)
    return (int32_t)file;
  int32_t count = 0;
  while (count < most && !ask(SYS_fallocate, file, 0, (long)count * MIB, MIB, 0, 0))
    count++;
  return count;
}

UNTRUSTED int32_t make_code_writable(int32_t unused) {
  (void)unused;
  long page = (long)here() / PAGE * PAGE;
  return (int32_t)ask(SYS_mprotect, page, PAGE, RW | PROT_EXEC, 0, 0, 0);
}

UNTRUSTED int32_t write_code(int32_t unused) {
  (void)unused;
  *(volatile char *)here() = 0;
  return 0;
}

UNTRUSTED int32_t make_code(int32_t unused) {
  (void)unused;
  long made = ask(SYS_mmap, 0, PAGE, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return made < 0 && made > -PAGE ? (int32_t)made : 0;
}

UNTRUSTED int32_t flood(int32_t unused) {
  (void)unused;
  char buffer[PAGE];
  for (volatile char *byte = buffer; byte != buffer + PAGE; byte++)
    *byte = '!';
  for (;;)
    ask(SYS_write, 1, (long)buffer, PAGE, 0, 0, 0);
}

UNTRUSTED int32_t write_to(int32_t descriptor) {
  char buffer[PAGE];
  for (volatile char *byte = buffer; byte != buffer + PAGE; byte++)
    *byte = '!';
  // Neither waits nor raises a signal.
  const int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
  return (int32_t)ask(SYS_sendto, descriptor, (long)buffer, PAGE, flags, 0, 0);
}

UNTRUSTED int32_t start_processes(int32_t most) {
  for (int32_t count = 0; count < most; count++) {
    long process = ask(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
    if (process < 0)
      return (int32_t)process;
    if (process == 0)
      ask(SYS_exit_group, 0, 0, 0, 0, 0, 0);
  }
  return most;
}

UNTRUSTED int32_t kill_parent(int32_t unused) {
  (void)unused;
  return (int32_t)ask(SYS_kill, ask(SYS_getppid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
}

UNTRUSTED int32_t open_file(int32_t unused) {
  (void)unused;
  char name[2];
  *(volatile char *)name = '.';
  *(volatile char *)(name + 1) = 0;
  return (int32_t)ask(SYS_openat, AT_FDCWD, (long)name, O_RDONLY, 0, 0, 0);
}

UNTRUSTED int32_t open_socket(int32_t unused) {
  (void)unused;
  return (int32_t)ask(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
}

UNTRUSTED int32_t stop_itself(int32_t unused) {
  (void)unused;
  return (int32_t)ask(SYS_kill, ask(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGSTOP, 0, 0, 0, 0);
}

UNTRUSTED int32_t close_all(int32_t unused) {
  (void)unused;
  for (int descriptor = 0; descriptor < 1024; descriptor++)
    ask(SYS_close, descriptor, 0, 0, 0, 0, 0);
  return 0;
}

UNTRUSTED int32_t leave(int32_t code) {
  ask(SYS_exit_group, code, 0, 0, 0, 0, 0);
  return 0;
}
