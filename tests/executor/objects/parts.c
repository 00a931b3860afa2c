// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
int part_0(void);

int main(void) { return part_0(); }
