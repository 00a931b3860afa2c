// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Tags and names of allocations, events, and usage by JITDylib and tag.

#include "code.h"
#include "here.h"

#include <sys/wait.h>
#include <unistd.h>

enum { MOST_EVENTS = 256, MOST_SEGMENTS = 4 };

struct seen {
  jitmem_event event;
  jitmem_allocation allocation;
  jitmem_allocation_segment segments[MOST_SEGMENTS];
  char name[64], dylib_name[64];
  // What the first segment held when it was told.
  uint8_t first;
};

struct journal {
  pthread_mutex_t lock;
  size_t count;
  int destroyed;
  struct seen seen[MOST_EVENTS];
};

#define JOURNAL {.lock = PTHREAD_MUTEX_INITIALIZER}

static void keep_allocation(struct seen *seen, const jitmem_allocation *it) {
  assert_int_equal(it->struct_size, sizeof *it);
  assert_true(it->segment_count <= MOST_SEGMENTS);
  seen->allocation = *it;
  memcpy(seen->segments, it->segments, it->segment_count * sizeof *it->segments);
  snprintf(seen->name, sizeof seen->name, "%s", it->name ? it->name : "");
  snprintf(seen->dylib_name, sizeof seen->dylib_name, "%s", it->dylib_name ? it->dylib_name : "");
}

static void keep(void *ctx, const jitmem_event *event) {
  struct journal *journal = ctx;
  pthread_mutex_lock(&journal->lock);
  assert_true(journal->count < MOST_EVENTS);
  struct seen *seen = &journal->seen[journal->count++];
  assert_int_equal(event->struct_size, sizeof *event);
  seen->event = *event;
  if (event->allocation != NULL) {
    keep_allocation(seen, event->allocation);
    if (event->kind == JITMEM_EVENT_FINALIZED || event->kind == JITMEM_EVENT_DEALLOCATED)
      seen->first = *at(event->allocation->segments[0].address);
  }
  pthread_mutex_unlock(&journal->lock);
}

static void destroy_journal(void *ctx) { ((struct journal *)ctx)->destroyed++; }

// The events of one kind.
static size_t count_of(struct journal *journal, uint32_t kind) {
  size_t count = 0;
  for (size_t i = 0; i < journal->count; i++)
    count += journal->seen[i].event.kind == kind;
  return count;
}

static struct seen *last_of(struct journal *journal, uint32_t kind) {
  for (size_t i = journal->count; i-- > 0;)
    if (journal->seen[i].event.kind == kind)
      return &journal->seen[i];
  fail_msg("no event %u", kind);
  return NULL;
}

static jitmem_manager *observed(struct fixture *fixture, struct journal *journal) {
  const jitmem_observer observer = {.struct_size = sizeof observer,
                                    .fn = keep,
                                    .ctx = journal,
                                    .destroy = destroy_journal,
                                    .times = 1};
  return manager_with(fixture, (jitmem_manager_options){.observer = &observer, .usage = 1});
}

static const jitmem_allocation_request *named(jitmem_allocation_request *request,
                                              const jitmem_segment *segments, size_t count,
                                              const char *name) {
  *request = (jitmem_allocation_request){.struct_size = sizeof *request,
                                         .segments = segments,
                                         .segment_count = count,
                                         .dylib = 5,
                                         .tag = 7,
                                         .name = name,
                                         .dylib_name = "main"};
  return request;
}

// The first byte of code that returns a number.
static uint8_t first_byte(uint32_t value) {
  uint8_t code[RETURN_SIZE];
  emit_return(code, value);
  return code[0];
}

// Code that returns a number, and the constant beside it.
static struct graph request_code(jitmem_manager *manager, const char *name, uint32_t value) {
  const jitmem_segment segments[] = {segment(RETURN_SIZE, 0, RX), segment(16, 0, R)};
  jitmem_allocation_request request;
  struct graph graph = {0};
  OK(jitmem_manager_request(manager, named(&request, segments, 2, name), graph.memory,
                            &graph.handle, error));
  emit_return(graph.memory[0].working_memory, value);
  memset(graph.memory[1].working_memory, (int)value, 16);
  return graph;
}

