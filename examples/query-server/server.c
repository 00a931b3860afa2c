// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A prefork server. It loads compiled queries from an image and forks workers, which have the
// code's pages in common and data of their own. A worker that dies while it runs a query is
// replaced by a fork that links nothing, and its query is asked again.
//   jitmem-query-server IMAGE

#include <jitmem.h>

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { QUERIES = 8, WORKERS = 4, ROWS = 2000000, ASKED = 40, KILLED = 13 };

typedef uint64_t query(const uint64_t *column, uint64_t rows);

static uint64_t column[ROWS];
static query *queries[QUERIES];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

// ---- the image ----

// Of one worker: where it tells that a query has begun.
static int answers = -1;
static uint64_t rows_counted;

// What the queries import: linked code calls it first of all.
static void count_rows(uint64_t rows) {
  static const uint64_t begun = UINT64_MAX;
  rows_counted += rows;
  if (answers >= 0 && write(answers, &begun, sizeof begun) != sizeof begun)
    _exit(1);
}

static void check(jitmem_status status, jitmem_error *error) {
  if (status == JITMEM_OK)
    return;
  fprintf(stderr, "jitmem-query-server: %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  exit(1);
}

// An address for each symbol that is outside of the image.
static uint64_t *imports_of(const jitmem_image *image, size_t *count) {
  jitmem_error *error = NULL;
  check(jitmem_image_imports(image, NULL, 0, count, &error), error);
  const char **names = calloc(*count + 1, sizeof *names);
  uint64_t *addresses = calloc(*count + 1, sizeof *addresses);
  if (names == NULL || addresses == NULL)
    fail("calloc");
  check(jitmem_image_imports(image, names, *count, count, &error), error);
  for (size_t i = 0; i < *count; i++) {
    if (strcmp(names[i], "count_rows") != 0) {
      fprintf(stderr, "jitmem-query-server: the image imports %s\n", names[i]);
      exit(1);
    }
    addresses[i] = (uintptr_t)count_rows;
  }
  free(names);
  return addresses;
}

static void load(const jitmem_manager *manager, const char *path) {
  // The version of LLVM is what the program that stored it was compiled with.
  const jitmem_image_key key[] = {{.name = "LLVM", .value = LLVM_OF_THE_IMAGE},
                                  {.name = "queries", .value = "1"}};
  jitmem_error *error = NULL;
  jitmem_image *image = NULL;
  check(jitmem_image_open(path, key, 2, &image, &error), error);
  size_t count = 0;
  uint64_t *addresses = imports_of(image, &count);
  const jitmem_image_link_request request = {.struct_size = sizeof request,
                                             .addresses = addresses,
                                             .address_count = count,
                                             .name = "queries"};
  uint64_t allocation = 0;
  check(jitmem_image_link(image, manager, &request, &error), error);
  check(jitmem_image_finalize(image, NULL, 0, &allocation, &error), error);

  jitmem_image_export exports[QUERIES];
  check(jitmem_image_exports(image, exports, QUERIES, &count, &error), error);
  for (size_t i = 0; i < count && i < QUERIES; i++) {
    unsigned number = QUERIES;
    if (sscanf(exports[i].symbol, "query_%u", &number) == 1 && number < QUERIES)
      queries[number] = (query *)(uintptr_t)exports[i].address;
  }
  for (size_t i = 0; i < QUERIES; i++)
    if (queries[i] == NULL) {
      fprintf(stderr, "jitmem-query-server: the image has no query_%zu\n", i);
      exit(1);
    }
  free(addresses);
  jitmem_image_free(image);
}

// ---- workers ----

struct worker {
  pid_t process;
  int socket;
};

// Answers one query after the other, until the server is gone.
static void work(int socket) {
  uint64_t number;
  answers = socket;
  while (read(socket, &number, sizeof number) == sizeof number) {
    uint64_t sum = queries[number](column, ROWS);
    if (write(socket, &sum, sizeof sum) != sizeof sum)
      break;
  }
  _exit(0);
}

static struct worker workers[WORKERS];

static struct worker start_worker(void) {
  int ends[2];
  fflush(NULL);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    fail("socketpair");
  pid_t process = fork();
  if (process < 0)
    fail("fork");
  if (process == 0) {
    // A worker ends when the server has closed its socket, so no other worker may keep that open.
    close(ends[0]);
    for (size_t i = 0; i < WORKERS; i++)
      if (workers[i].process != 0)
        close(workers[i].socket);
    work(ends[1]);
  }
  close(ends[1]);
  return (struct worker){.process = process, .socket = ends[0]};
}

static void end_worker(struct worker *worker) {
  close(worker->socket);
  if (waitpid(worker->process, NULL, 0) != worker->process)
    fail("waitpid");
  worker->process = 0;
}

// Has a worker run a query; 0 if it has died meanwhile.
static int ask(struct worker *worker, uint64_t number, int killed, uint64_t *sum) {
  uint64_t begun;
  if (write(worker->socket, &number, sizeof number) != sizeof number ||
      read(worker->socket, &begun, sizeof begun) != sizeof begun)
    return 0;
  // It runs now, in linked code.
  if (killed)
    kill(worker->process, SIGKILL);
  return read(worker->socket, sum, sizeof *sum) == sizeof *sum;
}

static uint64_t expected(uint64_t number) {
  uint64_t sum = 0;
  for (size_t i = 0; i < ROWS; i++)
    sum += column[i] % (number + 1) == 0 ? column[i] * (number + 2) : 0;
  return sum;
}

int main(int count, char **arguments) {
  if (count != 2) {
    fputs("usage: jitmem-query-server IMAGE\n", stderr);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  for (size_t i = 0; i < ROWS; i++)
    column[i] = i * 2654435761u % 1000003;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  check(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error), error);
  check(jitmem_manager_create(mapper, NULL, &manager, &error), error);
  load(manager, arguments[1]);

  for (size_t i = 0; i < WORKERS; i++)
    workers[i] = start_worker();
  int right = 0, replaced = 0;
  for (uint64_t i = 0; i < ASKED; i++) {
    struct worker *worker = &workers[i % WORKERS];
    const uint64_t number = i % QUERIES;
    uint64_t sum = 0;
    if (!ask(worker, number, i == KILLED, &sum)) {
      end_worker(worker);
      *worker = start_worker();
      replaced++;
      if (!ask(worker, number, 0, &sum))
        fail("ask a fresh worker");
    }
    right += sum == expected(number);
  }
  for (size_t i = 0; i < WORKERS; i++)
    end_worker(&workers[i]);
  printf("%d of %d queries answered by %d workers; %d was killed while it ran, and replaced\n",
         right, ASKED, WORKERS, replaced);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return right == ASKED && replaced == 1 && rows_counted == 0 ? 0 : 1;
}
