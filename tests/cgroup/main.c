// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What --memory and --tasks do where the kernel has control groups of version 2: run by run.sh in a
// virtual machine, with the executor and the attacks of examples/untrusted.
//
// usage: cgroup PROGRAM
#include "executor.h"
#include "untrusted.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *memory[] = {"--memory=64M", "--seccomp=sealed", NULL};
static char *memory_alone[] = {"--memory=64M", NULL};
static char *supervised[] = {"--memory=64M", "--supervise", NULL};
static char *tasks[] = {"--tasks=40", NULL};

static int bad;

static void expect(int good, const char *what) {
  printf("%s %s\n", good ? "ok" : "FAILED", what);
  fflush(stdout);
  bad |= !good;
}

struct run {
  jitmem_status status;
  int32_t answer;
  int end;
};

// Links the attacks into a new executor and calls one of them.
static struct run run(const char *program, char **options, int32_t (*function)(int32_t),
                      int32_t argument) {
  struct executor executor;
  struct run run = {.status = JITMEM_DISCONNECTED, .end = -1};
  jitmem_error *error = NULL;
  if (executor_start(&executor, program, options) != 0)
    return run;
  uint64_t base = executor_link(&executor, __start_untrusted, __stop_untrusted, &error);
  uint64_t offset = (uint64_t)(uintptr_t)function - (uint64_t)(uintptr_t)__start_untrusted;
  if (base != 0)
    run.status = executor_call(&executor, base + offset, argument, &run.answer, &error);
  if (error)
    printf("  %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  // Only an executor that is dead already ends by itself here.
  run.end = executor_end(&executor, run.status == JITMEM_DISCONNECTED ? 60000 : 0);
  return run;
}

static int says(const char *command, const char *words) {
  char line[512];
  int found = 0;
  FILE *output = popen(command, "r");
  if (!output)
    return 0;
  while (fgets(line, sizeof line, output)) {
    printf("  %s", line);
    found |= strstr(line, words) != NULL;
  }
  return pclose(output) == 0 && found;
}

static int is_killed(struct run run) {
  return run.status == JITMEM_DISCONNECTED && WIFSIGNALED(run.end) && WTERMSIG(run.end) == SIGKILL;
}

// Whether a supervised executor goes on when what it runs takes more memory than it may.
static int goes_on(const char *program) {
  struct executor executor;
  jitmem_error *error = NULL;
  int32_t answer = 0;
  if (executor_start(&executor, program, supervised) != 0)
    return 0;
  const uint64_t base = executor_link(&executor, __start_untrusted, __stop_untrusted, &error);
  const uintptr_t start = (uintptr_t)__start_untrusted;
  int good = base != 0;
  for (int i = 0; good && i < 3; i++) {
    const uint64_t hog = base + ((uintptr_t)allocate - start);
    good = executor_call(&executor, hog, 1024, &answer, &error) != JITMEM_OK &&
           strstr(jitmem_error_message(error), "killed by signal 9") != NULL;
    jitmem_error_free(error);
    error = NULL;
    good &= executor_call(&executor, base + ((uintptr_t)twice - start), 21, &answer, &error) ==
                JITMEM_OK &&
            answer == 42;
  }
  if (error)
    printf("  %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  executor_end(&executor, 0);
  return good;
}

int main(int argc, char **argv) {
  if (argc != 2)
    return 2;
  const char *program = argv[1];
  char command[256];
  snprintf(command, sizeof command, "%s --memory=64M --tasks=40 --diagnose", program);
  expect(says(command, "--memory, --tasks: by control group "), "a control group holds");

  const struct {
    const char *name;
    char **options;
    int32_t (*attack)(int32_t);
  } hogs[] = {
      {"memory, sealed", memory, allocate},
      {"memfds, sealed", memory, hold_files},
      {"memory", memory_alone, allocate},
      {"memfds", memory_alone, hold_files},
  };
  for (size_t i = 0; i < sizeof hogs / sizeof *hogs; i++) {
    expect(is_killed(run(program, hogs[i].options, hogs[i].attack, 1024)), hogs[i].name);
    struct run after = run(program, hogs[i].options, twice, 21);
    expect(after.status == JITMEM_OK && after.answer == 42, "  and the next executor works");
  }
  expect(goes_on(program), "a supervised executor goes on");
  struct run less = run(program, memory, allocate, 20);
  expect(less.status == JITMEM_OK && less.answer == 20, "what is below the limit is there");
  less = run(program, memory, hold_files, 20);
  expect(less.status == JITMEM_OK && less.answer == 20, "memfds below the limit are there");

  struct run many = run(program, tasks, start_processes, 1000);
  expect(many.status == JITMEM_OK && many.answer == -EAGAIN, "processes beyond the limit");
  many = run(program, tasks, start_processes, 10);
  expect(many.status == JITMEM_OK && many.answer == 10, "processes below the limit");
  return bad;
}
