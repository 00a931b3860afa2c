// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// An executor of the host's own whose linked code crashes, again and again.
#define _POSIX_C_SOURCE 200809L
#include <jitmem.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

// Stores its argument where that points, and returns it.
#ifdef __aarch64__
static const uint32_t store[] = {0xb9000000, 0xd65f03c0}; // str w0, [x0]; ret
#else
static const uint8_t store[] = {0x89, 0x3f, 0x89, 0xf8, 0xc3}; // mov [rdi], edi; mov eax, edi; ret
#endif

// Called in each process in which linked code is to run.
static const char *bound(void *unused) {
  (void)unused;
  const jitmem_containment bounds = {.struct_size = sizeof bounds,
                                     .profile = JITMEM_PROFILE_NO_EXEC};
  jitmem_error *error = NULL;
  jitmem_executor_contain(&bounds, NULL, &error);
  return error != NULL ? jitmem_error_message(error) : NULL;
}

static int serve(int socket) {
  jitmem_error *error = NULL;
  const jitmem_supervision supervision = {.struct_size = sizeof supervision,
                                          .restarts = 10, // within
                                          .seconds = 60,
                                          .time_limit = 5, // seconds, for a call
                                          .prepare = bound};
  const jitmem_serve_options options = {.struct_size = sizeof options, .supervision = &supervision};
  fflush(NULL);
  if (jitmem_executor_serve(socket, socket, &options, &error))
    fprintf(stderr, "supervised-c, executor: %s\n", jitmem_error_message(error));
  return error != NULL;
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

// Links once, and calls what crashes.
static int link_and_crash(const jitmem_transport *transport, jitmem_error **error) {
  const jitmem_segment code = {.content_size = sizeof store,
                               .alignment = 16,
                               .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  uint64_t allocation, getpid_there = 0;
  int32_t first = 0, last = 0, answer;
  int crashes = 0;

  if (!jitmem_mapper_shared(transport, NULL, &mapper, error) &&
      !jitmem_manager_create(mapper, NULL, &manager, error) &&
      !jitmem_manager_allocate(manager, &code, 1, 0, &memory, &allocation, error)) {
    memcpy(memory.working_memory, store, sizeof store);
    getpid_there = (uintptr_t)getpid; // of a parent and its child it is at one address
    if (!jitmem_manager_finalize(manager, allocation, NULL, 0, error) &&
        !call(transport, getpid_there, 0, &first, error)) {
      for (; crashes < 3; crashes++) {
        jitmem_error *crash = NULL;
        if (!call(transport, memory.address, 64, &answer, &crash))
          break;
        printf("%s\n", jitmem_error_message(crash));
        jitmem_error_free(crash);
      }
      if (!call(transport, getpid_there, 0, &last, error))
        printf("process %d goes on for %d\n", (int)last, (int)first);
      jitmem_manager_deallocate(manager, &allocation, 1, error);
    }
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return crashes == 3 && last != 0 && last != first && *error == NULL;
}

int main(void) {
  jitmem_transport *transport = NULL;
  jitmem_error *error = NULL;
  int ends[2], status = 1, good = 0;
  pid_t child;

  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || (child = fork()) < 0) {
    perror("supervised-c");
    return 1;
  }
  if (child == 0) {
    close(ends[0]);
    _exit(serve(ends[1]));
  }
  close(ends[1]);
  if (!jitmem_transport_socket(ends[0], &transport, &error)) // ends[0] is the transport's from here
    good = link_and_crash(transport, &error);
  if (error != NULL)
    fprintf(stderr, "supervised-c: %s\n", jitmem_error_message(error));
  jitmem_transport_free(transport);
  if (transport == NULL)
    close(ends[0]);
  jitmem_error_free(error);
  waitpid(child, &status, 0);
  return !good || status != 0;
}
