// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// From an address to the allocation that it lies in, in threads and in signal handlers, while
// everything else changes.

#include "child.h"
#include "code.h"
#include "here.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/time.h>
#include <ucontext.h>

enum { STABLE = 300, HANDLED = 3000 };

static jitmem_location place(void) {
  return (jitmem_location){.struct_size = sizeof(jitmem_location)};
}

// Code, constants and data with a JITDylib and a tag.
static struct graph labelled(const jitmem_manager *manager, uint64_t dylib, uint64_t tag) {
  const jitmem_segment segments[] = {segment(200, 0, RX), segment(40, 0, R), segment(8, 30, RW)};
  jitmem_allocation_request request = {.struct_size = sizeof request,
                                       .segments = segments,
                                       .segment_count = COUNT(segments),
                                       .dylib = dylib,
                                       .tag = tag};
  struct graph graph = {0};
  OK(jitmem_manager_request(manager, &request, graph.memory, &graph.handle, error));
  return graph;
}

static const uint32_t PROTECTIONS[] = {RX, R, RW};
static const uint64_t SIZES[] = {200, 40, 38};

// Whether a look-up found this segment of a graph. Called in signal handlers too.
static int is(const jitmem_location *found, const struct fixture *fixture,
              const struct graph *graph, int segment, uint64_t tag) {
  return found->struct_size == sizeof *found && found->manager == fixture->manager &&
         found->allocation == graph->handle && found->address == graph->memory[segment].address &&
         found->size == SIZES[segment] && found->protection == PROTECTIONS[segment] &&
         found->lifetime == JITMEM_LIFETIME_STANDARD && found->phase == JITMEM_PHASE_FINALIZED &&
         found->tag == tag && found->reserved == 0;
}

static void every_field_is_told(void **state) {
  struct fixture *fixture = *state;
  const jitmem_manager *manager = fixture->manager;
  struct graph graph = labelled(manager, 11, 12);
  for (int phase = JITMEM_PHASE_IN_FLIGHT; phase != 0;) {
    for (int i = 0; i < 3; i++) {
      uint64_t first = graph.memory[i].address;
      const uint64_t addresses[] = {first, first + 1, first + SIZES[i] - 1};
      for (size_t j = 0; j < COUNT(addresses); j++) {
        jitmem_location found = place();
        errno = EPROTO;
        assert_int_equal(jitmem_lookup(addresses[j], &found), JITMEM_LOOKUP_FOUND);
        assert_int_equal(errno, EPROTO);
        assert_int_equal(found.phase, phase);
        found.phase = JITMEM_PHASE_FINALIZED;
        assert_true(is(&found, fixture, &graph, i, 12));
        assert_int_equal(found.dylib, 11);
        jitmem_location same = place();
        assert_int_equal(jitmem_manager_lookup(manager, addresses[j], &same), JITMEM_LOOKUP_FOUND);
        same.phase = JITMEM_PHASE_FINALIZED;
        assert_memory_equal(&same, &found, sizeof found);
      }
      jitmem_location none = place();
      assert_int_equal(jitmem_lookup(first + SIZES[i], &none), JITMEM_LOOKUP_NOTHING);
      assert_int_equal(none.address, 0);
    }
    if (phase == JITMEM_PHASE_FINALIZED)
      break;
    finalize(manager, graph.handle);
    phase = JITMEM_PHASE_FINALIZED;
  }
  deallocate(manager, graph.handle);
  jitmem_location none = place();
  for (int i = 0; i < 3; i++)
    assert_int_equal(jitmem_lookup(graph.memory[i].address, &none), JITMEM_LOOKUP_NOTHING);
}

