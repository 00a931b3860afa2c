// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host's own executor whose linked code runs in a process that is replaced when it ends. The host
// is a child of the test, which is its controller.

#include "executor.h"
#include "here.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>

// ---- the host ----

// What the host's processes and the test have together.
static struct together {
  atomic_int prepared, before_forks, at_exits;
} *together;

static jitmem_supervision supervise(uint32_t restarts, uint32_t time_limit) {
  return (jitmem_supervision){.struct_size = sizeof(jitmem_supervision),
                              .restarts = restarts,
                              .seconds = 3600,
                              .time_limit = time_limit};
}

struct host {
  jitmem_supervision supervision;
  // How each of its sessions ends, one after the other.
  jitmem_status status;
  const char *words, *other_words;
  // What it does before.
  void (*before)(void);
};

// The host's descriptor of the connection.
static atomic_int served;

static void serve_session(const struct host *host, int end) {
  atomic_store(&served, end);
  const jitmem_serve_options options = {.struct_size = sizeof options,
                                        .supervision = &host->supervision};
  if (host->status == JITMEM_OK)
    MUST_OK(jitmem_executor_serve(end, end, &options, error));
  else
    MUST_FAIL(host->status, host->words, host->other_words,
              jitmem_executor_serve(end, end, &options, error));
}

static int has_no_children(void) { return waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD; }

// cmocka's handlers would go on with the parent's tests in a child.
static void begin(void) {
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
  for (size_t i = 0; i < COUNT(signals); i++)
    signal(signals[i], SIG_DFL);
  alarm(instrumented() ? 600 : 60);
}

// Starts a host that serves controllers in a row, by one process. Nothing is left of each session.
static pid_t start_host(const struct host *host, int sockets[], size_t count) {
  int ends[8][2];
  fflush(NULL);
  for (size_t i = 0; i < count; i++)
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends[i]) == 0);
  pid_t process = fork();
  assert_true(process >= 0);
  if (process == 0) {
    begin();
    for (size_t i = 0; i < count; i++)
      close(ends[i][0]);
    if (host->before != NULL)
      host->before();
    const long files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    for (size_t i = 0; i < count; i++) {
      serve_session(host, ends[i][1]);
      MUST(entries("/proc/self/fd") == files && entries("/proc/self/task") == threads);
      MUST(has_no_children());
      // Its controller has to see the end.
      shutdown(ends[i][1], SHUT_RDWR);
    }
    // jitmem is as good as before.
    child_graph(child_manager(JITMEM_MAPPER_TWO_VIEWS, (jitmem_manager_options){0}));
    _exit(CHILD_PASSED);
  }
  for (size_t i = 0; i < count; i++) {
    close(ends[i][1]);
    sockets[i] = ends[i][0];
  }
  return process;
}

static void end_host(pid_t process) {
  int status = 0;
  assert_int_equal(waitpid(process, &status, 0), process);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
}

// ---- what it publishes: at the same addresses here ----

static int32_t who(int32_t unused) { return (void)unused, getpid(); }
static int32_t its_parent(int32_t unused) { return (void)unused, getppid(); }
static int32_t leave(int32_t code) { _exit(code); }
static int32_t has_the_connection(int32_t unused) {
  struct stat what;
  return (void)unused, fstat(atomic_load(&served), &what) != 0 || S_ISSOCK(what.st_mode);
}
static int32_t opens_files(int32_t unused) {
  (void)unused;
  return open("/etc/passwd", O_RDONLY) >= 0;
}

// ---- the controller ----

struct restarted {
  uint64_t restarts;
  char reason[200];
};

struct session {
  jitmem_transport *transport;
  jitmem_mapper *mapper;
  jitmem_manager *manager;
  pthread_mutex_t lock;
  struct restarted last;
  struct counter told;
};

static void observe(void *ctx, const jitmem_event *event) {
  struct session *session = ctx;
  if (event->kind != JITMEM_EVENT_EXECUTOR_RESTARTED)
    return;
  pthread_mutex_lock(&session->lock);
  session->last.restarts = event->restarts;
  snprintf(session->last.reason, sizeof session->last.reason, "%s", event->reason);
  pthread_mutex_unlock(&session->lock);
  count(&session->told);
}

