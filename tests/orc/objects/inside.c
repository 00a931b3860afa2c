// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What tests have done in another process: wrapper functions, and functions that controllers call
// by their types.

#define _GNU_SOURCE
#include "wrapper.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// ---- A journal of allocation actions ----

static pthread_mutex_t NotesMutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t Noted = PTHREAD_COND_INITIALIZER;
enum { MostNotes = 4096 };
static int32_t Notes[MostNotes];
static size_t NoteCount;

// void hostNote(int), for objects/statics.cpp too.
void hostNote(int Id) {
  pthread_mutex_lock(&NotesMutex);
  if (NoteCount != MostNotes)
    Notes[NoteCount++] = Id;
  pthread_cond_broadcast(&Noted);
  pthread_mutex_unlock(&NotesMutex);
}

// Waits for that many; returns how many there are.
int waitForNotes(int Count) {
  pthread_mutex_lock(&NotesMutex);
  while (NoteCount < (size_t)Count)
    pthread_cond_wait(&Noted, &NotesMutex);
  int There = (int)NoteCount;
  pthread_mutex_unlock(&NotesMutex);
  return There;
}

// bytes(): the journal so far, which then is empty.
struct Result takeNotes(const char *Args, size_t Size) {
  (void)Args;
  (void)Size;
  pthread_mutex_lock(&NotesMutex);
  struct Result R = resultOf(Notes, NoteCount * sizeof(*Notes));
  NoteCount = 0;
  pthread_mutex_unlock(&NotesMutex);
  return R;
}

// Waits until the process that started this one has ended. By then this one may have another
// parent.
static int Parent = -1;
int knowParent(int Unused) {
  (void)Unused;
  Parent = (int)syscall(SYS_pidfd_open, getppid(), 0);
  return Parent;
}
static void waitForParent(void) {
  struct pollfd Ended = {Parent, POLLIN, 0};
  while (poll(&Ended, 1, -1) < 1)
    ;
}

// Error(int32_t Id, uint8_t Behaviour): notes Id and succeeds, fails ('f'), refuses ('r'), never
// returns ('w') or succeeds once the parent has ended ('o').
struct Result note(const char *Args, size_t Size) {
  int32_t Id = 0;
  if (Size != 5)
    return success();
  memcpy(&Id, Args, 4);
  hostNote(Id);
  switch (Args[4]) {
  case 'f': {
    const char Failed[] = "\1\15\0\0\0\0\0\0\0action failed";
    return resultOf(Failed, sizeof(Failed) - 1);
  }
  case 'r': {
    struct Result Refused = {{{0}}, 0};
    Refused.Data.Pointer = strdup("action refused");
    return Refused;
  }
  case 'w':
    for (;;)
      pause();
  case 'o':
    waitForParent();
  }
  return success();
}

// ---- The executor's memory ----

// bytes(uint64_t Address, uint64_t Size)
struct Result readMemory(const char *Args, size_t Size) {
  uint64_t Range[2] = {0, 0};
  if (Size == sizeof(Range))
    memcpy(Range, Args, sizeof(Range));
  return resultOf((const void *)(uintptr_t)Range[0], Range[1]);
}

// Ways in which this very code could be made writable, as bits; 0 if there are none.
int waysToWriteCode(int Unused) {
  (void)Unused;
  int Ways = 0;
  uintptr_t Self = (uintptr_t)&waysToWriteCode, Page = Self & ~(uintptr_t)4095;
  if (!mprotect((void *)Page, 4096, PROT_READ | PROT_WRITE))
    Ways |= 1;
  if (!mprotect((void *)Page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC))
    Ways |= 2;
  FILE *Maps = fopen("/proc/self/maps", "r");
  char Line[512], Name[128];
  unsigned long Start = 0, End = 0;
  while (Maps && fgets(Line, sizeof(Line), Maps))
    if (sscanf(Line, "%lx-%lx", &Start, &End) == 2 && Start <= Self && Self < End)
      break;
  fclose(Maps);
  snprintf(Name, sizeof(Name), "/proc/self/map_files/%lx-%lx", Start, End);
  int File = open(Name, O_RDWR);
  if (File >= 0) {
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, File, 0) != MAP_FAILED)
      Ways |= 4;
    if (pwrite(File, "\xcc", 1, (off_t)(Page - Start)) == 1)
      Ways |= 8;
    close(File);
  }
  return Ways;
}

// ---- Calls ----

int plusOne(int Value) { return Value + 1; }

int sumOfArguments(int Count, char *Values[]) {
  int Sum = 0;
  for (int I = 0; I != Count; ++I)
    Sum += atoi(Values[I]);
  return Sum;
}

// int32_t(int32_t, int32_t)
// int32(uint64 address, int32): what the function there returns.
struct Result callFunction(const char *Args, size_t Size) {
  uint64_t Call[2];
  if (Size != sizeof(Call))
    abort();
  memcpy(Call, Args, sizeof(Call));
  int32_t Value = ((int (*)(int))(uintptr_t)Call[0])((int)Call[1]);
  return resultOf(&Value, sizeof(Value));
}

struct Result multiply(const char *Args, size_t Size) {
  int32_t Factors[2] = {0, 0};
  if (Size == sizeof(Factors))
    memcpy(Factors, Args, sizeof(Factors));
  int32_t Product = Factors[0] * Factors[1];
  return resultOf(&Product, sizeof(Product));
}

// These note their arguments first. The one does not come back; the other one does when the parent
// has ended.
int waitForever(int Id) {
  hostNote(Id);
  for (;;)
    pause();
}
int waitUntilOrphaned(int Id) {
  hostNote(Id);
  waitForParent();
  return Id;
}
