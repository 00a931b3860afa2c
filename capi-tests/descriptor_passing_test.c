// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Ways to hand memfds to an executor, each refused in turn: the next one is taken and said to be,
// and when none is left the error tells of them all. The controller is a child as well, for the
// filters.

#include "executor.h"
#include "limits.h"

#include <sched.h>

static jitmem_transport *connect_executor(struct executor executor) {
  jitmem_transport *transport = NULL;
  MUST_OK(jitmem_transport_socket(executor.socket, &transport, error));
  return transport;
}

static void end_executor(struct executor executor, jitmem_transport *transport) {
  jitmem_transport_free(transport);
  MUST(status_of_executor(executor) == 0);
}

// Says why something was fallen back from, if that should not be.
static void must_be_for(const char *reason, jitmem_stats stats) {
  if (reason == NULL && stats.fallback_reason != NULL)
    fprintf(stderr, "ERROR: fell back: %s\n", stats.fallback_reason);
  MUST((stats.fallback_reason == NULL) == (reason == NULL));
}

// Linked code runs in the executor, which got it in this way and for these reasons.
static void must_go(struct executor executor, const char *way, const char *reason,
                    const char *other_reason) {
  jitmem_transport *transport = connect_executor(executor);
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_mapper_shared(transport, NULL, &mapper, error));
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  jitmem_stats stats = child_stats(manager);
  MUST(stats.mapper == JITMEM_MAPPER_SHARED);
  MUST(strstr(stats.mapper_name, way) != NULL);
  MUST(!(stats.fallbacks & JITMEM_FALLBACK_SECOND_BEST) == (reason == NULL));
  must_be_for(reason, stats);
  if (reason != NULL) {
    MUST(strstr(stats.fallback_reason, reason) != NULL);
    MUST(strstr(stats.fallback_reason, other_reason) != NULL);
  }
  link_and_call_often(manager, transport);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  end_executor(executor, transport);
}

static void no_connect(void) { deny(SYS_connect, EPERM); }

static void no_connect_no_open(void) {
  deny(SYS_connect, EPERM);
#ifdef SYS_open
  deny(SYS_open, EACCES);
#endif
  deny(SYS_openat, EACCES);
}

static void no_socket(void) { deny(SYS_connect, ENOSYS); }

LIMITED(a_socket_that_both_share) {
  must_go(start_executor(NULL), "came with the connection", NULL, NULL);
}

LIMITED(nothing_but_a_socket_that_both_share) {
  struct executor executor = start_executor(no_connect_no_open);
  must_go(executor, "came with the connection", NULL, NULL);
}

// Each session has one of its own.
LIMITED(a_second_session) {
  struct executor executor = start_executor(NULL);
  jitmem_transport *transport = connect_executor(executor);
  jitmem_mapper *mappers[3];
  for (size_t i = 0; i < COUNT(mappers); i++) {
    jitmem_manager *manager = NULL;
    MUST_OK(jitmem_mapper_shared(transport, NULL, &mappers[i], error));
    MUST_OK(jitmem_manager_create(mappers[i], NULL, &manager, error));
    jitmem_stats stats = child_stats(manager);
    MUST(strstr(stats.mapper_name, "came with the connection") != NULL);
    must_be_for(NULL, stats);
    jitmem_manager_free(manager);
  }
  for (size_t i = 0; i < COUNT(mappers); i++)
    jitmem_mapper_free(mappers[i]);
  end_executor(executor, transport);
}

LIMITED(an_abstract_socket) { must_go(start_far_executor(NULL), "abstract socket", NULL, NULL); }

LIMITED(files_of_proc) {
  must_go(start_far_executor(no_connect), "/proc/PID/fd", "an abstract Unix socket", "os error 1)");
}

LIMITED(files_of_proc_on_old_kernels) {
  must_go(start_far_executor(no_socket), "/proc/PID/fd", "an abstract Unix socket",
          "connect to the controller's socket");
}

// The controller takes nothing out of another process, whatever that says.
LIMITED(no_descriptor_of_another_process) {
  struct executor executor = start_far_executor(no_connect);
  forbid(SYS_pidfd_open);
  forbid(SYS_pidfd_getfd);
  must_go(executor, "/proc/PID/fd", "an abstract Unix socket", "os error 1)");
}

