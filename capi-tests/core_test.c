// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a core file has of linked memory: all of it, and once.

#include "child.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { MARK = 64 };

// The i-th byte of a mark, which stands nowhere but where it was stored: no array is made of it.
static unsigned char mark_byte(unsigned which, unsigned i) {
  uint64_t random = (which + 1) * 0x9e3779b97f4a7c15u + i;
  random ^= random >> 33;
  random *= 0xff51afd7ed558ccdu;
  return (unsigned char)(random >> 56);
}

static void store_mark(void *memory, unsigned which) {
  for (unsigned i = 0; i < MARK; i++)
    ((volatile unsigned char *)memory)[i] = mark_byte(which, i);
}

static unsigned marks_in(const unsigned char *bytes, size_t size, unsigned which) {
  unsigned count = 0;
  for (size_t at = 0; at + MARK <= size; at++) {
    unsigned i = 0;
    while (i < MARK && bytes[at + i] == mark_byte(which, i))
      i++;
    count += i == MARK;
  }
  return count;
}

static void ends_with_a_core(void *folder) {
  MUST(chdir(folder) == 0);
  const struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
  if (setrlimit(RLIMIT_CORE, &limit) != 0)
    SKIP_CHILD("this process may write no core files: raise the hard limit RLIMIT_CORE");
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, error));
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  const jitmem_segment segments[] = {segment(MARK, 0, RX), segment(MARK, 0, R),
                                     segment(MARK, 0, RW)};
  jitmem_segment_memory memory[COUNT(segments)];
  uint64_t handle;
  MUST_OK(jitmem_manager_allocate(manager, segments, COUNT(segments), 0, memory, &handle, error));
  for (unsigned i = 0; i < COUNT(segments); i++)
    store_mark(memory[i].working_memory, i);
  MUST_OK(jitmem_manager_finalize(manager, handle, NULL, 0, error));
  abort();
}

// Where the kernel writes core files: in the folder of the process that ends, if its pattern is a
// plain name.
static int cores_stay_in_the_folder(void) {
  char pattern[128] = "";
  FILE *file = fopen("/proc/sys/kernel/core_pattern", "r");
  if (file == NULL || fgets(pattern, sizeof pattern, file) == NULL)
    pattern[0] = '|';
  if (file != NULL)
    fclose(file);
  return strchr("|/@", pattern[0]) == NULL;
}

static void a_core_file_has_linked_memory_once(void **state) {
  (void)state;
  if (instrumented() || !cores_stay_in_the_folder()) {
    print_message("SKIPPED: core files are another program's here\n");
    skip();
  }
  char folder[] = "/tmp/jitmem-core-XXXXXX";
  assert_non_null(mkdtemp(folder));
  const int status = status_of_child(ends_with_a_core, folder);
  if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPPED) {
    rmdir(folder);
    skip();
  }
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
  assert_true(WCOREDUMP(status));
  char path[PATH_MAX];
  DIR *entries_of = opendir(folder);
  assert_non_null(entries_of);
  const struct dirent *entry = NULL;
  while ((entry = readdir(entries_of)) != NULL && entry->d_name[0] == '.')
    ;
  assert_non_null(entry);
  snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
  closedir(entries_of);
  const int core = open(path, O_RDONLY | O_CLOEXEC);
  assert_true(core >= 0);
  unlink(path);
  rmdir(folder);
  struct stat about;
  assert_int_equal(fstat(core, &about), 0);
  const size_t size = (size_t)about.st_size;
  const unsigned char *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, core, 0);
  assert_true(bytes != MAP_FAILED);
  close(core);
  for (unsigned which = 0; which < 3; which++)
    assert_int_equal(marks_in(bytes, size, which), 1);
  munmap((void *)bytes, size);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_core_file_has_linked_memory_once)};
  return cmocka_run_group_tests_name("core", tests, NULL, NULL);
}
