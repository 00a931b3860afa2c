// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Links two functions by their names and spends its time in them, while perf or gdb looks on:
//   perf record ./jitmem-profiler-c 2000 && perf report
//   perf record -k mono ./jitmem-profiler-c 2000 . && perf inject --jit -i perf.data -o jit.data
//   gdb -ex 'set breakpoint pending on' -ex 'break linked_spin' -ex run ./jitmem-profiler-c
// The arguments are how many times a million rounds are made, and a folder for a jitdump file.
#include "listeners.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Counts its argument down and returns 42.
#if defined(__x86_64__)
static const uint8_t SPIN[] = {0xff, 0xcf, 0x75, 0xfc, 0xb8, 42, 0, 0, 0, 0xc3};
#elif defined(__aarch64__)
static const uint32_t SPIN[] = {0x71000400, 0x54ffffe1, 0x52800540, 0xd65f03c0};
#elif defined(__riscv)
static const uint32_t SPIN[] = {0xfff5051b, 0xfe051ee3, 0x02a00513, 0x00008067};
#endif

// The listeners take one call at a time, and events may come from several threads.
static pthread_mutex_t listening = PTHREAD_MUTEX_INITIALIZER;

static void listen(void *ctx, const jitmem_event *event) {
  (void)ctx;
  pthread_mutex_lock(&listening);
  perf_map_event(event);
  jitdump_event(event);
  gdb_jit_event(event);
  pthread_mutex_unlock(&listening);
}

typedef int spin_function(int rounds);

static spin_function *link_function(jitmem_manager *manager, const char *name, uint64_t *allocation,
                                    jitmem_error **error) {
  const jitmem_segment code = {.content_size = sizeof SPIN,
                               .alignment = 16,
                               .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  const jitmem_allocation_request request = {
      .struct_size = sizeof request, .segments = &code, .segment_count = 1, .name = name};
  jitmem_segment_memory memory;
  if (jitmem_manager_request(manager, &request, &memory, allocation, error))
    return NULL;
  memcpy(memory.working_memory, SPIN, sizeof SPIN);
  if (jitmem_manager_finalize(manager, *allocation, NULL, 0, error))
    return NULL;
  return (spin_function *)(uintptr_t)memory.address;
}

int main(int argc, char **argv) {
  const int millions = argc > 1 ? atoi(argv[1]) : 1;
  if (!perf_map_open() || (argc > 2 && !jitdump_open(argv[2]))) {
    perror("profiler-c: open a file for perf");
    return 1;
  }
  const jitmem_observer observer = {.struct_size = sizeof observer, .fn = listen, .times = 1};
  const jitmem_manager_options options = {.struct_size = sizeof options, .observer = &observer};
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  uint64_t first = 0, second = 0;
  spin_function *spin = NULL;
  if (!jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) &&
      !jitmem_manager_create(mapper, &options, &manager, &error) &&
      link_function(manager, "linked_gone", &first, &error) != NULL &&
      !jitmem_manager_deallocate(manager, &first, 1, &error))
    spin = link_function(manager, "linked_spin", &second, &error); // where the other one was
  for (int i = 0; spin != NULL && i < millions; i++)
    if (spin(1000000) != 42)
      abort();
  if (spin != NULL)
    printf("linked_spin(1000000) = %d\n", spin(1000000));
  int failed = error != NULL;
  if (failed)
    fprintf(stderr, "profiler-c: %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitdump_close();
  perf_map_close();
  return failed;
}
