// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Puts a function's machine code into a child process and calls it there.
#define _POSIX_C_SOURCE 200809L
#include <jitmem.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __aarch64__
static const uint32_t twice[] = {0x0b000000, 0xd65f03c0}; // add w0, w0, w0; ret
#else
static const uint8_t twice[] = {0x8d, 0x04, 0x3f, 0xc3}; // lea eax, [rdi + rdi]; ret
#endif

// What the child offers to its controller and to the code that it gets.
static int32_t say(int32_t number) {
  printf("%d, says the child\n", (int)number);
  fflush(stdout);
  return number;
}

static void take_int(void *ctx, const void *bytes, size_t size) {
  if (size == sizeof(int32_t))
    memcpy(ctx, bytes, size);
}

// Has the executor call int(int). What travels are the arguments, one behind the other.
static jitmem_status call(const jitmem_transport *transport, uint64_t function, int32_t argument,
                          int32_t *answer, jitmem_error **error) {
  const char *name = "__llvm_orc_bootstrap_run_as_int_function_wrapper";
  uint64_t wrapper;
  char args[sizeof function + sizeof argument];
  memcpy(args, &function, sizeof function);
  memcpy(args + sizeof function, &argument, sizeof argument);
  jitmem_status status = jitmem_transport_symbol(transport, name, &wrapper, error);
  if (status == JITMEM_OK)
    status = jitmem_transport_call(transport, wrapper, args, sizeof args, take_int, answer, error);
  return status;
}

// The controller: what it writes into working memory is what the child sees.
static jitmem_error *link_and_call(const jitmem_transport *transport) {
  uint64_t in_child;
  const jitmem_segment code = {.content_size = sizeof twice,
                               .alignment = 16,
                               .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_segment_memory memory;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  uint64_t allocation;
  int32_t answer = 0;

  if (!jitmem_mapper_shared(transport, NULL, &mapper, &error) &&
      !jitmem_manager_create(mapper, NULL, &manager, &error) &&
      !jitmem_manager_allocate(manager, &code, 1, 0, &memory, &allocation, &error)) {
    memcpy(memory.working_memory, twice, sizeof twice);
    if (!jitmem_manager_finalize(manager, allocation, NULL, 0, &error) &&
        !call(transport, memory.address, 21, &answer, &error) &&
        !jitmem_transport_symbol(transport, "say", &in_child, &error) &&
        !call(transport, in_child, answer, &answer, &error) &&
        !jitmem_manager_stats(manager, &stats, &error)) {
      printf("2 * 21 = %d in the child, through %s\n", (int)answer, stats.mapper_name);
      jitmem_manager_deallocate(manager, &allocation, 1, &error);
    }
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return error;
}

int main(void) {
  jitmem_transport *transport = NULL;
  jitmem_error *error = NULL;
  int ends[2], status = 1;
  pid_t child;

  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || (child = fork()) < 0) {
    perror("child-c");
    return 1;
  }
  if (child == 0) { // the executor: serves until its controller hangs up
    const jitmem_bootstrap_symbol own = {.name = "say", .address = (uintptr_t)say};
    const jitmem_serve_options options = {
        .struct_size = sizeof options, .symbols = &own, .symbol_count = 1};
    close(ends[0]);
    if (jitmem_executor_serve(ends[1], ends[1], &options, &error))
      fprintf(stderr, "child-c, child: %s\n", jitmem_error_message(error));
    _exit(error != NULL);
  }
  close(ends[1]);
  if (!jitmem_transport_socket(ends[0], &transport, &error)) // ends[0] is the transport's from here
    error = link_and_call(transport);
  if (error != NULL)
    fprintf(stderr, "child-c: %s\n", jitmem_error_message(error));
  jitmem_transport_free(transport);
  if (transport == NULL)
    close(ends[0]);
  int failed = error != NULL;
  jitmem_error_free(error);
  waitpid(child, &status, 0);
  return failed || status != 0;
}
