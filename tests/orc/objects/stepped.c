// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Steps for a debugger; debuggers_test.py knows the lines.
// Not zero: LLVM 19 does not tell gdb where .bss lies.
int linked_steps = 100;

int linked_inner(int n) {
  int twice = 2 * n;
  linked_steps += twice;
  return linked_steps;
}
