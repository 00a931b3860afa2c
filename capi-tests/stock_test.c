// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// LLVM's own llvm-jitlink-executor, driven from C: as it is, and with this library loaded into it.
// Its path is the first argument.

#include "executor.h"
#include "here.h"

#include <dlfcn.h>

static const char *program;

struct stock {
  struct executor executor;
  jitmem_transport *transport;
};

static struct stock start_stock(void) {
  struct stock stock = {.executor = start_program(program)};
  OK(jitmem_transport_socket(stock.executor.socket, &stock.transport, error));
  return stock;
}

static void end_stock(struct stock stock) {
  jitmem_transport_free(stock.transport);
  assert_int_equal(status_of_executor(stock.executor), 0);
}

// ---- its dylib manager ----

static uint64_t published(const jitmem_transport *transport, const char *name) {
  uint64_t address = 0;
  OK(jitmem_transport_symbol(transport, name, &address, error));
  return address;
}

// The handle of a library that the executor opens; "" is the executor itself.
static uint64_t open_library(const jitmem_transport *transport, const char *path) {
  struct packed args = {.size = 0}, result = {.size = 0};
  pack_number(&args, published(transport, "__llvm_orc_SimpleExecutorDylibManager_Instance"));
  pack_text(&args, path);
  pack_number(&args, 0);
  OK(call_published(transport, "__llvm_orc_SimpleExecutorDylibManager_open_wrapper", &args, &result,
                    error));
  // A value, or the text of an error.
  if (result.size != 9 || result.bytes[0] != 1)
    fail_msg("open %s: %.*s", path, (int)result.size - 9, result.bytes + 9);
  uint64_t handle;
  memcpy(&handle, result.bytes + 1, sizeof handle);
  return handle;
}

// The address of a symbol in a library there.
static uint64_t find_symbol(const jitmem_transport *transport, uint64_t library, const char *name) {
  const char *resolve = "__llvm_orc_SimpleExecutorDylibManager_resolve_wrapper";
  uint64_t address;
  int resolves = jitmem_transport_symbol(transport, resolve, &address, NULL) == JITMEM_OK;
  struct packed args = {.size = 0}, result = {.size = 0};
  // Until LLVM 19 it is asked of the manager, and an answer is not optional.
  if (!resolves)
    pack_number(&args, published(transport, "__llvm_orc_SimpleExecutorDylibManager_Instance"));
  pack_number(&args, library);
  pack_number(&args, 1);
  pack_text(&args, name);
  pack(&args, "\1", 1);
  OK(call_published(transport,
                    resolves ? resolve : "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper",
                    &args, &result, error));
  size_t place = resolves ? 10 : 9;
  assert_int_equal(result.size, place + 10);
  assert_int_equal(result.bytes[0], 1);
  memcpy(&address, result.bytes + place, sizeof address);
  assert_true(address != 0);
  return address;
}

static jitmem_executor_options load_library(const jitmem_transport *transport) {
  Dl_info info;
  assert_true(dladdr((void *)(uintptr_t)jitmem_version, &info));
  uint64_t library = open_library(transport, info.dli_fname);
  return (jitmem_executor_options){.struct_size = sizeof(jitmem_executor_options),
                                   .service =
                                       find_symbol(transport, library, "jitmem_service_open")};
}

// ---- what is mapped ----

// Which protections a process has our memory mapped with, one bit for each way.
enum { WRITABLE = 1, EXECUTABLE = 2, BOTH = 4 };

static int protections(pid_t process) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%d/maps", (int)process);
  FILE *maps = fopen(path, "r");
  assert_non_null(maps);
  int found = 0;
  while (fgets(line, sizeof line, maps) != NULL) {
    assert_null(strstr(line, "/dev/shm/"));
    char mode[5] = "";
    if (strstr(line, "memfd:jitmem") == NULL || sscanf(line, "%*s %4s", mode) != 1)
      continue;
    int writes = mode[1] == 'w', runs = mode[2] == 'x';
    found |= writes && runs ? BOTH : writes ? WRITABLE : runs ? EXECUTABLE : 0;
  }
  fclose(maps);
  return found;
}

// ---- tests ----

static void what_it_publishes_can_be_called(void **state) {
  (void)state;
  struct stock stock = start_stock();
  uint64_t abs_there = find_symbol(stock.transport, open_library(stock.transport, ""), "abs");
  int32_t answer = 0;
  OK(call_int(stock.transport, abs_there, -4711, &answer, error));
  assert_int_equal(answer, 4711);
  uint64_t address = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "no symbol jitmem_service_open",
          jitmem_transport_symbol(stock.transport, "jitmem_service_open", &address, error));
  jitmem_mapper *mapper = NULL;
  REFUSED(JITMEM_UNSUPPORTED, "load libjitmem.so there",
          jitmem_mapper_shared(stock.transport, NULL, &mapper, error));
  end_stock(stock);
}

