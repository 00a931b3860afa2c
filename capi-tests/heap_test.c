// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A heap that is exhausted: each call of the header is made with its first allocation failing, its
// second, and so on, until it makes no further one. It must fail with JITMEM_OUT_OF_MEMORY, or
// succeed none the less; nothing is lost, and the next call works. A CMake test compares with the
// header.

#include "heap.h"

#include "executor.h"
#include "here.h"
#include "hosted.h"

#include <pthread.h>

// ---- calls with a heap that fails ----

// One round of a loop over all failures.
struct failing {
  int kind;
  long skip;
  // Of the call that was made: how many allocations failed, and what it answered.
  long failed;
  jitmem_status status;
  jitmem_error *error;
  // How many calls failed, of all rounds.
  long refused;
};

static int goes_on(struct failing *failing) {
  if (failing->failed > 0) {
    assert_true(++failing->skip < 5000);
  } else {
    failing->skip = 0;
    failing->kind++;
  }
  return failing->kind < HEAP_FAILURES;
}

#define EACH_FAILURE(name) for (struct failing name = {.kind = -1}; goes_on(&name);)

// An executor that is this very process has no memory for its answer either; what arrives then is
// none.
static int executor_is_here;

static int said_by_executor(jitmem_status status) {
  return executor_is_here && status == JITMEM_MAPPER_FAILED;
}

// Makes a call that names its last argument `error`. It may fail for want of memory, and then says
// so.
#define TRY(name, call)                                                                            \
  do {                                                                                             \
    jitmem_error *object = NULL, **error = &object;                                                \
    heap_begin((name).kind, (name).skip);                                                          \
    jitmem_status status = (call);                                                                 \
    (name).failed = heap_end();                                                                    \
    (void)error;                                                                                   \
    tried(&(name), status, object, #call, __LINE__);                                               \
  } while (0)

// Makes a call that can't fail.
#define ALWAYS(name, call)                                                                         \
  do {                                                                                             \
    heap_begin((name).kind, (name).skip);                                                          \
    (call);                                                                                        \
    (name).failed = heap_end();                                                                    \
  } while (0)

static void tried(struct failing *failing, jitmem_status status, jitmem_error *error,
                  const char *call, int line) {
  const char *message = jitmem_error_message(error);
  failing->status = status;
  failing->refused += status != JITMEM_OK;
  int right = status == JITMEM_OK ? error == NULL
                                  : (status == JITMEM_OUT_OF_MEMORY || said_by_executor(status)) &&
                                        failing->failed > 0 &&
                                        jitmem_error_status(error) == status && strlen(message) > 0;
  if (!right) {
    print_error("ERROR: %s\n  failure kind %d after %ld gave %s: %s\n", call, failing->kind,
                failing->skip, jitmem_status_name(status), message);
    _fail(__FILE__, line);
  }
  jitmem_error_free(error);
}

// ---- what is tried ----

struct subject {
  void *fixture;
  int (*tear_down)(void **);
  jitmem_mapper *mapper;
  jitmem_manager *manager;
};

static int subject(void **state, int (*set_up)(void **), int (*tear_down)(void **)) {
  struct subject *subject = calloc(1, sizeof *subject);
  assert_non_null(subject);
  set_up(&subject->fixture);
  subject->tear_down = tear_down;
  *state = subject;
  return 0;
}

static int of_fixture(void **state, int (*set_up)(void **), int (*tear_down)(void **)) {
  subject(state, set_up, tear_down);
  struct subject *subject = *state;
  subject->mapper = ((struct fixture *)subject->fixture)->mapper;
  subject->manager = ((struct fixture *)subject->fixture)->manager;
  return 0;
}

static int of_host(void **state, int (*set_up)(void **)) {
  subject(state, set_up, host_tear_down_all);
  struct subject *subject = *state;
  subject->mapper = ((struct hosted *)subject->fixture)->mapper;
  subject->manager = ((struct hosted *)subject->fixture)->manager;
  return 0;
}

static int two_views(void **state) { return of_fixture(state, set_up_two_views, tear_down); }
static int mprotected(void **state) { return of_fixture(state, set_up_mprotect, tear_down); }
static int shared(void **state) {
  executor_is_here = 1;
  return of_fixture(state, set_up_shared_here, tear_down_here);
}
static int remote(void **state) {
  executor_is_here = 1;
  return of_fixture(state, set_up_remote_here, tear_down_here);
}
static int host_shared(void **state) { return of_host(state, set_up_shared); }
static int host_copied(void **state) { return of_host(state, set_up_copied); }
static int host_async(void **state) { return of_host(state, set_up_async_chunks); }

static int subject_tear_down(void **state) {
  struct subject *subject = *state;
  subject->tear_down(&subject->fixture);
  free(subject);
  executor_is_here = 0;
  return 0;
}

#define MODE(test, mode) {#test " (" #mode ")", test, mode, subject_tear_down, NULL}
#define MODES(test)                                                                                \
  MODE(test, two_views), MODE(test, mprotected), MODE(test, host_shared), MODE(test, host_copied), \
      MODE(test, shared), MODE(test, remote)

static struct wrapper_result action(const char *args, size_t size) {
  (void)args, (void)size;
  return succeed();
}

static const jitmem_segment segments[] = {
    {.content_size = 100, .alignment = 16, .protection = RX},
    {.content_size = 100, .alignment = 16, .protection = R},
    {.content_size = 100, .zero_fill_size = 9, .alignment = 16, .protection = RW},
    {.content_size = 10, .alignment = 16, .protection = RX, .lifetime = JITMEM_LIFETIME_FINALIZE},
    {.content_size = 10, .alignment = 16, .protection = RW, .lifetime = JITMEM_LIFETIME_FINALIZE},
};

struct graphs {
  uint64_t handle;
  jitmem_segment_memory memory[COUNT(segments)];
};

static struct graphs in_flight(jitmem_manager *manager) {
  struct graphs graphs;
  OK(jitmem_manager_allocate(manager, segments, COUNT(segments), 1, graphs.memory, &graphs.handle,
                             error));
  return graphs;
}

static struct graphs finalized(jitmem_manager *manager, int with_actions) {
  struct graphs graphs = in_flight(manager);
  const jitmem_action actions[] = {
      {.finalize = call_of(action, "a", 1), .dealloc = call_of(action, "bcdefghijklmnop", 15)}};
  OK(jitmem_manager_finalize(manager, graphs.handle, with_actions ? actions : NULL,
                             with_actions ? 1 : 0, error));
  return graphs;
}

// A whole life works, and then nothing is left.
static void goes_on_working(jitmem_manager *manager) {
  struct graphs graphs = finalized(manager, 1);
  OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
  jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.in_flight, 0);
  assert_int_equal(stats.finalized, 0);
  assert_int_equal(stats.live, 0);
}

