// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Linux 4.19 and 5.10, as RHEL 8 and Debian 10 and 11 have them: every mapper works, and executors
// do.

#include "code.h"
#include "executor.h"
#include "kernels.h"

// A test for each kernel, in a child that sees no more than the kernel has.
#define ON_OLD_KERNELS(name)                                                                       \
  static void body_of_##name(void (*older)(void));                                                 \
  LIMITED(name##_on_4_19) { body_of_##name(pretend_4_19); }                                        \
  LIMITED(name##_on_5_10) { body_of_##name(pretend_5_10); }                                        \
  static void body_of_##name(void (*older)(void) __attribute__((unused)))

// The filter keeps from this process what it shall.
static void must_be_older(void) {
  MUST(syscall(SYS_memfd_create, "new", 8u) < 0 && errno == EINVAL);
  MUST(syscall(441, 0, 0, 0, 0, 0, 0) < 0 && errno == ENOSYS);
  void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(page != MAP_FAILED && madvise(page, page_size(), 23) < 0 && errno == EINVAL);
  MUST(munmap(page, page_size()) == 0);
}

static const jitmem_manager_options choices[] = {
    {0},
    {.commit = 1},
    {.close_writers = 1},
    {.growth = JITMEM_GROWTH_ANOTHER_WINDOW},
    {.placement = JITMEM_PLACEMENT_NEAR, .address = 0x220000000000}};

// What a host does with a manager of its own process.
static void must_work(uint32_t kind, uint32_t mapper) {
  for (size_t i = 0; i < COUNT(choices); i++) {
    jitmem_manager *manager = child_manager(kind, choices[i]);
    MUST(child_stats(manager).mapper == mapper);
    for (uint32_t round = 1; round < 20; round++) {
      child_graph(manager);
      const jitmem_segment segments[] = {segment(RETURN_SIZE, 0, RX), segment(MIB, MIB, RW)};
      struct graph graph;
      MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &graph.handle, error));
      emit_return(graph.memory[0].working_memory, round);
      MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
      MUST(run(graph.memory[0].address) == round);
      MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
    }
    MUST(child_stats(manager).unmap_failures == 0);
    jitmem_manager_free(manager);
  }
}

ON_OLD_KERNELS(anonymous_views) {
  older();
  must_be_older();
  must_work(JITMEM_IN_PROCESS_AUTO, JITMEM_MAPPER_TWO_VIEWS);
}

ON_OLD_KERNELS(views_of_memfds) {
  deny(SYS_mremap, EPERM);
  older();
  must_work(JITMEM_IN_PROCESS_TWO_VIEWS, JITMEM_MAPPER_TWO_VIEWS);
}

ON_OLD_KERNELS(mprotect) {
  older();
  must_work(JITMEM_IN_PROCESS_MPROTECT, JITMEM_MAPPER_MPROTECT);
}

ON_OLD_KERNELS(writing_what_is_finalized) {
  older();
  jitmem_manager *manager =
      child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){.close_writers = 1});
  const jitmem_segment code = segment(16, 0, RX);
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  emit_return(graph.memory[0].working_memory, 1);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST(run(graph.memory[0].address) == 1);
  uint8_t other[(RETURN_SIZE + 7) / 8 * 8] = {0};
  emit_return(other, 2);
  jitmem_write_scope *scope = NULL;
  MUST_OK(jitmem_write_scope_begin(manager, graph.handle, &scope, error));
  MUST_OK(jitmem_write_scope_store(scope, graph.memory[0].address, other, sizeof other, error));
  MUST_OK(jitmem_write_scope_end(scope, error));
  MUST(run(graph.memory[0].address) == 2);
  jitmem_manager_free(manager);
}

// Controller and executor both see the older kernel.
static void must_serve(struct executor executor, void (*older)(void), int shared) {
  older();
  must_be_older();
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_transport_socket(executor.socket, &transport, error));
  MUST_OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(transport, NULL, &mapper, error));
  const jitmem_manager_options options = {
      .struct_size = sizeof options, .commit = 1, .close_writers = 1};
  MUST_OK(jitmem_manager_create(mapper, &options, &manager, error));
  MUST(child_stats(manager).mapper == (shared ? JITMEM_MAPPER_SHARED : JITMEM_MAPPER_REMOTE));
  link_and_call_often(manager, transport);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  MUST(status_of_executor(executor) == 0);
}

ON_OLD_KERNELS(an_executor_with_shared_pages) { must_serve(start_executor(older), older, 1); }

ON_OLD_KERNELS(an_executor_with_messages) { must_serve(start_executor(older), older, 0); }

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      LIMIT(anonymous_views_on_4_19),
      LIMIT(anonymous_views_on_5_10),
      LIMIT(views_of_memfds_on_4_19),
      LIMIT(views_of_memfds_on_5_10),
      LIMIT(mprotect_on_4_19),
      LIMIT(mprotect_on_5_10),
      LIMIT(writing_what_is_finalized_on_4_19),
      LIMIT(writing_what_is_finalized_on_5_10),
      LIMIT(an_executor_with_shared_pages_on_4_19),
      LIMIT(an_executor_with_shared_pages_on_5_10),
      LIMIT(an_executor_with_messages_on_4_19),
      LIMIT(an_executor_with_messages_on_5_10),
  };
  return RUN_LIMITS(tests, argc, argv);
}