// A header that is older or newer, and places that are none.
static void locations_of_other_sizes(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = labelled(fixture->manager, 1, 2);
  uint64_t address = graph.memory[0].address;
  struct {
    jitmem_location location;
    uint64_t later;
  } newer = {.location = {.struct_size = sizeof newer}, .later = 7};
  assert_int_equal(jitmem_lookup(address, &newer.location), JITMEM_LOOKUP_FOUND);
  assert_int_equal(newer.location.struct_size, sizeof newer.location);
  assert_int_equal(newer.later, 7);
  const size_t wrong[] = {0, 8, sizeof(jitmem_location) - 1, SIZE_MAX};
  for (size_t i = 0; i < COUNT(wrong); i++) {
    jitmem_location location = {.struct_size = wrong[i]};
    assert_int_equal(jitmem_lookup(address, &location), JITMEM_LOOKUP_REFUSED);
    assert_int_equal(location.address, 0);
  }
  jitmem_location location = place();
  assert_int_equal(jitmem_lookup(address, NULL), JITMEM_LOOKUP_REFUSED);
  assert_int_equal(jitmem_manager_lookup(NULL, address, &location), JITMEM_LOOKUP_REFUSED);
  assert_int_equal(jitmem_manager_lookup((jitmem_manager *)(uintptr_t)0x1008, address, &location),
                   JITMEM_LOOKUP_REFUSED);
  OK(jitmem_manager_abandon(fixture->manager, graph.handle, error));
}

// Addresses of an executor are no addresses of this process's, though here it is the same one.
static void executors_are_looked_up_by_their_manager(void **state) {
  struct fixture *fixture = *state;
  jitmem_manager *manager = fixture->manager;
  struct graph graph = labelled(manager, 3, 4);
  finalize(manager, graph.handle);
  jitmem_location found = place();
  uint64_t address = graph.memory[1].address;
  assert_int_equal(jitmem_lookup(address, &found), JITMEM_LOOKUP_NOTHING);
  assert_int_equal(jitmem_manager_lookup(manager, address, &found), JITMEM_LOOKUP_FOUND);
  assert_int_equal(found.allocation, graph.handle);
  assert_ptr_equal(found.manager, manager);
  jitmem_manager_free(manager);
  assert_int_equal(jitmem_manager_lookup(manager, address, &found), JITMEM_LOOKUP_REFUSED);
}

// ---- while everything changes ----

// Graphs that stay, and what handlers and threads made of them.
static struct {
  const struct fixture *fixture;
  struct graph graphs[STABLE];
  atomic_uint handled, wrong, uncertain;
  atomic_bool stop;
} stable;

static void look_at_stable(uint64_t number) {
  const struct graph *graph = &stable.graphs[number % STABLE];
  int segment = (int)(number / STABLE % 3);
  jitmem_location found = place();
  uint64_t address = graph->memory[segment].address + number / 1000 % SIZES[segment];
  if (jitmem_lookup(address, &found) != JITMEM_LOOKUP_FOUND ||
      !is(&found, stable.fixture, graph, segment, number % STABLE))
    atomic_fetch_add(&stable.wrong, 1);
  // Something near, which may be anything, but must hold the address.
  address += 256 + number % 4096;
  found = place();
  if (jitmem_lookup(address, &found) == JITMEM_LOOKUP_FOUND) {
    if (address - found.address >= found.size)
      atomic_fetch_add(&stable.wrong, 1);
    if (found.phase == JITMEM_PHASE_CHANGING)
      atomic_fetch_add(&stable.uncertain, 1);
  }
}

static void on_timer(int signal) {
  (void)signal;
  int before = errno;
  errno = ENOTNAM;
  static uint64_t random = 7;
  for (int i = 0; i < 4; i++)
    look_at_stable(next_random(&random) >> 8);
  if (errno != ENOTNAM)
    atomic_fetch_add(&stable.wrong, 1);
  errno = before;
  atomic_fetch_add(&stable.handled, 1);
}

static void *look_on(void *seed) {
  uint64_t random = *(uint64_t *)seed;
  while (!atomic_load(&stable.stop))
    look_at_stable(next_random(&random) >> 8);
  return NULL;
}

// Adds and removes, in the thread that the signals interrupt.
static void churn(const struct fixture *fixture, uint64_t *random) {
  struct graph live[40] = {0};
  for (int step = 0; step < 400; step++) {
    struct graph *graph = &live[next_random(random) % COUNT(live)];
    if (graph->handle != 0)
      deallocate(fixture->manager, graph->handle);
    *graph = labelled(fixture->manager, 5 + step % 9, 1000000 + step % 2);
    finalize(fixture->manager, graph->handle);
  }
  for (size_t i = 0; i < COUNT(live); i++)
    if (live[i].handle != 0)
      deallocate(fixture->manager, live[i].handle);
  OK(jitmem_manager_trim(fixture->manager, NULL, error));
  // Another manager comes and goes.
  jitmem_manager *other = NULL;
  OK(jitmem_manager_create(fixture->mapper, NULL, &other, error));
  struct graph graph = labelled(other, 1, 1);
  finalize(other, graph.handle);
  jitmem_manager_free(other);
  jitmem_location found = place();
  assert_int_not_equal(jitmem_lookup(graph.memory[0].address, &found), JITMEM_LOOKUP_REFUSED);
}