// ---- answers to asynchronous calls ----

struct answer {
  struct counter counter;
  jitmem_status status;
  uint64_t handle;
  jitmem_manager *manager;
  int destroyed;
};

static void on_created(void *ctx, jitmem_manager *manager, const jitmem_error *error) {
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  answer->manager = manager;
  count(&answer->counter);
}

static void on_allocated(void *ctx, uint64_t allocation, const jitmem_segment_memory *memory,
                         size_t number, const jitmem_error *error) {
  (void)memory, (void)number;
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  answer->handle = allocation;
  count(&answer->counter);
}

static void on_done(void *ctx, const jitmem_error *error) {
  struct answer *answer = ctx;
  answer->status = jitmem_error_status(error);
  count(&answer->counter);
}

// Waits for the answer to a call that was accepted; a call that was refused is not answered.
static void answered(struct failing *failing, struct answer *answer) {
  if (failing->status != JITMEM_OK) {
    assert_int_equal(answer->counter.count, 0);
    answer->status = failing->status;
    return;
  }
  assert_int_equal(counted(&answer->counter, 1), 1);
  assert_true(answer->status == JITMEM_OK ||
              ((answer->status == JITMEM_OUT_OF_MEMORY || said_by_executor(answer->status)) &&
               failing->failed > 0));
}

#define ANSWER {.counter = COUNTER}

// ---- mappers and managers ----

static void create_managers(void **state) {
  struct subject *subject = *state;
  EACH_FAILURE(round) {
    jitmem_manager *manager = NULL;
    TRY(round, jitmem_manager_create(subject->mapper, NULL, &manager, error));
    assert_int_equal(round.status == JITMEM_OK, manager != NULL);
    if (manager != NULL)
      goes_on_working(manager);
    jitmem_manager_free(manager);
  }
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round,
        jitmem_manager_create_async(subject->mapper, NULL, on_created, &answer, NULL, error));
    answered(&round, &answer);
    assert_int_equal(answer.status == JITMEM_OK, answer.manager != NULL);
    jitmem_manager_free(answer.manager);
  }
  goes_on_working(subject->manager);
}

