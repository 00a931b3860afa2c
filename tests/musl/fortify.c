// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What code calls that was compiled with glibc's _FORTIFY_SOURCE, which musl does not have.
#include <stdarg.h>
#include <stdio.h>

int __fprintf_chk(FILE *stream, int flag, const char *format, ...);
int __snprintf_chk(char *to, size_t most, int flag, size_t size, const char *format, ...);

int __fprintf_chk(FILE *stream, int flag, const char *format, ...) {
  (void)flag;
  va_list arguments;
  va_start(arguments, format);
  const int written = vfprintf(stream, format, arguments);
  va_end(arguments);
  return written;
}

int __snprintf_chk(char *to, size_t most, int flag, size_t size, const char *format, ...) {
  (void)flag;
  va_list arguments;
  va_start(arguments, format);
  const int written = vsnprintf(to, most < size ? most : size, format, arguments);
  va_end(arguments);
  return written;
}
