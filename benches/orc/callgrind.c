// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#define _POSIX_C_SOURCE 200809L

#include "callgrind.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { MOST_ARGUMENTS = 16 };

/// The count in callgrind's output; 0 if there is none.
static uint64_t read_total(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file)
    return 0;
  uint64_t total = 0;
  char line[256];
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "totals: %" SCNu64, &total) == 1)
      break;
  fclose(file);
  return total;
}

/// Returns what waitpid says, or -1 with errno set.
static int run_quietly(char **arguments) {
  posix_spawn_file_actions_t quiet;
  posix_spawn_file_actions_init(&quiet);
  posix_spawn_file_actions_addopen(&quiet, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&quiet, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child;
  errno = posix_spawnp(&child, arguments[0], &quiet, NULL, arguments, environ);
  posix_spawn_file_actions_destroy(&quiet);
  if (errno)
    return -1;
  int status;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      return -1;
  return status;
}

/// Runs this program with the option of callgrind's that says what counts, and reads the totals of
/// its first `dumps` dumps, or of its end if that is 0.
static bool count(const char *option, int dumps, const char *const *arguments,
                  uint64_t *instructions, const char **why) {
  char self[4096];
  ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length < 0) {
    *why = "/proc/self/exe can't be read";
    return false;
  }
  self[length] = 0;

  const char *directory = getenv("TMPDIR");
  char path[4096], output[4200];
  snprintf(path, sizeof path, "%s/jitmem-bench-c.XXXXXX", directory ? directory : "/tmp");
  int file = mkstemp(path);
  if (file < 0) {
    *why = "there is no place for callgrind's output; set TMPDIR";
    return false;
  }
  close(file);
  snprintf(output, sizeof output, "--callgrind-out-file=%s", path);

  char *command[MOST_ARGUMENTS] = {"valgrind", "--tool=callgrind", output, (char *)option};
  int last = 4;
  command[last++] = self;
  while (*arguments && last != MOST_ARGUMENTS - 1)
    command[last++] = (char *)*arguments++;
  int status = run_quietly(command);
  if (status < 0)
    *why = errno == ENOENT ? "valgrind is not installed" : strerror(errno);
  else if (status)
    *why = "the program failed under valgrind";
  bool counted = status == 0;
  for (int dump = 0; dump <= dumps; ++dump) {
    // The file itself has what was counted after the last dump.
    snprintf(output, sizeof output, dump ? "%s.%d" : "%s", path, dump);
    if (dump || !dumps) {
      uint64_t *total = &instructions[dump ? dump - 1 : 0];
      *total = read_total(output);
      if (counted && !*total) {
        *why = "callgrind counted nothing";
        counted = false;
      }
    }
    unlink(output);
  }
  return counted;
}

bool count_instructions(const char *function, const char *const *arguments, uint64_t *instructions,
                        const char **why) {
  char toggle[256];
  snprintf(toggle, sizeof toggle, "--toggle-collect=%s", function);
  return count(toggle, 0, arguments, instructions, why);
}

bool count_parts(int parts, const char *const *arguments, uint64_t *instructions,
                 const char **why) {
  return count("--collect-atstart=no", parts, arguments, instructions, why);
}