static void free_managers(void **state) {
  struct subject *subject = *state;
  EACH_FAILURE(round) {
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(subject->mapper, NULL, &manager, error));
    in_flight(manager);
    for (int i = 0; i < 10; i++)
      finalized(manager, i % 2);
    ALWAYS(round, jitmem_manager_free(manager));
  }
  goes_on_working(subject->manager);
}

static void make_mappers(void **state) {
  (void)state;
  for (uint32_t kind = JITMEM_IN_PROCESS_AUTO; kind <= JITMEM_IN_PROCESS_MPROTECT; kind++) {
    EACH_FAILURE(round) {
      jitmem_mapper *mapper = NULL;
      TRY(round, jitmem_mapper_in_process(kind, &mapper, error));
      assert_int_equal(round.status == JITMEM_OK, mapper != NULL);
      ALWAYS(round, jitmem_mapper_free(mapper));
    }
  }
}

// ---- allocations ----

static void allocations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  long refused = 0;
  EACH_FAILURE(round) {
    // The first of a manager needs more than those that follow.
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_allocate(manager, segments, COUNT(segments), 1, graphs.memory,
                                       &graphs.handle, error));
    assert_int_equal(round.status == JITMEM_OK, graphs.handle != 0);
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    refused = round.refused;
    goes_on_working(manager);
  }
  assert_true(refused > 0);
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_allocate_async(manager, segments, COUNT(segments), 1, on_allocated,
                                             &answer, NULL, error));
    answered(&round, &answer);
    if (answer.status == JITMEM_OK)
      OK(jitmem_manager_abandon(manager, answer.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_try_allocate(manager, segments, COUNT(segments), 1, graphs.memory,
                                           &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
}

static void abandonments(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    TRY(round, jitmem_manager_abandon(manager, graphs.handle, error));
    assert_int_equal(round.status, JITMEM_OK);
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_abandon_async(manager, graphs.handle, on_done, &answer, NULL, error));
    assert_int_equal(round.status, JITMEM_OK);
    answered(&round, &answer);
    goes_on_working(manager);
  }
}

static void finalizations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  char args[300] = {0};
  const jitmem_action actions[] = {
      {.finalize = call_of(action, args, sizeof args), .dealloc = call_of(action, args, 3)},
      {.finalize = call_of(action, args, 1), .dealloc = call_of(action, args, sizeof args)}};
  for (size_t count = 0; count <= COUNT(actions); count++) {
    for (int async = 0; async < 2; async++) {
      EACH_FAILURE(round) {
        struct graphs graphs = in_flight(manager);
        struct answer answer = ANSWER;
        if (async) {
          TRY(round, jitmem_manager_finalize_async(manager, graphs.handle, actions, count, on_done,
                                                   &answer, NULL, error));
          answered(&round, &answer);
        } else {
          TRY(round, jitmem_manager_finalize(manager, graphs.handle, actions, count, error));
          answer.status = round.status;
        }
        // What was refused at once is still in flight; what failed later is gone.
        if (answer.status == JITMEM_OK)
          OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
        else
          jitmem_manager_abandon(manager, graphs.handle, NULL);
        goes_on_working(manager);
      }
    }
  }
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_try_finalize(manager, graphs.handle, &object);
    round.failed = heap_end();
    assert_true(status == JITMEM_OK || status == JITMEM_WOULD_BLOCK);
    if (status == JITMEM_OK)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    else
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
}

