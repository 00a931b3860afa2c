// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Tests under limits of the system. Each body runs in a child process, whose limits are its own.

#ifndef LIMITS_H
#define LIMITS_H

#include "child.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

// LIMITED(name) { body }: a test whose body runs in a child.
#define LIMITED(name)                                                                              \
  static void body_of_##name(void *);                                                              \
  static void name(void **state) {                                                                 \
    (void)state;                                                                                   \
    in_child(body_of_##name, NULL);                                                                \
  }                                                                                                \
  static void body_of_##name(void *unused __attribute__((unused)))

// Two of them, <name>_two_views and <name>_mprotect, with that in-process mapper in `kind`.
#define LIMITED_EACH(name)                                                                         \
  static void body_of_##name(uint32_t kind);                                                       \
  static void run_##name(void *kind) { body_of_##name(*(uint32_t *)kind); }                        \
  static void name##_two_views(void **state) {                                                     \
    (void)state;                                                                                   \
    in_child(run_##name, &(uint32_t){JITMEM_IN_PROCESS_TWO_VIEWS});                                \
  }                                                                                                \
  static void name##_mprotect(void **state) {                                                      \
    (void)state;                                                                                   \
    in_child(run_##name, &(uint32_t){JITMEM_IN_PROCESS_MPROTECT});                                 \
  }                                                                                                \
  static void body_of_##name(uint32_t kind)

// An entry of a program's table; CMakeLists.txt looks for lines that begin so.
#define LIMIT(name) cmocka_unit_test(name)

// Runs all of a table, or the one that is named. What can't be had here is neither passed nor
// failed.
#define RUN_LIMITS(tests, argc, argv)                                                              \
  (argc > 1 && !limit_is_known(tests, COUNT(tests), argv[1])                                       \
       ? CHILD_FAILED                                                                              \
       : (cmocka_set_test_filter(argc > 1 ? argv[1] : NULL),                                       \
          limits_result(cmocka_run_group_tests_name("limits", tests, NULL, NULL))))

// Bytes that this process has of it.
static inline uint64_t address_space(void) {
  unsigned long long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  MUST(file != NULL && fscanf(file, "%llu", &pages) == 1);
  fclose(file);
  return pages * page_size();
}

static inline int limit_is_known(const struct CMUnitTest *tests, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(tests[i].name, name) == 0)
      return 1;
  fprintf(stderr, "there is no test %s\n", name);
  return 0;
}

static inline int limits_result(int failed) {
  return failed ? CHILD_FAILED : skipped_tests ? CHILD_SKIPPED : CHILD_PASSED;
}

// ---- ways to limit a child ----

// What a filter knows this processor's system calls by.
#if defined(__x86_64__)
#define THIS_PROCESSOR AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_PROCESSOR AUDIT_ARCH_AARCH64
#endif

static inline void set_limit(int resource, uint64_t value) {
  struct rlimit limit = {.rlim_cur = value, .rlim_max = RLIM_INFINITY};
  MUST(getrlimit(resource, &limit) == 0);
  limit.rlim_cur = value;
  MUST(setrlimit(resource, &limit) == 0);
}

static inline void install_filter(struct sock_filter *code, unsigned short length) {
  struct sock_fprog program = {.len = length, .filter = code};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    SKIP_CHILD("this kernel or sandbox takes no seccomp filter: %s", strerror(errno));
}

#define LOAD(field)                                                                                \
  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, field))
#define EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(value), yes, no)
#define ANSWER(action) BPF_STMT(BPF_RET | BPF_K, (action))

static inline void filter(long call, unsigned action) {
  struct sock_filter code[] = {
      LOAD(arch),     EQUAL(THIS_PROCESSOR, 0, 3), LOAD(nr), EQUAL(call, 0, 1),
      ANSWER(action), ANSWER(SECCOMP_RET_ALLOW),
  };
  install_filter(code, COUNT(code));
}

// From now on this system call fails.
static inline void deny(long call, int error) { filter(call, SECCOMP_RET_ERRNO | (unsigned)error); }

// From now on this system call ends the process.
static inline void forbid(long call) { filter(call, SECCOMP_RET_KILL_PROCESS); }

// From now on this system call fails if the low half of its argument at `place` is `value`.
static inline void deny_with(long call, unsigned place, unsigned value, int error) {
  const unsigned argument = (unsigned)(offsetof(struct seccomp_data, args) + 8 * place);
  struct sock_filter code[] = {
      LOAD(arch),
      EQUAL(THIS_PROCESSOR, 0, 5),
      LOAD(nr),
      EQUAL(call, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument),
      EQUAL(value, 0, 1),
      ANSWER(SECCOMP_RET_ERRNO | (unsigned)error),
      ANSWER(SECCOMP_RET_ALLOW),
  };
  install_filter(code, COUNT(code));
}

#endif
