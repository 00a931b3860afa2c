// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The transport over a connected socket: whose descriptor it is, what may come through it, and
// executors at its other end.

#include "executor.h"
#include "here.h"
#include "limits.h"

#include <arpa/inet.h>
#include <fcntl.h>

// ---- an executor by hand ----

enum { SETUP, HANGUP, RESULT, CALL, HEADER_SIZE = 32 };

static struct packed message(uint64_t opcode, uint64_t sequence, uint64_t tag, const void *body,
                             size_t size) {
  struct packed message = {.size = 0};
  pack_number(&message, HEADER_SIZE + size);
  pack_number(&message, opcode);
  pack_number(&message, sequence);
  pack_number(&message, tag);
  pack(&message, body, size);
  return message;
}

// What an executor sends first: since LLVM 17 with an empty map of values, before without. All
// names stand for one address.
static struct packed introduction_with(int with_map, const char *const *names, size_t count) {
  struct packed body = {.size = 0};
  pack_text(&body, "x86_64-pc-linux-gnu");
  pack_number(&body, 4096);
  if (with_map)
    pack_number(&body, 0);
  pack_number(&body, count);
  for (size_t i = 0; i < count; i++) {
    pack_text(&body, names[i]);
    pack_number(&body, 0x7000000);
  }
  return message(SETUP, 0, 0, body.bytes, body.size);
}

static struct packed introduction(int with_map) {
  static const char *const there[] = {"there"};
  return introduction_with(with_map, there, 1);
}

static void send_packed(int socket, struct packed packed) {
  assert_int_equal(send(socket, packed.bytes, packed.size, MSG_NOSIGNAL), packed.size);
}

static void open_pair(int ends[2]) {
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
}

// A transport whose executor is the other end of a pair, in the test's hands.
static jitmem_transport *connect_to(int *end) {
  int ends[2];
  jitmem_transport *transport = NULL;
  open_pair(ends);
  send_packed(ends[1], introduction(1));
  OK(jitmem_transport_socket(ends[0], &transport, error));
  *end = ends[1];
  return transport;
}

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

// Reads to the end, which comes once the transport has hung up.
static void read_to_the_end(int socket) {
  char bytes[256];
  ssize_t size;
  while ((size = read(socket, bytes, sizeof bytes)) > 0)
    ;
  assert_true(size == 0 || errno == ECONNRESET);
  close(socket);
}

// ---- the token ----

static void a_token_goes_ahead(void **state) {
  (void)state;
  static const char token[] = "0123456789abcdef";
  int ends[2];
  open_pair(ends);
  OK(jitmem_transport_send_token(ends[0], token, 16, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "a token of 15 bytes",
          jitmem_transport_send_token(ends[0], token, 15, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "fd -1", jitmem_transport_send_token(-1, token, 16, error));
  char sent[25];
  assert_int_equal(recv(ends[1], sent, sizeof sent, 0), 24);
  assert_memory_equal(sent, "\x10\0\0\0\0\0\0\0", 8);
  assert_memory_equal(sent + 8, token, 16);
  // The descriptor is still the host's.
  send_packed(ends[1], introduction(1));
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_socket(ends[0], &transport, error));
  jitmem_transport_free(transport);
  close(ends[1]);
}

// ---- the descriptor ----

static void descriptors_that_are_no_connected_sockets(void **state) {
  (void)state;
  jitmem_transport *transport = NULL;
  REFUSED(JITMEM_INVALID_ARGUMENT, "fd -1", jitmem_transport_socket(-1, &transport, error));
  REFUSED(JITMEM_INVALID_ARGUMENT, "", jitmem_transport_socket(INT32_MIN, &transport, error));
  int pipes[2], packets[2];
  assert_int_equal(pipe(pipes), 0);
  assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets), 0);
  const int wrong[] = {pipes[0], packets[0], socket(AF_UNIX, SOCK_STREAM, 0),
                       socket(AF_INET, SOCK_STREAM, 0), open("/dev/null", O_RDWR)};
  for (size_t i = 0; i < COUNT(wrong); i++) {
    REFUSED(JITMEM_INVALID_ARGUMENT, "no connected stream socket",
            jitmem_transport_socket(wrong[i], &transport, error));
    assert_true(is_open(wrong[i]));
    close(wrong[i]);
  }
  // A number that no other thread is given meanwhile.
  int closed = fcntl(pipes[1], F_DUPFD, 900);
  close(closed);
  REFUSED(JITMEM_INVALID_ARGUMENT, "no connected stream socket",
          jitmem_transport_socket(closed, &transport, error));
  close(pipes[1]);
  close(packets[1]);
  assert_null(transport);
}

