// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// libjitmem-llvm-NN.so: has programs that link libLLVM NN dynamically run on jitmem, unchanged, by
// LD_PRELOAD. docs/hosts.md says for which programs and how.
//
// It stands in front of the functions by which programs make ORC's JITs and object layers. Nothing
// of LLVM is loaded for it: once one of them is called for libLLVM NN, the part that is linked
// against that is loaded, jitmem/llvm-NN.so beside this file.
#define _GNU_SOURCE
#include "layers.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/// JITMEM_PRELOAD_LLVM is the major version, JITMEM_PRELOAD_SONAME what its library is called.
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)
#define THIS "libjitmem-llvm-" STRING(JITMEM_PRELOAD_LLVM) ".so"

static struct {
  __typeof__(&jitmem_preload_configure) configure;
  __typeof__(&jitmem_preload_adopt) adopt;
  __typeof__(&jitmem_preload_made) made;
  __typeof__(&jitmem_preload_layer) layer;
  __typeof__(&jitmem_preload_figures) figures;
} part;
/// Why the program stays with LLVM's memory; empty if it does not, or has not made a JIT.
static char aside[600];
static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

static void say(int fd, const char *format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (length > (int)sizeof line - 2)
    length = sizeof line - 2;
  line[length++] = '\n';
  while (write(fd, line, (size_t)length) < 0 && errno == EINTR)
    ;
}

/// Says once what keeps the program from jitmem.
static void step_aside(const char *format, ...) {
  pthread_mutex_lock(&once);
  bool first = !aside[0];
  if (first) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(aside, sizeof aside, format, arguments);
    va_end(arguments);
  }
  pthread_mutex_unlock(&once);
  if (first)
    say(STDERR_FILENO, "jitmem: " THIS " steps aside in %s: %s", program_invocation_short_name,
        aside);
}

static bool switched_off(void) {
  const char *value = getenv("JITMEM_PRELOAD");
  return value && strcmp(value, "off") == 0;
}

static const char *file_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/// The file that an address was loaded from.
static const char *file_of(const void *address) {
  Dl_info info;
  return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

/// The function that the caller would have called without this library. Asks the caller's own
/// libraries first: another LLVM may come earlier in the order of the process.
static void *next(const char *name, const void *mine, const void *caller) {
  void *library = dlopen(file_of(caller), RTLD_LAZY | RTLD_NOLOAD), *found = NULL;
  if (library) {
    found = dlsym(library, name);
    dlclose(library);
  }
  if (!found || found == mine)
    found = dlsym(RTLD_NEXT, name);
  if (found)
    return found;
  say(STDERR_FILENO, "jitmem: " THIS ": %s calls %s, which no library of the process has",
      file_of(caller), name);
  abort();
}

static void load_part(void) {
  char path[PATH_MAX];
  const char *own = file_of(aside);
  snprintf(path, sizeof path, "%.*sjitmem/llvm-" STRING(JITMEM_PRELOAD_LLVM) ".so",
           (int)(file_name(own) - own), own);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    step_aside("%s", dlerror());
    return;
  }
  *(void **)&part.layer = dlsym(library, "jitmem_preload_layer");
  *(void **)&part.made = dlsym(library, "jitmem_preload_made");
  *(void **)&part.adopt = dlsym(library, "jitmem_preload_adopt");
  *(void **)&part.figures = dlsym(library, "jitmem_preload_figures");
  *(void **)&part.configure = dlsym(library, "jitmem_preload_configure");
}

/// Whether the other part is there, and the LLVM that `function` belongs to is its own.
static bool ready(const void *function) {
  static pthread_once_t loaded = PTHREAD_ONCE_INIT;
  if (switched_off())
    return false;
  const char *file = file_of(function);
  if (strcmp(file_name(file), JITMEM_PRELOAD_SONAME) != 0) {
    step_aside("it uses the LLVM in %s, and this is for " JITMEM_PRELOAD_SONAME
               "; preload the one for that LLVM",
               file);
    return false;
  }
  pthread_once(&loaded, load_part);
  return part.configure != NULL;
}

static void stays(const char *what, const char *why) {
  if (why)
    step_aside("%s of it stays as it is: %s", what, why);
}

/// What was loaded for the caller's LLVM is asked before a JIT is made, and after that.
static bool configure(const void *function, void *builder_state) {
  if (!builder_state || !ready(function))
    return false;
  const char *why = part.configure(builder_state);
  stays("a JIT", why);
  return !why;
}

static void *adopted(const void *function, void *layer) {
  if (layer && ready(function))
    stays("a layer", part.adopt(layer));
  return layer;
}

// The functions in front of LLVM's. Under their own names they would be declared by no header.
#define IN_FRONT_OF(name) __asm__(name) __attribute__((visibility("default")))
#define NEXT(name, mine) next(name, (const void *)(mine), __builtin_return_address(0))

#define LLJIT(part) "_ZN4llvm3orc5LLJIT" part "ERNS0_17LLJITBuilderStateERNS_5ErrorE"
#define LLLAZYJIT(part) "_ZN4llvm3orc9LLLazyJIT" part "ERNS0_21LLLazyJITBuilderStateERNS_5ErrorE"

