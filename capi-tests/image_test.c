// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images: linked code in a file, and from there in managers of any kind.

#include "executor.h"
#include "image.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>

static const int32_t elsewhere = 30;

// Links an image whose import is `imported` and finalizes it.
static uint64_t link_image(const jitmem_image *image, const jitmem_manager *manager,
                           uint64_t imported) {
  const jitmem_image_link_request request = {.struct_size = sizeof request,
                                             .addresses = &imported,
                                             .address_count = 1,
                                             .dylib = 9,
                                             .tag = 4,
                                             .name = "an image",
                                             .dylib_name = "a library"};
  uint64_t allocation = 0;
  OK(jitmem_image_link(image, manager, &request, error));
  OK(jitmem_image_finalize(image, NULL, 0, &allocation, error));
  return allocation;
}

// Addresses of answer and hop.
static void expect_exports(const jitmem_image *image, uint64_t addresses[2]) {
  jitmem_image_export exports[2] = {0};
  size_t count = 0;
  OK(jitmem_image_exports(image, exports, COUNT(exports), &count, error));
  assert_int_equal(count, 2);
  assert_string_equal(exports[0].symbol, "answer");
  assert_string_equal(exports[1].symbol, "hop");
  assert_int_equal(exports[0].flags, 5);
  for (size_t i = 0; i < COUNT(exports); i++)
    addresses[i] = exports[i].address;
}

static int32_t run_answer(uint64_t code, int32_t argument) {
  return ((int32_t (*)(int32_t))(uintptr_t)code)(argument);
}

static void see_label(void *ctx, const jitmem_allocation *allocation) {
  assert_string_equal(allocation->name, "an image");
  assert_string_equal(allocation->dylib_name, "a library");
  assert_int_equal(allocation->tag, 4);
  assert_int_equal(allocation->dylib, 9);
  *(int *)ctx = 1;
}

static void an_image_is_linked_into_managers(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image");
  store_image(fixture->manager, file.path, 10);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);

  const char *import = NULL;
  size_t count = 0;
  OK(jitmem_image_imports(image, NULL, 0, &count, error));
  assert_int_equal(count, 1);
  OK(jitmem_image_imports(image, &import, 1, &count, error));
  assert_string_equal(import, "imported");
  uint64_t addresses[2], others[2];
  expect_exports(image, addresses);
  assert_int_equal(addresses[0], 0);

  // Twice in one manager and once in another, all of them at the same time.
  jitmem_manager *other = manager_with(fixture, (jitmem_manager_options){0});
  jitmem_manager *managers[] = {fixture->manager, other, other};
  uint64_t allocations[COUNT(managers)], codes[COUNT(managers)][2];
  for (size_t i = 0; i < COUNT(managers); i++) {
    allocations[i] = link_image(image, managers[i], (uintptr_t)&elsewhere);
    expect_exports(image, codes[i]);
    int described = 0;
    OK(jitmem_manager_describe(managers[i], allocations[i], see_label, &described, error));
    assert_int_equal(described, 1);
  }
  for (size_t i = 0; i < COUNT(managers); i++) {
    assert_int_equal(run_answer(codes[i][0], 2), 42);
    struct walk found = walk_through(codes[i][1]);
    assert_int_equal(found.inside, 1);
    assert_true(found.behind >= 2);
  }
  assert_true(codes[0][0] != codes[1][0] && codes[1][0] != codes[2][0]);
  expect_exports(image, others);
  assert_int_equal(others[0], codes[2][0]);
  // What was linked stays without the image.
  jitmem_image_free(image);
  assert_int_equal(run_answer(codes[1][0], 2), 42);
  for (size_t i = 0; i < COUNT(managers); i++)
    deallocate(managers[i], allocations[i]);
  assert_int_equal(stats_of(fixture->manager).live, 0);
  jitmem_manager_free(other);
}

static int actions_run;

static struct wrapper_result count_action(const char *args, size_t size) {
  assert_int_equal(size, 1);
  actions_run += *args;
  return succeed();
}

static struct wrapper_result fail_action(const char *args, size_t size) {
  (void)args, (void)size;
  return fail_with("no");
}

