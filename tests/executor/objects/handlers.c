// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Exit handlers that outlive main and its code: functions and words of libc's.
#include <stdio.h>
#include <string.h>

int __cxa_atexit(void (*function)(void *), void *argument, void *object);

int main(void) {
  void (*put)(void *) = (void (*)(void *))(void (*)(void))puts;
  static const char *const words[] = {"last", "then", "first"};
  for (int i = 0; i < 3; i++)
    __cxa_atexit(put, strdup(words[i]), NULL);
  printf("main ");
  return 42;
}
