// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Groups: what is linked once runs in several executors. Executors are forked from this program, or
// are our own program without address-space randomization.

#include "executor.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/personality.h>

enum { MOST = 20 };

// ---- groups ----

// Events, and what is known of an executor by its number.
struct group {
  struct executor executors[MOST];
  jitmem_transport *transports[MOST];
  size_t count;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

struct told {
  atomic_int joined, removed, died, put_out;
  atomic_int destroyed;
};

// Outlives groups, whose threads may tell of their end.
static struct told told;

static void tell(void *ctx, const jitmem_group_event *event) {
  struct told *events = ctx;
  if (event->struct_size < sizeof *event || event->name == NULL)
    abort();
  if ((event->reason == NULL) !=
      (event->change == JITMEM_GROUP_JOINED || event->change == JITMEM_GROUP_REMOVED))
    abort();
  switch (event->change) {
  case JITMEM_GROUP_JOINED:
    events->joined++;
    break;
  case JITMEM_GROUP_REMOVED:
    events->removed++;
    break;
  case JITMEM_GROUP_DIED:
    events->died++;
    break;
  default:
    events->put_out++;
  }
}

static void told_all(void *ctx) { ((struct told *)ctx)->destroyed++; }

// In an executor, its place in the group.
static int place_here;

static size_t add_place(struct group *group, struct executor executor) {
  size_t place = group->count++;
  assert_true(place < MOST);
  group->executors[place] = executor;
  // The transport has the socket from here on, and closes it in executors that are forked later.
  OK(jitmem_transport_socket(executor.socket, &group->transports[place], error));
  return place;
}

// Many executors and few processors take their time.
static void be_patient(void) { alarm(600); }

static void start_one(struct group *group, void (*before)(void)) {
  place_here = (int)group->count;
  add_place(group, start_executor(before != NULL ? before : be_patient));
}

static void make_mapper(struct group *group) {
  jitmem_new_executor executors[MOST] = {0};
  memset(&told, 0, sizeof told);
  for (size_t i = 0; i < group->count; i++)
    executors[i].transport = group->transports[i];
  const jitmem_group_observer observer = {
      .struct_size = sizeof observer, .fn = tell, .ctx = &told, .destroy = told_all};
  OK(jitmem_mapper_group(executors, group->count, &observer, &group->mapper, error));
  assert_int_equal(told.joined, group->count);
}

static void start_group(struct group *group, size_t count, void (*before)(void)) {
  *group = (struct group){0};
  for (size_t i = 0; i < count; i++)
    start_one(group, before);
  make_mapper(group);
  OK(jitmem_manager_create(group->mapper, NULL, &group->manager, error));
}

static uint64_t join_with(struct group *group, size_t place) {
  const jitmem_new_executor executor = {.transport = group->transports[place],
                                        .name = "the late one"};
  uint64_t number = 0;
  OK(jitmem_mapper_add_executor(group->mapper, &executor, &number, error));
  return number;
}

static void end_executor(struct group *group, size_t place) {
  jitmem_transport_free(group->transports[place]);
  group->transports[place] = NULL;
  status_of_executor(group->executors[place]);
}

static void end_group(struct group *group) {
  jitmem_manager_free(group->manager);
  jitmem_mapper_free(group->mapper);
  for (size_t i = 0; i < group->count; i++)
    if (group->transports[i] != NULL)
      end_executor(group, i);
}

static void count_one(void *ctx, const jitmem_group_executor *executor) {
  assert_true(executor->struct_size >= sizeof *executor && executor->messages > 0);
  ++*(size_t *)ctx;
}

static size_t executors_of(const struct group *group) {
  size_t count = 0;
  OK(jitmem_mapper_executors(group->mapper, count_one, &count, error));
  return count;
}

// The mapper's threads find the end of an executor by themselves.
static void wait_for_executors(const struct group *group, size_t count) {
  const struct timespec moment = {.tv_nsec = 1000000};
  for (int looks = 0; looks < 60000 && executors_of(group) != count; looks++)
    nanosleep(&moment, NULL);
  assert_int_equal(executors_of(group), count);
}

// ---- what is linked ----

enum { CODE, CONSTANT, DATA, PARTS };

// A counter of its own, code that counts, code that reads it, and code that reads a constant.
struct unit {
  struct graph graph;
  uint64_t count, read, constant;
};

static const jitmem_segment unit_segments[PARTS] = {
    {.content_size = 128, .alignment = 64, .protection = RX},
    {.content_size = 16, .alignment = 16, .protection = R},
    {.content_size = 4, .zero_fill_size = 60, .alignment = 16, .protection = RW},
};

static void emit_unit(struct unit *unit, uint32_t value) {
  const jitmem_segment_memory *memory = unit->graph.memory;
  char *code = memory[CODE].working_memory;
  unit->count = memory[CODE].address;
  unit->read = memory[CODE].address + 32;
  unit->constant = memory[CODE].address + 64;
  emit_counting_wrapper(code, unit->count, memory[DATA].address);
  emit_load(code + 32, unit->read, memory[DATA].address);
  emit_load(code + 64, unit->constant, memory[CONSTANT].address);
  memcpy(memory[CONSTANT].working_memory, &value, sizeof value);
  memcpy(memory[DATA].working_memory, &value, sizeof value);
}

static struct unit link_unit(const jitmem_manager *manager, uint32_t value) {
  struct unit unit = {.graph = allocate(manager, unit_segments, PARTS)};
  emit_unit(&unit, value);
  finalize(manager, unit.graph.handle);
  return unit;
}

static int32_t call_in(const struct group *group, size_t place, uint64_t address) {
  int32_t answer = -1;
  OK(call_int(group->transports[place], address, 0, &answer, error));
  return answer;
}

static void count_in(const struct group *group, size_t place, const struct unit *unit) {
  OK(jitmem_transport_call(group->transports[place], unit->count, NULL, 0, NULL, NULL, error));
}

static void check_unit(const struct group *group, size_t place, const struct unit *unit,
                       uint32_t value) {
  assert_int_equal(call_in(group, place, unit->read), value);
  assert_int_equal(call_in(group, place, unit->constant), value);
}

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
    assert_int_equal(told.destroyed, 1);
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
  // One that joins runs what is live, and where that fails it stays out.
  start_one(&group, NULL);
  join_with(&group, 4);
  assert_int_equal(call_in(&group, 4, done_address()), 6);
  deallocate(group.manager, graph.handle);
  for (size_t e = 0; e < 5; e++)
    assert_int_equal(call_in(&group, e, done_address()), 0);
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
  assert_int_equal(told.died, COUNT_OF - 1);
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
    assert_int_equal(told.died + told.put_out, 1);
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
  // The observer is told by another thread, maybe a moment later.
  while (told.put_out == 0)
    sched_yield();
  assert_int_equal(told.put_out, 1);
  check_unit(&group, 0, &lasting, 5);
  check_unit(&group, 1, &unit, 6);
  kill(group.executors[2].process, SIGKILL);
  end_group(&group);
}

