// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "executor.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  return -1;
}

static void *read_output(void *ctx) {
  struct output *output = ctx;
  char block[65536];
  ssize_t size;
  size_t kept = 0;
  while ((size = read(output->pipe, block, sizeof block)) > 0) {
    // The end of what there is: of what was kept, as much as there is still room for, and the new
    // bytes.
    size_t fresh = (size_t)size < KEPT ? (size_t)size : KEPT;
    size_t old = kept < KEPT - fresh ? kept : KEPT - fresh;
    memmove(output->end, output->end + kept - old, old);
    memcpy(output->end + old, block + size - fresh, fresh);
    kept = old + fresh;
    output->size += (uint64_t)size;
  }
  output->end[kept] = 0;
  return NULL;
}

// Descriptors of the executor: 0 is empty, 1 and 2 are the pipe, 3 is the channel.
static int spawn(pid_t *process, const char *program, char **options, int channel, int pipe) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, pipe, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe, STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, channel, 3);
  char *words[32] = {(char *)program};
  size_t count = 1;
  while (*options && count < 30)
    words[count++] = *options++;
  words[count] = "filedescs=3,3";
  errno = posix_spawn(process, program, &actions, NULL, words, environ);
  posix_spawn_file_actions_destroy(&actions);
  return errno ? -1 : 0;
}

// The executor ends programs that run for too long, but code that attacks can keep it from that.
static jitmem_status connect_to(struct executor *executor, int channel, jitmem_error **error) {
  const jitmem_limits limits = {.struct_size = sizeof limits, .code = 20000, .memory = 20000};
  jitmem_status status = jitmem_transport_connect(channel, &limits, &executor->transport, error);
  if (status != JITMEM_OK) {
    close(channel);
    return status;
  }
  status = jitmem_mapper_shared(executor->transport, NULL, &executor->mapper, error);
  if (status == JITMEM_OK)
    status = jitmem_manager_create(executor->mapper, NULL, &executor->manager, error);
  return status;
}

int executor_start(struct executor *executor, const char *program, char **options) {
  int channel[2], output[2];
  memset(executor, 0, sizeof *executor);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) != 0)
    return failed("socketpair");
  if (pipe2(output, O_CLOEXEC) != 0) {
    close(channel[0]);
    close(channel[1]);
    return failed("pipe");
  }
  int spawned = spawn(&executor->process, program, options, channel[1], output[1]);
  if (spawned != 0)
    failed(program);
  close(channel[1]);
  close(output[1]);
  executor->output.pipe = output[0];
  if (spawned != 0) {
    close(channel[0]);
    close(output[0]);
    return -1;
  }
  if ((errno = pthread_create(&executor->output.reader, NULL, read_output, &executor->output)) !=
      0) {
    failed("pthread_create");
    abort();
  }
  jitmem_error *error = NULL;
  if (connect_to(executor, channel[0], &error) == JITMEM_OK)
    return 0;
  fprintf(stderr, "%s: %s\n", program, jitmem_error_message(error));
  jitmem_error_free(error);
  executor_end(executor, 0);
  fprintf(stderr, "%s", executor->output.end);
  return -1;
}

uint64_t executor_link(struct executor *executor, const void *begin, const void *end,
                       jitmem_error **error) {
  const size_t size = (size_t)((const char *)end - (const char *)begin);
  const jitmem_segment code = {
      .content_size = size, .alignment = 64, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  uint64_t allocation;
  if (jitmem_manager_allocate(executor->manager, &code, 1, 0, &memory, &allocation, error))
    return 0;
  memcpy(memory.working_memory, begin, size);
  if (jitmem_manager_finalize(executor->manager, allocation, NULL, 0, error))
    return 0;
  return memory.address;
}

static void take_int(void *ctx, const void *bytes, size_t size) {
  if (size == sizeof(int32_t))
    memcpy(ctx, bytes, size);
}

jitmem_status executor_call(struct executor *executor, uint64_t function, int32_t argument,
                            int32_t *answer, jitmem_error **error) {
  const char *name = "__llvm_orc_bootstrap_run_as_int_function_wrapper";
  uint64_t wrapper;
  char args[sizeof function + sizeof argument];
  memcpy(args, &function, sizeof function);
  memcpy(args + sizeof function, &argument, sizeof argument);
  jitmem_status status = jitmem_transport_symbol(executor->transport, name, &wrapper, error);
  if (status == JITMEM_OK)
    status = jitmem_transport_call(executor->transport, wrapper, args, sizeof args, take_int,
                                   answer, error);
  return status;
}

int executor_end(struct executor *executor, int patience) {
  int status;
  // Until this process has waited for it, its number is no other process's.
  struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, executor->process, 0), .events = POLLIN};
  if (end.fd < 0 || poll(&end, 1, patience) != 1)
    kill(executor->process, SIGKILL);
  if (end.fd >= 0)
    close(end.fd);
  waitpid(executor->process, &status, 0);
  jitmem_manager_free(executor->manager);
  jitmem_mapper_free(executor->mapper);
  jitmem_transport_free(executor->transport);
  pthread_join(executor->output.reader, NULL);
  close(executor->output.pipe);
  return status;
}