static void actions_of_the_host_run_with_it(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-actions");
  store_image(fixture->manager, file.path, 10);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);
  uint64_t imported = (uintptr_t)&elsewhere, allocation = 0;
  const jitmem_image_link_request request = {
      .struct_size = sizeof request, .addresses = &imported, .address_count = 1};
  const jitmem_action good = {.finalize = call_of(count_action, "\1", 1),
                              .dealloc = call_of(count_action, "\2", 1)};
  const jitmem_action actions[] = {good, {.finalize = call_of(fail_action, NULL, 0)}};

  FAILS(JITMEM_INVALID_ARGUMENT, "link it before",
        jitmem_image_finalize(image, NULL, 0, &allocation, error));
  actions_run = 0;
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  FAILS(JITMEM_ACTION_FAILED, "no", jitmem_image_finalize(image, actions, 2, &allocation, error));
  assert_int_equal(actions_run, 3);
  assert_int_equal(stats_of(fixture->manager).live, 0);

  OK(jitmem_image_link(image, fixture->manager, &request, error));
  OK(jitmem_image_finalize(image, actions, 1, &allocation, error));
  assert_int_equal(actions_run, 4);
  deallocate(fixture->manager, allocation);
  assert_int_equal(actions_run, 6);

  // What is in flight goes with another link, and with the image.
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  assert_int_equal(stats_of(fixture->manager).in_flight, 1);
  jitmem_image_free(image);
  assert_int_equal(stats_of(fixture->manager).in_flight, 0);
}

// A graph without code, whose actions are called with what is in its data.
static void store_actions(const jitmem_manager *manager, const char *path) {
  struct {
    uint64_t function;
    char args[8];
  } content = {(uintptr_t)count_action, "\10\20"};
  jitmem_segment segments[] = {segment(sizeof content, 0, R)};
  struct graph graph = allocate(manager, segments, 1);
  const uint64_t address = graph.memory[0].address;
  memcpy(graph.memory[0].working_memory, &content, sizeof content);
  const jitmem_image_segment described = {
      .address = address, .content = &content, .segment = segments[0]};
  const jitmem_image_import import = {
      .slot = address, .symbol = "count_action", .kind = JITMEM_IMAGE_ABSOLUTE_64};
  jitmem_image_action actions[] = {
      {.finalize = {.function = address, .args = address + 8, .args_size = 1},
       .dealloc = {.function = address, .args = address + 9, .args_size = 1}},
      {.finalize = {.function = address, .args = address + 9, .args_size = 1}}};
  const jitmem_image_graph acting = {.struct_size = sizeof acting,
                                     .segments = &described,
                                     .segment_count = 1,
                                     .imports = &import,
                                     .import_count = 1,
                                     .actions = actions,
                                     .action_count = COUNT(actions)};
  jitmem_image_recorder *recorder = NULL;
  OK(jitmem_image_recorder_create(&recorder, error));
  actions[0].dealloc.reserved[1] = 1;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_image_call",
        jitmem_image_recorder_record(recorder, &acting, NULL, error));
  actions[0].dealloc.reserved[1] = 0;
  actions[1].reserved[0] = 1;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_image_action",
        jitmem_image_recorder_record(recorder, &acting, NULL, error));
  actions[1].reserved[0] = 0;
  actions[1].finalize.args_size = UINT64_MAX;
  FAILS(JITMEM_INVALID_ARGUMENT, "end beyond the last address",
        jitmem_image_recorder_record(recorder, &acting, NULL, error));
  actions[1].finalize.args_size = 1;
  OK(jitmem_image_recorder_record(recorder, &acting, NULL, error));
  OK(jitmem_image_recorder_store(recorder, path, image_key, COUNT(image_key), error));
  jitmem_image_recorder_free(recorder);
  OK(jitmem_manager_abandon(manager, graph.handle, error));
}

