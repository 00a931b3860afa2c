// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Closes a plugin whose threads run, and has these go on: usage: host PLUGIN EXECUTOR
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static int threads(void) {
  FILE *status = fopen("/proc/self/status", "r");
  char line[256];
  int count = 0;
  while (status && fgets(line, sizeof line, status))
    if (strncmp(line, "Threads:", 8) == 0)
      count = atoi(line + 8);
  if (count == 0) {
    fputs("host: /proc/self/status names no threads\n", stderr);
    exit(1);
  }
  fclose(status);
  return count;
}

int main(int argc, char **argv) {
  void *plugin = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  pid_t (*start)(const char *) = plugin ? (pid_t (*)(const char *))dlsym(plugin, "start") : NULL;
  if (!start) {
    fprintf(stderr, "usage: host PLUGIN EXECUTOR: %s\n", argc == 3 ? dlerror() : "");
    return 2;
  }
  const pid_t executor = start(argv[2]);
  if (threads() == 1) {
    fputs("host: the plugin has no threads\n", stderr);
    return 1;
  }
  dlclose(plugin);
  // Its threads wait for the executor, and run once that is gone.
  kill(executor, SIGKILL);
  waitpid(executor, NULL, 0);
  while (threads() > 1)
    sched_yield();
  // The test looks for this line.
  puts("threads outlive a dlclose");
  return 0;
}
