// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Groups: what is linked once runs in several executors, which are forked from this program.

#include "groups.h"

#include <malloc.h>
#include <pthread.h>

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

// Resident memory of code in an executor, and its share of it, in bytes.
static void code_memory(pid_t process, uint64_t *resident, uint64_t *share) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%d/smaps", (int)process);
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  int code = 0;
  *resident = *share = 0;
  while (fgets(line, sizeof line, file)) {
    unsigned long long start, end, kib;
    if (sscanf(line, "%llx-%llx ", &start, &end) == 2)
      code = strstr(line, "jitmem-code") != NULL;
    else if (code && sscanf(line, "Rss: %llu", &kib) == 1)
      *resident += kib * KIB;
    else if (code && sscanf(line, "Pss: %llu", &kib) == 1)
      *share += kib * KIB;
  }
  fclose(file);
}

// ---- tests ----

// Processor time of this process, in milliseconds.
static double busy(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

// Links units of the first `parts` segments each, so many times, and gives the least time that it
// took.
static double link_units(const struct group *group, struct unit *units, uint32_t count,
                         size_t parts, int times) {
  double least = 1e9;
  for (int round = 0; round < times; round++) {
    double begin = busy();
    for (uint32_t i = 0; i < count; i++) {
      units[i].graph = allocate(group->manager, unit_segments, parts);
      memset(units[i].graph.memory[CODE].working_memory, 0x90, 128);
      emit_return(units[i].graph.memory[CODE].working_memory, i);
      finalize(group->manager, units[i].graph.handle);
    }
    double took = busy() - begin;
    least = took < least ? took : least;
    for (uint32_t i = 0; round < times - 1 && i < count; i++)
      deallocate(group->manager, units[i].graph.handle);
  }
  return least;
}

static void one_link_serves_any_number(void **state) {
  (void)state;
  const size_t counts[] = {1, 4, 16};
  // Where every executor has to be asked for each graph, emulated ones would take minutes.
  const int times = instrumented() ? 1 : 5;
  const uint32_t linked = rounds(2000);
  double one = 0;
  struct unit *units = calloc(linked, sizeof *units);
  assert_non_null(units);
  for (size_t c = 0; c < COUNT(counts); c++) {
    struct group group;
    start_group(&group, counts[c], NULL);
    double took = link_units(&group, units, linked, 2, times);
    one = c == 0 ? took : one;
    // Every page of code is run in each.
    uint64_t page = 0;
    for (uint32_t i = 0; i < linked; i++) {
      uint64_t address = units[i].graph.memory[CODE].address;
      if (address / page_size() == page)
        continue;
      page = address / page_size();
      for (size_t e = 0; e < counts[c]; e++)
        assert_int_equal(call_in(&group, e, address), i);
    }
    uint64_t resident, share;
    code_memory(group.executors[0].process, &resident, &share);
    for (uint32_t i = 0; i < linked; i++)
      deallocate(group.manager, units[i].graph.handle);
    print_message(
        "%u graphs in %2zu executors: the controller's %6.2f ms (%.2f of one), %.2f ms with "
        "writable data; code %llu KiB, %llu KiB its share\n",
        linked, counts[c], took, took / one, link_units(&group, units, linked / 10, PARTS, 1) * 10,
        (unsigned long long)(resident / KIB), (unsigned long long)(share / KIB));
    assert_true(resident > 0);
    // The controller has it too. A page may be rounded in each mapping.
    assert_true(share <= resident / (counts[c] + 1) + 16 * KIB);
    end_group(&group);
    wait_until_told(&told.destroyed, 1);
  }
  free(units);
}

static void each_has_its_own_data(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 3, NULL);
  struct unit one = link_unit(group.manager, 100), other = link_unit(group.manager, 200);
  for (size_t e = 0; e < 3; e++)
    for (size_t i = 0; i < e; i++)
      count_in(&group, e, &one);
  for (size_t e = 0; e < 3; e++) {
    assert_int_equal(call_in(&group, e, one.read), 100 + e);
    assert_int_equal(call_in(&group, e, one.constant), 100);
    check_unit(&group, e, &other, 200);
  }
  // Memory that is used again is as its new owner has it, in all of them.
  deallocate(group.manager, one.graph.handle);
  one = link_unit(group.manager, 300);
  for (size_t e = 0; e < 3; e++)
    check_unit(&group, e, &one, 300);
  // Nothing writes code or constants through an executor's own view.
  const uint64_t constant = one.graph.memory[CONSTANT].address;
  const uint32_t value = 7;
  jitmem_write_scope *scope = NULL;
  OK(jitmem_write_scope_begin(group.manager, one.graph.handle, &scope, error));
  FAILS(JITMEM_UNSUPPORTED, "by messages",
        jitmem_write_scope_store(scope, one.graph.memory[DATA].address, &value, 4, error));
  OK(jitmem_write_scope_store(scope, constant, &value, 4, error));
  OK(jitmem_write_scope_end(scope, error));
  for (size_t e = 0; e < 3; e++)
    assert_int_equal(call_in(&group, e, one.constant), 7);
  end_group(&group);
}