static void connect_to(struct session *session, int socket) {
  *session = (struct session){.lock = PTHREAD_MUTEX_INITIALIZER, .told = COUNTER};
  const jitmem_observer observer = {.struct_size = sizeof observer, .fn = observe, .ctx = session};
  const jitmem_manager_options options = {.struct_size = sizeof options, .observer = &observer};
  OK(jitmem_transport_socket(socket, &session->transport, error));
  OK(jitmem_mapper_shared(session->transport, NULL, &session->mapper, error));
  OK(jitmem_manager_create(session->mapper, &options, &session->manager, error));
}

static void disconnect(struct session *session) {
  jitmem_manager_free(session->manager);
  jitmem_mapper_free(session->mapper);
  jitmem_transport_free(session->transport);
}

static int32_t answer_of(const struct session *session, uint64_t function, int32_t argument) {
  int32_t answer = -1;
  OK(call_int(session->transport, function, argument, &answer, error));
  return answer;
}

#define ADDRESS_OF(function) ((uint64_t)(uintptr_t)(function))

struct linked {
  uint64_t allocation, count, counted, fault, forever;
};

enum { FUNCTIONS = 5 * 64, FIRST = 40 };

// Functions, and a number that starts at FIRST and on which the finalize action counts first.
static struct linked link_functions(const struct session *session) {
  const jitmem_segment segments[] = {segment(FUNCTIONS, 0, RX), segment(4, 0, RW)};
  struct graph graph = allocate(session->manager, segments, 2);
  const uint64_t code = graph.memory[0].address, data = graph.memory[1].address;
  char *out = graph.memory[0].working_memory;
  const int32_t first = FIRST;
  memcpy(graph.memory[1].working_memory, &first, sizeof first);
  emit_counting_wrapper(out, code, data);
  emit_load(out + 64, code + 64, data);
  emit_fault(out + 128);
  emit_endless_loop(out + 192);
  const jitmem_action action = {.finalize = {.function = code}};
  OK(jitmem_manager_finalize(session->manager, graph.handle, &action, 1, error));
  return (struct linked){.allocation = graph.handle,
                         .count = code,
                         .counted = code + 64,
                         .fault = code + 128,
                         .forever = code + 192};
}

static void count_on(const struct session *session, const struct linked *linked) {
  struct packed result = {.size = 0};
  OK(jitmem_transport_call(session->transport, linked->count, NULL, 0, take_packed, &result,
                           error));
}

// Calls what does not return.
static void end_by(const struct session *session, uint64_t function, int32_t argument,
                   const char *words) {
  int32_t answer;
  FAILS(JITMEM_MAPPER_FAILED, words,
        call_int(session->transport, function, argument, &answer, error));
}

// What is said of a crash. Valgrind does not survive a signal that is raised once more: there
// linked code exits.
static const char *crashed(void) {
  return under_valgrind() ? "has exited with code 11"
                          : "was killed by signal 11 (SIGSEGV) at address 0x40";
}

static void crash(const struct session *session, const struct linked *linked) {
  if (under_valgrind())
    end_by(session, ADDRESS_OF(leave), 11, crashed());
  else
    end_by(session, linked->fault, 64, crashed());
}

// Another process has taken the place of one, for the nth time: with all as it was finalized.
static void has_gone_on(struct session *session, const struct linked *linked, int restarts,
                        const char *reason) {
  assert_int_equal(counted(&session->told, restarts), restarts);
  pthread_mutex_lock(&session->lock);
  assert_int_equal(session->last.restarts, restarts);
  assert_non_null(strstr(session->last.reason, reason));
  pthread_mutex_unlock(&session->lock);
  assert_int_equal(stats_of(session->manager).executor_restarts, restarts);
  assert_int_equal(answer_of(session, linked->counted, 0), FIRST + 1);
  count_on(session, linked);
  assert_int_equal(answer_of(session, linked->counted, 0), FIRST + 2);
}

// ---- tests ----