static void run_graphs(struct stock *stock, jitmem_manager *manager, int count) {
  uint64_t handles[10] = {0};
  for (int i = 0; i < count; i++) {
    const jitmem_segment segments[] = {segment(ADD_SIZE, 0, RX), segment(100, 0, R),
                                       segment(100, 100, RW)};
    struct graph graph = allocate(manager, segments, COUNT(segments));
    emit_add(graph.memory[0].working_memory, i);
    finalize(manager, graph.handle);
    int32_t answer = 0;
    OK(call_int(stock->transport, graph.memory[0].address, 1000, &answer, error));
    assert_int_equal(answer, 1000 + i);
    uint64_t *place = &handles[i % COUNT(handles)];
    if (*place != 0)
      deallocate(manager, *place);
    *place = graph.handle;
  }
  OK(jitmem_manager_deallocate(manager, handles, COUNT(handles), error));
}

static void with_the_library_loaded(void **state) {
  (void)state;
  struct stock stock = start_stock();
  const jitmem_executor_options options = load_library(stock.transport);
  for (int shared = 0; shared < 2; shared++) {
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = NULL;
    OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(stock.transport, &options, &mapper,
                                                              error));
    OK(jitmem_manager_create(mapper, NULL, &manager, error));
    run_graphs(&stock, manager, 100);
    assert_int_equal(stats_of(manager).mapper,
                     shared ? JITMEM_MAPPER_SHARED : JITMEM_MAPPER_REMOTE);
    if (shared) {
      // Written here and never run; run there and, what is run, never written.
      assert_int_equal(protections(getpid()), WRITABLE);
      assert_int_equal(protections(stock.executor.process), WRITABLE | EXECUTABLE);
    }
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
  }
  end_stock(stock);
}

static void with_its_own_services(void **state) {
  (void)state;
  struct stock stock = start_stock();
  for (int shared = 0; shared < 2; shared++) {
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = NULL;
    OK((shared ? jitmem_mapper_llvm_shared
               : jitmem_mapper_llvm_simple)(stock.transport, "it is as it came", &mapper, error));
    OK(jitmem_manager_create(mapper, NULL, &manager, error));
    run_graphs(&stock, manager, 50);
    // LLVM's shared service knows deallocation actions by an address, which must not be another's.
    const jitmem_segment passing = {.content_size = 8,
                                    .alignment = 8,
                                    .protection = JITMEM_PROT_READ,
                                    .lifetime = JITMEM_LIFETIME_FINALIZE};
    const jitmem_action action = {.dealloc = {.function = 1}};
    if (shared)
      FAILS(JITMEM_UNSUPPORTED, "a segment of standard lifetime",
            jitmem_manager_finalize(manager, allocate(manager, &passing, 1).handle, &action, 1,
                                    error));
    jitmem_stats stats = stats_of(manager);
    assert_int_equal(stats.mapper, shared ? JITMEM_MAPPER_LLVM_SHARED : JITMEM_MAPPER_LLVM_SIMPLE);
    assert_string_equal(stats.fallback_reason, "it is as it came");
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
  }
  end_stock(stock);
}

static void it_goes_while_it_has_memory(void **state) {
  (void)state;
  for (int killed = 0; killed < 2; killed++) {
    struct stock stock = start_stock();
    const jitmem_executor_options options = load_library(stock.transport);
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = NULL;
    OK(jitmem_mapper_shared(stock.transport, &options, &mapper, error));
    OK(jitmem_manager_create(mapper, NULL, &manager, error));
    struct graph graph = allocate_three(manager, 1), late = allocate_three(manager, 2);
    finalize(manager, graph.handle);
    if (killed) {
      kill(stock.executor.process, SIGKILL);
      assert_true(WIFSIGNALED(status_of_executor(stock.executor)));
      const jitmem_action action = {.finalize = {.function = 1}};
      FAILS(JITMEM_DISCONNECTED, "the executor is gone",
            jitmem_manager_finalize(manager, late.handle, &action, 1, error));
    }
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    jitmem_transport_free(stock.transport);
    if (!killed)
      assert_int_equal(status_of_executor(stock.executor), 0);
  }
}

static void the_connection_is_closed_first(void **state) {
  (void)state;
  struct stock stock = start_stock();
  const jitmem_executor_options options = load_library(stock.transport);
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_mapper_shared(stock.transport, &options, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  finalize(manager, allocate_three(manager, 1).handle);
  jitmem_transport_free(stock.transport);
  // The mapper keeps it until it goes itself.
  finalize(manager, allocate_three(manager, 2).handle);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  assert_int_equal(status_of_executor(stock.executor), 0);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_it_publishes_can_be_called),
      cmocka_unit_test(with_the_library_loaded),
      cmocka_unit_test(with_its_own_services),
      cmocka_unit_test(it_goes_while_it_has_memory),
      cmocka_unit_test(the_connection_is_closed_first),
  };
  if (argc != 2) {
    fprintf(stderr, "usage: %s <llvm-jitlink-executor>\n", argv[0]);
    return CHILD_FAILED;
  }
  program = argv[1];
  return at_rest(cmocka_run_group_tests_name(program, tests, NULL, NULL));
}