// Actions of the executors' own program, which all have at the same address. What they have done is
// read by a function of it.
static int32_t done_here;

static struct wrapper_result act(const char *args, size_t size) {
  (void)size;
  done_here += (signed char)args[0];
  return succeed();
}

static struct wrapper_result act_but_in_the_third(const char *args, size_t size) {
  if (place_here == 2)
    return fail_with("not in this one");
  return act(args, size);
}

static int32_t read_done(int32_t ignored) {
  (void)ignored;
  return done_here;
}

static uint64_t done_address(void) { return (uintptr_t)read_done; }

static jitmem_action action_of(wrapper_function *finalize, const char *plus, const char *minus) {
  return (jitmem_action){.finalize = call_of(finalize, plus, 1), .dealloc = call_of(act, minus, 1)};
}

static void actions_run_in_all_or_in_none(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 4, NULL);
  const jitmem_action good[] = {action_of(act, "\x05", "\xfb"), action_of(act, "\x01", "\xff")};
  const jitmem_action bad[] = {action_of(act, "\x40", "\xc0"),
                               action_of(act_but_in_the_third, "\x20", "\xe0")};
  struct graph graph = allocate(group.manager, unit_segments, PARTS);
  OK(jitmem_manager_finalize(group.manager, graph.handle, good, 2, error));
  for (size_t e = 0; e < 4; e++)
    assert_int_equal(call_in(&group, e, done_address()), 6);
  struct graph failing = allocate(group.manager, unit_segments, PARTS);
  FAILS(JITMEM_ACTION_FAILED, "executor 3 of the group",
        jitmem_manager_finalize(group.manager, failing.handle, bad, 2, error));
  for (size_t e = 0; e < 4; e++)
    assert_int_equal(call_in(&group, e, done_address()), 6);
  assert_int_equal(executors_of(&group), 4);
  // One that joins runs what is live.
  start_one(&group, NULL);
  join_with(&group, 4);
  assert_int_equal(call_in(&group, 4, done_address()), 6);
  deallocate(group.manager, graph.handle);
  for (size_t e = 0; e < 5; e++)
    assert_int_equal(call_in(&group, e, done_address()), 0);
  end_group(&group);
}

// What it has run until then is undone.
static void one_in_which_an_action_fails_stays_out(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 2, NULL);
  const jitmem_action good = action_of(act, "\x05", "\xfb"),
                      bad = action_of(act_but_in_the_third, "\x20", "\xe0");
  const struct graph graphs[] = {allocate(group.manager, unit_segments, PARTS),
                                 allocate(group.manager, unit_segments, PARTS)};
  OK(jitmem_manager_finalize(group.manager, graphs[0].handle, &good, 1, error));
  OK(jitmem_manager_finalize(group.manager, graphs[1].handle, &bad, 1, error));
  start_one(&group, NULL);
  const jitmem_new_executor third = {.transport = group.transports[2], .name = "the third"};
  FAILS(JITMEM_ACTION_FAILED, "executor the third of the group",
        jitmem_mapper_add_executor(group.mapper, &third, NULL, error));
  assert_int_equal(call_in(&group, 2, done_address()), 0);
  assert_int_equal(executors_of(&group), 2);
  assert_int_equal(told.joined, 2);
  assert_int_equal(told.lost, 0);
  // Without that one it may join.
  deallocate(group.manager, graphs[1].handle);
  join_with(&group, 2);
  for (size_t e = 0; e < 3; e++)
    assert_int_equal(call_in(&group, e, done_address()), 5);
  end_group(&group);
}