static void the_life_of_an_allocation_is_told(void **state) {
  struct journal journal = JOURNAL;
  jitmem_manager *manager = observed(*state, &journal);
  char name[] = "answer";
  struct graph graph = request_code(manager, name, 42);
  memset(name, 'x', sizeof name - 1); // it was copied
  finalize(manager, graph.handle);

  // A window and two chunks, then the allocation.
  assert_int_equal(journal.count, 5);
  const uint32_t kinds[] = {JITMEM_EVENT_WINDOW_RESERVED, JITMEM_EVENT_CHUNK_MADE,
                            JITMEM_EVENT_CHUNK_MADE, JITMEM_EVENT_ALLOCATED,
                            JITMEM_EVENT_FINALIZED};
  for (size_t i = 0; i < COUNT(kinds); i++) {
    assert_int_equal(journal.seen[i].event.kind, kinds[i]);
    assert_int_equal(journal.seen[i].event.sequence, i + 1);
    assert_true(i == 0 || journal.seen[i].event.time >= journal.seen[i - 1].event.time);
  }
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const uint64_t end = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
  assert_in_range(journal.seen[4].event.time, 1, end);

  const struct seen *seen = last_of(&journal, JITMEM_EVENT_FINALIZED);
  assert_string_equal(seen->name, "answer");
  assert_string_equal(seen->dylib_name, "main");
  assert_int_equal(seen->allocation.allocation, graph.handle);
  assert_int_equal(seen->allocation.dylib, 5);
  assert_int_equal(seen->allocation.tag, 7);
  assert_int_equal(seen->allocation.segment_count, 2);
  for (size_t i = 0; i < 2; i++) {
    assert_int_equal(seen->segments[i].index, i);
    assert_int_equal(seen->segments[i].address, graph.memory[i].address);
    assert_int_equal(seen->segments[i].size, i == 0 ? RETURN_SIZE : 16);
    assert_int_equal(seen->segments[i].protection, i == 0 ? RX : R);
    assert_int_equal(seen->segments[i].lifetime, JITMEM_LIFETIME_STANDARD);
  }
  const struct seen *window = &journal.seen[0], *chunk = &journal.seen[1];
  // At most 1 GiB: beside the window of the fixture's manager there may be room for less.
  assert_int_equal(window->event.size, stats_of(manager).reserved);
  assert_in_range(chunk->event.address, window->event.address,
                  window->event.address + window->event.size);
  assert_true(chunk->event.protection == RX || chunk->event.protection == R);
  // The code was there when it was told, and when it went.
  assert_int_equal(seen->first, first_byte(42));
  deallocate(manager, graph.handle);
  seen = last_of(&journal, JITMEM_EVENT_DEALLOCATED);
  assert_int_equal(seen->first, first_byte(42));
  assert_string_equal(seen->name, "answer");

  struct graph given_up = request_code(manager, "none", 1);
  OK(jitmem_manager_abandon(manager, given_up.handle, error));
  assert_string_equal(last_of(&journal, JITMEM_EVENT_ABANDONED)->name, "none");
  struct graph left = request_code(manager, "left", 1);
  finalize(manager, left.handle);
  assert_int_equal(journal.destroyed, 0);
  jitmem_manager_free(manager);
  assert_int_equal(journal.destroyed, 1);
  assert_string_equal(last_of(&journal, JITMEM_EVENT_DEALLOCATED)->name, "left");
  assert_int_equal(journal.seen[journal.count - 1].event.kind, JITMEM_EVENT_WINDOW_RELEASED);
  assert_int_equal(count_of(&journal, JITMEM_EVENT_ALLOCATED), 3);
}

static void a_large_chunk_is_told_when_it_comes_and_goes(void **state) {
  struct journal journal = JOURNAL;
  jitmem_manager *manager = observed(*state, &journal);
  struct graph graph = allocate_one(manager, segment(16 * MIB, 0, R), 1);
  finalize(manager, graph.handle);
  const struct seen *made = last_of(&journal, JITMEM_EVENT_CHUNK_MADE);
  assert_in_range(graph.memory[0].address, made->event.address,
                  made->event.address + made->event.size - 1);
  deallocate(manager, graph.handle);
  const struct seen *gone = last_of(&journal, JITMEM_EVENT_CHUNK_RECLAIMED);
  assert_int_equal(gone->event.address, made->event.address);
  assert_int_equal(gone->event.size, made->event.size);
  assert_int_equal(gone->event.protection, R);
  jitmem_manager_free(manager);
}

// How many ranges of a layout belong to an allocation.
struct ranges {
  uint64_t allocation;
  size_t count, others;
};

