// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Memory section by section, at the addresses where it stays, and LLVM's C callbacks over it.

#include "child.h"
#include "code.h"

#include <sys/prctl.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

static jitmem_section_group *new_group(const struct fixture *fixture) {
  jitmem_section_group *group = NULL;
  OK(jitmem_section_group_create(fixture->manager, 1, &group, error));
  return group;
}

static void *section(jitmem_section_group *group, uint32_t kind, uint64_t size) {
  void *memory = NULL;
  OK(jitmem_section_group_allocate(group, kind, size, 16, ".section", &memory, error));
  assert_non_null(memory);
  assert_int_equal((uintptr_t)memory % 16, 0);
  return memory;
}

static void linked_code_runs_where_it_was_written(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  uint8_t *code = section(group, JITMEM_SECTION_CODE, LOAD_SIZE);
  uint32_t *constant = section(group, JITMEM_SECTION_CONSTANTS, 4);
  uint8_t *other = section(group, JITMEM_SECTION_CODE, LOAD_SIZE);
  uint32_t *data = section(group, JITMEM_SECTION_DATA, 4);
  assert_ptr_equal(other, code + 16);
  assert_int_equal(*data, 0);
  *constant = 7;
  *data = 8;
  emit_load(code, (uintptr_t)code, (uintptr_t)constant);
  emit_load(other, (uintptr_t)other, (uintptr_t)data);
  OK(jitmem_section_group_finalize(group, error));
  assert_int_equal(run((uintptr_t)code), 7);
  assert_int_equal(run((uintptr_t)other), 8);
  *data = 9;
  assert_int_equal(run((uintptr_t)other), 9);
  // What comes later lies in other pages, and nothing is left to finalize a second time.
  OK(jitmem_section_group_finalize(group, error));
  uint8_t *later = section(group, JITMEM_SECTION_CODE, RETURN_SIZE);
  assert_true((uintptr_t)later / page_size() != (uintptr_t)code / page_size());
  emit_return(later, 10);
  OK(jitmem_section_group_finalize(group, error));
  assert_int_equal(run((uintptr_t)later), 10);
  assert_int_equal(run((uintptr_t)code), 7);
  jitmem_section_group_free(group);
  assert_int_equal(stats_of(fixture->manager).live, 0);
}

static void what_can_never_be_is_refused(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  void *places[2], *memory = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "section kind 3",
          jitmem_section_group_allocate(group, 3, 1, 1, ".text", &memory, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "section .text of 1 bytes, alignment 3: alignment 3 is not",
          jitmem_section_group_allocate(group, 0, 1, 3, ".text", &memory, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "pass a power of two up to 1 GiB",
          jitmem_section_group_allocate(group, 0, 1, 3, ".text", &memory, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "misaligned",
          jitmem_section_group_allocate(group, 0, 1, 1, ".text",
                                        (void **)(void *)((char *)places + 1), error));
  for (int power = 31; power < 64; power++)
    REFUSED(
        JITMEM_INVALID_ARGUMENT, "is more than 1073741824",
        jitmem_section_group_allocate(group, 0, 1, UINT64_C(1) << power, ".text", &memory, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "section .text of 18446744073709551615 bytes",
          jitmem_section_group_allocate(group, 0, UINT64_MAX, 1, ".text", &memory, error));
  REFUSED(JITMEM_WINDOW_FULL, "section without a name of 2147483648 bytes",
          jitmem_section_group_allocate(group, 0, 2 * GIB, 1, NULL, &memory, error));
  assert_null(memory);
  // The group goes on.
  section(group, JITMEM_SECTION_CODE, 0);
  OK(jitmem_section_group_finalize(group, error));
  jitmem_section_group_free(group);
  jitmem_section_group_free(group);
  REFUSED(JITMEM_INVALID_HANDLE, "jitmem_section_group",
          jitmem_section_group_allocate(group, 0, 1, 1, NULL, &memory, error));
  REFUSED(JITMEM_INVALID_HANDLE, "jitmem_section_group",
          jitmem_section_group_finalize(group, error));
  REFUSED(JITMEM_INVALID_HANDLE, "jitmem_section_group",
          jitmem_section_group_register_eh_frame(group, places, 8, error));
}

// A window has one or two such places.
static void an_alignment_without_a_place_is_told(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  jitmem_error *why = NULL;
  jitmem_status status = JITMEM_OK;
  void *memory = NULL;
  int places = 0;
  while (places < 4 && status == JITMEM_OK) {
    // Of several pages, so that none fits behind another in its block.
    status = jitmem_section_group_allocate(group, JITMEM_SECTION_DATA, 5 * page_size(), GIB / 2,
                                           ".data", &memory, &why);
    if (status == JITMEM_OK) {
      assert_int_equal((uintptr_t)memory % (GIB / 2), 0);
      places++;
    }
  }
  assert_in_range(places, 1, 2);
  assert_int_equal(status, JITMEM_WINDOW_FULL);
  assert_non_null(strstr(jitmem_error_message(why), "aligned to 536870912: "));
  assert_non_null(strstr(jitmem_error_message(why), "no free place that is so aligned"));
  assert_non_null(strstr(jitmem_error_message(why), "windows of twice that alignment"));
  jitmem_error_free(why);
  jitmem_section_group_free(group);
}

static void a_group_outlives_its_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  uint8_t *code = section(group, JITMEM_SECTION_CODE, RETURN_SIZE);
  emit_return(code, 3);
  OK(jitmem_section_group_finalize(group, error));
  jitmem_manager_free(fixture->manager);
  assert_int_equal(run((uintptr_t)code), 3);
  jitmem_section_group_free(group);
}

static void frames_that_are_none_are_told(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  uint32_t *frames = section(group, JITMEM_SECTION_CONSTANTS, 64);
  frames[0] = 1 << 20;
  const uint32_t elsewhere[16] = {0};
  FAILS(JITMEM_INVALID_ARGUMENT, "no section of the group",
        jitmem_section_group_register_eh_frame(group, elsewhere, sizeof elsewhere, error));
  FAILS(JITMEM_INVALID_ARGUMENT, "no section of the group",
        jitmem_section_group_register_eh_frame(group, frames, 65, error));
  OK(jitmem_section_group_register_eh_frame(group, frames, 64, error));
  FAILS(JITMEM_ACTION_FAILED, ".eh_frame", jitmem_section_group_finalize(group, error));
  assert_int_equal(stats_of(fixture->manager).live, 0);
  // A section without descriptions is one.
  frames = section(group, JITMEM_SECTION_CONSTANTS, 64);
  OK(jitmem_section_group_register_eh_frame(group, frames, 64, error));
  OK(jitmem_section_group_finalize(group, error));
  jitmem_section_group_free(group);
}

static void only_memory_in_place_has_sections(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = NULL;
  REFUSED(JITMEM_UNSUPPORTED, "JITMEM_IN_PROCESS_IN_PLACE",
          jitmem_section_group_create(fixture->manager, 0, &group, error));
  void *context = jitmem_rtdyld_create_context(fixture->manager);
  assert_non_null(jitmem_rtdyld_allocate_code_section(context, 8, 16, 1, ".text"));
  char *message = NULL;
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, &message), 1);
  assert_non_null(strstr(message, "JITMEM_IN_PROCESS_IN_PLACE"));
  free(message);
  jitmem_rtdyld_destroy(context);
}