// Counts an executor's messages.
static void messages_of(void *ctx, const jitmem_group_executor *executor) {
  *(uint64_t *)ctx = executor->messages; // of the last one
}

static void a_seventeenth_joins(void **state) {
  (void)state;
  struct group group;
  const uint32_t count = rounds(2000);
  start_group(&group, 16, NULL);
  struct unit *units = calloc(count, sizeof *units);
  assert_non_null(units);
  for (uint32_t i = 0; i < count; i++)
    units[i] = link_unit(group.manager, i);
  for (uint32_t i = 0; i < count; i += 10)
    count_in(&group, 3, &units[i]);
  start_one(&group, NULL);
  double begin = seconds();
  join_with(&group, 16);
  double took = seconds() - begin;
  for (uint32_t i = 0; i < count; i += 7)
    check_unit(&group, 16, &units[i], i);
  uint64_t messages = 0;
  OK(jitmem_mapper_executors(group.mapper, messages_of, &messages, error));
  jitmem_stats stats = stats_of(group.manager);
  uint64_t batches = count / 1024 + 1;
  print_message(
      "the 17th joins %u graphs in %.2f ms with %llu messages, %llu chunks, %llu batches\n", count,
      took * 1e3, (unsigned long long)messages, (unsigned long long)stats.chunks,
      (unsigned long long)batches);
  // The session itself takes two messages, and each window one.
  assert_in_range(messages, 1, stats.chunks + batches + stats.windows + 2);
  free(units);
  end_group(&group);
}

// ---- while others link ----

struct load {
  struct group *group;
  atomic_int stop;
  atomic_uint linked;
  atomic_int failed;
};

static void *link_on(void *ctx) {
  struct load *load = ctx;
  enum { KEPT = 16 };
  struct unit kept[KEPT] = {0};
  for (uint32_t i = 0; !load->stop; i++) {
    struct unit *unit = &kept[i % KEPT];
    if (unit->graph.handle != 0 &&
        jitmem_manager_deallocate(load->group->manager, &unit->graph.handle, 1, NULL) != JITMEM_OK)
      load->failed++;
    const jitmem_action actions[] = {action_of(act, "\x01", "\xff")};
    jitmem_status status = jitmem_manager_allocate(load->group->manager, unit_segments, PARTS, 0,
                                                   unit->graph.memory, &unit->graph.handle, NULL);
    if (status == JITMEM_OK) {
      emit_unit(unit, i);
      status = jitmem_manager_finalize(load->group->manager, unit->graph.handle, actions,
                                       i % 3 == 0, NULL);
    }
    if (status != JITMEM_OK) {
      unit->graph.handle = 0;
      load->failed++;
    }
    load->linked++;
  }
  for (size_t i = 0; i < KEPT; i++)
    if (kept[i].graph.handle != 0)
      jitmem_manager_deallocate(load->group->manager, &kept[i].graph.handle, 1, NULL);
  return NULL;
}

static void start_load(struct load *load, struct group *group, pthread_t threads[2]) {
  *load = (struct load){.group = group};
  for (int i = 0; i < 2; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, link_on, load), 0);
}

static void let_link(const struct load *load, unsigned more) {
  const unsigned wanted = load->linked + more;
  while ((int)(wanted - load->linked) > 0)
    sched_yield();
}

static void end_load(struct load *load, pthread_t threads[2]) {
  load->stop = 1;
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
}

static void any_may_be_killed_at_any_moment(void **state) {
  (void)state;
  enum { COUNT_OF = 5 };
  struct group group;
  struct load load;
  pthread_t threads[2];
  start_group(&group, COUNT_OF, NULL);
  struct unit lasting = link_unit(group.manager, 77);
  start_load(&load, &group, threads);
  for (size_t gone = 0; gone < COUNT_OF - 1; gone++) {
    // The first one as well, and one in the middle.
    size_t place = gone < 2 ? gone * 2 : gone == 2 ? 1 : 3;
    let_link(&load, 20);
    assert_int_equal(kill(group.executors[place].process, SIGKILL), 0);
    wait_for_executors(&group, COUNT_OF - 1 - gone);
    let_link(&load, 20);
    end_executor(&group, place);
    check_unit(&group, 4, &lasting, 77);
  }
  end_load(&load, threads);
  assert_int_equal(load.failed, 0);
  wait_until_told(&told.died, COUNT_OF - 1);
  assert_int_equal(call_in(&group, 4, done_address()), 0);
  // With the last one all is at an end, as with one executor.
  assert_int_equal(kill(group.executors[4].process, SIGKILL), 0);
  wait_for_executors(&group, 0);
  struct graph graph = allocate(group.manager, unit_segments, PARTS);
  FAILS(JITMEM_DISCONNECTED, "executor",
        jitmem_manager_finalize(group.manager, graph.handle, NULL, 0, error));
  end_group(&group);
}