static void count_range(void *ctx, const jitmem_layout_item *item) {
  struct ranges *ranges = ctx;
  if (item->kind != JITMEM_LAYOUT_RANGE)
    assert_int_equal(item->allocation, 0);
  else if (item->allocation == ranges->allocation)
    ranges->count++;
  else
    ranges->others++;
}

static void the_layout_says_whose_ranges_are(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph named = request_code(manager, "f", 3), plain = allocate_three(manager, 1);
  finalize(manager, named.handle);
  struct ranges ranges = {.allocation = named.handle};
  OK(jitmem_manager_layout(manager, count_range, &ranges, error));
  assert_int_equal(ranges.count, 2);
  assert_int_equal(ranges.others, 3);
  deallocate(manager, named.handle);
  OK(jitmem_manager_abandon(manager, plain.handle, error));
}

// ---- names ----

static void see(void *ctx, const jitmem_allocation *it) { keep_allocation(ctx, it); }

static void what_is_known_is_described(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph plain = allocate_one(manager, segment(16, 0, R), 0);
  struct seen seen = {0};
  REFUSED(JITMEM_INVALID_HANDLE, "without a label",
          jitmem_manager_describe(manager, plain.handle, see, &seen, error));
  // With a name it is known, whatever the options.
  struct graph graph = request_code(manager, "f", 3);
  OK(jitmem_manager_describe(manager, graph.handle, see, &seen, error));
  assert_string_equal(seen.name, "f");
  assert_int_equal(seen.allocation.segment_count, 2);
  finalize(manager, graph.handle);
  assert_int_equal(run(graph.memory[0].address), 3);
  OK(jitmem_manager_describe(manager, graph.handle, see, &seen, error));
  deallocate(manager, graph.handle);
  REFUSED(JITMEM_INVALID_HANDLE, "not live",
          jitmem_manager_describe(manager, graph.handle, see, &seen, error));
  OK(jitmem_manager_abandon(manager, plain.handle, error));
}

static void errors_have_the_name(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  struct graph graph = request_code(manager, "query", 3);
  finalize(manager, graph.handle);
  FAILS(JITMEM_INVALID_HANDLE, "\"query\", tag 0x7, JITDylib \"main\": allocation",
        jitmem_manager_abandon(manager, graph.handle, error));
  FAILS(JITMEM_INVALID_HANDLE, "\"query\", tag 0x7",
        jitmem_manager_write(manager, graph.handle, 0, 0, "x", 1, error));
  deallocate(manager, graph.handle);
  // What fits no window.
  const jitmem_segment large[] = {segment(GIB / 4 * 3, 0, R), segment(GIB / 4 * 3, 0, RW)};
  jitmem_segment_memory memory[2];
  uint64_t handle = 0;
  jitmem_allocation_request request;
  FAILS(JITMEM_WINDOW_FULL, "\"huge\", tag 0x7",
        jitmem_manager_request(manager, named(&request, large, 2, "huge"), memory, &handle, error));
}

static void bad_names_are_refused(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const jitmem_segment one = segment(16, 0, R);
  jitmem_segment_memory memory;
  uint64_t handle = 0;
  jitmem_allocation_request request;
  char *name = malloc(4098);
  assert_non_null(name);
  memset(name, 'n', 4097);
  name[4097] = '\0';
  REFUSED(JITMEM_INVALID_ARGUMENT, "name has more than 4096 bytes",
          jitmem_manager_request(manager, named(&request, &one, 1, name), &memory, &handle, error));
  name[4096] = '\0';
  OK(jitmem_manager_request(manager, named(&request, &one, 1, name), &memory, &handle, error));
  OK(jitmem_manager_abandon(manager, handle, error));
  free(name);
  REFUSED(
      JITMEM_INVALID_ARGUMENT, "name is not UTF-8",
      jitmem_manager_request(manager, named(&request, &one, 1, "\xff"), &memory, &handle, error));
  named(&request, &one, 1, NULL);
  request.dylib_name = "\xc3";
  REFUSED(JITMEM_INVALID_ARGUMENT, "dylib_name is not UTF-8",
          jitmem_manager_request(manager, &request, &memory, &handle, error));
  request.dylib_name = NULL;
  request.struct_size = 8;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_allocation_request.struct_size is 8",
          jitmem_manager_try_request(manager, &request, &memory, &handle, error));
  assert_int_equal(stats_of(manager).in_flight, 0);
}

