// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A plugin that has jitmem in itself, and a connection to an executor.
#include <jitmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void require(jitmem_status status, jitmem_error *error) {
  if (status == JITMEM_OK)
    return;
  fprintf(stderr, "plugin: %s\n", jitmem_error_message(error));
  exit(1);
}

// Starts an executor and allocates there. The connection is left as it is; answers the process.
pid_t start(const char *program);

pid_t start(const char *program) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    perror("socketpair");
    exit(1);
  }
  const pid_t executor = fork();
  if (executor == 0) {
    char option[64];
    const int theirs = dup(ends[1]);
    snprintf(option, sizeof option, "filedescs=%d,%d", theirs, theirs);
    execl(program, program, option, (char *)NULL);
    perror(program);
    _exit(1);
  }
  close(ends[1]);
  jitmem_error *error = NULL;
  jitmem_transport *transport;
  require(jitmem_transport_socket(ends[0], &transport, &error), error);
  jitmem_mapper *mapper;
  require(jitmem_mapper_shared(transport, NULL, &mapper, &error), error);
  jitmem_manager *manager;
  require(jitmem_manager_create(mapper, NULL, &manager, &error), error);
  const jitmem_segment segment = {
      .content_size = 64, .alignment = 16, .protection = JITMEM_PROT_READ};
  jitmem_segment_memory memory;
  uint64_t allocation;
  require(jitmem_manager_allocate(manager, &segment, 1, 0, &memory, &allocation, &error), error);
  return executor;
}
