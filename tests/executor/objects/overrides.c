// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A definition that gives way to another object's, and a common symbol.
__attribute__((weak)) int chosen(void) { return 1; }
__attribute__((weak)) int kept(void) { return 2; }
int common_count __attribute__((common));
int use(void);

int main(void) { return chosen() + kept() + use() + common_count; }
