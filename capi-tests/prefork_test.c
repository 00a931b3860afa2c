// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Hosts that fork often: servers that fork workers while they link, many children at a time,
// children that fork in turn. What stays frozen for them is bounded, and goes once they are gone.

#include "child.h"
#include "code.h"

#include <pthread.h>
#include <stdatomic.h>

enum { CODE_SIZE = 300, DATA_SIZE = 200 };

// A function that returns `value`, and data.
static struct graph link_function(jitmem_manager *manager, uint32_t value) {
  const jitmem_segment segments[] = {segment(CODE_SIZE, 0, RX), segment(DATA_SIZE, 0, RW)};
  struct graph graph = {0};
  MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &graph.handle, error));
  memset(graph.memory[0].working_memory, 0x90, CODE_SIZE);
  emit_return(graph.memory[0].working_memory, value);
  memset(graph.memory[1].working_memory, (int)value, DATA_SIZE);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  return graph;
}

static void check_function(const struct graph *graph, uint32_t value) {
  MUST(run(graph->memory[0].address) == value);
  MUST(all_bytes_are(at(graph->memory[1].address), DATA_SIZE, (uint8_t)value));
}

static void unlink_function(jitmem_manager *manager, const struct graph *graph) {
  MUST_OK(jitmem_manager_deallocate(manager, &graph->handle, 1, error));
}

static void must_pass(pid_t child) {
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status))
    fail_msg("a child was killed by signal %d (%s)", WTERMSIG(status),
             WTERMSIG(status) == SIGALRM ? "it hung" : strsignal(WTERMSIG(status)));
  assert_int_equal(WEXITSTATUS(status), CHILD_PASSED);
}

static void default_signals(void) {
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTRAP};
  for (size_t i = 0; i < COUNT(signals); i++)
    signal(signals[i], SIG_DFL);
  alarm(instrumented() ? 600 : 120);
}

// No child is left, so nothing has to stay as it was.
static void check_thawed(jitmem_manager *manager) {
  OK(jitmem_manager_trim(manager, NULL, error));
  assert_int_equal(stats_of(manager).frozen, 0);
}

// ---- many children at a time ----

static void a_thousand_children_each_see_their_own(void **state) {
  jitmem_manager *manager = ((struct fixture *)*state)->manager;
  const unsigned count = rounds(1000);
  pid_t *children = calloc(count, sizeof *children);
  assert_non_null(children);
  int gate[2];
  assert_int_equal(pipe(gate), 0);
  // What a child was forked with is replaced right after, in a chunk that stays.
  struct graph common = link_function(manager, 12345), mine = link_function(manager, 0);
  for (unsigned i = 0; i < count; i++) {
    children[i] = fork();
    assert_true(children[i] >= 0);
    if (children[i] == 0) {
      char byte;
      default_signals();
      close(gate[1]);
      MUST(read(gate[0], &byte, 1) == 0);
      check_function(&mine, i);
      check_function(&common, 12345);
      struct graph own = link_function(manager, i + 7);
      unlink_function(manager, &mine);
      check_function(&own, i + 7);
      _exit(CHILD_PASSED);
    }
    unlink_function(manager, &mine);
    mine = link_function(manager, i + 1);
  }
  jitmem_stats stats = stats_of(manager);
  print_message("%u children: %llu bytes frozen, %llu committed\n", count,
                (unsigned long long)stats.frozen, (unsigned long long)stats.committed);
  // A function for each child, rounding included, and no page for each.
  assert_in_range(stats.frozen, 0, count * 512);
  assert_in_range(stats.committed, 0, count * 1024 + (8 << 20));
  close(gate[0]);
  close(gate[1]);
  for (unsigned i = 0; i < count; i++)
    must_pass(children[i]);
  check_thawed(manager);
  check_function(&mine, count);
  unlink_function(manager, &mine);
  unlink_function(manager, &common);
  free(children);
}

// ---- a server under load ----

enum { LINKERS = 8, KEPT = 64, WORKERS = 6 };

struct server {
  jitmem_manager *manager;
  struct graph common[KEPT];
  atomic_int stop;
};

// Links and unlinks, keeping some for a while.
static void *keep_linking(void *argument) {
  struct server *server = argument;
  struct graph graphs[KEPT];
  for (uint32_t i = 0; !server->stop; i++) {
    struct graph *graph = &graphs[i % KEPT];
    if (i >= KEPT) {
      check_function(graph, i - KEPT);
      unlink_function(server->manager, graph);
    }
    *graph = link_function(server->manager, i);
  }
  return NULL;
}

static void work(struct server *server, uint32_t seed) {
  default_signals();
  for (uint32_t i = 0; i < 20; i++) {
    for (uint32_t j = 0; j < KEPT; j++)
      check_function(&server->common[j], j);
    struct graph own = link_function(server->manager, seed + i);
    check_function(&own, seed + i);
    unlink_function(server->manager, &own);
  }
  // Some free what they have from their parent.
  if (seed % 3 == 0)
    for (uint32_t j = 0; j < KEPT; j++)
      unlink_function(server->manager, &server->common[j]);
  _exit(CHILD_PASSED);
}