static void parent_and_child_go_on(void **state) {
  struct fixture *fixture = *state;
  jitmem_section_group *group = new_group(fixture);
  uint8_t *code = section(group, JITMEM_SECTION_CODE, RETURN_SIZE);
  emit_return(code, 1);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    emit_return(code, 2);
    MUST_OK(jitmem_section_group_finalize(group, error));
    MUST(run((uintptr_t)code) == 2);
    void *more = NULL;
    MUST_OK(jitmem_section_group_allocate(group, JITMEM_SECTION_CODE, RETURN_SIZE, 16, NULL, &more,
                                          error));
    emit_return(more, 3);
    MUST_OK(jitmem_section_group_finalize(group, error));
    MUST(run((uintptr_t)more) == 3);
    jitmem_section_group_free(group);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  OK(jitmem_section_group_finalize(group, error));
  assert_int_equal(run((uintptr_t)code), 1);
  jitmem_section_group_free(group);
}

// PR_SET_MDWE lets no memory that was written become executable.
static void a_system_that_forbids_it_is_told(void **state) {
  (void)state;
  not_under_valgrind("valgrind's own translations are written and executable");
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if (prctl(PR_SET_MDWE, 1L, 0L, 0L, 0L) != 0)
      SKIP_CHILD("this kernel has no PR_SET_MDWE");
    jitmem_mapper *mapper = NULL;
    MUST_FAIL(JITMEM_DENIED, "in place", "PR_SET_MDWE",
              jitmem_mapper_in_process(JITMEM_IN_PROCESS_IN_PLACE, &mapper, error));
    MUST_OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &mapper, error));
    _exit(CHILD_PASSED);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  if (WEXITSTATUS(status) == CHILD_SKIPPED)
    skip();
  assert_int_equal(WEXITSTATUS(status), CHILD_PASSED);
}

// ---- LLVM's callbacks ----

static void llvms_callbacks_link_an_object(void **state) {
  struct fixture *fixture = *state;
  void *context = jitmem_rtdyld_create_context(fixture->manager);
  uint8_t *code = jitmem_rtdyld_allocate_code_section(context, LOAD_SIZE, 16, 1, ".text");
  uint32_t *data = (void *)jitmem_rtdyld_allocate_data_section(context, 4, 4, 2, ".data", 0);
  uint32_t *constant = (void *)jitmem_rtdyld_allocate_data_section(context, 4, 0, 3, ".rodata", 1);
  *data = 4;
  *constant = 5;
  emit_load(code, (uintptr_t)code, (uintptr_t)constant);
  char *message = NULL;
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, &message), 0);
  assert_null(message);
  assert_int_equal(run((uintptr_t)code), 5);
  jitmem_rtdyld_destroy(context);
  jitmem_rtdyld_notify_terminating(fixture->manager);
  assert_int_equal(stats_of(fixture->manager).live, 0);
}