static void actions_are_stored_with_it(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-stored-actions");
  store_actions(fixture->manager, file.path);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);
  uint64_t function = 0, allocation = 0;
  const jitmem_image_link_request request = {
      .struct_size = sizeof request, .addresses = &function, .address_count = 1};
  FAILS(JITMEM_INVALID_ARGUMENT, "function of an action is at address 0",
        jitmem_image_link(image, fixture->manager, &request, error));
  function = (uintptr_t)count_action;
  const jitmem_action own = {.finalize = call_of(count_action, "\1", 1)};
  const jitmem_action failing = {.finalize = call_of(fail_action, NULL, 0)};
  for (int i = 0; i < 3; i++) {
    actions_run = 0;
    OK(jitmem_image_link(image, fixture->manager, &request, error));
    OK(jitmem_image_finalize(image, &own, 1, &allocation, error));
    assert_int_equal(actions_run, 8 + 16 + 1);
    deallocate(fixture->manager, allocation);
    assert_int_equal(actions_run, 8 + 16 + 1 + 16);
  }
  // The host's own follow; where one fails, what has run is undone.
  actions_run = 0;
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  FAILS(JITMEM_ACTION_FAILED, "no", jitmem_image_finalize(image, &failing, 1, &allocation, error));
  assert_int_equal(actions_run, 8 + 16 + 16);
  jitmem_image_free(image);
  assert_int_equal(stats_of(fixture->manager).live, 0);
}

static void an_image_is_not_finalized_without_its_manager(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-freed");
  store_image(fixture->manager, file.path, 10);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(fixture->mapper, NULL, &manager, error));
  uint64_t imported = (uintptr_t)&elsewhere, allocation = 7;
  jitmem_image_link_request request = {
      .struct_size = sizeof request, .addresses = &imported, .address_count = 1};
  OK(jitmem_image_link(image, manager, &request, error));
  jitmem_manager_free(manager);
  FAILS(JITMEM_INVALID_HANDLE, "manager was freed",
        jitmem_image_finalize(image, NULL, 0, &allocation, error));
  assert_int_equal(allocation, 7);
  // It is given up.
  FAILS(JITMEM_INVALID_ARGUMENT, "nothing is in flight",
        jitmem_image_finalize(image, NULL, 0, &allocation, error));
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  OK(jitmem_image_finalize(image, NULL, 0, &allocation, error));
  deallocate(fixture->manager, allocation);
  jitmem_image_free(image);
}

static void without_frames_none_are_registered(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-frames");
  store_image(fixture->manager, file.path, 10);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);
  uint64_t imported = (uintptr_t)&elsewhere, allocation = 0;
  jitmem_image_link_request request = {.struct_size = sizeof request,
                                       .addresses = &imported,
                                       .address_count = 1,
                                       .without_frames = 1};
  jitmem_stats before = stats_of(fixture->manager);
  OK(jitmem_image_link(image, fixture->manager, &request, error));
  OK(jitmem_image_finalize(image, NULL, 0, &allocation, error));
  jitmem_stats after = stats_of(fixture->manager);
  assert_int_equal(before.frames_indexed + before.frames_registered,
                   after.frames_indexed + after.frames_registered);
  request.without_frames = 2;
  FAILS(JITMEM_INVALID_ARGUMENT, "without_frames 2",
        jitmem_image_link(image, fixture->manager, &request, error));
  request.without_frames = 0;
  request.address_count = 0;
  FAILS(JITMEM_INVALID_ARGUMENT, "link an image: 0 addresses for the 1 symbols",
        jitmem_image_link(image, fixture->manager, &request, error));
  jitmem_image_free(image);
  deallocate(fixture->manager, allocation);
}

static void an_image_runs_in_another_process(void **state) {
  (void)state;
  jitmem_mapper *here = NULL;
  jitmem_manager *linker = NULL;
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &here, error));
  OK(jitmem_manager_create(here, NULL, &linker, error));
  struct image_file file = image_file("image-executor");
  store_image(linker, file.path, 10);
  jitmem_manager_free(linker);
  jitmem_mapper_free(here);
  jitmem_image *image = open_image(file.path);
  unlink(file.path);

  struct executor executor = start_program(getenv("JITMEM_EXECUTOR"));
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_socket(executor.socket, &transport, error));
  jitmem_status (*const make[])(const jitmem_transport *, const jitmem_executor_options *,
                                jitmem_mapper **,
                                jitmem_error **) = {jitmem_mapper_shared, jitmem_mapper_remote};
  for (size_t i = 0; i < COUNT(make); i++) {
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = NULL;
    OK(make[i](transport, NULL, &mapper, error));
    OK(jitmem_manager_create(mapper, NULL, &manager, error));
    // What is imported lies in the executor: an int that is allocated there.
    const jitmem_segment one = segment(4, 0, RW);
    struct graph number = allocate(manager, &one, 1);
    memcpy(number.memory[0].working_memory, &elsewhere, sizeof elsewhere);
    finalize(manager, number.handle);
    uint64_t allocation = link_image(image, manager, number.memory[0].address);
    assert_int_equal(stats_of(manager).frames_indexed, 1);
    uint64_t addresses[2];
    int32_t answer = 0;
    expect_exports(image, addresses);
    OK(call_int(transport, addresses[0], 2, &answer, error));
    assert_int_equal(answer, 42);
    deallocate(manager, allocation);
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
  }
  jitmem_image_free(image);
  jitmem_transport_free(transport);
  assert_int_equal(status_of_executor(executor), 0);
}