/// A constructor of LLJIT or LLLazyJIT: `void (this, builder's state, Error *)`. The state of the
/// latter begins with that of the former.
#define CONSTRUCTOR(function, name)                                                                \
  void function(void *self, void *state, void *error) IN_FRONT_OF(name);                           \
  void function(void *self, void *state, void *error) {                                            \
    void (*real)(void *, void *, void *) = (void (*)(void *, void *, void *))NEXT(name, function); \
    bool ours = configure((const void *)real, state);                                              \
    real(self, state, error);                                                                      \
    if (ours)                                                                                      \
      stays("a JIT", part.made(self));                                                             \
  }
CONSTRUCTOR(lljit_complete, LLJIT("C1"))
CONSTRUCTOR(lljit_base, LLJIT("C2"))
CONSTRUCTOR(lllazyjit_complete, LLLAZYJIT("C1"))
CONSTRUCTOR(lllazyjit_base, LLLAZYJIT("C2"))

void *create_lljit(void **result, void *builder) IN_FRONT_OF("LLVMOrcCreateLLJIT");
void *create_lljit(void **result, void *builder) {
  void *(*real)(void **, void *) =
      (void *(*)(void **, void *))NEXT("LLVMOrcCreateLLJIT", create_lljit);
  if (!builder) // LLVM makes one itself then, inside its library
    builder = ((void *(*)(void))NEXT("LLVMOrcCreateLLJITBuilder", create_lljit))();
  bool ours = configure((const void *)real, builder);
  void *failed = real(result, builder);
  if (ours && !failed)
    stays("a JIT", part.made(*result));
  return failed;
}

#define RTDYLD "LLVMOrcCreateRTDyldObjectLinkingLayerWithSectionMemoryManager"
void *create_rtdyld(void *session) IN_FRONT_OF(RTDYLD);
void *create_rtdyld(void *session) {
  void *(*real)(void *) = (void *(*)(void *))NEXT(RTDYLD, create_rtdyld);
  return adopted((const void *)real, real(session));
}

void *create_rtdyld_reserving(void *session, int reserve) IN_FRONT_OF(RTDYLD "ReserveAlloc");
void *create_rtdyld_reserving(void *session, int reserve) {
  void *(*real)(void *, int) =
      (void *(*)(void *, int))NEXT(RTDYLD "ReserveAlloc", create_rtdyld_reserving);
  return adopted((const void *)real, real(session, reserve));
}

#define JITLINK "LLVMOrcCreateObjectLinkingLayerWithInProcessMemoryManager"
void *create_jitlink(void **result, void *session) IN_FRONT_OF(JITLINK);
void *create_jitlink(void **result, void *session) {
  void *(*real)(void **, void *) = (void *(*)(void **, void *))NEXT(JITLINK, create_jitlink);
  const char *why = NULL;
  void *made = ready((const void *)real) ? part.layer(session, &why) : NULL;
  stays("a layer", why);
  if (!made)
    return real(result, session);
  *result = made;
  return NULL;
}

/// Whether a module has LLVM in it, by a message of report_fatal_error.
static bool contains_llvm(const struct dl_phdr_info *module) {
  static const char mark[] = {'L', 'L', 'V', 'M', ' ', 'E', 'R', 'R', 'O', 'R', ':', ' '};
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const ElfW(Phdr) *segment = &module->dlpi_phdr[i];
    const char *begin = (const char *)(module->dlpi_addr + segment->p_vaddr);
    if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_R))
      continue;
    if (mark >= begin && mark < begin + segment->p_filesz)
      return false; // this library
    if (memmem(begin, segment->p_filesz, mark, sizeof mark))
      return true;
  }
  return false;
}

/// Notes the LLVM of the process: a library of its name, else a module that contains it.
static int find_llvm(struct dl_phdr_info *module, size_t size, void *found) {
  (void)size;
  char *text = found;
  if (strncmp(file_name(module->dlpi_name), "libLLVM", 7) == 0)
    snprintf(text, PATH_MAX, "%s", module->dlpi_name);
  else if (!text[0] && contains_llvm(module))
    snprintf(text, PATH_MAX, "%s, linked statically",
             module->dlpi_name[0] ? module->dlpi_name : "the program itself");
  return 0;
}

/// Reports to where JITMEM_PRELOAD_REPORT says: a file, to which a line is added, or stderr for 1.
__attribute__((destructor)) static void report(void) {
  const char *where = getenv("JITMEM_PRELOAD_REPORT");
  if (!where || !where[0])
    return;
  int fd = strcmp(where, "1") == 0 ? STDERR_FILENO
                                   : open(where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0)
    return;
  char llvm[PATH_MAX] = "";
  dl_iterate_phdr(find_llvm, llvm);
  struct jitmem_preload_report done = {.mapper = "none"};
  if (part.figures)
    part.figures(&done);
  say(fd,
      "jitmem-preload: pid=%ld program=%s llvm=%s layers=%llu allocations=%llu deallocations=%llu "
      "failures=%llu live=%llu committed=%llu mapper=\"%s\" note=\"%s\"",
      (long)getpid(), program_invocation_short_name, llvm[0] ? llvm : "none",
      (unsigned long long)done.layers, (unsigned long long)done.allocations,
      (unsigned long long)done.deallocations, (unsigned long long)done.failures,
      (unsigned long long)done.live_bytes, (unsigned long long)done.committed_bytes, done.mapper,
      switched_off() ? "JITMEM_PRELOAD=off" : aside);
  if (fd != STDERR_FILENO)
    close(fd);
}
