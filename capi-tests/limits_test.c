// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Systems that forbid something: an error that names it and what to do, or the other mapper.

#include "here.h"
#include "limits.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <ucontext.h>

// Values of newer headers than some systems have.
enum { SET_MDWE = 65, MDWE_REFUSE_EXEC_GAIN = 1, ADD_SEALS = 1033 };

// Automatic choice with two views refused: the other mapper, named with a reason, and it works.
static void must_fall_back(const char *reason) {
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  jitmem_stats stats = child_stats(manager);
  MUST(stats.mapper == JITMEM_MAPPER_MPROTECT);
  MUST(strstr(stats.mapper_name, "mprotect") != NULL);
  MUST(stats.fallbacks & JITMEM_FALLBACK_MPROTECT);
  MUST(stats.fallback_reason != NULL && strstr(stats.fallback_reason, reason) != NULL);
  child_graph(manager);
  jitmem_manager_free(manager);

  // Chosen and not fallen back to, it has no reason.
  manager = child_manager(JITMEM_IN_PROCESS_MPROTECT, (jitmem_manager_options){0});
  stats = child_stats(manager);
  MUST(!(stats.fallbacks & JITMEM_FALLBACK_MPROTECT) && stats.fallback_reason == NULL);
  child_graph(manager);
  jitmem_manager_free(manager);
}

static void two_views_must_fail(jitmem_status status, int os_code, const char *operation,
                                const char *remedy) {
  jitmem_mapper *mapper = NULL;
  jitmem_error *problem = NULL;
  MUST_FAIL(status, operation, remedy,
            jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, error));
  MUST(mapper == NULL);
  MUST(jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, &problem) == status);
  MUST(jitmem_error_os_code(problem) == os_code);
  jitmem_error_free(problem);
}

// Two views, by themselves and where they are asked for; of memfds, with this reason, or of
// anonymous memory where there is none.
static void must_have_two_views(const char *reason) {
  const uint32_t kinds[] = {JITMEM_IN_PROCESS_AUTO, JITMEM_IN_PROCESS_TWO_VIEWS};
  for (size_t i = 0; i < COUNT(kinds); i++) {
    jitmem_manager *manager = child_manager(kinds[i], (jitmem_manager_options){0});
    jitmem_stats stats = child_stats(manager);
    MUST(stats.mapper == JITMEM_MAPPER_TWO_VIEWS);
    MUST(stats.fallbacks == (reason == NULL ? 0 : JITMEM_FALLBACK_SECOND_BEST));
    MUST((strstr(stats.mapper_name, "memfd") != NULL) == (reason != NULL));
    MUST(reason == NULL ? stats.fallback_reason == NULL
                        : strstr(stats.fallback_reason, reason) != NULL);
    child_graph(manager);
    jitmem_manager_free(manager);
  }
}

LIMITED(memfd_does_not_matter) {
  deny(SYS_memfd_create, EPERM);
  must_have_two_views(NULL);
}

LIMITED(anonymous_views_are_forbidden) {
  deny(SYS_mremap, EPERM);
  must_have_two_views("mremap");
}

LIMITED(memfd_is_forbidden) {
  deny(SYS_mremap, EPERM);
  deny(SYS_memfd_create, EPERM);
  two_views_must_fail(JITMEM_DENIED, EPERM, "memfd_create", "seccomp");
  must_fall_back("memfd_create");
  must_fall_back("mremap");
}

LIMITED(memfd_is_missing) {
  deny(SYS_mremap, EINVAL); // as valgrind answers
  deny(SYS_memfd_create, ENOSYS);
  two_views_must_fail(JITMEM_UNSUPPORTED, ENOSYS, "memfd_create", "choose the mprotect mapper");
  must_fall_back("memfd_create");
}

