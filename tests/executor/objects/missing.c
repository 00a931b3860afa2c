// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
int nowhere_at_all(void);

int main(void) { return nowhere_at_all(); }
