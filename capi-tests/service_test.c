// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The executor's service, seen from both sides at once: several controllers, several services, and
// the end of either side while the other goes on.

#include "child.h"
#include "code.h"
#include "here.h"
#include "notes.h"

#include <stdatomic.h>

static jitmem_action action(const char *letters) {
  return (jitmem_action){.finalize = call_of(note, letters, 1),
                         .dealloc = call_of(note, letters + 1, 1)};
}

static struct graph with_action(jitmem_manager *manager, const char *letters) {
  const jitmem_action one = action(letters);
  struct graph graph = allocate_three(manager, 1);
  emit_return(graph.memory[0].working_memory, (uint32_t)*letters);
  OK(jitmem_manager_finalize(manager, graph.handle, &one, 1, error));
  assert_int_equal(run(graph.memory[0].address), *letters);
  return graph;
}

// ---- finding a service ----

struct published {
  int open, instance, others;
  uint64_t number;
};

static void look_at_symbol(void *ctx, const char *name, uint64_t address) {
  struct published *published = ctx;
  if (strcmp(name, "jitmem_service_open") == 0) {
    published->open++;
    assert_true(address == (uintptr_t)jitmem_service_open);
  } else if (strcmp(name, "jitmem_service_instance") == 0) {
    published->instance++;
    published->number = address;
  } else {
    published->others++;
  }
}

static void two_symbols_lead_to_a_service(void **state) {
  (void)state;
  uint64_t before = 0;
  for (int i = 0; i < 2; i++) {
    struct published published = {0};
    jitmem_service *service = NULL;
    OK(jitmem_service_create(&service, error));
    OK(jitmem_service_symbols(service, look_at_symbol, &published, error));
    assert_int_equal(published.open, 1);
    assert_int_equal(published.instance, 1);
    assert_int_equal(published.others, 0);
    assert_true(published.number != 0 && published.number != before);
    before = published.number;
    jitmem_service_free(service);
    REFUSED(JITMEM_INVALID_HANDLE, "was freed before",
            jitmem_service_symbols(service, look_at_symbol, &published, error));
    jitmem_service_free(service);
  }
}

static void options_come_before_names(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  jitmem_mapper *mapper = NULL;
  struct {
    jitmem_executor_options options;
    uint64_t more;
  } grown = {.options = {.instead_of = "because"}};
  const size_t wrong[] = {0, 8, sizeof grown.options - 1, 4097};
  for (size_t i = 0; i < COUNT(wrong); i++) {
    grown.options.struct_size = wrong[i];
    REFUSED(JITMEM_INVALID_ARGUMENT, "struct_size",
            jitmem_mapper_shared(here.transport, &grown.options, &mapper, error));
  }
  grown.more = 1;
  grown.options.struct_size = sizeof grown;
  REFUSED(JITMEM_INVALID_ARGUMENT, "update the library",
          jitmem_mapper_remote(here.transport, &grown.options, &mapper, error));
  grown.more = 0;
  grown.options.instead_of = "\xff";
  REFUSED(JITMEM_INVALID_ARGUMENT, "instead_of is not UTF-8",
          jitmem_mapper_remote(here.transport, &grown.options, &mapper, error));
  grown.options.instead_of = NULL;
  grown.options.instance = 1u << 30;
  REFUSED(JITMEM_INVALID_HANDLE, "no service 1073741824",
          jitmem_mapper_remote(here.transport, &grown.options, &mapper, error));
  // An executor that publishes nothing, and one whose service does not answer as one.
  uint64_t open = here.open;
  here.open = 0;
  REFUSED(JITMEM_UNSUPPORTED, "jitmem_service_open",
          jitmem_mapper_shared(here.transport, NULL, &mapper, error));
  REFUSED(JITMEM_UNSUPPORTED, "publishes no",
          jitmem_mapper_llvm_shared(here.transport, NULL, &mapper, error));
  // The process's own service, by address alone.
  grown.options = (jitmem_executor_options){.struct_size = sizeof grown, .service = open};
  here.instance = 0;
  OK(jitmem_mapper_remote(here.transport, &grown.options, &mapper, error));
  jitmem_mapper_free(mapper);
  here_tear_down(&here);
}

