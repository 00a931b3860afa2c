// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An executor in a few lines of C, for the tests of the library: `executor filedescs=IN,OUT`, as
// llvm-jitlink starts one. What llvm-jitlink has no argument for comes by the environment:
// EXECUTOR_LLVM is the controller's version, EXECUTOR_C_ONLY is 1 for no C++, EXECUTOR_UNREAD is
// how many bytes a controller that does not read may leave.

#include <jitmem.h>
#include <stdio.h>
#include <stdlib.h>

// A value that the host publishes itself.
static int answer(void) { return 42; }

static uint32_t number(const char *variable) {
  const char *value = getenv(variable);
  return value ? (uint32_t)strtoul(value, NULL, 10) : 0;
}

int main(int argc, char **argv) {
  int in, out;
  if (argc != 2 || sscanf(argv[1], "filedescs=%d,%d", &in, &out) != 2) {
    fprintf(stderr, "usage: %s filedescs=IN,OUT\n", argv[0]);
    return 2;
  }
  jitmem_bootstrap_symbol symbol = {.name = "executor_answer", .address = (uintptr_t)answer};
  jitmem_serve_options options = {.struct_size = sizeof options,
                                  .symbols = &symbol,
                                  .symbol_count = 1,
                                  .llvm_version = number("EXECUTOR_LLVM"),
                                  .c_only = number("EXECUTOR_C_ONLY"),
                                  .unread_bytes = number("EXECUTOR_UNREAD")};
  jitmem_error *error = NULL;
  if (jitmem_executor_serve(in, out, &options, &error) == JITMEM_OK)
    return 0;
  fprintf(stderr, "%s: %s\n", argv[0], jitmem_error_message(error));
  jitmem_error_free(error);
  return 1;
}
