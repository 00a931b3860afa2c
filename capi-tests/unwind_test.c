// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Frames of linked code, by sections written by hand. It is built with jitmem/unwind.c, by which
// libgcc_s, or a libgcc in the program, asks an index of jitmem's, and without, so that they are
// registered.

#include "executor.h"
#include "frames.h"

#include <pthread.h>
#include <stdatomic.h>

#ifdef WITH_INDEX
enum { INDEXED = 1 };
#else
enum { INDEXED = 0 };
#endif

struct hop {
  uint64_t handle, code;
};

static struct hop link_hop(const jitmem_manager *manager) {
  const jitmem_segment segments[] = {segment(sizeof hop_code, 0, RX), segment(SECTION_ROOM, 0, R)};
  jitmem_segment_memory memory[2];
  struct hop hop;
  OK(jitmem_manager_allocate(manager, segments, 2, 1, memory, &hop.handle, error));
  hop.code = memory[0].address;
  memcpy(memory[0].working_memory, hop_code, sizeof hop_code);
  struct section section = section_for(memory[1].address, hop.code);
  memset(memory[1].working_memory, 0, SECTION_ROOM);
  memcpy(memory[1].working_memory, section.bytes, section.size);
  uint64_t args[2];
  jitmem_action action;
  OK(jitmem_manager_eh_frame_action(manager, memory[1].address, section.size, args, &action,
                                    error));
  OK(jitmem_manager_finalize(manager, hop.handle, &action, 1, error));
  return hop;
}

// ---- tests ----

static void frames_are_found_until_their_code_goes(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_stats before = stats_of(manager);
  assert_int_equal(before.frames_found_by,
                   INDEXED ? JITMEM_FRAMES_INDEX : JITMEM_FRAMES_UNWINDER_ASKS_NONE);
  struct hop first = link_hop(manager), second = link_hop(manager);
  expect_found(first.code);
  expect_found(second.code);
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.frames_indexed - before.frames_indexed, INDEXED ? 2 : 0);
  assert_int_equal(after.frames_registered - before.frames_registered, INDEXED ? 0 : 2);

  void *bases[3] = {0};
  const void *address = (const void *)(uintptr_t)(second.code + 1);
  assert_int_equal(jitmem_find_fde(address, bases) != NULL, INDEXED);
  if (INDEXED)
    assert_ptr_equal(bases[2], (void *)(uintptr_t)second.code);
  deallocate(manager, second.handle);
  assert_null(jitmem_find_fde(address, bases));
  expect_found(first.code);
  deallocate(manager, first.handle);
}

static void addresses_that_are_used_again_are_found_as_they_are(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct hop hops[64];
  for (unsigned round = 0; round < 20; round++) {
    for (size_t i = 0; i < COUNT(hops); i++)
      hops[i] = link_hop(manager);
    for (size_t i = 0; i < COUNT(hops); i += 7)
      expect_found(hops[i].code);
    for (size_t i = 0; i < COUNT(hops); i++)
      deallocate(manager, hops[(i * 5 + round) % COUNT(hops)].handle);
  }
}

static void a_section_that_comes_twice_with_a_request_is_one(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment segments[] = {segment(sizeof hop_code, 0, RX), segment(SECTION_ROOM, 0, R)};
  jitmem_segment_memory memory[2];
  uint64_t handle;
  OK(jitmem_manager_allocate(manager, segments, 2, 1, memory, &handle, error));
  memcpy(memory[0].working_memory, hop_code, sizeof hop_code);
  struct section section = section_for(memory[1].address, memory[0].address);
  memcpy(memory[1].working_memory, section.bytes, section.size);
  uint64_t args[2];
  jitmem_action actions[2];
  OK(jitmem_manager_eh_frame_action(manager, memory[1].address, section.size, args, actions,
                                    error));
  actions[1] = actions[0];
  jitmem_stats before = stats_of(manager);
  OK(jitmem_manager_finalize(manager, handle, actions, 2, error));
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.frames_indexed + after.frames_registered,
                   before.frames_indexed + before.frames_registered + 1);
  expect_found(memory[0].address);
  deallocate(manager, handle);
}

