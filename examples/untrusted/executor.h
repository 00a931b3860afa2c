// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A process that runs linked code, from its start to its end. Not thread-safe.
#ifndef EXECUTOR_H
#define EXECUTOR_H

#include <jitmem.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

enum { KEPT = 1024 };

// What an executor writes to stdout and stderr: a thread reads all of it, so that the executor
// never waits, and keeps the end.
struct output {
  pthread_t reader;
  int pipe;
  uint64_t size;
  char end[KEPT + 1];
};

struct executor {
  pid_t process;
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
  struct output output;
};

// Starts `program` with `options`, which end with NULL and a free place before it for the channel;
// 0, or -1 with a line on stderr. Nothing is left to be ended then.
int executor_start(struct executor *executor, const char *program, char **options);

// Links the bytes from `begin` to `end` into it; their address there, or 0.
uint64_t executor_link(struct executor *executor, const void *begin, const void *end,
                       jitmem_error **error);

// Calls int(int) there and waits for the answer.
jitmem_status executor_call(struct executor *executor, uint64_t function, int32_t argument,
                            int32_t *answer, jitmem_error **error);

// Ends it, if it has not ended by itself in `patience` milliseconds; how it ended, as waitpid says
// it. `output` is complete then.
int executor_end(struct executor *executor, int patience);

#endif