enum { LARGE_SIZE = 3 << 19 };

// An image of so much code that it takes a chunk of its own, and a large file. The code stays in
// the pages that it is read into, and the rest is copied.
static void store_large_image(const char *path) {
  uint8_t *content = calloc(1, LARGE_SIZE);
  assert_non_null(content);
  const jitmem_image_segment segments[] = {
      {.address = 0x10000, .content = content, .segment = segment(LARGE_SIZE, 0, RX)},
      {.address = 0x400000, .content = content, .segment = segment(240 << 10, 0, R)},
      {.address = 0x800000, .content = content, .segment = segment(24 << 10, 0, RW)}};
  const jitmem_image_graph graph = {.struct_size = sizeof graph,
                                    .name = "large.o",
                                    .segments = segments,
                                    .segment_count = COUNT(segments)};
  jitmem_image_recorder *recorder = NULL;
  OK(jitmem_image_recorder_create(&recorder, error));
  OK(jitmem_image_recorder_record(recorder, &graph, NULL, error));
  OK(jitmem_image_recorder_store(recorder, path, image_key, COUNT(image_key), error));
  jitmem_image_recorder_free(recorder);
  free(content);
}

static jitmem_image *load_large_image(const char *path, const jitmem_manager *manager) {
  const jitmem_image_link_request request = {.struct_size = sizeof request};
  uint64_t allocation = 0;
  jitmem_image *image = open_image(path);
  OK(jitmem_image_link(image, manager, &request, error));
  OK(jitmem_image_finalize(image, NULL, 0, &allocation, error));
  return image;
}

// ---- groups ----

enum { MEMBERS = 4 };

// The number of the file whose pages a process has at an address.
static uint64_t file_at(pid_t process, uint64_t address) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%d/maps", (int)process);
  FILE *maps = fopen(path, "r");
  assert_non_null(maps);
  unsigned long long start, end, file = 0;
  while (fgets(line, sizeof line, maps) != NULL)
    if (sscanf(line, "%llx-%llx %*s %*s %*s %llu", &start, &end, &file) == 3 && start <= address &&
        address < end)
      break;
  fclose(maps);
  return file;
}

static void messages_of(void *ctx, const jitmem_group_executor *executor) {
  uint64_t *most = ctx;
  *most = executor->messages > *most ? executor->messages : *most;
}

