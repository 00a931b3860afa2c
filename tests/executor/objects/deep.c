// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Uses most of the 8 MiB of stack that a thread has by default, of main and of a thread.
#include <pthread.h>
#include <stdio.h>

static volatile int pages;

static int deep(int depth) {
  volatile char frame[4000];
  for (unsigned i = 0; i < sizeof frame; i++)
    frame[i] = (char)depth;
  return depth ? deep(depth - 1) + frame[0] - (char)depth + 1 : 0;
}

static void *work(void *result) {
  *(int *)result = deep(1700);
  return NULL;
}

int main(void) {
  int result;
  pthread_t thread;
  pthread_create(&thread, NULL, work, &result);
  pthread_join(thread, NULL);
  printf("%d %d\n", deep(1700), result);
  return 42;
}