static void deallocations(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  static uint64_t handles[3000];
  const size_t counts[] = {1, 40};
  for (size_t i = 0; i < COUNT(counts); i++) {
    for (int async = 0; async < 2; async++) {
      EACH_FAILURE(round) {
        for (size_t j = 0; j < counts[i]; j++)
          handles[j] = finalized(manager, j % 3 == 0).handle;
        struct answer answer = ANSWER;
        if (async) {
          TRY(round, jitmem_manager_deallocate_async(manager, handles, counts[i], on_done, &answer,
                                                     NULL, error));
          answered(&round, &answer);
        } else {
          TRY(round, jitmem_manager_deallocate(manager, handles, counts[i], error));
        }
        // A batch that is refused, for its size, is there as before; one that an executor could not
        // do all of is gone.
        if (round.status == JITMEM_OUT_OF_MEMORY) {
          assert_true(counts[i] > 100);
          OK(jitmem_manager_deallocate(manager, handles, counts[i], error));
        }
        goes_on_working(manager);
        if (counts[i] == COUNT(handles) && round.kind > ALL_HERE)
          break;
      }
    }
  }
  EACH_FAILURE(round) {
    struct graphs graphs = finalized(manager, 0);
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_try_deallocate(manager, &graphs.handle, 1, &object);
    round.failed = heap_end();
    if (status == JITMEM_WOULD_BLOCK)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    else
      assert_int_equal(status, JITMEM_OK);
    goes_on_working(manager);
  }
}

// A scope opens or does not; where finalized memory can't be written it never does.
static void write_scopes(void **state) {
  struct subject *subject = *state;
  struct graphs graphs = finalized(subject->manager, 1);
  const uint64_t address = graphs.memory[2].address;
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    TRY(round, jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    assert_int_equal(round.status == JITMEM_OK, scope != NULL);
    OK(jitmem_write_scope_end(scope, error));
  }
  const uint64_t value = 7;
  void *pointer = NULL;
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    TRY(round, jitmem_write_scope_store(scope, address, &value, sizeof value, error));
    OK(jitmem_write_scope_end(scope, error));
  }
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    TRY(round, jitmem_write_scope_pointer(scope, address, 8, &pointer, error));
    OK(jitmem_write_scope_end(scope, error));
  }
  EACH_FAILURE(round) {
    jitmem_write_scope *scope = NULL;
    OK(jitmem_write_scope_begin(subject->manager, graphs.handle, &scope, error));
    OK(jitmem_write_scope_store(scope, address, &value, sizeof value, error));
    TRY(round, jitmem_write_scope_end(scope, error));
    assert_int_equal(round.status, JITMEM_OK);
  }
  OK(jitmem_manager_deallocate(subject->manager, &graphs.handle, 1, error));
  goes_on_working(subject->manager);
}

// What a deallocation refuses for want of memory is there as before; what waits can be reclaimed.
static void epochs(void **state) {
  struct subject *subject = *state;
  const jitmem_manager_options options = {.struct_size = sizeof options, .defer_reclamation = 1};
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(subject->mapper, &options, &manager, error));
  EACH_FAILURE(round) {
    struct graphs graphs = finalized(manager, 1);
    TRY(round, jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    if (round.status == JITMEM_OUT_OF_MEMORY)
      OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
    goes_on_working(manager);
  }
  uint64_t epoch = 0;
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_advance_epoch(manager, &epoch, error));
    assert_int_equal(round.status, JITMEM_OK);
  }
  EACH_FAILURE(round) {
    goes_on_working(manager);
    OK(jitmem_manager_advance_epoch(manager, &epoch, error));
    TRY(round, jitmem_manager_reclaim(manager, epoch, NULL, error));
    if (round.status != JITMEM_OK)
      OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
    assert_int_equal(stats_of(manager).waiting, 0);
  }
  EACH_FAILURE(round) {
    goes_on_working(manager);
    OK(jitmem_manager_advance_epoch(manager, &epoch, error));
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_reclaim_async(manager, epoch, on_done, &answer, NULL, error));
    answered(&round, &answer);
    OK(jitmem_manager_reclaim(manager, epoch, NULL, error));
    assert_int_equal(stats_of(manager).waiting, 0);
  }
  jitmem_manager_free(manager);
}

// ---- labels ----

static void ignore_event(void *ctx, const jitmem_event *event) { (void)ctx, (void)event; }

static void ignore_allocation(void *ctx, const jitmem_allocation *allocation) {
  (void)ctx, (void)allocation;
}

static void ignore_usage(void *ctx, const jitmem_usage *usage) { (void)ctx, (void)usage; }