static void whoever_introduces_itself_otherwise_is_refused(void **state) {
  (void)state;
  struct packed cut = introduction(1), numbered = introduction(1), early = introduction(1);
  cut.size -= 3;
  numbered.bytes[16] = 1;
  early.bytes[8] = RESULT;
  struct packed small = {.bytes = {31}, .size = HEADER_SIZE}, large = {.size = HEADER_SIZE};
  memset(large.bytes, 0x7f, 7);
  large.bytes[8] = SETUP;
  struct packed http = {.bytes = "HTTP/1.1 400 Bad Request\r\n\r\nno no no no", .size = 40};
  struct packed lengths = introduction(1);
  memset(lengths.bytes + HEADER_SIZE, 0xff, lengths.size - HEADER_SIZE);
  const struct {
    struct packed bytes;
    jitmem_status status;
    const char *words;
  } cases[] = {
      {{.size = 0}, JITMEM_DISCONNECTED, "without a word"},
      {cut, JITMEM_DISCONNECTED, "end-of-file"},
      {numbered, JITMEM_MAPPER_FAILED, "no Setup"},
      {early, JITMEM_MAPPER_FAILED, "no Setup"},
      {small, JITMEM_MAPPER_FAILED, "too small"},
      {large, JITMEM_MAPPER_FAILED, "no Setup"},
      {http, JITMEM_MAPPER_FAILED, "no Setup"},
      {lengths, JITMEM_MAPPER_FAILED, "no Setup"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    int ends[2];
    open_pair(ends);
    jitmem_transport *transport = NULL;
    send_packed(ends[1], cases[i].bytes);
    shutdown(ends[1], SHUT_WR);
    FAILS(cases[i].status, cases[i].words, jitmem_transport_socket(ends[0], &transport, error));
    // Still the host's.
    assert_null(transport);
    assert_true(is_open(ends[0]));
    close(ends[0]);
    close(ends[1]);
  }
}

static void the_descriptor_goes_with_the_transport(void **state) {
  (void)state;
  for (int with_map = 0; with_map < 2; with_map++) {
    int ends[2];
    open_pair(ends);
    send_packed(ends[1], introduction(with_map));
    jitmem_transport *transport = NULL;
    OK(jitmem_transport_socket(ends[0], &transport, error));
    assert_true(fcntl(ends[0], F_GETFD) & FD_CLOEXEC);
    uint64_t address = 0;
    OK(jitmem_transport_symbol(transport, "there", &address, error));
    assert_int_equal(address, 0x7000000);
    REFUSED(JITMEM_INVALID_ARGUMENT, "no symbol here",
            jitmem_transport_symbol(transport, "here", &address, error));
    jitmem_mapper *mapper = NULL;
    REFUSED(JITMEM_UNSUPPORTED, "jitmem_service_open",
            jitmem_mapper_shared(transport, NULL, &mapper, error));
    // Another descriptor of the same connection does not keep it open.
    int other = dup(ends[0]);
    jitmem_transport_free(transport);
    read_to_the_end(ends[1]);
    close(other);
  }
}

// ---- calls ----

struct caller {
  pthread_t thread;
  jitmem_transport *transport;
  struct packed result;
  jitmem_status status;
  jitmem_error *error;
};

static void *call_there(void *argument) {
  struct caller *caller = argument;
  caller->status = jitmem_transport_call(caller->transport, 0x7000000, "args", 4, take_packed,
                                         &caller->result, &caller->error);
  return NULL;
}

// Starts calls and reads their messages; gives their sequence numbers.
static void start_calls(jitmem_transport *transport, int end, struct caller *callers, int count,
                        uint64_t *sequences) {
  for (int i = 0; i < count; i++) {
    callers[i] = (struct caller){.transport = transport};
    assert_int_equal(pthread_create(&callers[i].thread, NULL, call_there, &callers[i]), 0);
    char bytes[HEADER_SIZE + 4];
    assert_int_equal(recv(end, bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
    struct packed expected = message(CALL, 0, 0x7000000, "args", 4);
    memcpy(&sequences[i], bytes + 16, sizeof sequences[i]);
    memcpy(expected.bytes + 16, bytes + 16, sizeof sequences[i]);
    assert_memory_equal(bytes, expected.bytes, sizeof bytes);
  }
}

static void answers_find_their_calls_in_any_order(void **state) {
  (void)state;
  struct caller callers[6];
  uint64_t sequences[COUNT(callers)];
  int end;
  jitmem_transport *transport = connect_to(&end);
  start_calls(transport, end, callers, COUNT(callers), sequences);
  // All in one piece, last first, with a call of the executor's own in between.
  struct packed answers = {.size = 0}, asked = message(CALL, 9, 0x1234, "?", 1);
  for (int i = COUNT(callers) - 1; i >= 0; i--) {
    struct packed answer = message(RESULT, sequences[i], 0, &sequences[i], (size_t)i);
    pack(&answers, answer.bytes, answer.size);
    if (i == 3)
      pack(&answers, asked.bytes, asked.size);
  }
  send_packed(end, answers);
  for (size_t i = 0; i < COUNT(callers); i++) {
    assert_int_equal(pthread_join(callers[i].thread, NULL), 0);
    assert_int_equal(callers[i].status, JITMEM_OK);
    assert_int_equal(callers[i].result.size, i);
    assert_memory_equal(callers[i].result.bytes, &sequences[i], i);
  }
  // This side does not know what it asked for.
  char bytes[HEADER_SIZE];
  struct packed nothing = message(RESULT, 9, 0, "", 0);
  assert_int_equal(recv(end, bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
  assert_memory_equal(bytes, nothing.bytes, sizeof bytes);
  jitmem_transport_free(transport);
  read_to_the_end(end);
}

static void every_call_is_answered_however_it_ends(void **state) {
  (void)state;
  struct packed said = {.bytes = {1}, .size = 1}, lines = said;
  pack_text(&said, "that will do");
  pack_text(&lines, "that\nwill \x1b[2Jdo");
  // Controllers with jitmem number their calls from here.
  struct packed cut = message(RESULT, (uint64_t)1 << 63, 0, "0123456789", 10);
  cut.size -= 4;
  const struct {
    struct packed bytes;
    const char *words;
  } ends[] = {
      {{.size = 0}, "the end of its socket"},
      {cut, "end-of-file"},
      {{.bytes = "garbage", .size = 7}, "end-of-file"},
      {{.bytes = {31}, .size = HEADER_SIZE}, "too small"},
      {message(4, 0, 0, "", 0), "Unexpected opcode"},
      {message(SETUP, 0, 0, "", 0), "Unexpected Setup"},
      {message(RESULT, 0, 1, "", 0), "tag in a Result"},
      {message(RESULT, UINT64_MAX, 0, "", 0), "No call for sequence number 18446744073709551615"},
      {message(HANGUP, 0, 0, "", 1), "it hung up"},
      {message(HANGUP, 0, 0, said.bytes, said.size), "that will do"},
      // Nothing of an executor's gets onto a terminal or into a log as a line of its own.
      {message(HANGUP, 0, 0, lines.bytes, lines.size), "that\\nwill \\u{1b}[2Jdo"},
  };
  for (size_t i = 0; i < COUNT(ends); i++) {
    struct caller callers[4];
    uint64_t sequences[COUNT(callers)];
    int end;
    jitmem_transport *transport = connect_to(&end);
    start_calls(transport, end, callers, COUNT(callers), sequences);
    send_packed(end, ends[i].bytes);
    shutdown(end, SHUT_WR);
    for (size_t j = 0; j < COUNT(callers); j++) {
      assert_int_equal(pthread_join(callers[j].thread, NULL), 0);
      assert_int_equal(callers[j].status, JITMEM_DISCONNECTED);
      if (strstr(jitmem_error_message(callers[j].error), ends[i].words) == NULL)
        fail_msg("%zu: %s", i, jitmem_error_message(callers[j].error));
      jitmem_error_free(callers[j].error);
    }
    FAILS(JITMEM_DISCONNECTED, ends[i].words,
          jitmem_transport_call(transport, 1, "", 0, NULL, NULL, error));
    read_to_the_end(end);
    jitmem_transport_free(transport);
  }
}

static void an_answer_that_comes_twice_ends_the_rest(void **state) {
  (void)state;
  struct caller callers[3];
  uint64_t sequences[COUNT(callers)];
  int end;
  jitmem_transport *transport = connect_to(&end);
  start_calls(transport, end, callers, COUNT(callers), sequences);
  send_packed(end, message(RESULT, sequences[1], 0, "yes", 3));
  send_packed(end, message(RESULT, sequences[1], 0, "yes", 3));
  for (size_t i = 0; i < COUNT(callers); i++) {
    assert_int_equal(pthread_join(callers[i].thread, NULL), 0);
    assert_int_equal(callers[i].status, i == 1 ? JITMEM_OK : JITMEM_DISCONNECTED);
    assert_int_equal(callers[i].result.size, i == 1 ? 3 : 0);
    if (i != 1)
      assert_non_null(strstr(jitmem_error_message(callers[i].error), "No call for sequence"));
    jitmem_error_free(callers[i].error);
  }
  jitmem_transport_free(transport);
  read_to_the_end(end);
}

// A size that is a lie costs what has arrived, not what it says.
static void hostile_sizes(void **state) {
  (void)state;
  const uint64_t most = 256 * MIB;
  const uint64_t sizes[] = {HEADER_SIZE + most, HEADER_SIZE + most + 1, (uint64_t)1 << 40,
                            UINT64_MAX};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    struct caller caller;
    uint64_t sequence;
    int end;
    jitmem_transport *transport = connect_to(&end);
    start_calls(transport, end, &caller, 1, &sequence);
    struct packed lie = message(RESULT, sequence, 0, "0123", 4);
    memcpy(lie.bytes, &sizes[i], sizeof sizes[i]);
    send_packed(end, lie);
    shutdown(end, SHUT_WR);
    assert_int_equal(pthread_join(caller.thread, NULL), 0);
    const int bounded = sizes[i] <= HEADER_SIZE + most;
    assert_int_equal(caller.status, bounded ? JITMEM_DISCONNECTED : JITMEM_MAPPER_FAILED);
    assert_non_null(strstr(jitmem_error_message(caller.error),
                           bounded ? "end-of-file" : "a call whose answer may have 268435456"));
    jitmem_error_free(caller.error);
    jitmem_transport_free(transport);
    read_to_the_end(end);
  }
}

// The host says how much an answer may have.
static void an_answer_is_as_large_as_it_may_be(void **state) {
  (void)state;
  const jitmem_limits limits = {.struct_size = sizeof limits, .answer = 10};
  int ends[2];
  open_pair(ends);
  send_packed(ends[1], introduction(1));
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_connect(ends[0], &limits, &transport, error));
  for (size_t size = 10; size <= 11; size++) {
    struct caller caller;
    uint64_t sequence;
    start_calls(transport, ends[1], &caller, 1, &sequence);
    send_packed(ends[1], message(RESULT, sequence, 0, "01234567890", size));
    assert_int_equal(pthread_join(caller.thread, NULL), 0);
    assert_int_equal(caller.status, size == 10 ? JITMEM_OK : JITMEM_MAPPER_FAILED);
    jitmem_error_free(caller.error);
  }
  jitmem_transport_free(transport);
  read_to_the_end(ends[1]);
}

static void drop_result(void *ctx, const void *bytes, size_t size, const jitmem_error *failure) {
  (void)ctx, (void)bytes, (void)size, (void)failure;
}

// A manager says what its executor has answered for nothing, to whatever goes through its
// transport.
static void answers_for_nothing_are_counted(void **state) {
  (void)state;
#define MEMORY "__llvm_orc_SimpleExecutorMemoryManager_"
  static const char *const services[] = {MEMORY "Instance", MEMORY "reserve_wrapper",
                                         MEMORY "finalize_wrapper", MEMORY "deallocate_wrapper"};
  const jitmem_limits limits = {.struct_size = sizeof limits, .answer = 10};
  int ends[2];
  open_pair(ends);
  send_packed(ends[1], introduction_with(1, services, COUNT(services)));
  jitmem_transport *transport = NULL;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  OK(jitmem_transport_connect(ends[0], &limits, &transport, error));
  OK(jitmem_mapper_llvm_simple(transport, NULL, &mapper, error));
  OK(jitmem_manager_create(mapper, NULL, &manager, error));

  struct caller caller;
  uint64_t sequence, given_up;
  start_calls(transport, ends[1], &caller, 1, &sequence);
  send_packed(ends[1], message(RESULT, sequence, 0, "01234567890", 11));
  assert_int_equal(pthread_join(caller.thread, NULL), 0);
  assert_int_equal(caller.status, JITMEM_MAPPER_FAILED);
  jitmem_error_free(caller.error);
  assert_int_equal(stats_of(manager).answers_too_large, 1);

  OK(jitmem_transport_start(transport, 0x7000000, NULL, 0, 0, drop_result, NULL, NULL, &given_up,
                            error));
  char header[HEADER_SIZE];
  assert_int_equal(recv(ends[1], header, sizeof header, MSG_WAITALL), sizeof header);
  memcpy(&sequence, header + 16, sizeof sequence);
  OK(jitmem_transport_cancel(given_up, error));
  send_packed(ends[1], message(RESULT, sequence, 0, "late", 4));
  // An answer to no call ends the connection, with all that waits.
  start_calls(transport, ends[1], &caller, 1, &sequence);
  send_packed(ends[1], message(RESULT, sequence + 1, 0, "?", 1));
  assert_int_equal(pthread_join(caller.thread, NULL), 0);
  assert_int_equal(caller.status, JITMEM_DISCONNECTED);
  jitmem_error_free(caller.error);
  const jitmem_stats stats = stats_of(manager);
  assert_int_equal(stats.answers_too_large, 1);
  assert_int_equal(stats.answers_late, 1);
  assert_int_equal(stats.answers_unexpected, 1);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  jitmem_transport_free(transport);
  read_to_the_end(ends[1]);
}

// The heap has no room for one answer: its call fails, and the next one is answered.
static void receive_without_room(void *unused) {
  (void)unused;
  enum { SIZE = 200 << 20, PART = 64 << 10 };
  static const char part[PART];
  const jitmem_limits limits = {.struct_size = sizeof limits};
  int ends[2];
  open_pair(ends);
  send_packed(ends[1], introduction(1));
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_connect(ends[0], &limits, &transport, error));
  struct caller callers[2];
  uint64_t sequences[2];
  start_calls(transport, ends[1], callers, 2, sequences);
  set_limit(RLIMIT_AS, address_space() + (64 << 20));
  struct packed large = message(RESULT, sequences[0], 0, part, 0);
  const uint64_t size = HEADER_SIZE + SIZE;
  memcpy(large.bytes, &size, sizeof size);
  send_packed(ends[1], large);
  for (int sent = 0; sent < SIZE; sent += PART)
    MUST(send(ends[1], part, PART, MSG_NOSIGNAL) == PART);
  send_packed(ends[1], message(RESULT, sequences[1], 0, "yes", 3));
  for (int i = 0; i < 2; i++)
    MUST(pthread_join(callers[i].thread, NULL) == 0);
  set_limit(RLIMIT_AS, RLIM_INFINITY);
  jitmem_status wanted[2] = {JITMEM_OUT_OF_MEMORY, JITMEM_OK};
  for (int i = 0; i < 2; i++) {
    MUST(callers[i].status == wanted[i]);
    jitmem_error_free(callers[i].error);
  }
  jitmem_transport_free(transport);
}

static void an_answer_without_room_fails_its_call_alone(void **state) {
  (void)state;
  in_child(receive_without_room, NULL);
}

// ---- executors ----

static void use_executor(jitmem_transport *transport, int shared) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = manager_over(transport, shared, &mapper);
  for (int i = 0; i < 100; i++) {
    const jitmem_segment segments[] = {segment(ADD_SIZE, 0, RX), segment(100, 100, RW)};
    struct graph graph = allocate(manager, segments, COUNT(segments));
    emit_add(graph.memory[0].working_memory, i);
    finalize(manager, graph.handle);
    int32_t answer = 0;
    OK(call_int(transport, graph.memory[0].address, 1000, &answer, error));
    assert_int_equal(answer, 1000 + i);
    deallocate(manager, graph.handle);
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
}

static void a_child_that_serves(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct executor executor = start_executor(NULL);
    jitmem_transport *transport = NULL;
    OK(jitmem_transport_socket(executor.socket, &transport, error));
    use_executor(transport, shared);
    use_executor(transport, !shared);
    jitmem_transport_free(transport);
    assert_int_equal(status_of_executor(executor), 0);
  }
}

static int tcp_socket(struct sockaddr_in *address) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  assert_true(fd >= 0);
  return fd;
}

