// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Allocation actions: order, roll-back, every way to fail, and memory that is free afterwards.

#include "code.h"
#include "here.h"

// What ran, in order: each note is its argument byte.
static char noted[64];

static void forget_notes(void) { memset(noted, 0, sizeof noted); }

static void note_byte(const char *args, size_t size) {
  size_t length = strlen(noted);
  if (size != 1 || length + 1 >= sizeof noted)
    abort();
  noted[length] = *args;
}

static struct wrapper_result note(const char *args, size_t size) {
  note_byte(args, size);
  return succeed();
}

static struct wrapper_result note_and_fail(const char *args, size_t size) {
  note_byte(args, size);
  char text[] = "action ? has failed";
  text[7] = *args;
  return fail_with(text);
}

// Finalize notes an upper-case letter, deallocate the lower-case one.
static jitmem_action action(const char *letters) {
  return (jitmem_action){.finalize = call_of(note, letters, 1),
                         .dealloc = call_of(note, letters + 1, 1)};
}

static struct graph finalized_with(jitmem_manager *manager, const jitmem_action *actions,
                                   size_t count) {
  struct graph graph = allocate_three(manager, 1);
  OK(jitmem_manager_finalize(manager, graph.handle, actions, count, error));
  return graph;
}

// ---- order ----

static void first_to_last_and_back(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  forget_notes();
  const jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc")};
  struct graph graph = finalized_with(manager, actions, COUNT(actions));
  assert_string_equal(noted, "ABC");
  deallocate(manager, graph.handle);
  assert_string_equal(noted, "ABCcba");
}

static void a_batch_goes_last_to_first(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc"), action("Dd")};
  uint64_t handles[3];
  handles[0] = finalized_with(manager, actions, 2).handle;
  handles[1] = finalized_with(manager, NULL, 0).handle;
  handles[2] = finalized_with(manager, actions + 2, 2).handle;
  forget_notes();
  OK(jitmem_manager_deallocate(manager, handles, COUNT(handles), error));
  assert_string_equal(noted, "dcba");
}

static void what_is_left_goes_with_the_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
  const jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc"), action("Dd")};
  // Allocated in another order than finalized: the latter counts.
  struct graph late = allocate_three(manager, 1);
  finalized_with(manager, actions, 2);
  uint64_t gone = finalized_with(manager, actions + 2, 1).handle;
  OK(jitmem_manager_finalize(manager, late.handle, actions + 3, 1, error));
  deallocate(manager, gone);
  allocate_three(manager, 1);
  forget_notes();
  jitmem_manager_free(manager);
  assert_string_equal(noted, "dba");
}

// ---- what is called with what ----

static void null_functions_are_no_calls(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  forget_notes();
  const jitmem_action actions[] = {
      {.finalize = call_of(note, "A", 1)},
      // Arguments of no function are not looked at.
      {.finalize = {.function = 0, .args = NULL, .args_size = 77},
       .dealloc = call_of(note, "b", 1)},
      {.finalize = {.function = 0}},
      action("Dd"),
  };
  struct graph graph = finalized_with(manager, actions, COUNT(actions));
  assert_string_equal(noted, "AD");
  deallocate(manager, graph.handle);
  assert_string_equal(noted, "ADdb");
}

static size_t seen_size;
static char seen_bytes[100];

static struct wrapper_result see(const char *args, size_t size) {
  seen_size = size;
  if (size > sizeof seen_bytes)
    abort();
  if (size > 0)
    memcpy(seen_bytes, args, size);
  return succeed();
}

static void arguments_are_copied(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  char args[100];
  memset(args, 'x', sizeof args);
  seen_size = 0;
  jitmem_action one = {.dealloc = call_of(see, args, sizeof args)};
  struct graph graph = finalized_with(manager, &one, 1);
  memset(args, 'y', sizeof args);
  memset(&one, 0, sizeof one);
  deallocate(manager, graph.handle);
  assert_int_equal(seen_size, sizeof args);
  assert_true(all_bytes_are((uint8_t *)seen_bytes, sizeof seen_bytes, 'x'));
}

static void no_arguments(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  seen_size = 99;
  const jitmem_action one = {.finalize = call_of(see, NULL, 0), .dealloc = call_of(see, NULL, 0)};
  struct graph graph = finalized_with(manager, &one, 1);
  assert_int_equal(seen_size, 0);
  seen_size = 99;
  deallocate(manager, graph.handle);
  assert_int_equal(seen_size, 0);
}