// Two sections for one function: the second is known beside the first, and goes without it.
static void a_section_may_be_registered_twice(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct hop hop = link_hop(manager);
  const jitmem_segment one = segment(SECTION_ROOM, 0, R);
  struct graph graph = allocate_one(manager, one, 0);
  struct section section = section_for(graph.memory[0].address, hop.code);
  memcpy(graph.memory[0].working_memory, section.bytes, section.size);
  uint64_t args[2];
  jitmem_action action;
  OK(jitmem_manager_eh_frame_action(manager, graph.memory[0].address, section.size, args, &action,
                                    error));
  OK(jitmem_manager_finalize(manager, graph.handle, &action, 1, error));
  expect_found(hop.code);
  deallocate(manager, graph.handle);
  expect_found(hop.code);
  deallocate(manager, hop.handle);
}

struct walker {
  pthread_t thread;
  uint64_t code;
  atomic_int *stop;
  int walks;
};

static void *walk_until_told(void *ctx) {
  struct walker *walker = ctx;
  do {
    struct walk found = walk_through(walker->code);
    if (found.inside != 1 || found.behind < 1)
      return NULL;
    walker->walks++;
  } while (!atomic_load(walker->stop));
  return walker;
}

static void others_walk_while_code_comes_and_goes(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  atomic_int stop = 0;
  struct walker walkers[3];
  struct hop staying[COUNT(walkers)], passing[16];
  for (size_t i = 0; i < COUNT(walkers); i++) {
    staying[i] = link_hop(manager);
    walkers[i] = (struct walker){.code = staying[i].code, .stop = &stop};
    // Neighbours come and go in what is left of its page.
    assert_int_equal(pthread_create(&walkers[i].thread, NULL, walk_until_told, &walkers[i]), 0);
  }
  for (unsigned round = 0; round < rounds(400); round++) {
    for (size_t i = 0; i < COUNT(passing); i++)
      passing[i] = link_hop(manager);
    expect_found(passing[round % COUNT(passing)].code);
    for (size_t i = 0; i < COUNT(passing); i++)
      deallocate(manager, passing[i].handle);
  }
  atomic_store(&stop, 1);
  for (size_t i = 0; i < COUNT(walkers); i++) {
    void *whole = NULL;
    pthread_join(walkers[i].thread, &whole);
    assert_non_null(whole);
    assert_true(walkers[i].walks > 0);
    deallocate(manager, staying[i].handle);
  }
}

static void a_forked_child_has_the_frames_of_the_fork(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct hop hop = link_hop(manager);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    struct walk found = walk_through(hop.code);
    _exit(found.inside == 1 && found.behind > 1 ? 7 : 8);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  deallocate(manager, hop.handle);
}

static void functions_of_this_process(void **state) {
  (void)state;
  uint64_t enter = 0, leave = 0;
  if (INDEXED) {
    OK(jitmem_eh_frame_functions(&enter, &leave, error));
    assert_true(enter != 0 && leave != 0);
  } else {
    FAILS(JITMEM_UNSUPPORTED, "jitmem::unwind", jitmem_eh_frame_functions(&enter, &leave, error));
    assert_int_equal(enter, 0);
  }
}

// In jitmem-executor the action is no message: neither to finalize nor to deallocate. The code that
// it comes with is one where only that process can maintain its caches.
static void another_process_needs_no_message(void **state) {
  (void)state;
  struct executor executor = start_program(getenv("JITMEM_EXECUTOR"));
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_transport_socket(executor.socket, &transport, error));
  OK(jitmem_mapper_shared(transport, NULL, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  struct hop first = link_hop(manager);
  jitmem_stats before = stats_of(manager);
  assert_int_equal(before.frames_found_by, JITMEM_FRAMES_INDEX);
  for (int i = 0; i < 100; i++)
    deallocate(manager, link_hop(manager).handle);
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.frames_indexed - before.frames_indexed, 100);
  assert_int_equal(after.messages - before.messages, COHERENT_FETCH ? 0 : 100);
  deallocate(manager, first.handle);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);

  // Where content travels in messages the action goes along, and enters an index there.
  OK(jitmem_mapper_remote(transport, NULL, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  first = link_hop(manager);
  after = stats_of(manager);
  assert_int_equal(after.frames_found_by, JITMEM_FRAMES_INDEX);
  assert_int_equal(after.frames_indexed, 1);
  deallocate(manager, first.handle);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  assert_int_equal(status_of_executor(executor), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(frames_are_found_until_their_code_goes),
      EACH(addresses_that_are_used_again_are_found_as_they_are),
      EACH(a_section_that_comes_twice_with_a_request_is_one),
      EACH(a_section_may_be_registered_twice),
      EACH(others_walk_while_code_comes_and_goes),
      EACH(a_forked_child_has_the_frames_of_the_fork),
      cmocka_unit_test(functions_of_this_process),
      cmocka_unit_test(another_process_needs_no_message),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