static void a_child_at_the_end_of_a_tcp_connection(void **state) {
  (void)state;
  struct sockaddr_in address;
  socklen_t size = sizeof address;
  int listener = tcp_socket(&address);
  assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
  assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
  assert_int_equal(listen(listener, 1), 0);
  fflush(NULL);
  pid_t process = fork();
  if (process == 0) {
    int end = accept(listener, NULL, NULL);
    alarm(instrumented() ? 120 : 30);
    MUST_OK(jitmem_executor_serve(end, end, NULL, error));
    _exit(CHILD_PASSED);
  }
  struct sockaddr_in ignored;
  int end = tcp_socket(&ignored);
  assert_int_equal(connect(end, (struct sockaddr *)&address, size), 0);
  close(listener);
  jitmem_transport *transport = NULL;
  OK(jitmem_transport_socket(end, &transport, error));
  use_executor(transport, 0);
  use_executor(transport, 1);
  jitmem_transport_free(transport);
  int status = -1;
  assert_int_equal(waitpid(process, &status, 0), process);
  assert_int_equal(status, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_token_goes_ahead),
      cmocka_unit_test(descriptors_that_are_no_connected_sockets),
      cmocka_unit_test(whoever_introduces_itself_otherwise_is_refused),
      cmocka_unit_test(the_descriptor_goes_with_the_transport),
      cmocka_unit_test(answers_find_their_calls_in_any_order),
      cmocka_unit_test(every_call_is_answered_however_it_ends),
      cmocka_unit_test(an_answer_that_comes_twice_ends_the_rest),
      cmocka_unit_test(hostile_sizes),
      cmocka_unit_test(an_answer_is_as_large_as_it_may_be),
      cmocka_unit_test(answers_for_nothing_are_counted),
      cmocka_unit_test(an_answer_without_room_fails_its_call_alone),
      cmocka_unit_test(a_child_that_serves),
      cmocka_unit_test(a_child_at_the_end_of_a_tcp_connection),
  };
  return at_rest(cmocka_run_group_tests_name("sockets", tests, NULL, NULL));
}