static struct wrapper_result no_service(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static struct wrapper_result out_of_band(const char *args, size_t size) {
  (void)args, (void)size;
  return (struct wrapper_result){.data = {.pointer = strdup("no one is in")}, .size = 0};
}

static void executors_without_the_service(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  jitmem_mapper *mapper = NULL;
  here.open = (uintptr_t)no_service;
  REFUSED(JITMEM_MAPPER_FAILED, "1 bytes that are no reply",
          jitmem_mapper_shared(here.transport, NULL, &mapper, error));
  here.open = (uintptr_t)out_of_band;
  REFUSED(JITMEM_MAPPER_FAILED, "no one is in",
          jitmem_mapper_remote(here.transport, NULL, &mapper, error));
  assert_null(mapper);
  here_tear_down(&here);
}

struct bytes {
  char text[256];
  size_t size;
};

static void take_bytes(void *ctx, const void *bytes, size_t size) {
  struct bytes *taken = ctx;
  taken->size = size < sizeof taken->text ? size : sizeof taken->text;
  memcpy(taken->text, bytes, taken->size);
}

static void another_version_is_told_so(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  const char other[12] = {'\xff', '\xff'};
  struct bytes taken = {0};
  OK(jitmem_transport_call(here.transport, here.open, other, sizeof other, take_bytes, &taken,
                           error));
  assert_non_null(memmem(taken.text, taken.size, "version 65535", 13));
  OK(jitmem_transport_call(here.transport, here.open, other, 11, take_bytes, &taken, error));
  assert_non_null(memmem(taken.text, taken.size, "malformed", 9));
  here_tear_down(&here);
}

// ---- executors of LLVM's ORC runtime ----

// As orc-rt's session has it: arguments are a buffer, and answers come through a function.
struct session {
  uint64_t number;
  int answered;
  struct wrapper_result answer;
};

static void take_answer(void *of, jitmem_wrapper_result answer, uint64_t number) {
  struct session *session = of;
  session->answered += number == session->number;
  memcpy(&session->answer, &answer, sizeof answer);
}

typedef void session_function(void *session, jitmem_wrapper_result args,
                              jitmem_session_return_fn reply, uint64_t number);

static void call_by_session(void *ctx, uint64_t function, const void *args, size_t size,
                            jitmem_call call) {
  (void)ctx;
  jitmem_wrapper_result buffer = {.size = size};
  if (size > sizeof buffer.data)
    buffer.data = (uintptr_t)memcpy(malloc(size), args, size);
  else if (size != 0)
    memcpy(&buffer.data, args, size);
  struct session session = {.number = function ^ size};
  ((session_function *)(uintptr_t)function)(&session, buffer, take_answer, session.number);
  if (session.answered != 1 || answer_with(call, session.answer) != JITMEM_OK)
    abort();
}

static void a_session_of_orc_rt_reaches_a_service(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    forget_notes();
    struct here here;
    here_set_up(&here, call_by_session);
    OK(jitmem_service_session_symbols(here.service, here_publish, &here, error));
    assert_true(here.open == (uintptr_t)jitmem_service_open_by_session);
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = manager_over(here.transport, shared, &mapper);
    struct graph graph = with_action(manager, "ab");
    assert_string_equal(noted, "a");
    deallocate(manager, graph.handle);
    assert_string_equal(noted, "ab");
    with_action(manager, "cd");
    // What a controller leaves is deallocated with its session.
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    assert_string_equal(noted, "abcd");
    // Not arguments, but why there are none.
    struct session session = {.number = 7};
    jitmem_wrapper_result lost = {.data = (uintptr_t)strdup("the connection broke")};
    jitmem_service_open_by_session(&session, lost, take_answer, 7);
    assert_int_equal(session.answered, 1);
    assert_int_equal(session.answer.size, 0);
    assert_string_equal(session.answer.data.pointer, "the connection broke");
    free(session.answer.data.pointer);
    here_tear_down(&here);
  }
}

// ---- what statistics say ----

static void statistics_name_the_way(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct here here;
    here_set_up(&here, here_call);
    jitmem_mapper *mapper = NULL;
    jitmem_executor_options options = {.struct_size = sizeof options,
                                       .instead_of = shared ? "it rains" : NULL};
    OK((shared ? jitmem_mapper_shared : jitmem_mapper_remote)(here.transport, &options, &mapper,
                                                              error));
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(mapper, NULL, &manager, error));
    jitmem_stats stats = stats_of(manager);
    assert_int_equal(stats.mapper, shared ? JITMEM_MAPPER_SHARED : JITMEM_MAPPER_REMOTE);
    assert_non_null(strstr(stats.mapper_name, shared ? "abstract socket" : "content in messages"));
    assert_int_equal(stats.fallbacks, shared ? JITMEM_FALLBACK_SECOND_BEST : 0);
    if (shared)
      assert_string_equal(stats.fallback_reason, "it rains");
    else
      assert_null(stats.fallback_reason);
    assert_true(stats.messages > 0 && stats.message_bytes > 0);
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    here_tear_down(&here);
  }
}