static void a_session_goes_on_however_its_process_ends(void **state) {
  (void)state;
  const struct host host = {.supervision = supervise(10, 1)};
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  struct session session;
  connect_to(&session, socket);
  const struct linked linked = link_functions(&session);
  count_on(&session, &linked);
  assert_int_equal(answer_of(&session, linked.counted, 0), FIRST + 2);

  crash(&session, &linked);
  has_gone_on(&session, &linked, 1, crashed());

  assert_int_equal(answer_of(&session, ADDRESS_OF(has_the_connection), 0), 0);
  const pid_t child = answer_of(&session, ADDRESS_OF(who), 0);
  assert_true(child != process && answer_of(&session, ADDRESS_OF(its_parent), 0) != process);
  kill(child, SIGKILL);
  has_gone_on(&session, &linked, 2, "killed by signal 9");
  assert_true(answer_of(&session, ADDRESS_OF(who), 0) != child);

  end_by(&session, ADDRESS_OF(leave), 3, "has exited with code 3");
  has_gone_on(&session, &linked, 3, "code 3");

  end_by(&session, linked.forever, 0, "ran for 1 s");
  has_gone_on(&session, &linked, 4, "time limit");

  deallocate(session.manager, linked.allocation);
  const struct linked more = link_functions(&session);
  assert_int_equal(answer_of(&session, more.counted, 0), FIRST + 1);
  disconnect(&session);
  end_host(process);
}

static void what_ends_too_often_is_an_error_of_the_host(void **state) {
  (void)state;
  char words[200];
  snprintf(words, sizeof words, "%s; no other one takes its place: 1 have ended within 3600 s",
           crashed());
  const struct host host = {.supervision = supervise(1, 0),
                            .status = JITMEM_DISCONNECTED,
                            .words = words,
                            .other_words = "allow more restarts"};
  int sockets[2];
  pid_t process = start_host(&host, sockets, COUNT(sockets));
  // The host goes on with the next controller.
  for (size_t i = 0; i < COUNT(sockets); i++) {
    struct session session;
    connect_to(&session, sockets[i]);
    const struct linked linked = link_functions(&session);
    crash(&session, &linked);
    has_gone_on(&session, &linked, 1, crashed());
    crash(&session, &linked);
    int32_t answer;
    FAILS(JITMEM_DISCONNECTED, "have ended within 3600 s",
          call_int(session.transport, linked.counted, 0, &answer, error));
    disconnect(&session);
  }
  end_host(process);
}

static void a_supervising_process_that_is_killed_is_an_error_of_the_host(void **state) {
  (void)state;
  const struct host host = {.supervision = supervise(1, 0),
                            .status = JITMEM_DISCONNECTED,
                            .words = "the process that supervises linked code has ended by itself",
                            .other_words = "signal: 9"};
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  struct session session;
  connect_to(&session, socket);
  kill(answer_of(&session, ADDRESS_OF(its_parent), 0), SIGKILL);
  end_host(process);
  disconnect(&session);
}

static void a_controller_that_breaks_the_protocol_is_an_error_of_the_host(void **state) {
  (void)state;
  const struct host host = {.supervision = supervise(1, 0),
                            .status = JITMEM_DISCONNECTED,
                            .words = "Unexpected opcode",
                            .other_words = ""};
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  const char message[32] = {32, [8] = 4};
  assert_int_equal(send(socket, message, sizeof message, 0), sizeof message);
  shutdown(socket, SHUT_WR);
  end_host(process);
  close(socket);
}

// ---- what is done before ----

static const char *prepare(void *ctx) {
  atomic_int *prepared = ctx;
  atomic_fetch_add(prepared, 1);
  jitmem_containment bounds = {.struct_size = sizeof bounds, .profile = JITMEM_PROFILE_SEALED};
  jitmem_error *error = NULL;
  // It stays until this process has ended.
  return jitmem_executor_contain(&bounds, NULL, &error) == JITMEM_OK ? NULL
                                                                     : jitmem_error_message(error);
}