// ---- unrelated executors ----

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
  OK(jitmem_manager_create(group.mapper, NULL, &group.manager, error));
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
  // Or something is there already, or nothing can be.
  MUST(page == at(address) || errno == EEXIST || errno == ENOMEM);
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
  start_group(&group, 3, take_an_address);
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

// In the last one a page in each 128 MiB around the C library, so that no place for a window is
// free there.
static void take_what_is_near(void) {
  if (place_here != MANY - 1)
    return;
  for (uint64_t distance = 128 * MIB; distance < 2 * GIB; distance += 128 * MIB) {
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
      cmocka_unit_test(a_seventeenth_joins),
      cmocka_unit_test(any_may_be_killed_at_any_moment),
      cmocka_unit_test(one_joins_and_one_is_removed_while_others_link),
      cmocka_unit_test(one_that_tells_lies_is_put_out),
      cmocka_unit_test(one_that_does_not_answer_is_put_out),
      cmocka_unit_test(unrelated_ones_agree_or_are_refused),
      cmocka_unit_test(a_window_has_one_address_or_is_refused),
      cmocka_unit_test(windows_go_where_all_have_room),
      cmocka_unit_test(what_is_wrong_is_refused),
  };
  return at_rest(cmocka_run_group_tests_name("groups", tests, NULL, NULL));
}