static void an_image_is_loaded_once_for_a_group(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-group"), large = image_file("image-group-large");
  store_image(fixture->manager, file.path, 10);
  store_large_image(large.path);
  struct executor executors[MEMBERS];
  jitmem_new_executor members[MEMBERS] = {0};
  jitmem_transport *transports[MEMBERS];
  // Forks of this program, which have what is imported at the same address. All of them before
  // there are threads: to valgrind, what a thread of the parent holds is lost in its children.
  for (size_t i = 0; i < MEMBERS; i++)
    executors[i] = start_executor(NULL);
  for (size_t i = 0; i < MEMBERS; i++) {
    OK(jitmem_transport_socket(executors[i].socket, &transports[i], error));
    members[i].transport = transports[i];
  }
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_mapper_group(members, MEMBERS, NULL, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  jitmem_image *image = open_image(file.path);
  uint64_t addresses[2], allocation = link_image(image, manager, (uintptr_t)&elsewhere);
  expect_exports(image, addresses);
  const uint64_t pages = file_at(executors[0].process, addresses[0]);
  assert_true(pages != 0);
  for (size_t i = 0; i < MEMBERS; i++) {
    int32_t answer = 0;
    OK(call_int(transports[i], addresses[0], 2, &answer, error));
    assert_int_equal(answer, 42);
    assert_int_equal(file_at(executors[i].process, addresses[0]), pages);
  }

  // Content goes into pages that all have, and not into messages.
  uint64_t before = 0, after = 0;
  const uint64_t chunks = stats_of(manager).chunks;
  OK(jitmem_mapper_executors(mapper, messages_of, &before, error));
  jitmem_image_free(load_large_image(large.path, manager));
  OK(jitmem_mapper_executors(mapper, messages_of, &after, error));
  assert_in_range(after - before, 1, stats_of(manager).chunks - chunks + 1);

  jitmem_image_free(image);
  deallocate(manager, allocation);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  for (size_t i = 0; i < MEMBERS; i++) {
    jitmem_transport_free(transports[i]);
    assert_int_equal(status_of_executor(executors[i]), 0);
  }
  unlink(file.path);
  unlink(large.path);
}

// ---- system calls ----

// What a traced child does, between two calls that do nothing.
static void mark(void) { (void)!syscall(SYS_getppid); }

enum { SMALL_IMAGES = 2, IMAGES };

static void open_link_and_run(const char *path, const char *large) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  uint64_t addresses[2];
  // By default a process that is traced has the mprotect mapper.
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  for (int i = 0; i < SMALL_IMAGES; i++) {
    mark();
    jitmem_image *image = open_image(path);
    link_image(image, manager, (uintptr_t)&elsewhere);
    mark();
    expect_exports(image, addresses);
  }
  mark();
  jitmem_image *loaded = load_large_image(large, manager);
  mark();
  jitmem_image_free(loaded);
  _exit(run_answer(addresses[0], 2));
}

// Counts the system calls of a fresh process.
static void an_image_takes_few_system_calls(void **state) {
  struct fixture *fixture = *state;
  not_under_valgrind("it can't trace its children");
  struct image_file file = image_file("image-calls");
  store_image(fixture->manager, file.path, 10);
  struct image_file large = image_file("image-calls-large");
  store_large_image(large.path);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
      _exit(CHILD_FAILED);
    raise(SIGSTOP);
    open_link_and_run(file.path, large.path);
  }
  int status = 0, part = 0, entered = 0;
  int calls[2 * IMAGES + 1] = {0};
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSTOPPED(status));
  assert_int_equal(ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_TRACESYSGOOD), 0);
  while (ptrace(PTRACE_SYSCALL, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
         WIFSTOPPED(status)) {
    if (WSTOPSIG(status) != (SIGTRAP | 0x80))
      continue;
    entered = !entered;
    struct __ptrace_syscall_info info = {0};
    ptrace(PTRACE_GET_SYSCALL_INFO, child, (void *)sizeof info, &info);
    if (!entered)
      continue;
    if (info.entry.nr == SYS_getppid && part < 2 * IMAGES)
      part++;
    else
      calls[part]++;
  }
  unlink(file.path);
  unlink(large.path);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 42);
  assert_int_equal(part, 2 * IMAGES);
  print_message("%d system calls for the first image of a manager, %d for another one, %d for a "
                "large one\n",
                calls[1], calls[3], calls[5]);
  if (!instrumented()) {
    // Up to 20 for an image, and 10 for the window of the first one.
    assert_in_range(calls[1], 4, 30);
    assert_in_range(calls[3], 4, 20);
    assert_in_range(calls[5], 4, 20);
  }
}

// ---- what is refused ----

