// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Child processes that are executors, and calls of what they publish, with arguments written by
// hand in Simple Packed Serialization.

#ifndef EXECUTOR_H
#define EXECUTOR_H

#include "child.h"
#include "code.h"
#include "wrapper.h"

#include <netinet/in.h>
#include <sys/socket.h>

// ---- child processes ----

struct executor {
  pid_t process;
  // The controller's end.
  int socket;
};

// In an executor, the end of its connection that is its host's own.
static int served_end __attribute__((unused));

// Starts a child that calls `before`, if there is something to do before, and then serves the
// second of two ends of a connection.
static inline struct executor start_executor_at(const int ends[2], void (*before)(void)) {
  fflush(NULL);
  pid_t process = fork();
  if (process < 0)
    abort();
  if (process == 0) {
    close(ends[0]);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
    for (size_t i = 0; i < COUNT(signals); i++)
      signal(signals[i], SIG_DFL);
    alarm(instrumented() ? 300 : 60);
    served_end = ends[1];
    if (before != NULL)
      before();
    MUST_OK(jitmem_executor_serve(ends[1], ends[1], NULL, error));
    _exit(CHILD_PASSED);
  }
  close(ends[1]);
  return (struct executor){.process = process, .socket = ends[0]};
}

// The same over a Unix socket.
static inline struct executor start_executor(void (*before)(void)) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
    abort();
  return start_executor_at(ends, before);
}

// The same at the other end of a TCP connection, with which no socket can be sent along.
static inline struct executor start_far_executor(void (*before)(void)) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  MUST(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
  MUST(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
  int ends[2] = {socket(AF_INET, SOCK_STREAM, 0), -1};
  MUST(connect(ends[0], (struct sockaddr *)&address, size) == 0);
  ends[1] = accept(listener, NULL, NULL);
  MUST(ends[1] >= 0 && close(listener) == 0);
  return start_executor_at(ends, before);
}

// Starts a program that is an ORC executor.
static inline struct executor start_program(const char *path) {
  int ends[2];
  fflush(NULL);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    abort();
  pid_t process = fork();
  if (process < 0)
    abort();
  if (process == 0) {
    char descriptors[64];
    int end = dup(ends[1]);
    snprintf(descriptors, sizeof descriptors, "filedescs=%d,%d", end, end);
    execl(path, path, descriptors, (char *)NULL);
    perror(path);
    _exit(CHILD_FAILED);
  }
  close(ends[1]);
  return (struct executor){.process = process, .socket = ends[0]};
}

// How an executor ends, once its controller is gone.
static inline int status_of_executor(struct executor executor) {
  int status = 0;
  if (waitpid(executor.process, &status, 0) != executor.process)
    abort();
  return status;
}

// ---- arguments and results ----

struct packed {
  char bytes[1024];
  size_t size;
};

static inline void pack(struct packed *packed, const void *bytes, size_t size) {
  if (size > sizeof packed->bytes - packed->size)
    abort();
  memcpy(packed->bytes + packed->size, bytes, size);
  packed->size += size;
}

static inline void pack_number(struct packed *packed, uint64_t number) {
  pack(packed, &number, sizeof number);
}

static inline void pack_text(struct packed *packed, const char *text) {
  pack_number(packed, strlen(text));
  pack(packed, text, strlen(text));
}

static inline void take_packed(void *ctx, const void *bytes, size_t size) {
  pack(ctx, bytes, size);
}

// Calls a wrapper function that the executor has published.
static inline jitmem_status call_published(const jitmem_transport *transport, const char *name,
                                           const struct packed *args, struct packed *result,
                                           jitmem_error **error) {
  uint64_t function;
  jitmem_status status = jitmem_transport_symbol(transport, name, &function, error);
  if (status != JITMEM_OK)
    return status;
  return jitmem_transport_call(transport, function, args->bytes, args->size, take_packed, result,
                               error);
}

// Has the executor call int(int) at an address.
static inline jitmem_status call_int(const jitmem_transport *transport, uint64_t address,
                                     int32_t argument, int32_t *answer, jitmem_error **error) {
  struct packed args = {.size = 0}, result = {.size = 0};
  pack_number(&args, address);
  pack(&args, &argument, sizeof argument);
  jitmem_status status = call_published(
      transport, "__llvm_orc_bootstrap_run_as_int_function_wrapper", &args, &result, error);
  if (status == JITMEM_OK && result.size != sizeof *answer)
    abort();
  memcpy(answer, result.bytes, result.size);
  return status;
}

// Has the executor run what a manager links, in a child process.
static inline void link_and_call_often(jitmem_manager *manager, const jitmem_transport *transport) {
  for (int i = 0; i < 100; i++) {
    // Larger ones now and then: chunks of their own, each of which goes the same way.
    const uint64_t size = i % 10 ? 200 : 3 * MIB;
    const jitmem_segment segments[] = {segment(ADD_SIZE, 0, RX), segment(size, 100, RW)};
    jitmem_segment_memory memory[2];
    uint64_t allocation;
    int32_t answer = 0;
    MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, error));
    emit_add(memory[0].working_memory, i);
    MUST_OK(jitmem_manager_finalize(manager, allocation, NULL, 0, error));
    MUST_OK(call_int(transport, memory[0].address, 1000, &answer, error));
    MUST(answer == 1000 + i);
    MUST_OK(jitmem_manager_deallocate(manager, &allocation, 1, error));
  }
}

#endif
