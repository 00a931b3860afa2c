// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One of many objects: PART calls the next one, the last returns.
#define NAME_(number) part_##number
#define NAME(number) NAME_(number)
static const int one[] = {1};
static int calls;

#ifdef NEXT
int NAME(NEXT)(void);
#endif

int NAME(PART)(void) {
  calls += one[0];
#ifdef NEXT
  return calls + NAME(NEXT)();
#else
  return calls;
#endif
}