static void graphs_without_actions_need_no_message(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph first = allocate_three(manager, 1);
  finalize(manager, first.handle);
  uint64_t before = stats_of(manager).messages;
  for (int i = 0; i < 1000; i++) {
    struct graph graph = allocate_three(manager, 2);
    emit_return(graph.memory[0].working_memory, (uint32_t)i);
    finalize(manager, graph.handle);
    assert_int_equal(run(graph.memory[0].address), i);
    deallocate(manager, graph.handle);
  }
  // Where only the executor can maintain its caches, it is told of code.
  assert_in_range(stats_of(manager).messages - before, 0,
                  COHERENT_FETCH && !under_valgrind() ? 0 : 1000);
  deallocate(manager, first.handle);
}

static void only_content_travels(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct here here;
    here_set_up(&here, here_call);
    jitmem_mapper *mapper = NULL;
    jitmem_manager *manager = manager_over(here.transport, shared, &mapper);
    const jitmem_segment segments[] = {segment(64, 0, RX), segment(10000, 1 << 20, RW)};
    finalize(manager, allocate_three(manager, 1).handle); // the window is there
    uint64_t before = stats_of(manager).message_bytes;
    struct graph graph = allocate(manager, segments, COUNT(segments));
    memset(graph.memory[1].working_memory, 'c', 10000);
    finalize(manager, graph.handle);
    assert_true(all_bytes_are(at(graph.memory[1].address), 10000, 'c'));
    assert_true(all_bytes_are(at(graph.memory[1].address + 10000), 1 << 20, 0));
    uint64_t bytes = stats_of(manager).message_bytes - before;
    assert_in_range(bytes, shared ? 0 : 10000, shared ? 2000 : 12000);
    deallocate(manager, graph.handle);
    jitmem_manager_free(manager);
    jitmem_mapper_free(mapper);
    here_tear_down(&here);
  }
}

// ---- many at once ----

struct outcome {
  struct counter *called, *destroyed;
  atomic_int *failures;
};

static void done(void *ctx, const jitmem_error *error) {
  struct outcome *outcome = ctx;
  if (error != NULL)
    atomic_fetch_add(outcome->failures, 1);
  count(outcome->called);
}

static void outcome_destroyed(void *ctx) {
  struct outcome *outcome = ctx;
  count(outcome->destroyed);
  free(outcome);
}

static atomic_int balance;

static struct wrapper_result up(const char *args, size_t size) {
  (void)args, (void)size;
  atomic_fetch_add(&balance, 1);
  return succeed();
}

static struct wrapper_result down(const char *args, size_t size) {
  (void)args, (void)size;
  atomic_fetch_sub(&balance, 1);
  return succeed();
}

static struct outcome *outcome_of(struct outcome common) {
  struct outcome *outcome = malloc(sizeof *outcome);
  if (outcome == NULL)
    abort();
  *outcome = common;
  return outcome;
}

static void every_completion_comes_once(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const int graphs = (int)rounds(2000);
  struct counter called = COUNTER, destroyed = COUNTER;
  atomic_int failures = 0;
  const struct outcome common = {&called, &destroyed, &failures};
  const jitmem_action both = {.finalize = call_of(up, "", 0), .dealloc = call_of(down, "", 0)};
  uint64_t *handles = calloc((size_t)graphs, sizeof *handles);
  assert_non_null(handles);
  atomic_store(&balance, 0);
  uint64_t before = stats_of(manager).messages;
  for (int i = 0; i < graphs; i++) {
    handles[i] = allocate_three(manager, 1).handle;
    OK(jitmem_manager_finalize_async(manager, handles[i], &both, 1, done, outcome_of(common),
                                     outcome_destroyed, error));
  }
  assert_int_equal(counted(&called, graphs), graphs);
  assert_int_equal(atomic_load(&balance), graphs);
  for (int i = 0; i < graphs; i++)
    OK(jitmem_manager_deallocate_async(manager, &handles[i], 1, done, outcome_of(common),
                                       outcome_destroyed, error));
  assert_int_equal(counted(&called, 2 * graphs), 2 * graphs);
  assert_int_equal(atomic_load(&balance), 0);
  assert_int_equal(atomic_load(&failures), 0);
  // Most of them went together.
  uint64_t messages = stats_of(manager).messages - before;
  printf("%d graphs with actions, in and out: %d messages\n", graphs, (int)messages);
  assert_true(messages <= (uint64_t)graphs);
  assert_int_equal(stats_of(manager).live, 0);
  jitmem_manager_free(manager);
  assert_int_equal(counted(&destroyed, 2 * graphs), 2 * graphs);
  free(handles);
}