static void linked_code_is_called(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  // The finalize action is of finalize lifetime: needed once, gone afterwards.
  jitmem_segment brief = segment(COUNTING_WRAPPER_SIZE, 0, RX),
                 lasting = segment(COUNTING_WRAPPER_SIZE, 0, RX);
  brief.lifetime = JITMEM_LIFETIME_FINALIZE;
  const jitmem_segment segments[] = {brief, lasting, segment(0, 4, RW)};
  struct graph counter = allocate_one(manager, segment(0, 8, RW), 0);
  finalize(manager, counter.handle);
  uint64_t count = counter.memory[0].address;
  struct graph graph = allocate(manager, segments, COUNT(segments));
  for (int i = 0; i < 2; i++)
    emit_counting_wrapper(graph.memory[i].working_memory, graph.memory[i].address, count);
  const jitmem_action one = {.finalize = {.function = graph.memory[0].address},
                             .dealloc = {.function = graph.memory[1].address}};
  OK(jitmem_manager_finalize(manager, graph.handle, &one, 1, error));
  assert_int_equal(*at(count), 1);
  deallocate(manager, graph.handle);
  assert_int_equal(*at(count), 2);
  deallocate(manager, counter.handle);
}

// ---- failing on finalize ----

// Finalizes with actions of which one fails; afterwards nothing may be left.
static void check_finalize_fails(jitmem_manager *manager, const jitmem_action *actions,
                                 size_t count, const char *words) {
  jitmem_stats before = stats_of(manager);
  struct graph graph = allocate_three(manager, 1);
  forget_notes();
  FAILS(JITMEM_ACTION_FAILED, words,
        jitmem_manager_finalize(manager, graph.handle, actions, count, error));
  jitmem_stats after = stats_of(manager);
  assert_int_equal(after.live, before.live);
  assert_int_equal(after.padding, before.padding);
  assert_int_equal(after.in_flight, before.in_flight);
  assert_int_equal(after.finalized, before.finalized);
  assert_int_equal(after.failures, before.failures + 1);
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_abandon(manager, graph.handle, error));
}

static void the_nth_failure_rolls_back_those_before(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const char *expected[] = {"A", "ABa", "ABCba", "ABCDcba"};
  const char *words[] = {"action A has failed", "action B has failed", "action C has failed",
                         "action D has failed"};
  for (size_t failing = 0; failing < 4; failing++) {
    jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc"), action("Dd")};
    actions[failing].finalize.function = (uintptr_t)note_and_fail;
    check_finalize_fails(manager, actions, COUNT(actions), words[failing]);
    assert_string_equal(noted, expected[failing]);
  }
  struct graph graph = finalized_with(manager, NULL, 0);
  deallocate(manager, graph.handle);
}

static void a_failure_while_rolling_back_is_reported_too(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc")};
  actions[0].dealloc.function = (uintptr_t)note_and_fail;
  actions[2].finalize.function = (uintptr_t)note_and_fail;
  check_finalize_fails(manager, actions, COUNT(actions), "action C has failed");
  assert_string_equal(noted, "ABCba");
  check_finalize_fails(manager, actions, COUNT(actions), "action a has failed");
}

static struct wrapper_result out_of_band(const char *args, size_t size) {
  (void)args, (void)size;
  return (struct wrapper_result){.data = {.pointer = strdup("no such service")}, .size = 0};
}

static struct wrapper_result nothing(const char *args, size_t size) {
  (void)args, (void)size;
  return (struct wrapper_result){.data = {.pointer = NULL}, .size = 0};
}

// Copies its arguments into the result, inline or in a block.
static struct wrapper_result echo(const char *args, size_t size) {
  struct wrapper_result result = {.data = {.pointer = NULL}, .size = size};
  if (size > sizeof result.data.bytes && (result.data.pointer = malloc(size)) == NULL)
    abort();
  if (size > 0)
    memcpy(size > sizeof result.data.bytes ? result.data.pointer : result.data.bytes, args, size);
  return result;
}

static struct wrapper_result block_of_nothing(const char *args, size_t size) {
  (void)args, (void)size;
  return (struct wrapper_result){.data = {.pointer = NULL}, .size = 100};
}