static void labelled_allocations(void **state) {
  struct subject *subject = *state;
  const jitmem_observer observer = {.struct_size = sizeof observer, .fn = ignore_event};
  const jitmem_manager_options options = {
      .struct_size = sizeof options, .observer = &observer, .usage = 1};
  jitmem_manager *manager = NULL;
  OK(jitmem_manager_create(subject->mapper, &options, &manager, error));
  const jitmem_allocation_request request = {.struct_size = sizeof request,
                                             .segments = segments,
                                             .segment_count = COUNT(segments),
                                             .dylib = 3,
                                             .tag = 4,
                                             .name = "a function",
                                             .dylib_name = "a library"};
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_request(manager, &request, graphs.memory, &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct graphs graphs = {0};
    TRY(round, jitmem_manager_try_request(manager, &request, graphs.memory, &graphs.handle, error));
    if (graphs.handle != 0)
      OK(jitmem_manager_abandon(manager, graphs.handle, error));
    goes_on_working(manager);
  }
  EACH_FAILURE(round) {
    struct answer answer = ANSWER;
    TRY(round, jitmem_manager_request_async(manager, &request, on_allocated, &answer, NULL, error));
    answered(&round, &answer);
    if (answer.status == JITMEM_OK)
      OK(jitmem_manager_abandon(manager, answer.handle, error));
    goes_on_working(manager);
  }
  struct graphs graphs;
  OK(jitmem_manager_request(manager, &request, graphs.memory, &graphs.handle, error));
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_describe(manager, graphs.handle, ignore_allocation, NULL, error));
  }
  EACH_FAILURE(round) {
    jitmem_usage usage = {.struct_size = sizeof usage};
    TRY(round, jitmem_manager_usage(manager, JITMEM_USAGE_BY_TAG, 4, &usage, error));
  }
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_all_usage(manager, JITMEM_USAGE_BY_TAG, ignore_usage, NULL, error));
  }
  OK(jitmem_manager_abandon(manager, graphs.handle, error));
  EACH_FAILURE(round) { TRY(round, jitmem_manager_set_quota(manager, MIB, error)); }
  goes_on_working(manager);
  jitmem_manager_free(manager);
}

static void trims(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  static uint64_t handles[300];
  EACH_FAILURE(round) {
    for (size_t i = 0; i < COUNT(handles); i++)
      handles[i] = in_flight(manager).handle;
    for (size_t i = 0; i < COUNT(handles); i++)
      OK(jitmem_manager_abandon(manager, handles[i], error));
    uint64_t bytes = 0;
    TRY(round, jitmem_manager_trim(manager, &bytes, error));
    goes_on_working(manager);
  }
}

// ---- looking and writing ----

static void ignore_item(void *ctx, const jitmem_layout_item *item) { (void)ctx, (void)item; }

static void looks(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  struct graphs graphs = in_flight(manager);
  EACH_FAILURE(round) {
    jitmem_stats stats = {.struct_size = sizeof stats};
    TRY(round, jitmem_manager_stats(manager, &stats, error));
  }
  EACH_FAILURE(round) { TRY(round, jitmem_manager_layout(manager, ignore_item, NULL, error)); }
  EACH_FAILURE(round) {
    TRY(round, jitmem_manager_write(manager, graphs.handle, 0, 0, "abc", 3, error));
  }
  OK(jitmem_manager_abandon(manager, graphs.handle, error));
  goes_on_working(manager);
}

// Errors that have nothing to do with memory keep their status.
static void errors(void **state) {
  jitmem_manager *manager = ((struct subject *)*state)->manager;
  EACH_FAILURE(round) {
    jitmem_error *object = NULL;
    heap_begin(round.kind, round.skip);
    jitmem_status status = jitmem_manager_abandon(manager, 12345, &object);
    assert_int_equal(jitmem_error_status(object), JITMEM_INVALID_HANDLE);
    assert_true(strlen(jitmem_error_message(object)) > 0);
    assert_int_equal(jitmem_error_os_code(object), 0);
    assert_string_equal(jitmem_status_name(status), "JITMEM_INVALID_HANDLE");
    jitmem_error_free(object);
    jitmem_error_free(object);
    round.failed = heap_end();
    assert_int_equal(status, JITMEM_INVALID_HANDLE);
  }
  // Many at a time, until no more of them can be described.
  enum { MANY = 20000 };
  static jitmem_error *objects[MANY];
  EACH_FAILURE(round) {
    heap_begin(ALL_HERE, round.skip * 1000);
    for (int i = 0; i < MANY; i++)
      jitmem_manager_abandon(manager, 12345, &objects[i]);
    round.failed = heap_end();
    for (int i = 0; i < MANY; i++) {
      assert_int_equal(jitmem_error_status(objects[i]), JITMEM_INVALID_HANDLE);
      assert_true(strlen(jitmem_error_message(objects[i])) > 0);
      jitmem_error_free(objects[i]);
    }
    goes_on_working(manager);
    if (round.skip == 10)
      break;
  }
}