// LLVM ends the process for NULL, so it hears of it at finalize.
static void llvm_is_told_at_finalize_that_a_section_was_refused(void **state) {
  struct fixture *fixture = *state;
  OK(jitmem_manager_set_quota(fixture->manager, 2 * page_size(), error));
  void *context = jitmem_rtdyld_create_context(fixture->manager);
  assert_non_null(jitmem_rtdyld_allocate_code_section(context, 100, 16, 1, ".text"));
  uint8_t *refused = jitmem_rtdyld_allocate_data_section(context, 100000, 64, 2, ".bss", 0);
  assert_non_null(refused);
  assert_int_equal((uintptr_t)refused % 64, 0);
  memset(refused, 0, 100000);
  char *message = NULL;
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, &message), 1);
  assert_non_null(strstr(message, "section .bss of 100000 bytes"));
  assert_non_null(strstr(message, "quota"));
  free(message);
  jitmem_rtdyld_destroy(context);
  assert_int_equal(stats_of(fixture->manager).live, 0);
}

static int is_executable(const void *address) {
  FILE *maps = fopen("/proc/self/maps", "r");
  assert_non_null(maps);
  unsigned long first, end;
  char permissions[5] = "";
  while (fscanf(maps, "%lx-%lx %4s%*[^\n]", &first, &end, permissions) == 3)
    if ((uintptr_t)address >= first && (uintptr_t)address < end)
      break;
  fclose(maps);
  return permissions[2] == 'x';
}

// An engine of MCJIT has one group, and its host asks when it likes.
static void a_refused_section_fails_its_own_round_alone(void **state) {
  struct fixture *fixture = *state;
  void *context = jitmem_rtdyld_create_context(fixture->manager);
  jitmem_section_group *group = context;
  OK(jitmem_manager_set_quota(fixture->manager, 2 * page_size(), error));
  uint8_t *never = jitmem_rtdyld_allocate_code_section(context, RETURN_SIZE, 16, 1, ".text");
  uint32_t *frames = (void *)jitmem_rtdyld_allocate_data_section(context, 64, 8, 2, ".eh_frame", 1);
  assert_non_null(jitmem_rtdyld_allocate_data_section(context, 100000, 64, 3, ".bss", 0));
  emit_return(never, 1);
  *frames = 2;
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, NULL), 1);
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, NULL), 0);

  OK(jitmem_manager_set_quota(fixture->manager, 0, error));
  uint8_t *later = jitmem_rtdyld_allocate_code_section(context, RETURN_SIZE, 16, 4, ".text");
  assert_true((uintptr_t)later / page_size() != (uintptr_t)never / page_size());
  emit_return(later, 3);
  assert_int_equal(jitmem_rtdyld_finalize_memory(context, NULL), 0);
  assert_int_equal(run((uintptr_t)later), 3);
  // LLVM has registered frames before it finalizes them, and the unwinder reads them.
  assert_int_equal(*frames, 2);
  assert_false(is_executable(never));

  FAILS(JITMEM_QUOTA_EXCEEDED, ".bss", jitmem_section_group_finalize(group, error));
  OK(jitmem_section_group_finalize(group, error));
  // Without LLVM's call in between.
  OK(jitmem_manager_set_quota(fixture->manager, page_size(), error));
  assert_non_null(jitmem_rtdyld_allocate_data_section(context, 100000, 64, 5, ".data", 0));
  FAILS(JITMEM_QUOTA_EXCEEDED, ".data", jitmem_section_group_finalize(group, error));
  OK(jitmem_section_group_finalize(group, error));
  assert_int_equal(run((uintptr_t)later), 3);
  jitmem_rtdyld_destroy(context);
  assert_int_equal(stats_of(fixture->manager).live, 0);
  assert_int_equal(stats_of(fixture->manager).in_flight, 0);
}

#define IN_PLACE(test) {#test, test, set_up_in_place, tear_down, NULL}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_PLACE(linked_code_runs_where_it_was_written),
      IN_PLACE(what_can_never_be_is_refused),
      IN_PLACE(an_alignment_without_a_place_is_told),
      IN_PLACE(a_group_outlives_its_manager),
      IN_PLACE(frames_that_are_none_are_told),
      EACH(only_memory_in_place_has_sections),
      IN_PLACE(parent_and_child_go_on),
      cmocka_unit_test(a_system_that_forbids_it_is_told),
      IN_PLACE(llvms_callbacks_link_an_object),
      IN_PLACE(llvm_is_told_at_finalize_that_a_section_was_refused),
      IN_PLACE(a_refused_section_fails_its_own_round_alone),
  };
  return cmocka_run_group_tests_name("sections", tests, NULL, NULL);
}
