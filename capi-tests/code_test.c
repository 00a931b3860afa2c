// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Real machine code in memory from jitmem: it runs, reaches its constants and data, and traps once
// it is freed.

#include "code.h"
#include "here.h"
#include "reuse.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

// A distance that a signed 32-bit displacement holds.
static int in_reach(uint64_t from, uint64_t to) {
  int64_t distance = (int64_t)(to - from);
  return distance >= INT32_MIN && distance <= INT32_MAX;
}

static void code_runs(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(graph.memory[0].working_memory, 4711);
  finalize(manager, graph.handle);
  assert_int_equal(run(graph.memory[0].address), 4711);
  deallocate(manager, graph.handle);
}

static void code_reaches_constants_and_data(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment segments[] = {segment(48, 0, RX), segment(4, 0, R), segment(4, 4, RW)};
  struct graph graph = allocate(manager, segments, COUNT(segments));
  uint64_t code = graph.memory[0].address;
  uint8_t *working = graph.memory[0].working_memory;
  memset(working, 0, 48);
  const uint64_t targets[] = {graph.memory[1].address, graph.memory[2].address,
                              graph.memory[2].address + 4};
  for (uint64_t i = 0; i < COUNT(targets); i++) {
    assert_true(in_reach(code, targets[i]));
    emit_load(working + 16 * i, code + 16 * i, targets[i]);
  }
  memcpy(graph.memory[1].working_memory, &(uint32_t){1111}, 4);
  memcpy(graph.memory[2].working_memory, &(uint32_t){2222}, 4);
  finalize(manager, graph.handle);
  assert_int_equal(run(code), 1111);
  assert_int_equal(run(code + 16), 2222);
  assert_int_equal(run(code + 32), 0);
  // Data is the executor's to write, and code sees it.
  memcpy(at(targets[1]), &(uint32_t){3333}, 4);
  memcpy(at(targets[2]), &(uint32_t){4444}, 4);
  assert_int_equal(run(code + 16), 3333);
  assert_int_equal(run(code + 32), 4444);
  deallocate(manager, graph.handle);
}

static void the_c_library_is_in_reach(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = allocate_three(manager, 0);
  // The library's own objects, not copies or stubs of them in this program.
  void *library = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
  assert_non_null(library);
  const char *names[] = {"stderr", "environ", "malloc", "getpid"};
  for (size_t i = 0; i < COUNT(names); i++) {
    uint64_t symbol = (uintptr_t)dlsym(library, names[i]);
    assert_int_not_equal(symbol, 0);
    for (int j = 0; j < 3; j++)
      assert_true(in_reach(graph.memory[j].address, symbol));
  }
  dlclose(library);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

static void freed_code_traps(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  // A neighbour keeps the chunk, so that the freed bytes can be looked at.
  struct graph neighbour = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(neighbour.memory[0].working_memory, 5);
  finalize(manager, neighbour.handle);

  struct graph code = allocate_one(manager, segment(900, 100, RX), 0x90);
  finalize(manager, code.handle);
  assert_true(all_bytes_are(at(code.memory[0].address), 900, 0x90));
  deallocate(manager, code.handle);
  assert_true(all_traps(at(code.memory[0].address), 1000));
  assert_int_equal(run(neighbour.memory[0].address), 5);
  deallocate(manager, neighbour.handle);
}

static void abandoned_code_can_not_be_seen(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph neighbour = allocate_one(manager, segment(RETURN_SIZE, 0, RX), 0);
  emit_return(neighbour.memory[0].working_memory, 5);
  finalize(manager, neighbour.handle);
  struct graph code = allocate_one(manager, segment(1000, 0, RX), 0x90);
  OK(jitmem_manager_abandon(manager, code.handle, error));
  for (int i = 0; i < 1000; i++)
    assert_int_not_equal(at(code.memory[0].address)[i], 0x90);
  deallocate(manager, neighbour.handle);
}

// Executor mappings of this process with these permissions, of which `address` is one.
static int mapped_as(uint64_t address, const char *permissions) {
  FILE *maps = fopen("/proc/self/maps", "r");
  assert_non_null(maps);
  char line[512];
  int found = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long long start, end;
    char flags[5];
    if (sscanf(line, "%llx-%llx %4s", &start, &end, flags) == 3 && start <= address &&
        address < end)
      found = strncmp(flags, permissions, 3) == 0;
  }
  fclose(maps);
  return found;
}

// What SECURITY.md does not promise: in its own process nothing keeps code from being written.
static void linked_code_can_be_made_writable_here(void **state) {
  struct fixture *fixture = *state;
  if (fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS)
    not_under_valgrind("two views are of memfds then, which are sealed against other writers");
  struct graph graph = allocate_three(fixture->manager, 1);
  emit_return(graph.memory[0].working_memory, 1);
  finalize(fixture->manager, graph.handle);
  assert_int_equal(run(graph.memory[0].address), 1);
  const uintptr_t page = page_size();
  void *start = (void *)(graph.memory[0].address & -page);
  assert_int_equal(mprotect(start, page, PROT_READ | PROT_WRITE), 0);
  emit_return(at(graph.memory[0].address), 2);
  assert_int_equal(mprotect(start, page, PROT_READ | PROT_EXEC), 0);
  assert_int_equal(run(graph.memory[0].address), 2);
  deallocate(fixture->manager, graph.handle);
}

static void nothing_is_ever_writable_and_executable(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = allocate_three(fixture->manager, 0xc3);
  for (int pass = 0; pass < 2; pass++) {
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    char line[512];
    // valgrind's own translations are.
    while (!instrumented() && fgets(line, sizeof line, maps))
      assert_null(strstr(line, "rwx"));
    fclose(maps);
    if (pass == 0)
      finalize(fixture->manager, graph.handle);
  }
  const char *permissions[] = {"r-x", "r--", "rw-"};
  for (int i = 0; i < 3; i++)
    assert_true(mapped_as(graph.memory[i].address, permissions[i]));
  if (fixture->kind == JITMEM_IN_PROCESS_TWO_VIEWS) {
    assert_true(mapped_as((uintptr_t)graph.memory[0].working_memory, "rw-"));
    assert_true((uintptr_t)graph.memory[0].working_memory != graph.memory[0].address);
  }
  deallocate(fixture->manager, graph.handle);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(code_runs),
      EVERYWHERE(code_reaches_constants_and_data),
      EVERYWHERE(the_c_library_is_in_reach),
      EVERYWHERE(other_code_runs_in_the_same_place),
      EVERYWHERE(freed_code_traps),
      EVERYWHERE(abandoned_code_can_not_be_seen),
      EACH(linked_code_can_be_made_writable_here),
      EVERYWHERE(nothing_is_ever_writable_and_executable),
  };
  return at_rest(cmocka_run_group_tests_name("code", tests, NULL, NULL));
}