static void what_takes_no_heap(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    heap_begin(round.kind, round.skip);
    jitmem_version();
    jitmem_version_string();
    jitmem_status_name(3);
    round.failed = heap_end();
    assert_int_equal(round.failed, 0);
  }
}

// A heap that has nothing for a long time: calls are refused, one after the other, and what gives
// memory back works. Afterwards all is as before.
static void for_a_long_time(void **state) {
  struct subject *subject = *state;
  enum { GRAPHS = 3000 };
  static struct graphs graphs[GRAPHS];
  for (int round = 0; round < 3; round++) {
    size_t made = 0;
    jitmem_status status = JITMEM_OK;
    heap_begin(ALL_ANYWHERE, 0);
    for (int i = 0; i < GRAPHS; i++) {
      status = jitmem_manager_allocate(subject->manager, segments, COUNT(segments), 1,
                                       graphs[made].memory, &graphs[made].handle, NULL);
      made += status == JITMEM_OK;
      if (status != JITMEM_OK && status != JITMEM_OUT_OF_MEMORY && !said_by_executor(status))
        break;
      jitmem_manager *manager = NULL;
      status = jitmem_manager_create(subject->mapper, NULL, &manager, NULL);
      if ((status != JITMEM_OUT_OF_MEMORY && !said_by_executor(status)) || manager != NULL)
        break;
    }
    for (size_t i = 0; i < made; i++)
      if (jitmem_manager_abandon(subject->manager, graphs[i].handle, NULL) != JITMEM_OK)
        status = JITMEM_INTERNAL;
    heap_end();
    assert_true(status == JITMEM_OUT_OF_MEMORY || said_by_executor(status));
    goes_on_working(subject->manager);
    jitmem_manager *manager = NULL;
    OK(jitmem_manager_create(subject->mapper, NULL, &manager, error));
    goes_on_working(manager);
    jitmem_manager_free(manager);
  }
}

// ---- custom mappers ----

static void custom_mappers(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    struct hosted *hosted = NULL;
    // Its own calls are checked; here it is about the mapper alone.
    set_up_shared((void **)&hosted);
    const jitmem_mapper_callbacks callbacks = {.struct_size = sizeof callbacks,
                                               .page_size = 4096,
                                               .granule = 16,
                                               .reserve = on_reserve,
                                               .prepare = host_prepare,
                                               .initialize = on_initialize,
                                               .deinitialize = on_deinitialize,
                                               .reclaim = host_reclaim,
                                               .release = on_release};
    jitmem_mapper *mapper = NULL;
    TRY(round, jitmem_mapper_custom(&callbacks, &mapper, error));
    assert_int_equal(round.status == JITMEM_OK, mapper != NULL);
    jitmem_mapper_free(mapper);
    host_tear_down_all((void **)&hosted);
  }
}

static jitmem_request kept;

static void keep_request(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                         jitmem_request request) {
  (void)ctx, (void)size, (void)placement, (void)address;
  kept = request;
}