static void one_joins_and_one_is_removed_while_others_link(void **state) {
  (void)state;
  struct group group;
  struct load load;
  pthread_t threads[2];
  start_group(&group, 2, NULL);
  struct unit lasting[50];
  for (uint32_t i = 0; i < COUNT(lasting); i++)
    lasting[i] = link_unit(group.manager, 1000 + i);
  for (int round = 0; round < 6; round++) {
    start_one(&group, NULL);
    start_load(&load, &group, threads);
    let_link(&load, 30);
    size_t place = group.count - 1;
    uint64_t number = join_with(&group, place);
    let_link(&load, 30);
    for (uint32_t i = 0; i < COUNT(lasting); i++)
      check_unit(&group, place, &lasting[i], 1000 + i);
    if (round % 2 == 0) {
      OK(jitmem_mapper_remove_executor(group.mapper, number, error));
      // All that ran there has been undone.
      assert_int_equal(call_in(&group, place, done_address()), 0);
      let_link(&load, 30);
      end_executor(&group, place);
    }
    end_load(&load, threads);
    assert_int_equal(load.failed, 0);
  }
  assert_int_equal(told.removed, 3);
  assert_int_equal(told.joined, 2 + 6);
  assert_int_equal(executors_of(&group), 5);
  for (size_t place = 0; place < group.count; place++)
    if (group.transports[place] != NULL)
      assert_int_equal(call_in(&group, place, done_address()), 0);
  end_group(&group);
}

// ---- hostile executors ----

// The channel's socket, in an executor.
static int channel_here(void) {
  for (int fd = 3; fd < 256; fd++) {
    int type = 0, listens = 0;
    socklen_t size = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET &&
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && !listens)
      return fd;
  }
  return -1;
}

// Answers messages with what is none, or sends an answer to no question.
static void *tell_lies(void *ctx) {
  (void)ctx;
  int number;
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR1);
  sigaddset(&wanted, SIGUSR2);
  sigwait(&wanted, &number);
  int channel = channel_here();
  MUST(channel >= 0);
  for (;;) {
    uint64_t packet[4096] = {0};
    if (number == SIGUSR1 && recv(channel, packet, sizeof packet, 0) <= 0)
      return NULL;
    // A result with a body that is no reply, or one of a call that was never made.
    uint64_t answer[16] = {sizeof answer, 2, number == SIGUSR1 ? packet[2] : 1000000, 0};
    memset(&answer[4], 0x5a, sizeof answer - 32);
    if (send(channel, answer, sizeof answer, MSG_NOSIGNAL) < 0)
      return NULL;
  }
}