LIMITED(no_way_at_all) {
  struct executor executor = start_far_executor(no_connect_no_open);
  jitmem_transport *transport = connect_executor(executor);
  jitmem_mapper *mapper = NULL;
  jitmem_error *problem = NULL;
  MUST(jitmem_mapper_shared(transport, NULL, &mapper, &problem) == JITMEM_UNSUPPORTED);
  const char *message = jitmem_error_message(problem);
  const char *const words[] = {"an abstract Unix socket: ", "connect to the controller's socket",
                               "; /proc/PID/fd: ", "a memfd of the controller's",
                               "run it on this machine"};
  for (size_t i = 0; i < COUNT(words); i++)
    if (strstr(message, words[i]) == NULL) {
      fprintf(stderr, "ERROR: \"%s\" is not in \"%s\"\n", words[i], message);
      _exit(CHILD_FAILED);
    }
  jitmem_error_free(problem);
  // Nothing is left in its way: content still goes in messages.
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_mapper_remote(transport, NULL, &mapper, error));
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  end_executor(executor, transport);
}

// ---- namespaces ----

// Skips what needs namespaces that can't be had here.
static void must_have(int flags) {
  pid_t probe = fork();
  if (probe == 0)
    _exit(unshare(flags) == 0 ? 0 : errno);
  int status = 0;
  MUST(waitpid(probe, &status, 0) == probe && WIFEXITED(status));
  if (status != 0)
    SKIP_CHILD("no new namespaces here: %s", strerror(WEXITSTATUS(status)));
}

static void enter_another_network(void) { MUST(unshare(CLONE_NEWNET) == 0); }

LIMITED(another_network) {
  must_have(CLONE_NEWNET);
  must_go(start_far_executor(enter_another_network), "/proc/PID/fd", "an abstract Unix socket",
          "connect to the controller's socket");
}

// Only children are in a new namespace of processes, so the executor is one, and ends this one.
static void enter_another_world(void) {
  MUST(unshare(CLONE_NEWNET | CLONE_NEWPID) == 0);
  pid_t process = fork();
  MUST(process >= 0);
  if (process != 0)
    _exit(status_of_executor((struct executor){.process = process}) == 0 ? 0 : CHILD_FAILED);
}

LIMITED(another_network_and_other_processes) {
  must_have(CLONE_NEWNET | CLONE_NEWPID);
  must_go(start_far_executor(enter_another_world), "/proc/PID/fd", "an abstract Unix socket",
          "connect to the controller's socket");
}

LIMITED(a_shared_socket_into_another_world) {
  must_have(CLONE_NEWNET | CLONE_NEWPID);
  must_go(start_executor(enter_another_world), "came with the connection", NULL, NULL);
}

// A way that only wants a descriptor is neither refused nor passed over for a worse one.
LIMITED(a_shortage_of_descriptors_decides_nothing) {
  struct executor executor = start_far_executor(NULL);
  jitmem_transport *transport = connect_executor(executor);
  jitmem_mapper *mapper = NULL;
  // Transports and all are there; no further descriptor is to be had.
  int next = dup(0);
  MUST(next >= 0 && close(next) == 0);
  set_limit(RLIMIT_NOFILE, (uint64_t)next);
  MUST_FAIL(JITMEM_OUT_OF_MEMORY, "RLIMIT_NOFILE", "ulimit -n",
            jitmem_mapper_shared(transport, NULL, &mapper, error));
  set_limit(RLIMIT_NOFILE, 256);
  MUST_OK(jitmem_mapper_shared(transport, NULL, &mapper, error));
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  MUST(strstr(child_stats(manager).mapper_name, "abstract") != NULL);
  MUST(!(child_stats(manager).fallbacks & JITMEM_FALLBACK_SECOND_BEST));
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  end_executor(executor, transport);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      LIMIT(a_socket_that_both_share),
      LIMIT(nothing_but_a_socket_that_both_share),
      LIMIT(a_second_session),
      LIMIT(an_abstract_socket),
      LIMIT(files_of_proc),
      LIMIT(files_of_proc_on_old_kernels),
      LIMIT(no_descriptor_of_another_process),
      LIMIT(no_way_at_all),
      LIMIT(a_shortage_of_descriptors_decides_nothing),
      LIMIT(another_network),
      LIMIT(another_network_and_other_processes),
      LIMIT(a_shared_socket_into_another_world),
  };
  return RUN_LIMITS(tests, argc, argv);
}