// The host's answer arrives even where there is no memory for what it says.
static void answers_of_custom_mappers(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    struct hosted *hosted = NULL;
    set_up_shared((void **)&hosted);
    const jitmem_mapper_callbacks callbacks = {.struct_size = sizeof callbacks,
                                               .page_size = 4096,
                                               .granule = 16,
                                               .reserve = keep_request,
                                               .prepare = host_prepare,
                                               .initialize = on_initialize,
                                               .deinitialize = on_deinitialize,
                                               .reclaim = host_reclaim,
                                               .release = on_release};
    jitmem_mapper *mapper = NULL;
    OK(jitmem_mapper_custom(&callbacks, &mapper, error));
    struct answer answer = ANSWER;
    OK(jitmem_manager_create_async(mapper, NULL, on_created, &answer, NULL, error));
    TRY(round, jitmem_mapper_complete(kept, JITMEM_DENIED, "no", 0, 0, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(answer.counter.count, 1);
    assert_int_equal(answer.status, JITMEM_DENIED);
    jitmem_mapper_free(mapper);
    host_tear_down_all((void **)&hosted);
  }
}

// ---- transports, services, executors ----

static void mappers_over_a_transport(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    EACH_FAILURE(round) {
      struct here here;
      here_set_up(&here, here_call);
      jitmem_mapper *mapper = NULL;
      jitmem_error *object = NULL;
      heap_begin(round.kind, round.skip);
      jitmem_status status = shared ? jitmem_mapper_shared(here.transport, NULL, &mapper, &object)
                                    : jitmem_mapper_remote(here.transport, NULL, &mapper, &object);
      round.failed = heap_end();
      // Both sides are in this process: what the executor's has no memory for is its failure.
      assert_true(status == JITMEM_OK || round.failed > 0);
      assert_int_equal(status == JITMEM_OK, mapper != NULL);
      jitmem_error_free(object);
      jitmem_mapper_free(mapper);
      here_tear_down(&here);
    }
  }
}

static void transports(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    jitmem_transport *transport = NULL;
    const jitmem_transport_callbacks callbacks = {
        .struct_size = sizeof callbacks, .call = here_call, .symbol = here_symbol};
    TRY(round, jitmem_transport_custom(&callbacks, &transport, error));
    assert_int_equal(round.status == JITMEM_OK, transport != NULL);
    ALWAYS(round, jitmem_transport_free(transport));
  }
  struct here here;
  here_set_up(&here, here_call);
  EACH_FAILURE(round) {
    uint64_t address = 0;
    TRY(round, jitmem_transport_symbol(here.transport, "jitmem_service_open", &address, error));
  }
  EACH_FAILURE(round) {
    struct packed result = {.size = 0};
    TRY(round, jitmem_transport_call(here.transport, (uintptr_t)action, "abc", 3, take_packed,
                                     &result, error));
    assert_int_equal(result.size, round.status == JITMEM_OK ? 1 : 0);
  }
  here_tear_down(&here);
}

static jitmem_call kept_call;
static jitmem_task kept_task;
static struct counter calls_kept = COUNTER, tasks_kept = COUNTER;

static void keep_call(void *ctx, uint64_t function, const void *args, size_t size,
                      jitmem_call call) {
  (void)ctx, (void)function, (void)args, (void)size;
  kept_call = call;
  count(&calls_kept);
}

static void keep_task(void *ctx, jitmem_task task) {
  (void)ctx;
  kept_task = task;
  count(&tasks_kept);
}

static void *call_it(void *transport) {
  jitmem_transport_call(transport, 1, "abc", 3, NULL, NULL, NULL);
  return NULL;
}