enum { MARKED = 512 };
static atomic_int marks[MARKED];

// Every third one can't be finalized.
static int is_bad(int index) { return index % 3 == 1; }

static struct wrapper_result mark(const char *args, size_t size) {
  int index = 0;
  memcpy(&index, args, size == sizeof index ? size : 0);
  if (is_bad(index))
    return fail_with("bad");
  atomic_fetch_add(&marks[index], 1);
  return succeed();
}

static struct wrapper_result unmark(const char *args, size_t size) {
  int index = 0;
  memcpy(&index, args, size == sizeof index ? size : 0);
  atomic_fetch_sub(&marks[index], 1);
  return succeed();
}

struct marked {
  int index;
  struct counter *called;
  atomic_int *wrong;
};

static void marked_done(void *ctx, const jitmem_error *error) {
  struct marked *marked = ctx;
  if ((error != NULL) != is_bad(marked->index))
    atomic_fetch_add(marked->wrong, 1);
  count(marked->called);
}

static void results_find_their_graphs(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct counter called = COUNTER;
  atomic_int wrong = 0;
  struct marked marked[MARKED];
  uint64_t handles[MARKED];
  memset(marks, 0, sizeof marks);
  for (int i = 0; i < MARKED; i++) {
    const jitmem_action both = {.finalize = call_of(mark, &i, sizeof i),
                                .dealloc = call_of(unmark, &i, sizeof i)};
    marked[i] = (struct marked){i, &called, &wrong};
    handles[i] = allocate_three(manager, 1).handle;
    OK(jitmem_manager_finalize_async(manager, handles[i], &both, 1, marked_done, &marked[i], NULL,
                                     error));
  }
  assert_int_equal(counted(&called, MARKED), MARKED);
  assert_int_equal(atomic_load(&wrong), 0);
  // What went together with others goes alone.
  for (int i = 0; i < MARKED; i++) {
    if (is_bad(i))
      continue;
    assert_int_equal(atomic_load(&marks[i]), 1);
    deallocate(manager, handles[i]);
    assert_int_equal(atomic_load(&marks[i]), 0);
  }
  assert_int_equal(stats_of(manager).live, 0);
}

struct nested {
  jitmem_manager *manager;
  struct counter called;
  jitmem_status status;
};

static void finalize_another(void *ctx, const jitmem_error *error) {
  struct nested *nested = ctx;
  const jitmem_action both = {.finalize = call_of(up, "", 0), .dealloc = call_of(down, "", 0)};
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle;
  nested->status = jitmem_error_status(error);
  if (nested->status == JITMEM_OK)
    nested->status = jitmem_manager_allocate(nested->manager, &one, 1, 0, &memory, &handle, NULL);
  if (nested->status == JITMEM_OK)
    nested->status = jitmem_manager_finalize(nested->manager, handle, &both, 1, NULL);
  if (nested->status == JITMEM_OK)
    nested->status = jitmem_manager_deallocate(nested->manager, &handle, 1, NULL);
  count(&nested->called);
}

static void a_completion_may_wait_for_others(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_action both = {.finalize = call_of(up, "", 0), .dealloc = call_of(down, "", 0)};
  struct nested nested[8];
  for (size_t i = 0; i < COUNT(nested); i++) {
    nested[i] = (struct nested){.manager = manager, .called = COUNTER};
    uint64_t handle = allocate_three(manager, 1).handle;
    OK(jitmem_manager_finalize_async(manager, handle, &both, 1, finalize_another, &nested[i], NULL,
                                     error));
  }
  for (size_t i = 0; i < COUNT(nested); i++) {
    assert_int_equal(counted(&nested[i].called, 1), 1);
    assert_int_equal(nested[i].status, JITMEM_OK);
  }
}

// ---- several controllers, several services ----

static void controllers_do_not_meet(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  for (int shared = 0; shared < 2; shared++) {
    jitmem_mapper *mappers[2];
    jitmem_manager *managers[2];
    struct graph graphs[2];
    forget_notes();
    for (int i = 0; i < 2; i++) {
      managers[i] = manager_here(&here, i ^ shared, &mappers[i]);
      graphs[i] = with_action(managers[i], i ? "Bb" : "Aa");
    }
    assert_true(graphs[0].memory[0].address != graphs[1].memory[0].address);
    jitmem_manager_free(managers[0]);
    jitmem_mapper_free(mappers[0]);
    assert_string_equal(noted, "ABa");
    assert_int_equal(run(graphs[1].memory[0].address), 'B');
    with_action(managers[1], "Cc");
    jitmem_manager_free(managers[1]);
    jitmem_mapper_free(mappers[1]);
    assert_string_equal(noted, "ABaCcb");
  }
  here_tear_down(&here);
}