static void a_server_forks_workers_while_it_links(void **state) {
  struct server server = {.manager = ((struct fixture *)*state)->manager};
  pthread_t linkers[LINKERS];
  pid_t workers[WORKERS] = {0};
  uint64_t most = 0;
  for (uint32_t j = 0; j < KEPT; j++)
    server.common[j] = link_function(server.manager, j);
  for (size_t i = 0; i < LINKERS; i++)
    assert_int_equal(pthread_create(&linkers[i], NULL, keep_linking, &server), 0);
  const unsigned forks = rounds(600);
  for (uint32_t i = 0; i < forks; i++) {
    pid_t *worker = &workers[i % WORKERS];
    if (*worker != 0)
      must_pass(*worker);
    *worker = fork();
    assert_true(*worker >= 0);
    if (*worker == 0)
      work(&server, i);
    uint64_t frozen = stats_of(server.manager).frozen;
    most = frozen > most ? frozen : most;
  }
  for (size_t i = 0; i < WORKERS; i++)
    if (workers[i] != 0)
      must_pass(workers[i]);
  server.stop = 1;
  for (size_t i = 0; i < LINKERS; i++)
    assert_int_equal(pthread_join(linkers[i], NULL), 0);
  jitmem_stats stats = stats_of(server.manager);
  print_message("%u forks under load: at most %llu bytes frozen, %llu committed\n", forks,
                (unsigned long long)most, (unsigned long long)stats.committed);
  // Each fork freezes what is live then; what no child sees any more is used again when room is
  // wanted.
  assert_in_range(most, 0, 32 << 20);
  assert_in_range(stats.committed, 0, 64 << 20);
  check_thawed(server.manager);
  for (uint32_t j = 0; j < KEPT; j++)
    check_function(&server.common[j], j);
}

// ---- children of children ----

struct lineage {
  jitmem_manager *manager;
  uint32_t last;
  // Written by the last one.
  int end;
  struct graph kept[KEPT];
};

// Runs what those before it have linked, and replaces the oldest of it.
static void live(struct lineage *lineage, uint32_t number) {
  for (uint32_t i = number < KEPT ? 0 : number - KEPT; i < number; i++)
    check_function(&lineage->kept[i % KEPT], i);
  struct graph *mine = &lineage->kept[number % KEPT];
  if (number >= KEPT)
    unlink_function(lineage->manager, mine);
  *mine = link_function(lineage->manager, number);
  check_function(mine, number);
}

// Each process forks the next and ends. (A thousand that stay would take the kernel minutes.)
static void descend(void *argument) {
  struct lineage *lineage = argument;
  for (uint32_t number = 0; number <= lineage->last; number++) {
    default_signals();
    live(lineage, number);
    pid_t child = fork();
    MUST(child >= 0);
    if (child != 0)
      _exit(CHILD_PASSED);
  }
  jitmem_stats stats = child_stats(lineage->manager);
  MUST(stats.windows == 1);
  MUST(stats.chunks <= 2 * KEPT);
  MUST(stats.live == KEPT * (CODE_SIZE + DATA_SIZE));
  MUST(write(lineage->end, "e", 1) == 1);
}

static void a_thousand_generations(void **state) {
  struct lineage lineage = {.manager = ((struct fixture *)*state)->manager, .last = rounds(1000)};
  if (lineage.last < KEPT)
    lineage.last = KEPT;
  int ends[2];
  char byte;
  assert_int_equal(pipe(ends), 0);
  lineage.end = ends[1];
  in_child(descend, &lineage);
  close(ends[1]);
  // The end of file comes when one of them has failed.
  assert_int_equal(read(ends[0], &byte, 1), 1);
  close(ends[0]);
  live(&lineage, 0);
  check_thawed(lineage.manager);
}

// The same with all of them alive until the last has ended.
static void descend_and_wait(struct lineage *lineage, uint32_t number) {
  default_signals();
  live(lineage, number);
  if (number == lineage->last)
    return;
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    descend_and_wait(lineage, number + 1);
    _exit(CHILD_PASSED);
  }
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  MUST(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
  // What was done after the fork is the children's.
  for (uint32_t i = number < KEPT ? 0 : number + 1 - KEPT; i <= number; i++)
    check_function(&lineage->kept[i % KEPT], i);
}

static void descend_all(void *argument) { descend_and_wait(argument, 0); }

static void generations_that_live_together(void **state) {
  struct lineage lineage = {.manager = ((struct fixture *)*state)->manager, .last = 2 * KEPT};
  in_child(descend_all, &lineage);
  live(&lineage, 0);
  check_thawed(lineage.manager);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      EACH(a_thousand_children_each_see_their_own),
      EACH(a_server_forks_workers_while_it_links),
      EACH(a_thousand_generations),
      EACH(generations_that_live_together),
  };
  return cmocka_run_group_tests_name("prefork", tests, NULL, NULL);
}