static void answers_of_transports(void **state) {
  (void)state;
  const jitmem_transport_callbacks callbacks = {
      .struct_size = sizeof callbacks, .call = keep_call, .dispatch = keep_task};
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  EACH_FAILURE(round) {
    pthread_t caller;
    calls_kept.count = 0;
    assert_int_equal(pthread_create(&caller, NULL, call_it, transport), 0);
    assert_int_equal(counted(&calls_kept, 1), 1);
    char bytes[100] = {0};
    TRY(round, jitmem_transport_answer(kept_call, JITMEM_OK, NULL, bytes, sizeof bytes, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(pthread_join(caller, NULL), 0);
  }
  jitmem_transport_free(transport);
}

// A task runs its callbacks once, whatever there is no memory for.
static void tasks_of_transports(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  const jitmem_transport_callbacks callbacks = {.struct_size = sizeof callbacks,
                                                .ctx = &here,
                                                .call = here_call,
                                                .symbol = here_symbol,
                                                .dispatch = keep_task};
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_custom(&callbacks, &transport, error));
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, 0, &mapper);
  EACH_FAILURE(round) {
    struct graphs graphs = in_flight(manager);
    const jitmem_action actions[] = {{.finalize = call_of(action, "a", 1)}};
    struct answer answer = ANSWER;
    tasks_kept.count = 0;
    OK(jitmem_manager_finalize_async(manager, graphs.handle, actions, 1, on_done, &answer, NULL,
                                     error));
    assert_int_equal(counted(&tasks_kept, 1), 1);
    TRY(round, jitmem_task_run(kept_task, error));
    assert_int_equal(round.status, JITMEM_OK);
    assert_int_equal(answer.counter.count, 1);
    assert_int_equal(answer.status, JITMEM_OK);
    OK(jitmem_manager_deallocate(manager, &graphs.handle, 1, error));
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  here_tear_down(&here);
}

// This process has no services of LLVM's, which is found out with little memory as well.
static void mappers_of_llvm(void **state) {
  (void)state;
  struct here here;
  here_set_up(&here, here_call);
  for (int shared = 0; shared < 2; shared++) {
    EACH_FAILURE(round) {
      jitmem_mapper *mapper = NULL;
      jitmem_error *object = NULL;
      heap_begin(round.kind, round.skip);
      jitmem_status status =
          shared ? jitmem_mapper_llvm_shared(here.transport, "why", &mapper, &object)
                 : jitmem_mapper_llvm_simple(here.transport, "why", &mapper, &object);
      round.failed = heap_end();
      assert_true(status == JITMEM_UNSUPPORTED || status == JITMEM_OUT_OF_MEMORY);
      assert_int_equal(jitmem_error_status(object), status);
      jitmem_error_free(object);
    }
  }
  here_tear_down(&here);
}

static void *serve(void *fd) {
  jitmem_executor_serve(*(int *)fd, *(int *)fd, NULL, NULL);
  close(*(int *)fd);
  return NULL;
}

static void connections(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    int ends[2];
    pthread_t server;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, &ends[1]), 0);
    jitmem_transport *transport = NULL;
    TRY(round, jitmem_transport_socket(ends[0], &transport, error));
    if (transport == NULL)
      close(ends[0]);
    jitmem_transport_free(transport);
    assert_int_equal(pthread_join(server, NULL), 0);
  }
}

static void take_address(void *ctx, const char *name, uint64_t address) {
  (void)ctx, (void)name, (void)address;
}

static void services(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    jitmem_service *service = NULL;
    TRY(round, jitmem_service_create(&service, error));
    assert_int_equal(round.status == JITMEM_OK, service != NULL);
    ALWAYS(round, jitmem_service_free(service));
  }
  jitmem_service *service = NULL;
  OK(jitmem_service_create(&service, error));
  EACH_FAILURE(round) { TRY(round, jitmem_service_symbols(service, take_address, NULL, error)); }
  EACH_FAILURE(round) {
    jitmem_wrapper_result result;
    ALWAYS(round, result = jitmem_service_open(NULL, 0));
    if (result.size > 8)
      free((void *)(uintptr_t)result.data);
  }
  jitmem_service_free(service);
}

// Serves a controller that hangs up at once.
static void serving(void **state) {
  (void)state;
  EACH_FAILURE(round) {
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(shutdown(ends[0], SHUT_WR), 0);
    TRY(round, jitmem_executor_serve(ends[1], ends[1], NULL, error));
    close(ends[0]);
    close(ends[1]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      MODES(create_managers),
      MODES(free_managers),
      MODES(allocations),
      MODE(allocations, host_async),
      MODES(abandonments),
      MODES(finalizations),
      MODES(deallocations),
      MODE(deallocations, host_async),
      MODES(epochs),
      MODES(looks),
      MODE(trims, two_views),
      MODE(trims, mprotected),
      MODE(trims, host_shared),
      MODE(trims, host_copied),
      MODE(trims, shared),
      MODE(labelled_allocations, two_views),
      MODE(labelled_allocations, mprotected),
      MODE(write_scopes, two_views),
      MODE(write_scopes, mprotected),
      MODE(write_scopes, shared),
      MODES(errors),
      MODES(for_a_long_time),
      cmocka_unit_test(what_takes_no_heap),
      cmocka_unit_test(make_mappers),
      cmocka_unit_test(custom_mappers),
      cmocka_unit_test(answers_of_custom_mappers),
      cmocka_unit_test(mappers_over_a_transport),
      cmocka_unit_test(mappers_of_llvm),
      cmocka_unit_test(transports),
      cmocka_unit_test(answers_of_transports),
      cmocka_unit_test(tasks_of_transports),
      cmocka_unit_test(services),
      cmocka_unit_test(connections),
      cmocka_unit_test(serving),
  };
  return at_rest(cmocka_run_group_tests_name("heap", tests, NULL, NULL));
}