static void results_that_are_no_success(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  static const char truncated[] = "\1\377\0\0\0\0\0\0\0bad", endless[] =
                                                                 "\1\377\377\377\377\377\377"
                                                                 "\377\377bad";
  const struct {
    jitmem_wrapper_call call;
    const char *words;
  } results[] = {
      {call_of(out_of_band, NULL, 0), "no such service"},
      {call_of(nothing, NULL, 0), "no serialized error"},
      {call_of(echo, "\2", 1), "no serialized error"},
      {call_of(echo, "\1", 1), "no serialized error"},
      {call_of(echo, "\1\3\0\0\0\0\0\0", 8), "no serialized error"},
      {call_of(echo, truncated, sizeof truncated), "no serialized error"},
      {call_of(echo, endless, sizeof endless), "no serialized error"},
      {call_of(block_of_nothing, NULL, 0), "100 bytes"},
      // An error without text, and one whose text holds a NUL and is no UTF-8.
      {call_of(echo, "\1\0\0\0\0\0\0\0\0", 9), "allocation action at"},
      {call_of(echo, "\1\4\0\0\0\0\0\0\0a\0\377b", 13), "allocation action at"},
  };
  for (size_t i = 0; i < COUNT(results); i++) {
    const jitmem_action actions[] = {action("Aa"), {.finalize = results[i].call}, action("Cc")};
    check_finalize_fails(manager, actions, COUNT(actions), results[i].words);
    assert_string_equal(noted, "Aa");
  }
  // Success in a block of its own, and with bytes behind it, is success.
  const jitmem_action fine[] = {{.finalize = call_of(echo, "\0\0\0\0\0\0\0\0\0\0\0\0", 12)},
                                {.finalize = call_of(echo, "\0\1\2", 3)}};
  struct graph graph = finalized_with(manager, fine, COUNT(fine));
  deallocate(manager, graph.handle);
}

// ---- failing on deallocate ----

static void all_run_though_one_fails(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  jitmem_action actions[] = {action("Aa"), action("Bb"), action("Cc")};
  uint64_t handles[2];
  actions[1].dealloc.function = (uintptr_t)note_and_fail;
  handles[0] = finalized_with(manager, actions, COUNT(actions)).handle;
  actions[0].dealloc = call_of(out_of_band, NULL, 0);
  handles[1] = finalized_with(manager, actions, 1).handle;
  forget_notes();
  jitmem_error *error = NULL;
  assert_int_equal(jitmem_manager_deallocate(manager, handles, 2, &error), JITMEM_ACTION_FAILED);
  assert_string_equal(noted, "cba");
  assert_non_null(strstr(jitmem_error_message(error), "action b has failed"));
  assert_non_null(strstr(jitmem_error_message(error), "no such service"));
  jitmem_error_free(error);
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.live + stats.padding + stats.finalized, 0);
  REFUSED(JITMEM_INVALID_HANDLE, "not live", jitmem_manager_deallocate(manager, handles, 2, error));
}

static void a_manager_goes_though_an_action_fails(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = manager_with(fixture, (jitmem_manager_options){0});
  jitmem_action actions[] = {action("Aa"), action("Bb")};
  actions[1].dealloc.function = (uintptr_t)note_and_fail;
  finalized_with(manager, actions, COUNT(actions));
  forget_notes();
  jitmem_manager_free(manager);
  assert_string_equal(noted, "ba");
}

// ---- calling back ----

static jitmem_manager *reentered;

static struct wrapper_result use_the_manager(const char *args, size_t size) {
  struct graph graph;
  jitmem_segment one = segment(64, 0, RX);
  (void)args, (void)size;
  if (jitmem_manager_allocate(reentered, &one, 1, 0, graph.memory, &graph.handle, NULL) ||
      jitmem_manager_finalize(reentered, graph.handle, NULL, 0, NULL) ||
      jitmem_manager_deallocate(reentered, &graph.handle, 1, NULL))
    return fail_with("the manager can not be used in an action");
  return succeed();
}

static void an_action_may_use_its_manager(void **state) {
  reentered = ((struct fixture *)*state)->manager;
  const jitmem_action one = {.finalize = call_of(use_the_manager, NULL, 0),
                             .dealloc = call_of(use_the_manager, NULL, 0)};
  struct graph graph = finalized_with(reentered, &one, 1);
  deallocate(reentered, graph.handle);
  assert_int_equal(stats_of(reentered).deallocate_calls, 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(first_to_last_and_back),
      EVERYWHERE(a_batch_goes_last_to_first),
      EVERYWHERE(what_is_left_goes_with_the_manager),
      EVERYWHERE(null_functions_are_no_calls),
      EVERYWHERE(arguments_are_copied),
      EVERYWHERE(no_arguments),
      EVERYWHERE(linked_code_is_called),
      EVERYWHERE(the_nth_failure_rolls_back_those_before),
      EVERYWHERE(a_failure_while_rolling_back_is_reported_too),
      EVERYWHERE(results_that_are_no_success),
      EVERYWHERE(all_run_though_one_fails),
      EVERYWHERE(a_manager_goes_though_an_action_fails),
      EVERYWHERE(an_action_may_use_its_manager),
  };
  return at_rest(cmocka_run_group_tests_name("actions", tests, NULL, NULL));
}
