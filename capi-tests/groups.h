// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Groups of executors, and units that are linked into them.
#ifndef JITMEM_CAPI_TESTS_GROUPS_H
#define JITMEM_CAPI_TESTS_GROUPS_H

#include "executor.h"

#include <sched.h>
#include <stdatomic.h>

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
  // Of both of the last kinds.
  atomic_int lost;
  atomic_int destroyed;
};

// Outlives groups, whose threads may tell of their end.
static struct told told;

static inline void tell(void *ctx, const jitmem_group_event *event) {
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
    events->lost++;
    break;
  default:
    events->put_out++;
    events->lost++;
  }
}

static inline void told_all(void *ctx) { ((struct told *)ctx)->destroyed++; }

// In an executor, its place in the group.
static int place_here;

static inline size_t add_place(struct group *group, struct executor executor) {
  size_t place = group->count++;
  assert_true(place < MOST);
  group->executors[place] = executor;
  // The transport has the socket from here on, and closes it in executors that are forked later.
  OK(jitmem_transport_socket(executor.socket, &group->transports[place], error));
  return place;
}

// Many executors and few processors take their time.
static inline void be_patient(void) { alarm(600); }

static inline void start_one(struct group *group, void (*before)(void)) {
  place_here = (int)group->count;
  add_place(group, start_executor(before != NULL ? before : be_patient));
}

static inline void make_mapper(struct group *group) {
  jitmem_new_executor executors[MOST] = {0};
  memset(&told, 0, sizeof told);
  for (size_t i = 0; i < group->count; i++)
    executors[i].transport = group->transports[i];
  const jitmem_group_observer observer = {
      .struct_size = sizeof observer, .fn = tell, .ctx = &told, .destroy = told_all};
  OK(jitmem_mapper_group(executors, group->count, &observer, &group->mapper, error));
  assert_int_equal(told.joined, group->count);
}

static inline void start_group(struct group *group, size_t count, void (*before)(void)) {
  *group = (struct group){0};
  for (size_t i = 0; i < count; i++)
    start_one(group, before);
  make_mapper(group);
  OK(jitmem_manager_create(group->mapper, NULL, &group->manager, error));
}

static inline uint64_t join_with(struct group *group, size_t place) {
  const jitmem_new_executor executor = {.transport = group->transports[place],
                                        .name = "the late one"};
  uint64_t number = 0;
  OK(jitmem_mapper_add_executor(group->mapper, &executor, &number, error));
  return number;
}

static inline void end_executor(struct group *group, size_t place) {
  jitmem_transport_free(group->transports[place]);
  group->transports[place] = NULL;
  status_of_executor(group->executors[place]);
}

static inline void end_group(struct group *group) {
  jitmem_manager_free(group->manager);
  jitmem_mapper_free(group->mapper);
  for (size_t i = 0; i < group->count; i++)
    if (group->transports[i] != NULL)
      end_executor(group, i);
}

static inline void count_one(void *ctx, const jitmem_group_executor *executor) {
  assert_true(executor->struct_size >= sizeof *executor && executor->messages > 0);
  ++*(size_t *)ctx;
}

static inline size_t executors_of(const struct group *group) {
  size_t count = 0;
  OK(jitmem_mapper_executors(group->mapper, count_one, &count, error));
  return count;
}

// The mapper's threads find the end of an executor by themselves.
static inline void wait_for_executors(const struct group *group, size_t count) {
  while (executors_of(group) != count)
    sched_yield();
}

// Nor does the request that goes on without it wait for what the observer is told.
static inline void wait_until_told(const atomic_int *events, int count) {
  while (*events < count)
    sched_yield();
  assert_int_equal(*events, count);
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

static inline void emit_unit(struct unit *unit, uint32_t value) {
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

static inline struct unit link_unit(const jitmem_manager *manager, uint32_t value) {
  struct unit unit = {.graph = allocate(manager, unit_segments, PARTS)};
  emit_unit(&unit, value);
  finalize(manager, unit.graph.handle);
  return unit;
}

static inline int32_t call_in(const struct group *group, size_t place, uint64_t address) {
  int32_t answer = -1;
  OK(call_int(group->transports[place], address, 0, &answer, error));
  return answer;
}

static inline void count_in(const struct group *group, size_t place, const struct unit *unit) {
  OK(jitmem_transport_call(group->transports[place], unit->count, NULL, 0, NULL, NULL, error));
}

static inline void check_unit(const struct group *group, size_t place, const struct unit *unit,
                              uint32_t value) {
  assert_int_equal(call_in(group, place, unit->read), value);
  assert_int_equal(call_in(group, place, unit->constant), value);
}

#endif // JITMEM_CAPI_TESTS_GROUPS_H
