// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Has code run that crashes, loops, takes memory, writes code and floods its output, one after the
// other, in executors that are bounded; and goes on after each.
//
// usage: jitmem-untrusted [PROGRAM]
#include "executor.h"
#include "untrusted.h"
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

// What bounds the executor.
static char *options[] = {
    "--seccomp=sealed",
    "--memory=512M",
    "--rlimit-as=2G",
    "--rlimit-core=0",
    "--time-limit=5",
    "--die-with-parent",
    NULL,
};

enum outcome {
  IS_REFUSED, // it answers an errno
  IS_BOUNDED, // it has got fewer than it wanted, or is killed when it has got too many
  IS_KILLED,  // by this signal
  EXITS,      // with this code
  IS_ENDED,   // by the host, whether it answers or not
};

static const struct attempt {
  const char *name;
  int32_t (*function)(int32_t);
  int32_t argument;
  enum outcome outcome;
  int value;
} attempts[] = {
    {"crashes", crash, 16, IS_KILLED, SIGSEGV},
    {"loops", loop, 0, EXITS, 124},
    {"takes memory without end", allocate, 1 << 20, IS_BOUNDED, SIGKILL},
    {"fills files in memory without end", hold_files, 1 << 20, IS_BOUNDED, SIGKILL},
    {"makes code writable", make_code_writable, 0, IS_REFUSED, 0},
    {"makes code", make_code, 0, IS_REFUSED, 0},
    {"writes code", write_code, 0, IS_KILLED, SIGSEGV},
    {"floods its output", flood, 0, EXITS, 124},
    {"starts processes without end", start_processes, 1 << 20, IS_REFUSED, 0},
    {"kills its parent", kill_parent, 0, IS_REFUSED, 0},
    {"opens a file", open_file, 0, IS_REFUSED, 0},
    {"opens a socket", open_socket, 0, IS_REFUSED, 0},
    {"stops itself, and what ends it in time", stop_itself, 0, IS_ENDED, 0},
    {"writes into its controller's channel", write_to, 3, IS_ENDED, 0},
    {"closes all descriptors", close_all, 0, IS_ENDED, 0},
    {"exits", leave, 7, EXITS, 7},
};

static uint64_t address_of(uint64_t base, int32_t (*function)(int32_t)) {
  return base + ((uint64_t)(uintptr_t)function - (uint64_t)(uintptr_t)__start_untrusted);
}

// A new executor with the code in it, for as long as it works.
struct host {
  const char *program;
  struct executor executor;
  int running;
  uint64_t base;
};