LIMITED(seals_are_forbidden) {
  deny(SYS_mremap, EPERM);
  deny_with(SYS_fcntl, 1, ADD_SEALS, EPERM);
  jitmem_mapper *mapper = NULL;
  MUST_FAIL(JITMEM_DENIED, "", "",
            jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, error));
  must_fall_back("two views");
}

// A debugger is to set breakpoints: private pages, unless two views are asked for.
LIMITED(a_debugger_is_there) {
  MUST(setenv("JITMEM_DEBUG", "1", 1) == 0);
  must_fall_back("JITMEM_DEBUG");
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
  MUST(child_stats(manager).mapper == JITMEM_MAPPER_TWO_VIEWS);
  MUST(child_stats(manager).fallbacks == 0);
  jitmem_manager_free(manager);
  MUST(setenv("JITMEM_DEBUG", "0", 1) == 0);
  must_have_two_views(NULL);
}

LIMITED(a_tracer_is_there) {
  // The parent, which waits for this process, stands in for a debugger.
  pid_t traced = fork();
  MUST(traced >= 0);
  if (traced == 0) {
    MUST(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    must_fall_back("traces this one");
    MUST(setenv("JITMEM_DEBUG", "0", 1) == 0);
    must_have_two_views(NULL);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  MUST(waitpid(traced, &status, 0) == traced);
  MUST(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
}

LIMITED(executable_mappings_are_forbidden) {
  deny_with(SYS_mmap, 2, PROT_READ | PROT_EXEC, EACCES);
  two_views_must_fail(JITMEM_DENIED, EACCES, "executor view", "seccomp");
  // The other mapper does not map code, it lets pages turn executable.
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  const jitmem_segment code = segment(100, 0, RX), data = segment(100, 0, RW);
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST_OK(jitmem_manager_allocate(manager, &data, 1, 0, graph.memory, &graph.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  jitmem_manager_free(manager);
}

static void must_outlive_a_refusal_of(long call, const char *name) {
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
  const jitmem_segment small = segment(1000, 0, RX), large = segment(MIB, 0, RX);
  struct graph graph, refused;
  MUST_OK(jitmem_manager_allocate(manager, &small, 1, 0, graph.memory, &graph.handle, error));
  deny(call, EPERM);
  jitmem_stats before = child_stats(manager);
  for (int i = 0; i < 100; i++)
    MUST_FAIL(
        JITMEM_DENIED, name, "for a chunk of",
        jitmem_manager_allocate(manager, &large, 1, 0, refused.memory, &refused.handle, error));
  jitmem_stats after = child_stats(manager);
  MUST(after.committed == before.committed && after.live == before.live);
  MUST(after.mappings == before.mappings);
  // What there is goes on to serve.
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST_OK(jitmem_manager_allocate(manager, &small, 1, 0, refused.memory, &refused.handle, error));
  jitmem_manager_free(manager);
}

LIMITED(anonymous_views_are_forbidden_later) { must_outlive_a_refusal_of(SYS_mremap, "mremap"); }

LIMITED(memfd_is_forbidden_later) {
  deny(SYS_mremap, EPERM);
  must_outlive_a_refusal_of(SYS_memfd_create, "memfd_create");
}

// With the mprotect mapper a refusal comes with the first chunk; nothing is left of it.
static void code_must_be_refused(jitmem_manager *manager, const char *operation) {
  const jitmem_segment segments[] = {segment(100, 0, RX), segment(100, 0, RW)};
  for (int i = 0; i < 10; i++) {
    struct graph graph;
    MUST_FAIL(JITMEM_DENIED, operation, "MemoryDenyWriteExecute",
              jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &graph.handle, error));
    jitmem_stats stats = child_stats(manager);
    MUST(stats.live + stats.padding + stats.in_flight + stats.finalized == 0);
  }
}

LIMITED(mprotect_is_forbidden) {
  deny(SYS_mprotect, EACCES);
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_MPROTECT, (jitmem_manager_options){0});
  code_must_be_refused(manager, "mprotect for a chunk");
  jitmem_manager_free(manager);
  // Two views of memfds need no mprotect at all.
  must_have_two_views("mprotect");
}

LIMITED(nothing_may_be_made_executable) {
  // As systemd's MemoryDenyWriteExecute= filters it.
  deny_with(SYS_mprotect, 2, PROT_READ | PROT_EXEC, EPERM);
  deny_with(SYS_mmap, 2, PROT_READ | PROT_WRITE | PROT_EXEC, EPERM);
  must_have_two_views(NULL);
}

LIMITED(nothing_may_turn_executable) {
  if (prctl(SET_MDWE, MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0)
    SKIP_CHILD("this kernel has no PR_SET_MDWE (since Linux 6.3): %s", strerror(errno));
  // It is in force.
  void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(page != MAP_FAILED && mprotect(page, page_size(), PROT_READ | PROT_EXEC) != 0);

  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  MUST(child_stats(manager).mapper == JITMEM_MAPPER_TWO_VIEWS);
  MUST(child_stats(manager).fallbacks == 0);
  for (int i = 0; i < 100; i++)
    child_graph(manager);
  jitmem_manager_free(manager);
  manager = child_manager(JITMEM_IN_PROCESS_MPROTECT, (jitmem_manager_options){0});
  code_must_be_refused(manager, "mprotect for a chunk");
  jitmem_manager_free(manager);
}

static void under_memfd_noexec(void *unused) {
  (void)unused;
  int setting = open("/proc/sys/vm/memfd_noexec", O_WRONLY | O_CLOEXEC);
  if (setting < 0)
    SKIP_CHILD("vm.memfd_noexec (since Linux 6.3) can't be written: %s", strerror(errno));
  if (write(setting, "2", 1) != 1)
    SKIP_CHILD("vm.memfd_noexec can't be set in a pid namespace of its own: %s", strerror(errno));
  close(setting);
  // It is in force: a memfd that may be executed is refused.
  enum { MAY_EXECUTE = 0x10 };
  MUST(syscall(SYS_memfd_create, "x", MAY_EXECUTE) < 0 && errno == EACCES);
  must_have_two_views(NULL);
  deny(SYS_mremap, EPERM);
  must_have_two_views("mremap");
}

LIMITED(memfds_must_not_be_executed) {
  // The setting belongs to a pid namespace, which only children of this process enter.
  if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0)
    SKIP_CHILD("no pid namespace of our own: %s", strerror(errno));
  pid_t child = fork();
  if (child < 0)
    SKIP_CHILD("no process in a pid namespace of our own: %s", strerror(errno));
  if (child == 0) {
    under_memfd_noexec(NULL);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : CHILD_FAILED);
}

LIMITED_EACH(files_can_not_be_opened) {
  // No /proc, then, to find a good place by, or to explain anything with.
  deny(SYS_openat, EACCES);
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){.window_size = 16 * MIB});
  child_graph(manager);
  jitmem_segment most = segment(0, 17 * MIB, RW);
  struct graph graph;
  MUST_FAIL(JITMEM_WINDOW_FULL, "larger", "",
            jitmem_manager_allocate(manager, &most, 1, 0, graph.memory, &graph.handle, error));
  jitmem_manager_free(manager);
}

LIMITED_EACH(nothing_can_be_unmapped) {
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
  jitmem_manager *other = child_manager(kind, (jitmem_manager_options){0});
  child_graph(manager);
  MUST(child_stats(other).unmap_failures == 0);
  deny(SYS_munmap, ENOMEM);
  jitmem_manager_free(manager);
  MUST(child_stats(other).unmap_failures > 0);
  child_graph(other);
}

// A host, or a sandbox around it, that does calls in the place of the kernel.
static void emulate(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)info;
  ucontext_t *interrupted = context;
#ifdef __aarch64__
  interrupted->uc_mcontext.regs[0] = 0;
#else
  interrupted->uc_mcontext.gregs[REG_RAX] = 0;
#endif
}