static void files_are_refused_by_name(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-refused");
  store_image(fixture->manager, file.path, 10);
  jitmem_image *image = NULL;
  const jitmem_image_key other = {.name = "linker", .value = "another"};
  REFUSED(JITMEM_UNSUPPORTED, "linker is \"another\" here and \"these tests\" in it",
          jitmem_image_open(file.path, &other, 1, &image, error));
  REFUSED(JITMEM_UNSUPPORTED, "its key has 4 parts, not 3",
          jitmem_image_open(file.path, NULL, 0, &image, error));

  FILE *stream = fopen(file.path, "r+b");
  assert_non_null(stream);
  assert_int_equal(fseek(stream, -1, SEEK_END), 0);
  const long last = ftell(stream);
  int byte = fgetc(stream);
  assert_int_equal(fseek(stream, -1, SEEK_END), 0);
  assert_true(fputc(byte ^ 1, stream) != EOF && fclose(stream) == 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "checksum",
          jitmem_image_open(file.path, image_key, 1, &image, error));
  assert_int_equal(truncate(file.path, last), 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "torn",
          jitmem_image_open(file.path, image_key, 1, &image, error));
  unlink(file.path);
  REFUSED(JITMEM_SYSTEM, "open image", jitmem_image_open(file.path, image_key, 1, &image, error));
  assert_null(image);
}

static void graphs_are_refused_by_name(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-graphs");
  jitmem_image_recorder *recorder = NULL;
  OK(jitmem_image_recorder_create(&recorder, error));
  uint8_t bytes[16] = {0};
  jitmem_image_segment one = {
      .address = 0x10000, .content = bytes, .segment = segment(sizeof bytes, 0, RW)};
  jitmem_image_reference reference = {.slot = 0x10000, .target = 0x90000, .kind = 6};
  jitmem_image_graph graph = {.struct_size = sizeof graph,
                              .name = "odd.o",
                              .segments = &one,
                              .segment_count = 1,
                              .references = &reference,
                              .reference_count = 1};
  uint64_t id = 0;
  REFUSED(JITMEM_INVALID_ARGUMENT, "reference kind 6",
          jitmem_image_recorder_record(recorder, &graph, &id, error));
  reference.kind = JITMEM_IMAGE_ABSOLUTE_64;
  reference.reserved[1] = 1;
  REFUSED(JITMEM_INVALID_ARGUMENT, "reserved",
          jitmem_image_recorder_record(recorder, &graph, &id, error));
  reference.reserved[1] = 0;
  reference.origin = 0x10000;
  REFUSED(JITMEM_INVALID_ARGUMENT, "origin is 0x10000",
          jitmem_image_recorder_record(recorder, &graph, &id, error));
  reference.origin = 0;
  one.segment.lifetime = JITMEM_LIFETIME_FINALIZE;
  REFUSED(JITMEM_UNSUPPORTED, "graph \"odd.o\"",
          jitmem_image_recorder_record(recorder, &graph, &id, error));
  one.segment.lifetime = JITMEM_LIFETIME_STANDARD;
  graph.struct_size = 8;
  REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
          jitmem_image_recorder_record(recorder, &graph, &id, error));
  graph.struct_size = sizeof graph;
  OK(jitmem_image_recorder_record(recorder, &graph, &id, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "in no recorded graph",
          jitmem_image_recorder_store(recorder, file.path, NULL, 0, error));
  OK(jitmem_image_recorder_forget(recorder, id, error));
  REFUSED(JITMEM_INVALID_HANDLE, "forgotten before",
          jitmem_image_recorder_forget(recorder, id, error));
  jitmem_image_recorder_free(recorder);
  REFUSED(JITMEM_INVALID_HANDLE, "freed before", jitmem_image_recorder_forget(recorder, id, error));
  (void)fixture;
}