static void each_process_is_prepared(void **state) {
  (void)state;
  not_under_valgrind("valgrind opens files and makes memory executable for itself");
  atomic_store(&together->prepared, 0);
  struct host host = {.supervision = supervise(5, 0)};
  host.supervision.prepare = prepare;
  host.supervision.ctx = &together->prepared;
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  struct session session;
  connect_to(&session, socket);
  const struct linked linked = link_functions(&session);
  for (int restarts = 1; restarts <= 3; restarts++) {
    assert_int_equal(answer_of(&session, ADDRESS_OF(opens_files), 0), 0);
    crash(&session, &linked);
    has_gone_on(&session, &linked, restarts, crashed());
  }
  assert_int_equal(atomic_load(&together->prepared), 4);
  disconnect(&session);
  end_host(process);
}

static const char *fail_to_prepare(void *ctx) { return ctx; }

static void what_can_not_be_prepared_is_an_error_of_the_host(void **state) {
  (void)state;
  static char why[] = "no place to stand";
  struct host host = {.supervision = supervise(5, 0),
                      .status = JITMEM_DISCONNECTED,
                      .words = "start a child for linked code",
                      .other_words = "prepare: no place to stand"};
  host.supervision.prepare = fail_to_prepare;
  host.supervision.ctx = why;
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  end_host(process);
  close(socket);
}

static void confine(void) {
  jitmem_containment bounds = {.struct_size = sizeof bounds, .profile = JITMEM_PROFILE_CONFINED};
  const char *readable[] = {"/proc"};
  bounds.readable = readable;
  bounds.readable_count = 1;
  MUST_OK(jitmem_executor_contain(&bounds, NULL, error));
}

static void confined_host(void *unused) {
  (void)unused;
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  confine();
  const jitmem_supervision supervision = supervise(1, 0);
  const jitmem_serve_options options = {.struct_size = sizeof options, .supervision = &supervision};
  MUST_FAIL(JITMEM_DENIED, "fork a process that supervises linked code", "put it in force",
            jitmem_executor_serve(ends[0], ends[0], &options, error));
}

static void a_host_that_may_not_fork_is_told(void **state) {
  (void)state;
  not_under_valgrind("valgrind opens files and makes memory executable for itself");
  in_child(confined_host, NULL);
}

// ---- what forks do to a host ----

static void note_fork(void) { atomic_fetch_add(&together->before_forks, 1); }
static void note_exit(void) { atomic_fetch_add(&together->at_exits, 1); }

static FILE *printed;

static int32_t print(int32_t number) { return fprintf(printed, "%d", number); }

static void have_handlers(void) {
  MUST(pthread_atfork(note_fork, NULL, NULL) == 0 && atexit(note_exit) == 0);
}

static void handlers_of_the_host(void **state) {
  (void)state;
  char text[16] = "";
  int ends[2];
  assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
  printed = fdopen(ends[1], "w");
  assert_non_null(printed);
  atomic_store(&together->before_forks, 0);
  const struct host host = {.supervision = supervise(5, 0), .before = have_handlers};
  int socket;
  pid_t process = start_host(&host, &socket, 1);
  struct session session;
  connect_to(&session, socket);
  const struct linked linked = link_functions(&session);
  crash(&session, &linked);
  has_gone_on(&session, &linked, 1, crashed());
  assert_int_equal(answer_of(&session, ADDRESS_OF(print), 42), 2);
  disconnect(&session);
  end_host(process);
  // The supervising process, and two children of it.
  assert_int_equal(atomic_load(&together->before_forks), 3);
  assert_int_equal(atomic_load(&together->at_exits), 0);
  fclose(printed);
  assert_int_equal(read(ends[0], text, sizeof text), 2);
  assert_string_equal(text, "42");
  close(ends[0]);
}

// Serves from one of several threads.
static void *serve_in_a_thread(void *argument) {
  const struct host host = {.supervision = supervise(5, 0)};
  serve_session(&host, *(int *)argument);
  close(*(int *)argument);
  return NULL;
}

enum { TOGETHER = 3 };

// Sockets of the controllers and of their host.
struct ends {
  int ours[TOGETHER], theirs[TOGETHER];
};

static void serve_together(void *argument) {
  pthread_t threads[TOGETHER];
  struct ends *ends = argument;
  begin();
  for (int i = 0; i < TOGETHER; i++)
    close(ends->ours[i]);
  for (int i = 0; i < TOGETHER; i++)
    MUST(pthread_create(&threads[i], NULL, serve_in_a_thread, &ends->theirs[i]) == 0);
  for (int i = 0; i < TOGETHER; i++)
    MUST(pthread_join(threads[i], NULL) == 0);
  MUST(has_no_children());
}

