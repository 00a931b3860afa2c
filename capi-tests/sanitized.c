// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host that is compiled with a sanitizer, over a library that is not: four threads link, run and
// free code and data. What the library writes for the host is initialized before, as
// MemorySanitizer wants it.

#include <jitmem.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

// Managers have their memory at random places, of which some are not for programs with a sanitizer.
enum { Threads = 4, Managers = 20, Rounds = 20 };

// mov eax, [rdi]; add eax, esi; ret
static const unsigned char Sum[] = {0x8b, 0x07, 0x01, 0xf0, 0xc3};

static jitmem_manager *Manager;

// How many answers were wrong, or the number of the first round that failed, negated.
static int link_and_run(void) {
  int Wrong = 0;
  for (int I = 1; I <= Rounds; ++I) {
    const jitmem_segment Segments[] = {{.content_size = sizeof Sum,
                                        .alignment = 16,
                                        .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
                                       {.content_size = sizeof I,
                                        .zero_fill_size = 64,
                                        .alignment = 16,
                                        .protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE}};
    jitmem_segment_memory Memory[2] = {{0}};
    uint64_t Allocation = 0;
    if (jitmem_manager_allocate(Manager, Segments, 2, 0, Memory, &Allocation, NULL))
      return -I;
    memcpy(Memory[0].working_memory, Sum, sizeof Sum);
    memcpy(Memory[1].working_memory, &I, sizeof I);
    if (jitmem_manager_finalize(Manager, Allocation, NULL, 0, NULL))
      return -I;
    int (*Function)(const int *, int) = (int (*)(const int *, int))(uintptr_t)Memory[0].address;
    const int *Data = (const int *)(uintptr_t)Memory[1].address;
    Wrong += Function(Data, 2) != I + 2 || Data[4] != 0;
    if (jitmem_manager_deallocate(Manager, &Allocation, 1, NULL))
      return -I;
  }
  return Wrong;
}

static void *run(void *Result) {
  *(int *)Result = link_and_run();
  return NULL;
}

static int use_manager(void) {
  jitmem_mapper *Mapper = NULL;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &Mapper, NULL) ||
      jitmem_manager_create(Mapper, NULL, &Manager, NULL))
    return 2;
  pthread_t Running[Threads];
  int Results[Threads] = {0}, Wrong = 0;
  for (int I = 0; I != Threads; ++I)
    if (pthread_create(&Running[I], NULL, run, &Results[I]))
      return 3;
  for (int I = 0; I != Threads; ++I) {
    pthread_join(Running[I], NULL);
    Wrong |= Results[I];
  }
  jitmem_manager_free(Manager);
  jitmem_mapper_free(Mapper);
  return Wrong;
}

int main(void) {
  int Wrong = 0;
  for (int I = 0; I != Managers; ++I)
    Wrong |= use_manager();
  printf("wrong: %d\n", Wrong);
  return Wrong != 0;
}
