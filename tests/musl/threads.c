// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Threads that link, run and remove functions, and a child that does so when it was forked.
#include <jitmem.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 20000 };

// lea eax, [rdi + 2]; ret
static const unsigned char code[] = {0x8d, 0x47, 0x02, 0xc3};

static jitmem_manager *manager;

static int failed(const char *what, jitmem_error *error) {
  fprintf(stderr, "%s: %s\n", what, jitmem_error_message(error));
  jitmem_error_free(error);
  return 1;
}

static int link_and_run(void) {
  jitmem_error *error = NULL;
  const jitmem_segment segments[] = {
      {.content_size = sizeof code,
       .alignment = 16,
       .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
      {.content_size = 64, .alignment = 8, .protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE},
  };
  jitmem_segment_memory memory[2];
  uint64_t allocation;
  if (jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, &error) != JITMEM_OK)
    return failed("allocate", error);
  memcpy(memory[0].working_memory, code, sizeof code);
  if (jitmem_manager_finalize(manager, allocation, NULL, 0, &error) != JITMEM_OK)
    return failed("finalize", error);
  const int answer = ((int (*)(int))(uintptr_t)memory[0].address)(40);
  if (jitmem_manager_deallocate(manager, &allocation, 1, &error) != JITMEM_OK)
    return failed("deallocate", error);
  return answer != 42;
}

static void *run(void *bad) {
  for (int i = 0; i < ROUNDS && !*(int *)bad; i++)
    *(int *)bad = link_and_run();
  return NULL;
}

int main(void) {
  jitmem_error *error = NULL;
  jitmem_mapper *mapper;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) != JITMEM_OK)
    return failed("mapper", error);
  if (jitmem_manager_create(mapper, NULL, &manager, &error) != JITMEM_OK)
    return failed("manager", error);
  pthread_t threads[THREADS];
  int bad[THREADS] = {0};
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, run, &bad[i]) != 0)
      return 1;
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    if (bad[i])
      return 1;
  }
  const pid_t child = fork();
  if (child == 0)
    _exit(link_and_run());
  int status;
  if (waitpid(child, &status, 0) != child || status != 0)
    return 1;
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  printf("all threads have run what they linked, and the child too\n");
  return 0;
}
