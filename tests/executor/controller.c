// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A controller that links with jitmem's own mappers, for the tests: starts an executor program, has
// it run code that keeps its state in data, and says how the memory got there.
// With attacked- it then has the function attack() of a library that the executor has loaded try to
// change the code. usage: controller unix|tcp [attacked-]shared|[attacked-]remote PROGRAM
// [OPTION...]

#define _GNU_SOURCE
#include <jitmem.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ALLOCATIONS = 100, LARGE = 3 << 20 };

static void must(int good, const char *what) {
  if (!good) {
    perror(what);
    exit(2);
  }
}

// For calls that leave their error in `error`.
#define SUCCEED(call)                                                                              \
  do {                                                                                             \
    if ((call) != JITMEM_OK) {                                                                     \
      printf("%s\n", jitmem_error_message(error));                                                 \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

static void connect_pair(int ends[2], int over_tcp) {
  if (!over_tcp) {
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    return;
  }
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  must(bind(listener, (struct sockaddr *)&address, size) == 0, "bind");
  must(listen(listener, 1) == 0, "listen");
  must(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
  ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  must(connect(ends[0], (struct sockaddr *)&address, size) == 0, "connect");
  ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  must(ends[1] >= 0, "accept");
  close(listener);
}

// Starts the program with its options, and the channel behind them.
static pid_t start(char **program, int count, int end) {
  pid_t child = fork();
  must(child >= 0, "fork");
  if (child > 0)
    return child;
  char channel[40];
  char **words = calloc(count + 2, sizeof *words);
  int own = dup(end); // not closed on exec
  memcpy(words, program, count * sizeof *words);
  snprintf(channel, sizeof channel, "filedescs=%d,%d", own, own);
  words[count] = channel;
  execv(words[0], words);
  perror(words[0]);
  _exit(127);
}

static void take_int(void *ctx, const void *bytes, size_t size) {
  if (size == sizeof(int32_t))
    memcpy(ctx, bytes, size);
}

// Has the executor call int(int).
static int32_t call(const jitmem_transport *transport, uint64_t function, int32_t argument) {
  const char *name = "__llvm_orc_bootstrap_run_as_int_function_wrapper";
  jitmem_error *error = NULL;
  uint64_t wrapper;
  int32_t answer = 0;
  char args[sizeof function + sizeof argument];
  memcpy(args, &function, sizeof function);
  memcpy(args + sizeof function, &argument, sizeof argument);
  SUCCEED(jitmem_transport_symbol(transport, name, &wrapper, &error));
  SUCCEED(jitmem_transport_call(transport, wrapper, args, sizeof args, take_int, &answer, &error));
  return answer;
}

// Adds its argument to a number, whose address is in the code.
#if defined(__x86_64__)
enum { ADDRESS = 2 };
static const unsigned char add_to[] = {
    0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, // mov rax, the number's address
    0x01, 0x38,                         // add [rax], edi
    0x8b, 0x00,                         // mov eax, [rax]
    0xc3,                               // ret
};
#elif defined(__aarch64__)
enum { ADDRESS = 24 };
static const unsigned char add_to[] = {
    0xc8, 0x00, 0x00, 0x58, // ldr x8, the number's address
    0x09, 0x01, 0x40, 0xb9, // ldr w9, [x8]
    0x20, 0x01, 0x00, 0x0b, // add w0, w9, w0
    0x00, 0x01, 0x00, 0xb9, // str w0, [x8]
    0xc0, 0x03, 0x5f, 0xd6, // ret
    0x1f, 0x20, 0x03, 0xd5, // nop
    0,    0,    0,    0,    0, 0, 0, 0,
};
#endif

// Links code that adds its argument to a number of its own, and calls it twice.
static int adds_up(const jitmem_transport *transport, jitmem_manager *manager, int large) {
  const jitmem_segment segments[] = {
      {.content_size = sizeof add_to,
       .alignment = 16,
       .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
      {.content_size = 4,
       .zero_fill_size = large ? LARGE : 4,
       .alignment = 16,
       .protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE},
  };
  jitmem_segment_memory memory[2];
  jitmem_error *error = NULL;
  uint64_t allocation;
  SUCCEED(jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, &error));
  char *code = memory[0].working_memory;
  memcpy(code, add_to, sizeof add_to);
  memcpy(code + ADDRESS, &memory[1].address, sizeof memory[1].address);
  memset(memory[1].working_memory, 0, 4);
  SUCCEED(jitmem_manager_finalize(manager, allocation, NULL, 0, &error));
  int good = call(transport, memory[0].address, 40) == 40;
  good &= call(transport, memory[0].address, 2) == 42;
  SUCCEED(jitmem_manager_deallocate(manager, &allocation, 1, &error));
  return good;
}

struct bytes {
  char data[64];
  size_t size;
};

static void take_bytes(void *ctx, const void *bytes, size_t size) {
  struct bytes *taken = ctx;
  must(size <= sizeof taken->data, "a short answer");
  memcpy(taken->data, bytes, size);
  taken->size = size;
}

// Calls a function of LLVM's service for dynamic libraries, and gives what is at `offset` of its
// answer.
static uint64_t ask_dylibs(const jitmem_transport *transport, const char *name, const void *args,
                           size_t size, size_t offset) {
  jitmem_error *error = NULL;
  struct bytes answer = {.size = 0};
  uint64_t function, found = 0;
  SUCCEED(jitmem_transport_symbol(transport, name, &function, &error));
  SUCCEED(jitmem_transport_call(transport, function, args, size, take_bytes, &answer, &error));
  must(answer.size >= offset + sizeof found && answer.data[0] == 1, name);
  memcpy(&found, answer.data + offset, sizeof found);
  return found;
}

// Where the executor has a function.
static uint64_t find(const jitmem_transport *transport, const char *name) {
  jitmem_error *error = NULL;
  uint64_t words[3] = {0}; // the service, no library's name, no mode
  SUCCEED(jitmem_transport_symbol(transport, "__llvm_orc_SimpleExecutorDylibManager_Instance",
                                  words, &error));
  const char *open = "__llvm_orc_SimpleExecutorDylibManager_open_wrapper";
  char args[64];
  size_t length = strlen(name);
  words[0] = ask_dylibs(transport, open, words, sizeof words, 1);
  words[1] = 1; // one symbol
  words[2] = length;
  memcpy(args, words, sizeof words);
  memcpy(args + sizeof words, name, length);
  args[sizeof words + length] = 1; // that must be there
  const char *resolve = "__llvm_orc_SimpleExecutorDylibManager_resolve_wrapper";
  return ask_dylibs(transport, resolve, args, sizeof words + length + 1, 10);
}

static void attack(const jitmem_transport *transport, jitmem_manager *manager) {
  const jitmem_segment segment = {
      .content_size = 1, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  jitmem_error *error = NULL;
  uint64_t allocation, function = find(transport, "attack");
  int32_t nothing;
  SUCCEED(jitmem_manager_allocate(manager, &segment, 1, 0, &memory, &allocation, &error));
  *(unsigned char *)memory.working_memory = 0xc3; // ret
  SUCCEED(jitmem_manager_finalize(manager, allocation, NULL, 0, &error));
  const uint64_t code = memory.address;
  SUCCEED(
      jitmem_transport_call(transport, function, &code, sizeof code, take_int, &nothing, &error));
  SUCCEED(jitmem_manager_deallocate(manager, &allocation, 1, &error));
}

int main(int argc, char **argv) {
  must(argc > 3, "arguments");
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  jitmem_stats stats = {.struct_size = sizeof stats};
  int ends[2], good = 0, status;
  connect_pair(ends, strcmp(argv[1], "tcp") == 0);
  pid_t child = start(argv + 3, argc - 3, ends[1]);
  close(ends[1]);
  SUCCEED(jitmem_transport_socket(ends[0], &transport, &error));
  if (strstr(argv[2], "remote"))
    SUCCEED(jitmem_mapper_remote(transport, NULL, &mapper, &error));
  else
    SUCCEED(jitmem_mapper_shared(transport, NULL, &mapper, &error));
  SUCCEED(jitmem_manager_create(mapper, NULL, &manager, &error));
  for (int i = 0; i < ALLOCATIONS; i++)
    good += adds_up(transport, manager, i % 10 == 0);
  SUCCEED(jitmem_manager_stats(manager, &stats, &error));
  printf("%d good\n%s\n%s\n", good, stats.mapper_name,
         stats.fallback_reason ? stats.fallback_reason : "");
  fflush(stdout);
  if (strstr(argv[2], "attacked"))
    attack(transport, manager);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  must(waitpid(child, &status, 0) == child, "waitpid");
  printf("executor %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  return 0;
}