static void null_is_refused(void **state) {
  struct fixture *fixture = *state;
  struct image_file file = image_file("image-null");
  jitmem_image_recorder *recorder = NULL;
  jitmem_image *image = NULL;
  uint64_t number = 0;
  size_t count = 0;
  const char *symbol = NULL;
  jitmem_image_export export = {0};
  REFUSED(JITMEM_INVALID_ARGUMENT, "image_recorder is NULL",
          jitmem_image_recorder_create(NULL, error));
  OK(jitmem_image_recorder_create(&recorder, error));
  const jitmem_image_graph empty = {.struct_size = sizeof empty};
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_recorder is NULL",
          jitmem_image_recorder_record(NULL, &empty, &number, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_graph is NULL",
          jitmem_image_recorder_record(recorder, NULL, &number, error));
  const jitmem_image_graph lies[] = {
      {.struct_size = sizeof empty, .segment_count = 1},
      {.struct_size = sizeof empty, .import_count = 1},
      {.struct_size = sizeof empty, .reference_count = 1},
      {.struct_size = sizeof empty, .export_count = 1},
      {.struct_size = sizeof empty, .frames_count = 1},
      {.struct_size = sizeof empty, .action_count = 1},
      {.struct_size = sizeof empty,
       .import_count = 1,
       .imports = &(jitmem_image_import){.kind = 1}},
      {.struct_size = sizeof empty, .export_count = 1, .exports = &export},
  };
  for (size_t i = 0; i < COUNT(lies); i++)
    REFUSED(JITMEM_INVALID_ARGUMENT, " is NULL",
            jitmem_image_recorder_record(recorder, &lies[i], &number, error));
  OK(jitmem_image_recorder_record(recorder, &empty, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_recorder is NULL",
          jitmem_image_recorder_forget(NULL, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_recorder is NULL",
          jitmem_image_recorder_store(NULL, file.path, NULL, 0, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "path is NULL",
          jitmem_image_recorder_store(recorder, NULL, NULL, 0, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "key is NULL",
          jitmem_image_recorder_store(recorder, file.path, NULL, 1, error));
  const jitmem_image_key nameless = {.value = "1"}, valueless = {.name = "a"};
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_key.name is NULL",
          jitmem_image_recorder_store(recorder, file.path, &nameless, 1, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_key.value is NULL",
          jitmem_image_recorder_store(recorder, file.path, &valueless, 1, error));
  jitmem_image_recorder_free(NULL);

  store_image(fixture->manager, file.path, 10);
  REFUSED(JITMEM_INVALID_ARGUMENT, "path is NULL", jitmem_image_open(NULL, NULL, 0, &image, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "key is NULL",
          jitmem_image_open(file.path, NULL, 1, &image, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "image is NULL",
          jitmem_image_open(file.path, image_key, 1, NULL, error));
  image = open_image(file.path);
  unlink(file.path);
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image is NULL",
          jitmem_image_imports(NULL, &symbol, 1, &count, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "symbols is NULL",
          jitmem_image_imports(image, NULL, 1, &count, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "count is NULL",
          jitmem_image_imports(image, &symbol, 1, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image is NULL",
          jitmem_image_exports(NULL, &export, 1, &count, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "exports is NULL",
          jitmem_image_exports(image, NULL, 1, &count, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "count is NULL",
          jitmem_image_exports(image, &export, 1, NULL, error));
  const jitmem_image_link_request request = {.struct_size = sizeof request};
  const jitmem_image_link_request lie = {.struct_size = sizeof lie, .address_count = 1};
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image is NULL",
          jitmem_image_link(NULL, fixture->manager, &request, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_manager is NULL",
          jitmem_image_link(image, NULL, &request, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image_link_request is NULL",
          jitmem_image_link(image, fixture->manager, NULL, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "addresses is NULL",
          jitmem_image_link(image, fixture->manager, &lie, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_image is NULL",
          jitmem_image_finalize(NULL, NULL, 0, &number, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "allocation is NULL",
          jitmem_image_finalize(image, NULL, 0, NULL, error));
  jitmem_image_free(image);
  jitmem_image_free(image);
  jitmem_image_free(NULL);
  jitmem_image_recorder_free(recorder);
  assert_int_equal(stats_of(fixture->manager).in_flight, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(an_image_is_linked_into_managers),
      EACH(actions_of_the_host_run_with_it),
      EACH(actions_are_stored_with_it),
      EACH(an_image_is_not_finalized_without_its_manager),
      TWO_VIEWS(without_frames_none_are_registered),
      // Forks this program, so it comes before the one that leaves a thread.
      TWO_VIEWS(an_image_is_loaded_once_for_a_group),
      cmocka_unit_test(an_image_runs_in_another_process),
      TWO_VIEWS(an_image_takes_few_system_calls),
      TWO_VIEWS(files_are_refused_by_name),
      TWO_VIEWS(graphs_are_refused_by_name),
      TWO_VIEWS(null_is_refused),
  };
  return at_rest(cmocka_run_group_tests_name("image", tests, NULL, NULL));
}
