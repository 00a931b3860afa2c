// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Where memory of a group lies: at one address in executors that need not be forked from one
// process.

#include "groups.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/personality.h>

// Our own program, at addresses that are the same each time, or not.
static struct executor start_unrelated(int random) {
  const char *path = getenv("JITMEM_EXECUTOR");
  assert_non_null(path);
  int before = personality(0xffffffff);
  if (!random)
    personality((unsigned long)before | ADDR_NO_RANDOMIZE);
  struct executor executor = start_program(path);
  personality((unsigned long)before);
  return executor;
}

// Far from what threads of an executor map by and by below its libraries.
static const jitmem_manager_options far_away = {
    .struct_size = sizeof far_away, .placement = JITMEM_PLACEMENT_FIXED, .address = 0x600000000000};

static void unrelated_ones_agree_or_are_refused(void **state) {
  (void)state;
  struct group group = {0};
  if (personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE) < 0) {
    print_message("SKIPPED: address-space randomization can't be switched off here\n");
    skip();
  }
  personality(0);
  for (size_t i = 0; i < 3; i++)
    add_place(&group, start_unrelated(0));
  make_mapper(&group);
  OK(jitmem_manager_create(group.mapper, &far_away, &group.manager, error));
  struct unit unit = link_unit(group.manager, 11);
  count_in(&group, 1, &unit);
  assert_int_equal(call_in(&group, 0, unit.read), 11);
  assert_int_equal(call_in(&group, 1, unit.read), 12);
  size_t late = add_place(&group, start_unrelated(0));
  join_with(&group, late);
  check_unit(&group, late, &unit, 11);
  size_t elsewhere = add_place(&group, start_unrelated(1));
  const jitmem_new_executor executor = {.transport = group.transports[elsewhere], .name = "stray"};
  FAILS(JITMEM_UNSUPPORTED, "executor stray of the group: its service is at 0x",
        jitmem_mapper_add_executor(group.mapper, &executor, NULL, error));
  assert_int_equal(executors_of(&group), 4);
  end_group(&group);
}

// In the second executor, what lies where others would have a window.
static uint64_t taken_address;

static void take(uint64_t address) {
  address &= ~(page_size() - 1);
  void *page = mmap(at(address), page_size(), PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (page == at(address))
    return;
  // Something is there already, or nothing can be. valgrind takes the flag for none and the address
  // for a hint.
  if (page == MAP_FAILED)
    MUST(errno == EEXIST || errno == ENOMEM);
  else
    MUST(under_valgrind() && munmap(page, page_size()) == 0);
}

static void take_an_address(void) {
  if (place_here == 1)
    take(taken_address);
}

static void take_note_of_window(void *ctx, const jitmem_layout_item *item) {
  if (item->kind == JITMEM_LAYOUT_WINDOW)
    *(uint64_t *)ctx = item->address;
}

static void a_window_has_one_address_or_is_refused(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 1, NULL);
  OK(jitmem_manager_layout(group.manager, take_note_of_window, &taken_address, error));
  end_group(&group);
  // Without a manager, whose window might be there.
  group = (struct group){0};
  for (size_t i = 0; i < 3; i++)
    start_one(&group, take_an_address);
  make_mapper(&group);
  jitmem_manager_options options = {.struct_size = sizeof options,
                                    .placement = JITMEM_PLACEMENT_FIXED,
                                    .address = taken_address,
                                    .window_size = 64 * MIB};
  jitmem_manager *manager = NULL;
  FAILS(JITMEM_SYSTEM, "executor 2 of the group",
        jitmem_manager_create(group.mapper, &options, &manager, error));
  // What the others had reserved for it is free again.
  OK(jitmem_mapper_remove_executor(group.mapper, 2, error));
  OK(jitmem_manager_create(group.mapper, &options, &manager, error));
  jitmem_manager_free(manager);
  end_group(&group);
}

// More than there are tries, so that not each can choose.
enum { MANY = 10 };

// In the last one a page in each 128 MiB around the C library, but for one place, which most likely
// lies in what another one would choose and keep.
static void take_what_is_near(void) {
  if (place_here != MANY - 1)
    return;
  for (uint64_t distance = 128 * MIB; distance < 2 * GIB; distance += 128 * MIB) {
    if (distance != 1 * GIB)
      take((uintptr_t)getpid - distance);
    take((uintptr_t)getpid + distance);
  }
}

static void windows_go_where_all_have_room(void **state) {
  (void)state;
  struct group group;
  start_group(&group, MANY, take_what_is_near);
  struct unit unit = link_unit(group.manager, 2);
  for (size_t place = 0; place < MANY; place++)
    check_unit(&group, place, &unit, 2);
  end_group(&group);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(unrelated_ones_agree_or_are_refused),
      cmocka_unit_test(a_window_has_one_address_or_is_refused),
      cmocka_unit_test(windows_go_where_all_have_room),
  };
  return at_rest(cmocka_run_group_tests_name("places of groups", tests, NULL, NULL));
}