// ---- observers ----

static void a_refused_observer_is_destroyed_once(void **state) {
  struct fixture *fixture = *state;
  struct journal journal = JOURNAL;
  jitmem_observer observer = {
      .struct_size = sizeof observer, .ctx = &journal, .destroy = destroy_journal};
  jitmem_manager_options options = {.struct_size = sizeof options, .observer = &observer};
  jitmem_manager *manager = NULL;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_observer.fn is NULL",
        jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_int_equal(journal.destroyed, 1);
  observer.fn = keep;
  observer.times = 2;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_observer.times",
        jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_int_equal(journal.destroyed, 2);
  observer.times = 0;
  observer.reserved = 1;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_observer.reserved",
        jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_int_equal(journal.destroyed, 3);
  observer.reserved = 0;
  options.growth = 9;
  FAILS(JITMEM_INVALID_ARGUMENT, "growth 9",
        jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_int_equal(journal.destroyed, 4);
  options.growth = 0;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_mapper is NULL",
        jitmem_manager_create(NULL, &options, &manager, error));
  assert_int_equal(journal.destroyed, 5);
  observer.struct_size = 8;
  FAILS(JITMEM_INVALID_ARGUMENT, "jitmem_observer.struct_size is 8",
        jitmem_manager_create(fixture->mapper, &options, &manager, error));
  assert_int_equal(journal.destroyed, 5);
  observer.struct_size = sizeof observer;
  OK(jitmem_manager_create(fixture->mapper, &options, &manager, error));
  struct graph graph = allocate_one(manager, segment(16, 0, R), 0);
  assert_int_equal(last_of(&journal, JITMEM_EVENT_ALLOCATED)->event.time, 0);
  assert_int_equal(last_of(&journal, JITMEM_EVENT_ALLOCATED)->allocation.allocation, graph.handle);
  jitmem_manager_free(manager);
  assert_int_equal(journal.destroyed, 6);
  assert_int_equal(count_of(&journal, JITMEM_EVENT_ABANDONED), 1);
}

struct order {
  struct journal journal;
  struct counter done;
  size_t events_before_answer;
};

static void allocated(void *ctx, uint64_t handle, const jitmem_segment_memory *memory,
                      size_t segments, const jitmem_error *error) {
  struct order *order = ctx;
  assert_null(error);
  assert_int_equal(segments, 2);
  assert_true(handle != 0 && memory != NULL);
  order->events_before_answer = order->journal.count;
  order->journal.seen[MOST_EVENTS - 1].allocation.allocation = handle;
  emit_return(memory[0].working_memory, 7);
  memset(memory[1].working_memory, 0, 16);
  count(&order->done);
}

static void ended(void *ctx, const jitmem_error *error) {
  struct order *order = ctx;
  assert_null(error);
  order->events_before_answer = order->journal.count;
  count(&order->done);
}

static void events_come_before_asynchronous_answers(void **state) {
  struct order order = {.journal = JOURNAL, .done = COUNTER};
  jitmem_manager *manager = observed(*state, &order.journal);
  const jitmem_segment segments[] = {segment(RETURN_SIZE, 0, RX), segment(16, 0, R)};
  jitmem_allocation_request request;
  OK(jitmem_manager_request_async(manager, named(&request, segments, 2, "later"), allocated, &order,
                                  NULL, error));
  assert_int_equal(counted(&order.done, 1), 1);
  const uint64_t handle = order.journal.seen[MOST_EVENTS - 1].allocation.allocation;
  assert_int_equal(count_of(&order.journal, JITMEM_EVENT_ALLOCATED), 1);
  assert_int_equal(order.events_before_answer, order.journal.count);
  OK(jitmem_manager_finalize_async(manager, handle, NULL, 0, ended, &order, NULL, error));
  assert_int_equal(counted(&order.done, 2), 2);
  assert_int_equal(count_of(&order.journal, JITMEM_EVENT_FINALIZED), 1);
  assert_int_equal(order.events_before_answer, order.journal.count);
  OK(jitmem_manager_deallocate_async(manager, &handle, 1, ended, &order, NULL, error));
  assert_int_equal(counted(&order.done, 3), 3);
  assert_int_equal(count_of(&order.journal, JITMEM_EVENT_DEALLOCATED), 1);
  jitmem_manager_free(manager);
}