static int prepare(struct host *host) {
  jitmem_error *error = NULL;
  if (host->running)
    return 0;
  if (executor_start(&host->executor, host->program, options) != 0)
    return -1;
  host->running = 1;
  host->base = executor_link(&host->executor, __start_untrusted, __stop_untrusted, &error);
  if (host->base == 0)
    fprintf(stderr, "link: %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  return host->base == 0 ? -1 : 0;
}

// The last line that an executor has written, where it has not written without end.
static void print_last_line(struct output *output) {
  char *end = output->end + strlen(output->end);
  if (output->size > KEPT || end == output->end)
    return;
  if (end[-1] == '\n')
    *--end = 0;
  char *line = strrchr(output->end, '\n');
  printf("  its last words: %s\n", line ? line + 1 : output->end);
}

// The executor is gone, or does not do what it should. Says how it ended; 0 if that is what was
// expected.
static int ended(struct host *host, const struct attempt *attempt, const char *why) {
  const int patience = attempt->outcome == IS_ENDED ? 0 : 10000;
  int status = executor_end(&host->executor, patience);
  struct output *output = &host->executor.output;
  host->running = 0;
  if (WIFSIGNALED(status))
    printf("  the executor was ended by a signal: %s", strsignal(WTERMSIG(status)));
  else
    printf("  the executor exited with %d", WEXITSTATUS(status));
  printf(", after %llu bytes of output\n", (unsigned long long)output->size);
  if (attempt->outcome == IS_KILLED)
    print_last_line(output);
  if (why)
    printf("  %s\n", why);
  switch (attempt->outcome) {
  case IS_BOUNDED:
  case IS_KILLED:
    return !(WIFSIGNALED(status) && WTERMSIG(status) == attempt->value);
  case EXITS:
    return !(WIFEXITED(status) && WEXITSTATUS(status) == attempt->value);
  default:
    return attempt->outcome != IS_ENDED;
  }
}

// Gives up an executor that has taken all it may have: it may have no room for a thread of its own.
static void give_up(struct host *host) {
  executor_end(&host->executor, 0);
  host->running = 0;
}

static int answered(struct host *host, const struct attempt *attempt, int32_t answer) {
  if (answer < 0)
    printf("  refused: %s\n", strerror(-answer));
  else
    printf("  it has got %d\n", (int)answer);
  switch (attempt->outcome) {
  case IS_ENDED:
    return ended(host, attempt, NULL);
  case IS_REFUSED:
    return answer >= 0;
  case IS_BOUNDED:
    if (answer > 0)
      give_up(host);
    return answer >= attempt->argument;
  default:
    return 1;
  }
}

static int try(struct host *host, const struct attempt *attempt) {
  int32_t answer = 0;
  jitmem_error *error = NULL;
  int bad;
  if (prepare(host) != 0)
    return 1;
  printf("%s:\n", attempt->name);
  if (executor_call(&host->executor, address_of(host->base, attempt->function), attempt->argument,
                    &answer, &error))
    bad = ended(host, attempt, jitmem_error_message(error));
  else
    bad = answered(host, attempt, answer);
  jitmem_error_free(error);
  if (bad)
    printf("  THAT WAS NOT EXPECTED\n");
  return bad;
}

// Has the executor do ordinary work. The code is linked again: it is not what was there before.
static int answers_42(struct host *host) {
  int32_t answer = 0;
  jitmem_error *error = NULL;
  uint64_t base = executor_link(&host->executor, __start_untrusted, __stop_untrusted, &error);
  if (base != 0)
    executor_call(&host->executor, address_of(base, twice), 21, &answer, &error);
  if (answer != 42)
    printf("  it is of no use any more: %s\n", error ? jitmem_error_message(error) : "no answer");
  jitmem_error_free(error);
  return answer == 42;
}

// Goes on with the executor that is there, or with a new one where there is none or it is of no
// use.
static int works(struct host *host) {
  const char *which = host->running ? "the same" : "a new";
  if (prepare(host) != 0)
    return 0;
  if (!answers_42(host)) {
    give_up(host);
    which = "a new";
    if (prepare(host) != 0 || !answers_42(host))
      return 0;
  }
  printf("  then 2 * 21 = 42 in %s executor\n", which);
  fflush(stdout);
  return 1;
}

static int open_descriptors(void) {
  int count = 0;
  DIR *folder = opendir("/proc/self/fd");
  while (readdir(folder))
    count++;
  closedir(folder);
  return count;
}

// Waits until as many descriptors are open as there were; threads of connections that have ended
// still close some.
static int descriptors_left(int before) {
  for (int i = 0; i < 1000 && open_descriptors() != before; i++)
    poll(NULL, 0, 10);
  return open_descriptors() - before;
}

int main(int argc, char **argv) {
  struct host host = {.program = argc > 1 ? argv[1] : JITMEM_EXECUTOR};
  const int before = open_descriptors();
  int bad = !works(&host);
  for (size_t i = 0; i < sizeof attempts / sizeof *attempts && !bad; i++) {
    bad |= try(&host, &attempts[i]);
    bad |= !works(&host);
  }
  if (host.running)
    give_up(&host);
  if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) {
    printf("A PROCESS IS LEFT\n");
    bad = 1;
  }
  if (descriptors_left(before) != 0) {
    printf("%d DESCRIPTORS ARE LEFT\n", open_descriptors() - before);
    bad = 1;
  }
  return bad;
}