static void a_service_ends_its_own_sessions(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct here first, second;
    here_set_up(&first, here_call);
    here_set_up(&second, here_call);
    jitmem_mapper *mappers[3];
    jitmem_manager *lost = manager_here(&first, shared, &mappers[0]);
    jitmem_manager *lost_too = manager_here(&first, shared, &mappers[1]);
    jitmem_manager *other = manager_here(&second, shared, &mappers[2]);
    forget_notes();
    uint64_t handle = with_action(lost, "Aa").handle;
    with_action(lost_too, "Bb");
    with_action(lost, "Cc");
    struct graph staying = with_action(other, "Dd"), flying = allocate_three(lost, 1);
    jitmem_service_free(first.service);
    first.service = NULL;
    // The last session first, and in each the last action first.
    assert_string_equal(noted, "ABCDbca");
    const jitmem_action both = action("Ee");
    jitmem_error *error = NULL;
    assert_int_not_equal(jitmem_manager_finalize(lost, flying.handle, &both, 1, &error), JITMEM_OK);
    assert_non_null(
        strstr(jitmem_error_message(error), shared ? "the executor is gone" : "closed"));
    jitmem_error_free(error);
    assert_int_not_equal(jitmem_manager_deallocate(lost, &handle, 1, NULL), JITMEM_OK);
    jitmem_mapper *mapper = NULL;
    REFUSED(JITMEM_INVALID_HANDLE, "no service",
            jitmem_mapper_remote(first.transport, NULL, &mapper, error));
    jitmem_manager_free(lost);
    jitmem_manager_free(lost_too);
    assert_string_equal(noted, "ABCDbca");
    assert_int_equal(run(staying.memory[0].address), 'D');
    with_action(other, "Ff");
    jitmem_manager_free(other);
    assert_string_equal(noted, "ABCDbcaFfd");
    for (int i = 0; i < 3; i++)
      jitmem_mapper_free(mappers[i]);
    here_tear_down(&first);
    here_tear_down(&second);
  }
}

// ---- forked children ----

struct family {
  struct fixture_here *here;
  struct graph finalized, in_flight;
};

static void use_and_free_all(void *argument) {
  struct family *family = argument;
  jitmem_manager *manager = family->here->fixture.manager;
  const jitmem_segment one = segment(64, 0, RX);
  jitmem_segment_memory memory;
  uint64_t handle, finalized = family->finalized.handle;
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_allocate(manager, &one, 1, 0, &memory, &handle, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_finalize(manager, family->in_flight.handle, NULL, 0, error));
  MUST_FAIL(JITMEM_INVALID_HANDLE, "parent process", "child",
            jitmem_manager_deallocate(manager, &finalized, 1, error));
  forget_notes();
  jitmem_manager_free(manager);
  jitmem_mapper_free(family->here->fixture.mapper);
  jitmem_transport_free(family->here->here.transport);
  jitmem_service_free(family->here->here.service);
  MUST(*noted == 0);
  MUST(run(family->finalized.memory[0].address) == 'A');
}

static void children_leave_it_alone(void **state) {
  struct family family = {.here = *state};
  jitmem_manager *manager = family.here->fixture.manager;
  forget_notes();
  family.finalized = with_action(manager, "Aa");
  family.in_flight = allocate_three(manager, 7);
  in_child(use_and_free_all, &family);
  finalize(manager, family.in_flight.handle);
  assert_true(all_bytes_are(at(family.in_flight.memory[1].address), 64, 7));
  with_action(manager, "Bb");
  deallocate(manager, family.finalized.handle);
  assert_string_equal(noted, "ABa");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(two_symbols_lead_to_a_service),
      cmocka_unit_test(options_come_before_names),
      cmocka_unit_test(executors_without_the_service),
      cmocka_unit_test(another_version_is_told_so),
      cmocka_unit_test(a_session_of_orc_rt_reaches_a_service),
      cmocka_unit_test(statistics_name_the_way),
      {"graphs_without_actions_need_no_message", graphs_without_actions_need_no_message,
       set_up_shared_here, tear_down_here, NULL},
      cmocka_unit_test(only_content_travels),
      ACROSS(every_completion_comes_once),
      ACROSS(results_find_their_graphs),
      ACROSS(a_completion_may_wait_for_others),
      cmocka_unit_test(controllers_do_not_meet),
      cmocka_unit_test(a_service_ends_its_own_sessions),
      ACROSS(children_leave_it_alone),
  };
  return at_rest(cmocka_run_group_tests_name("services", tests, NULL, NULL));
}