static void a_timers_handler_interrupts_the_manager(void **state) {
  struct fixture *fixture = *state;
  stable.fixture = fixture;
  atomic_store(&stable.handled, 0);
  atomic_store(&stable.stop, false);
  struct graph between[STABLE];
  for (unsigned i = 0; i < STABLE; i++) {
    stable.graphs[i] = labelled(fixture->manager, 2, i);
    between[i] = labelled(fixture->manager, 2, 5000);
    finalize(fixture->manager, stable.graphs[i].handle);
    finalize(fixture->manager, between[i].handle);
  }
  for (unsigned i = 0; i < STABLE; i++)
    deallocate(fixture->manager, between[i].handle);
  struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART}, before;
  sigaction(SIGALRM, &action, &before);
  // Threads that look on do not take the signals.
  sigset_t signals, old;
  sigemptyset(&signals);
  sigaddset(&signals, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &signals, &old);
  pthread_t threads[2];
  uint64_t seeds[2] = {1, 2};
  for (int i = 0; i < 2; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, look_on, &seeds[i]), 0);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  // Where a handler takes longer than that, nothing else would run.
  const struct timeval interval = {.tv_usec = instrumented() ? 5000 : 150};
  const struct itimerval often = {.it_interval = interval, .it_value = interval};
  const struct itimerval never = {0};
  setitimer(ITIMER_REAL, &often, NULL);
  uint64_t random = 99;
  while (atomic_load(&stable.handled) < rounds(HANDLED))
    churn(fixture, &random);
  setitimer(ITIMER_REAL, &never, NULL);
  atomic_store(&stable.stop, true);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  sigaction(SIGALRM, &before, NULL);
  assert_int_equal(atomic_load(&stable.wrong), 0);
  print_message("%u handlers, %u uncertain answers\n", atomic_load(&stable.handled),
                atomic_load(&stable.uncertain));
  for (unsigned i = 0; i < STABLE; i++)
    deallocate(fixture->manager, stable.graphs[i].handle);
}

// ---- crashes ----

static jitmem_location crashed;
static jitmem_lookup_answer answered_crash;

// The address of the instruction that a signal has interrupted, in a context.
#ifdef __x86_64__
#define INSTRUCTION gregs[REG_RIP]
#else
#define INSTRUCTION pc
#endif

static void on_crash(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info;
  crashed = (jitmem_location){.struct_size = sizeof crashed};
  uint64_t address = (uint64_t)((ucontext_t *)context)->uc_mcontext.INSTRUCTION;
  answered_crash = jitmem_lookup(address, &crashed);
  // Behind the instruction that has faulted.
  ((ucontext_t *)context)->uc_mcontext.INSTRUCTION += FAULT_LENGTH;
}

static void see_name(void *ctx, const jitmem_allocation *allocation) {
  snprintf(ctx, 32, "%s", allocation->name);
}