static void may_tell_lies(void) {
  sigset_t blocked;
  pthread_t liar;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  sigaddset(&blocked, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  MUST(pthread_create(&liar, NULL, tell_lies, NULL) == 0);
}

static void one_that_tells_lies_is_put_out(void **state) {
  (void)state;
  for (int after = 0; after < 2; after++) {
    struct group group;
    start_group(&group, 3, may_tell_lies);
    struct unit lasting = link_unit(group.manager, 5);
    assert_int_equal(kill(group.executors[1].process, after ? SIGUSR2 : SIGUSR1), 0);
    // Not every message is read by the thread that lies.
    for (uint32_t i = 0; executors_of(&group) == 3; i++) {
      struct unit unit = link_unit(group.manager, i);
      check_unit(&group, 0, &unit, i);
      deallocate(group.manager, unit.graph.handle);
    }
    assert_int_equal(executors_of(&group), 2);
    wait_until_told(&told.lost, 1);
    struct unit unit = link_unit(group.manager, 9);
    for (size_t place = 0; place < 3; place += 2) {
      check_unit(&group, place, &lasting, 5);
      check_unit(&group, place, &unit, 9);
    }
    kill(group.executors[1].process, SIGKILL);
    end_group(&group);
  }
}

static void one_that_does_not_answer_is_put_out(void **state) {
  (void)state;
  struct group group = {0};
  const jitmem_limits limits = {.struct_size = sizeof limits, .memory = 500, .close = 1000};
  for (size_t i = 0; i < 3; i++) {
    struct executor executor = start_executor(NULL);
    group.executors[group.count] = executor;
    OK(jitmem_transport_connect(executor.socket, &limits, &group.transports[group.count++], error));
  }
  make_mapper(&group);
  OK(jitmem_manager_create(group.mapper, NULL, &group.manager, error));
  struct unit lasting = link_unit(group.manager, 5);
  int status = 0;
  assert_int_equal(kill(group.executors[2].process, SIGSTOP), 0);
  assert_int_equal(waitpid(group.executors[2].process, &status, WUNTRACED),
                   group.executors[2].process);
  assert_true(WIFSTOPPED(status));
  struct unit unit = link_unit(group.manager, 6);
  assert_int_equal(executors_of(&group), 2);
  wait_until_told(&told.put_out, 1);
  check_unit(&group, 0, &lasting, 5);
  check_unit(&group, 1, &unit, 6);
  kill(group.executors[2].process, SIGKILL);
  end_group(&group);
}

static void what_is_wrong_is_refused(void **state) {
  (void)state;
  struct group group;
  start_group(&group, 1, NULL);
  FAILS(JITMEM_INVALID_ARGUMENT, "the last one",
        jitmem_mapper_remove_executor(group.mapper, 1, error));
  FAILS(JITMEM_INVALID_ARGUMENT, "remove executor 7",
        jitmem_mapper_remove_executor(group.mapper, 7, error));
  jitmem_new_executor twice[2] = {{.transport = group.transports[0]}, {.reserved = {1, 0}}};
  jitmem_mapper *mapper = NULL, *plain = NULL;
  FAILS(JITMEM_INVALID_ARGUMENT, "reserved", jitmem_mapper_group(twice, 2, NULL, &mapper, error));
  FAILS(JITMEM_INVALID_ARGUMENT, "no executors",
        jitmem_mapper_group(twice, 0, NULL, &mapper, error));
  jitmem_group_observer observer = {
      .struct_size = sizeof observer, .ctx = &told, .destroy = told_all};
  FAILS(JITMEM_INVALID_ARGUMENT, "fn is NULL",
        jitmem_mapper_group(twice, 1, &observer, &mapper, error));
  OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &plain, error));
  size_t seen = 0;
  FAILS(JITMEM_INVALID_ARGUMENT, "no group",
        jitmem_mapper_executors(plain, count_one, &seen, error));
  FAILS(JITMEM_INVALID_ARGUMENT, "no group", jitmem_mapper_remove_executor(plain, 1, error));
  FAILS(JITMEM_INVALID_ARGUMENT, "no group",
        jitmem_mapper_add_executor(plain, &twice[0], NULL, error));
  uint64_t numbers[2] = {0};
  uint64_t *misaligned = (void *)((char *)numbers + 1);
  FAILS(JITMEM_INVALID_ARGUMENT, "number at",
        jitmem_mapper_add_executor(group.mapper, &twice[0], misaligned, error));
  assert_int_equal(executors_of(&group), 1);
  jitmem_mapper_free(plain);
  end_group(&group);
}

int main(void) {
#ifdef M_ARENA_MAX
  // Heaps of the controller's threads would take the room beside its libraries, of which AArch64
  // has little, and executors that are forked later have them too, where the group has its window.
  mallopt(M_ARENA_MAX, 1);
#endif
  signal(SIGPIPE, SIG_IGN);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_link_serves_any_number),
      cmocka_unit_test(each_has_its_own_data),
      cmocka_unit_test(actions_run_in_all_or_in_none),
      cmocka_unit_test(one_in_which_an_action_fails_stays_out),
      cmocka_unit_test(a_seventeenth_joins),
      cmocka_unit_test(any_may_be_killed_at_any_moment),
      cmocka_unit_test(one_joins_and_one_is_removed_while_others_link),
      cmocka_unit_test(one_that_tells_lies_is_put_out),
      cmocka_unit_test(one_that_does_not_answer_is_put_out),
      cmocka_unit_test(what_is_wrong_is_refused),
  };
  return at_rest(cmocka_run_group_tests_name("groups", tests, NULL, NULL));
}
