// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Code that comes to lie where other code was runs as it was written. Runs by itself, and under
// valgrind with its defaults, which keeps what it has translated until it is told.

#include "reuse.h"

int main(void) {
  const struct CMUnitTest tests[] = {EACH(other_code_runs_in_the_same_place)};
  return at_rest(cmocka_run_group_tests_name("reuse", tests, NULL, NULL));
}