static void forks_are_told_in_both_processes(void **state) {
  struct journal journal = JOURNAL;
  jitmem_manager *manager = observed(*state, &journal);
  struct graph graph = request_code(manager, "kept", 9);
  finalize(manager, graph.handle);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0)
    _exit(count_of(&journal, JITMEM_EVENT_FORKED_CHILD) == 1 &&
                  count_of(&journal, JITMEM_EVENT_FORKED_PARENT) == 0
              ? 0
              : 1);
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  assert_int_equal(count_of(&journal, JITMEM_EVENT_FORKED_CHILD), 0);
  assert_int_equal(count_of(&journal, JITMEM_EVENT_FORKED_PARENT), 1);
  deallocate(manager, graph.handle);
  assert_int_equal(count_of(&journal, JITMEM_EVENT_DEALLOCATED), 1);
  jitmem_manager_free(manager);
}

// ---- usage ----

struct usages {
  size_t count;
  jitmem_usage usage[4];
  char names[4][16];
};

static void keep_usage(void *ctx, const jitmem_usage *usage) {
  struct usages *usages = ctx;
  assert_true(usages->count < COUNT(usages->usage));
  const char *name = usage->name ? usage->name : "";
  snprintf(usages->names[usages->count], sizeof usages->names[0], "%s", name);
  usages->usage[usages->count++] = *usage;
}

static void usage_is_counted(void **state) {
  struct journal journal = JOURNAL;
  jitmem_manager *manager = observed(*state, &journal);
  struct graph first = request_code(manager, "first", 1), plain = allocate_three(manager, 1);
  finalize(manager, first.handle);
  jitmem_usage usage = {.struct_size = sizeof usage};
  OK(jitmem_manager_usage(manager, JITMEM_USAGE_BY_TAG, 7, &usage, error));
  assert_int_equal(usage.struct_size, sizeof usage);
  assert_int_equal(usage.key, 7);
  assert_int_equal(usage.code, RETURN_SIZE);
  assert_int_equal(usage.constants, 16);
  assert_int_equal(usage.data, 0);
  assert_int_equal(usage.live, RETURN_SIZE + 16);
  assert_int_equal(usage.in_flight, 0);
  assert_int_equal(usage.finalized, 1);
  struct usages all = {0};
  OK(jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_DYLIB, keep_usage, &all, error));
  assert_int_equal(all.count, 2);
  assert_int_equal(all.usage[0].key, 0);
  assert_int_equal(all.usage[0].live, 256 + 64 + 128);
  assert_int_equal(all.usage[0].data, 128);
  assert_int_equal(all.usage[0].in_flight, 1);
  assert_string_equal(all.names[0], "");
  assert_int_equal(all.usage[1].key, 5);
  assert_string_equal(all.names[1], "main");
  OK(jitmem_manager_abandon(manager, plain.handle, error));
  deallocate(manager, first.handle);
  all.count = 0;
  OK(jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_TAG, keep_usage, &all, error));
  assert_int_equal(all.count, 0);
  REFUSED(JITMEM_INVALID_ARGUMENT, "usage by 2",
          jitmem_manager_usage(manager, 2, 7, &usage, error));
  usage.struct_size = 8;
  REFUSED(JITMEM_INVALID_ARGUMENT, "jitmem_usage.struct_size is 8",
          jitmem_manager_usage(manager, JITMEM_USAGE_BY_TAG, 7, &usage, error));
  jitmem_manager_free(manager);
  manager = ((struct fixture *)*state)->manager;
  REFUSED(JITMEM_UNSUPPORTED, "the option `usage`",
          jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_TAG, keep_usage, &all, error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EVERYWHERE(the_life_of_an_allocation_is_told),
      EVERYWHERE(a_large_chunk_is_told_when_it_comes_and_goes),
      EVERYWHERE(the_layout_says_whose_ranges_are),
      EVERYWHERE(what_is_known_is_described),
      EVERYWHERE(errors_have_the_name),
      EVERYWHERE(bad_names_are_refused),
      EVERYWHERE(a_refused_observer_is_destroyed_once),
      EVERYWHERE(events_come_before_asynchronous_answers),
      EVERYWHERE(forks_are_told_in_both_processes),
      EVERYWHERE(usage_is_counted),
  };
  return at_rest(cmocka_run_group_tests_name("events", tests, NULL, NULL));
}