static void several_sessions_of_one_host(void **state) {
  (void)state;
  struct session sessions[TOGETHER];
  struct ends ends;
  for (int i = 0; i < TOGETHER; i++) {
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    ends.ours[i] = pair[0];
    ends.theirs[i] = pair[1];
  }
  struct waiting_child host = start_waiting_child(serve_together, &ends);
  for (int i = 0; i < TOGETHER; i++)
    close(ends.theirs[i]);
  close(host.gate);
  for (int i = 0; i < TOGETHER; i++)
    connect_to(&sessions[i], ends.ours[i]);
  for (int i = 0; i < TOGETHER; i++) {
    const struct linked linked = link_functions(&sessions[i]);
    crash(&sessions[i], &linked);
    has_gone_on(&sessions[i], &linked, 1, crashed());
  }
  for (int i = 0; i < TOGETHER; i++)
    disconnect(&sessions[i]);
  int status = 0;
  assert_int_equal(waitpid(host.process, &status, 0), host.process);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED);
}

// ---- bad input ----

static void choices_that_can_never_be_right(void **state) {
  (void)state;
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  struct {
    jitmem_supervision supervision;
    uint64_t more;
  } grown = {.supervision = supervise(1, 0)};
  jitmem_serve_options options = {.struct_size = sizeof options, .supervision = &grown.supervision};
#define WRONG(status, words)                                                                       \
  REFUSED(status, words, jitmem_executor_serve(ends[1], ends[1], &options, error))
  const size_t sizes[] = {0, 8, sizeof grown.supervision - 1, 4097};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    grown.supervision.struct_size = sizes[i];
    WRONG(JITMEM_INVALID_ARGUMENT, "jitmem_supervision.struct_size");
  }
  grown.supervision.struct_size = sizeof grown;
  grown.more = 1;
  WRONG(JITMEM_INVALID_ARGUMENT, "update the library");
  grown.supervision = supervise(0, 0);
  WRONG(JITMEM_INVALID_ARGUMENT, "0 restarts within 3600 s: want at least 1 of each");
  grown.supervision = supervise(1, 0);
  grown.supervision.seconds = 0;
  WRONG(JITMEM_INVALID_ARGUMENT, "1 restarts within 0 s");
  grown.supervision = supervise(1, 0);
  grown.supervision.reserved = 1;
  WRONG(JITMEM_INVALID_ARGUMENT, "jitmem_supervision.reserved is 1");
  options.supervision = (const void *)((const char *)&grown.supervision + 1);
  WRONG(JITMEM_INVALID_ARGUMENT, "misaligned");
  grown.supervision = supervise(1, 0);
  jitmem_service *service = NULL;
  OK(jitmem_service_create(&service, error));
  options.supervision = &grown.supervision;
  options.service = service;
  WRONG(JITMEM_INVALID_ARGUMENT, "leave it out");
  jitmem_service_free(service);
  options.service = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "no open descriptor",
          jitmem_executor_serve(-1, ends[1], &options, error));
  assert_true(has_no_children());
  close(ends[0]);
  close(ends[1]);
}

int main(void) {
  together =
      mmap(NULL, sizeof *together, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (together == MAP_FAILED)
    return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_session_goes_on_however_its_process_ends),
      cmocka_unit_test(what_ends_too_often_is_an_error_of_the_host),
      cmocka_unit_test(a_supervising_process_that_is_killed_is_an_error_of_the_host),
      cmocka_unit_test(a_controller_that_breaks_the_protocol_is_an_error_of_the_host),
      cmocka_unit_test(each_process_is_prepared),
      cmocka_unit_test(what_can_not_be_prepared_is_an_error_of_the_host),
      cmocka_unit_test(a_host_that_may_not_fork_is_told),
      cmocka_unit_test(handlers_of_the_host),
      cmocka_unit_test(several_sessions_of_one_host),
      cmocka_unit_test(choices_that_can_never_be_right),
  };
  return at_rest(cmocka_run_group_tests_name("supervised executors", tests, NULL, NULL));
}
