// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Bounds that a host's own executor has, tried in children: they are for good.

#include "executor.h"
#include "here.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define TRANSLATED "valgrind opens files and makes memory executable for itself"

static jitmem_containment bounds(uint32_t profile) {
  return (jitmem_containment){.struct_size = sizeof(jitmem_containment), .profile = profile};
}

static uint32_t contain(const jitmem_containment *chosen) {
  uint32_t missing = UINT32_MAX;
  MUST_OK(jitmem_executor_contain(chosen, &missing, error));
  MUST((missing & ~(uint32_t)(JITMEM_NO_LANDLOCK | JITMEM_NO_MDWE)) == 0);
  return missing;
}

static int refused(long result) { return result < 0 && (errno == EPERM || errno == EACCES); }

static int opens(const char *path, int flags) {
  int file = open(path, flags);
  if (file >= 0)
    close(file);
  return file >= 0;
}

static int makes_code(void) {
  void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return mprotect(page, page_size(), PROT_READ | PROT_EXEC) == 0;
}

static void no_exec(void *unused) {
  (void)unused;
  jitmem_containment chosen = bounds(JITMEM_PROFILE_NO_EXEC);
  chosen.no_network = 1;
  MUST(contain(&chosen) == 0 || !opens("/dev/kvm", O_RDWR));
  char *none[] = {NULL};
  MUST(refused(execve("/bin/true", none, none)));
  MUST(refused(socket(AF_NETLINK, SOCK_RAW, 0)) && refused(socket(AF_INET, SOCK_STREAM, 0)));
  MUST(socket(AF_UNIX, SOCK_STREAM, 0) >= 0 && opens("/etc/passwd", O_RDONLY) && makes_code());
}

static void confined(void *unused) {
  (void)unused;
  jitmem_containment chosen = bounds(JITMEM_PROFILE_CONFINED);
  const char *readable[] = {"/etc"};
  chosen.readable = readable;
  chosen.readable_count = 1;
  contain(&chosen);
  MUST(opens("/etc/passwd", O_RDONLY) && !opens("/etc/passwd", O_WRONLY));
  MUST(!opens("/bin/sh", O_RDONLY) && refused(socket(AF_UNIX, SOCK_STREAM, 0)));
}

static void fixed_code(void *unused) {
  (void)unused;
  jitmem_containment chosen = bounds(JITMEM_PROFILE_NONE);
  chosen.fixed_code = chosen.no_shared_memory = chosen.no_capabilities = 1;
  MUST((contain(&chosen) & JITMEM_NO_LANDLOCK) == 0);
  MUST(!makes_code() && refused(syscall(SYS_memfd_create, "x", 0)));
  MUST(opens("/etc/passwd", O_RDONLY));
}

static void audited(void *unused) {
  (void)unused;
  jitmem_containment chosen = bounds(JITMEM_PROFILE_SEALED);
  chosen.audit = 1;
  MUST(contain(&chosen) == 0);
  MUST(opens("/etc/passwd", O_RDONLY) && makes_code());
}

static void each_bound_holds(void **state) {
  (void)state;
  not_under_valgrind(TRANSLATED);
  in_child(no_exec, NULL);
  in_child(confined, NULL);
  in_child(fixed_code, NULL);
  in_child(audited, NULL);
}

static void seal(void) {
  jitmem_containment chosen = bounds(JITMEM_PROFILE_SEALED);
  contain(&chosen);
  MUST(!opens("/etc/passwd", O_RDONLY) && !makes_code());
}

static void a_sealed_executor_serves(void **state) {
  (void)state;
  not_under_valgrind(TRANSLATED);
  struct executor executor = start_executor(seal);
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_transport_socket(executor.socket, &transport, error));
  OK(jitmem_mapper_remote(transport, NULL, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));
  const jitmem_segment segment = {
      .content_size = 1, .alignment = 16, .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  uint64_t allocation;
  OK(jitmem_manager_allocate(manager, &segment, 1, 0, &memory, &allocation, error));
  *(unsigned char *)memory.working_memory = 1;
  OK(jitmem_manager_finalize(manager, allocation, NULL, 0, error));
  OK(jitmem_manager_deallocate(manager, &allocation, 1, error));
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  assert_int_equal(status_of_executor(executor), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_bound_holds),
      cmocka_unit_test(a_sealed_executor_serves),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
