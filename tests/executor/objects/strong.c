// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The other object of overrides.c.
extern int common_count;
int chosen(void);
int use(void);

int chosen(void) { return 20; }

int use(void) {
  common_count += 10;
  return 10;
}