static void a_crash_handler_names_the_allocation(void **state) {
  struct fixture *fixture = *state;
  not_under_valgrind("the fault is an error there");
  const jitmem_segment segments[] = {segment(FAULT_SIZE, 0, RX)};
  jitmem_allocation_request request = {.struct_size = sizeof request,
                                       .segments = segments,
                                       .segment_count = COUNT(segments),
                                       .dylib = 8,
                                       .tag = 9,
                                       .name = "query 9"};
  struct graph graph = {0};
  OK(jitmem_manager_request(fixture->manager, &request, graph.memory, &graph.handle, error));
  emit_fault(graph.memory[0].working_memory);
  finalize(fixture->manager, graph.handle);
  struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO}, before;
  sigaction(SIGSEGV, &action, &before);
  uint32_t answer = ((uint32_t (*)(void *))(uintptr_t)graph.memory[0].address)(NULL);
  sigaction(SIGSEGV, &before, NULL);
  assert_int_equal(answer, 42);
  assert_int_equal(answered_crash, JITMEM_LOOKUP_FOUND);
  assert_int_equal(crashed.allocation, graph.handle);
  assert_int_equal(crashed.address, graph.memory[0].address);
  assert_true(crashed.dylib == 8 && crashed.tag == 9);
  assert_ptr_equal(crashed.manager, fixture->manager);
  char name[32];
  OK(jitmem_manager_describe(crashed.manager, crashed.allocation, see_name, name, error));
  assert_string_equal(name, "query 9");
  deallocate(fixture->manager, graph.handle);
}

// ---- children ----

struct inherited {
  const struct fixture *fixture;
  struct graph graph;
};

static void look_up_in_child(void *argument) {
  const struct inherited *inherited = argument;
  const struct fixture *fixture = inherited->fixture;
  jitmem_location found = place();
  MUST(jitmem_lookup(inherited->graph.memory[0].address, &found) == JITMEM_LOOKUP_FOUND);
  MUST(is(&found, fixture, &inherited->graph, 0, 2));
  // The child's own.
  struct graph own = labelled(fixture->manager, 1, 3);
  MUST_OK(jitmem_manager_finalize(fixture->manager, own.handle, NULL, 0, error));
  MUST(jitmem_lookup(own.memory[2].address, &found) == JITMEM_LOOKUP_FOUND);
  MUST(is(&found, fixture, &own, 2, 3));
  jitmem_manager_free(fixture->manager);
  MUST(jitmem_lookup(own.memory[2].address, &found) == JITMEM_LOOKUP_NOTHING);
}

static void a_child_looks_up(void **state) {
  struct fixture *fixture = *state;
  struct graph graph = labelled(fixture->manager, 1, 2);
  finalize(fixture->manager, graph.handle);
  struct inherited inherited = {fixture, graph};
  in_child(look_up_in_child, &inherited);
  deallocate(fixture->manager, graph.handle);
}

// ---- walks ----

struct walked {
  const struct fixture *fixture;
  size_t segments, empty, bytes;
};

static void count_segment(void *ctx, const jitmem_location *location) {
  struct walked *walked = ctx;
  assert_ptr_equal(location->manager, walked->fixture->manager);
  assert_int_equal(location->phase, JITMEM_PHASE_FINALIZED);
  walked->segments++;
  walked->empty += location->size == 0;
  walked->bytes += location->size;
  jitmem_location found = place();
  if (location->size == 0)
    return;
  assert_int_equal(jitmem_lookup(location->address, &found), JITMEM_LOOKUP_FOUND);
  assert_memory_equal(&found, location, sizeof found);
}

static void a_walk_shows_every_segment(void **state) {
  struct fixture *fixture = *state;
  struct walked walked = {.fixture = fixture};
  OK(jitmem_manager_walk(fixture->manager, count_segment, &walked, error));
  assert_int_equal(walked.segments, 0);
  uint64_t handles[501];
  for (size_t i = 0; i < COUNT(handles); i++) {
    handles[i] = i < 500 ? labelled(fixture->manager, i % 3, i).handle
                         : allocate(fixture->manager, NULL, 0).handle;
    finalize(fixture->manager, handles[i]);
  }
  OK(jitmem_manager_walk(fixture->manager, count_segment, &walked, error));
  assert_int_equal(walked.segments, 1501);
  assert_int_equal(walked.empty, 1);
  assert_int_equal(walked.bytes, stats_of(fixture->manager).live);
  OK(jitmem_manager_deallocate(fixture->manager, handles, COUNT(handles), error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(every_field_is_told),
      EACH(locations_of_other_sizes),
      ACROSS(executors_are_looked_up_by_their_manager),
      EACH(a_timers_handler_interrupts_the_manager),
      EACH(a_crash_handler_names_the_allocation),
      EACH(a_child_looks_up),
      EACH(a_walk_shows_every_segment),
  };
  return at_rest(cmocka_run_group_tests(tests, NULL, NULL));
}
