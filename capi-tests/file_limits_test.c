// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// RLIMIT_FSIZE limits memfds too. Whatever its value is, code and data get into an executor: in
// pages of its own where no memfd can be shared, and in messages.

#include "code.h"
#include "executor.h"
#include "here.h"
#include "limits.h"

static const uint64_t sizes[] = {0, 4 * KIB, 64 * KIB, MIB};

static jitmem_manager *child_manager_over(struct here *here, int shared) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(here->transport, NULL, &mapper,
                                                                 error));
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  jitmem_mapper_free(mapper);
  return manager;
}

// 3 MiB of data, 5 MiB of zero-fill, and code, through their whole lives, several times over:
// places are used again.
static void large_graphs(jitmem_manager *manager) {
  const jitmem_segment segments[] = {segment(RETURN_SIZE, 0, RX), segment(3 * MIB, 5 * MIB, RW),
                                     segment(100 * KIB, 0, R)};
  for (uint32_t round = 1; round < 4; round++) {
    struct graph graph;
    MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, graph.memory, &graph.handle, error));
    emit_return(graph.memory[0].working_memory, round);
    memset(graph.memory[1].working_memory, (int)round, 3 * MIB);
    memset(graph.memory[2].working_memory, (int)round, 100 * KIB);
    MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
    MUST(run(graph.memory[0].address) == round);
    MUST(all_bytes_are(at(graph.memory[1].address), 3 * MIB, (uint8_t)round));
    MUST(all_bytes_are(at(graph.memory[1].address + 3 * MIB), 5 * MIB, 0));
    MUST(all_bytes_are(at(graph.memory[2].address), 100 * KIB, (uint8_t)round));
    memset(at(graph.memory[1].address), 0xee, 8 * MIB); // as linked code may
    MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  }
}

static void body_of_files_of_any_size(void *shared) {
  for (size_t i = 0; i < COUNT(sizes); i++) {
    set_limit(RLIMIT_FSIZE, sizes[i]);
    struct here here;
    here_set_up(&here, here_call);
    jitmem_manager *manager = child_manager_over(&here, *(int *)shared);
    const uint32_t mapper = child_stats(manager).mapper;
    MUST(mapper == (*(int *)shared ? JITMEM_MAPPER_SHARED : JITMEM_MAPPER_REMOTE));
    child_graph(manager);
    large_graphs(manager);
    child_graph(manager);
    // A limit that is lowered later.
    set_limit(RLIMIT_FSIZE, 0);
    large_graphs(manager);
    MUST(child_stats(manager).unmap_failures == 0);
    jitmem_manager_free(manager);
    here_tear_down(&here);
  }
}

static void files_of_any_size_shared(void **state) {
  (void)state;
  in_child(body_of_files_of_any_size, &(int){1});
}

static void files_of_any_size_remote(void **state) {
  (void)state;
  in_child(body_of_files_of_any_size, &(int){0});
}

LIMITED(files_of_any_size_in_process) {
  for (size_t i = 0; i < COUNT(sizes); i++) {
    set_limit(RLIMIT_FSIZE, sizes[i]);
    jitmem_manager *manager =
        child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
    large_graphs(manager);
    jitmem_manager_free(manager);
  }
}

// Code in the executor's own pages traps once it is freed, beside a session that shares others.
LIMITED(freed_code_traps_where_no_file_is_shared) {
  struct here here;
  here_set_up(&here, here_call);
  jitmem_manager *manager = child_manager_over(&here, 1);
  child_graph(manager);
  set_limit(RLIMIT_FSIZE, 0);
  const jitmem_segment code[] = {segment(MIB, 0, RX), segment(16, 0, RX)};
  struct graph graph, kept;
  MUST_OK(jitmem_manager_allocate(manager, code, 2, 0, graph.memory, &graph.handle, error));
  memset(graph.memory[0].working_memory, 0x90, MIB);
  memset(graph.memory[1].working_memory, 0x90, 16);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST_OK(jitmem_manager_allocate(manager, code + 1, 1, 0, kept.memory, &kept.handle, error));
  MUST(all_bytes_are(at(graph.memory[0].address), MIB, 0x90));
  const uint64_t freed = graph.memory[1].address;
  jitmem_error *problem = NULL;
  // It is told in a message, so it can't be done at once.
  MUST(jitmem_manager_try_deallocate(manager, &graph.handle, 1, &problem) == JITMEM_WOULD_BLOCK);
  MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  MUST(all_traps(at(freed), 16));
  jitmem_manager_free(manager);
  here_tear_down(&here);
}

static uint64_t limit_of_both;

static void limit_files(void) { set_limit(RLIMIT_FSIZE, limit_of_both); }

// An executor that is another process, under the same limit: its code reads 3 MiB of data and 5 MiB
// of zero-fill.
static void body_of_another_process(void *shared) {
  for (size_t i = 0; i < COUNT(sizes); i++) {
    limit_of_both = sizes[i];
    struct executor executor = start_executor(limit_files);
    limit_files();
    jitmem_transport *transport = NULL;
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = NULL;
    MUST_OK(jitmem_transport_socket(executor.socket, &transport, error));
    MUST_OK((*(int *)shared ? jitmem_mapper_shared : jitmem_mapper_remote)(transport, NULL, &mapper,
                                                                           error));
    MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
    const jitmem_segment segments[] = {segment(48, 0, RX), segment(3 * MIB, 5 * MIB, RW)};
    for (int round = 1; round < 4; round++) {
      jitmem_segment_memory memory[2];
      uint64_t allocation;
      MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, error));
      const uint64_t last[] = {3 * MIB - 4, 8 * MIB - 4};
      memset(memory[1].working_memory, round, 3 * MIB);
      for (size_t j = 0; j < COUNT(last); j++)
        emit_load((char *)memory[0].working_memory + 16 * j, memory[0].address + 16 * j,
                  memory[1].address + last[j]);
      MUST_OK(jitmem_manager_finalize(manager, allocation, NULL, 0, error));
      for (size_t j = 0; j < COUNT(last); j++) {
        int32_t answer = -1;
        MUST_OK(call_int(transport, memory[0].address + 16 * j, 0, &answer, error));
        MUST(answer == (j == 0 ? round * 0x01010101 : 0));
      }
      MUST_OK(jitmem_manager_deallocate(manager, &allocation, 1, error));
    }
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    jitmem_transport_free(transport);
    MUST(status_of_executor(executor) == 0);
  }
}

static void files_of_any_size_in_another_process_shared(void **state) {
  (void)state;
  in_child(body_of_another_process, &(int){1});
}

static void files_of_any_size_in_another_process_remote(void **state) {
  (void)state;
  in_child(body_of_another_process, &(int){0});
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      LIMIT(files_of_any_size_shared),
      LIMIT(files_of_any_size_remote),
      LIMIT(files_of_any_size_in_process),
      LIMIT(files_of_any_size_in_another_process_shared),
      LIMIT(files_of_any_size_in_another_process_remote),
      LIMIT(freed_code_traps_where_no_file_is_shared),
  };
  return RUN_LIMITS(tests, argc, argv);
}
