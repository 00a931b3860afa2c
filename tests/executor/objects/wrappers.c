// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A dynamic library of wrapper functions, as controllers call them. Arguments are what each one
// says, one behind the other; an error that comes in place of the controller's answer is printed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
  union {
    char *pointer;
    char bytes[8];
  };
  size_t size;
} Result;

typedef Result (*Dispatch)(void *context, const void *tag, const char *args, size_t size);

// Where the controller is called, and what: the first arguments of those that do.
typedef struct {
  Dispatch function;
  void *context;
  void *tag;
} Controller;

Result says(const char *args, size_t size);
Result sized(const char *args, size_t size);
Result out_of_band(const char *args, size_t size);
Result by_name(const char *args, size_t size);
Result dispatches(const char *args, size_t size);
Result dispatches_in_thread(const char *args, size_t size);
Result dispatches_in_child(const char *args, size_t size);
Result dispatches_at_exit(const char *args, size_t size);
Result dispatches_after_stdin(const char *args, size_t size);

static Result result_of(size_t size) {
  Result result = {.pointer = NULL, .size = size};
  if (size > sizeof result.bytes)
    result.pointer = malloc(size);
  memset(size > sizeof result.bytes ? result.pointer : result.bytes, 'r', size);
  return result;
}

static int is_error(Result result) { return result.size == 0 && result.pointer; }

static Result call(Controller controller, const char *args, size_t size) {
  Result result = controller.function(controller.context, controller.tag, args, size);
  if (is_error(result))
    puts(result.pointer);
  return result;
}

// A word, which is printed. An SPSError: one that begins with an exclamation mark is refused.
Result says(const char *args, size_t size) {
  printf("%.*s\n", (int)size, args);
  if (size == 0 || args[0] != '!')
    return (Result){.bytes = {0}, .size = 1};
  uint64_t length = size - 1;
  Result result = result_of(1 + sizeof length + length);
  result.pointer[0] = 1;
  memcpy(result.pointer + 1, &length, sizeof length);
  memcpy(result.pointer + 1 + sizeof length, args + 1, length);
  return result;
}

// u64 size: a result of as many bytes.
Result sized(const char *args, size_t size) {
  uint64_t wanted;
  memcpy(&wanted, args, size < sizeof wanted ? 0 : sizeof wanted);
  return result_of(wanted);
}

Result out_of_band(const char *args, size_t size) {
  return (Result){.pointer = strndup(args, size), .size = 0};
}

// A name that ends in a zero byte, then the arguments of the wrapper function that dlsym finds.
Result by_name(const char *args, size_t size) {
  typedef Result (*Function)(const char *args, size_t size);
  size_t name = strnlen(args, size) + 1;
  Function function = name > size ? NULL : (Function)dlsym(RTLD_DEFAULT, args);
  return function ? function(args + name, size - name) : out_of_band(args, size);
}

// An .eh_frame section, and a debug object, in which there is nothing.
extern const char nothing[16];
const char nothing[16] = {0};

// Controller, and what it is asked.
Result dispatches(const char *args, size_t size) {
  Controller controller;
  memcpy(&controller, args, sizeof controller);
  return call(controller, args + sizeof controller, size - sizeof controller);
}

typedef struct {
  const char *args;
  size_t size;
  Result result;
} Work;

static void *work(void *argument) {
  Work *work = argument;
  work->result = dispatches(work->args, work->size);
  return NULL;
}

// The same from a thread that the executor knows nothing of.
Result dispatches_in_thread(const char *args, size_t size) {
  Work own = {.args = args, .size = size};
  pthread_t thread;
  pthread_create(&thread, NULL, work, &own);
  pthread_join(thread, NULL);
  return own.result;
}

// The same from a forked child; a number, its status.
Result dispatches_in_child(const char *args, size_t size) {
  int status = 0;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    alarm(30);
    dispatches(args, size);
    fflush(stdout);
    _exit(0);
  }
  waitpid(child, &status, 0);
  Result result = {.size = 8};
  memcpy(result.bytes, &(uint64_t){(uint64_t)status}, 8);
  return result;
}

static Controller late;

static void dispatch_late(void) {
  Result result = call(late, "?", 1);
  puts(is_error(result) ? "refused" : "answered");
}

// The same when the process ends, and the session has.
Result dispatches_at_exit(const char *args, size_t size) {
  memcpy(&late, args, size < sizeof late ? 0 : sizeof late);
  atexit(dispatch_late);
  return result_of(0);
}

// The same when stdin has ended.
Result dispatches_after_stdin(const char *args, size_t size) {
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0)
    ;
  return dispatches(args, size);
}
