// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// One of each kind of section that a C compiler makes.
volatile int Common[1000];
static volatile int Zeros[500000];
static volatile int Initialized[3] = {1, 2, 3};
static const int Constants[4] = {10, 20, 30, 40};
static const volatile int *const Relocated[2] = {Initialized, Constants};
static const char *const Strings[2] = {"one", "three"};

int checkSections(void) {
  int Sum = 0;
  for (int I = 0; I != 1000; ++I)
    Sum += Common[I];
  for (int I = 0; I != 500000; ++I)
    Sum += Zeros[I];
  for (int I = 0; I != 3; ++I)
    Sum += Relocated[0][I];
  for (int I = 0; I != 4; ++I)
    Sum += Relocated[1][I];
  for (const char *C = Strings[1]; *C; ++C)
    Sum += 1000;
  return Sum;
}