static void keep_call(void *ctx, uint64_t function, const void *args, size_t size,
                      jitmem_call call) {
  (void)function;
  (void)args;
  (void)size;
  *(jitmem_call *)ctx = call;
}

static void on_timeout(void *ctx, const void *bytes, size_t size, const jitmem_error *problem) {
  (void)bytes;
  (void)size;
  MUST(jitmem_error_status(problem) == JITMEM_TIMED_OUT);
  count(ctx);
}

// The library's own threads make such calls too: one of them says that a limit is over.
LIMITED(calls_are_emulated) {
  struct sigaction action = {.sa_sigaction = emulate, .sa_flags = SA_SIGINFO};
  MUST(sigaction(SIGSYS, &action, NULL) == 0);
  filter(SYS_prctl, SECCOMP_RET_TRAP);
  jitmem_call call = 0;
  struct counter over = COUNTER;
  const jitmem_transport_callbacks callbacks = {
      .struct_size = sizeof callbacks, .ctx = &call, .call = keep_call};
  jitmem_transport *transport = NULL;
  MUST_OK(jitmem_transport_custom(&callbacks, &transport, error));
  MUST_OK(jitmem_transport_start(transport, 1, "", 0, 1, on_timeout, &over, NULL, NULL, error));
  MUST(counted(&over, 1) == 1);
  MUST_OK(jitmem_transport_answer(call, JITMEM_OK, NULL, NULL, 0, error));
  jitmem_transport_free(transport);
}

