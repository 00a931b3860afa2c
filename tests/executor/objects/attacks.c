// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Attacks of linked code on the code at an address that a controller gives; prints what came of
// each.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/shm.h>
#include <sys/syscall.h>
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
