// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Steps for a debugger; debuggers_test.py knows the lines.
int linked_steps;

int linked_inner(int n) {
  int twice = 2 * n;
  linked_steps += twice;
  return linked_steps;
}