LIMITED(the_hot_path_never_enters_the_kernel) {
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
  const jitmem_segment segments[] = {segment(256, 0, RX), segment(64, 0, R), segment(64, 64, RW)};
  struct graph warm, graph;
  MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, warm.memory, &warm.handle, error));
  child_graph(manager);
  // Only what ends this process, and tells why, is left.
  struct sock_filter code[] = {
      LOAD(nr),
#ifdef __aarch64__
      EQUAL(SYS_membarrier, 4, 0), // other cores forget what they have fetched
#endif
      EQUAL(SYS_write, 3, 0),
      EQUAL(SYS_exit_group, 2, 0),
      EQUAL(SYS_rt_sigreturn, 1, 0),
      ANSWER(SECCOMP_RET_KILL_PROCESS),
      ANSWER(SECCOMP_RET_ALLOW),
  };
  install_filter(code, COUNT(code));
  for (int i = 0; i < 1000; i++) {
    MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, graph.memory, &graph.handle, error));
    for (int j = 0; j < 3; j++)
      memset(graph.memory[j].working_memory, i, segments[j].content_size);
    MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
    MUST(*at(graph.memory[0].address) == (uint8_t)i);
    MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  }
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      LIMIT(memfd_does_not_matter),
      LIMIT(anonymous_views_are_forbidden),
      LIMIT(memfd_is_forbidden),
      LIMIT(memfd_is_missing),
      LIMIT(seals_are_forbidden),
      LIMIT(a_debugger_is_there),
      LIMIT(a_tracer_is_there),
      LIMIT(executable_mappings_are_forbidden),
      LIMIT(anonymous_views_are_forbidden_later),
      LIMIT(memfd_is_forbidden_later),
      LIMIT(mprotect_is_forbidden),
      LIMIT(nothing_may_be_made_executable),
      LIMIT(nothing_may_turn_executable),
      LIMIT(memfds_must_not_be_executed),
      LIMIT(files_can_not_be_opened_two_views),
      LIMIT(files_can_not_be_opened_mprotect),
      LIMIT(nothing_can_be_unmapped_two_views),
      LIMIT(nothing_can_be_unmapped_mprotect),
      LIMIT(calls_are_emulated),
      LIMIT(the_hot_path_never_enters_the_kernel),
  };
  return RUN_LIMITS(tests, argc, argv);
}
