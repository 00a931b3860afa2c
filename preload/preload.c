// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// libjitmem-llvm-NN.so: has programs that link libLLVM NN dynamically run on jitmem, unchanged, by
// LD_PRELOAD. docs/hosts.md says for which programs and how.
//
// It stands in front of the functions by which programs make ORC's JITs and object layers, under
// the symbol version of libLLVM NN alone: what refers to another LLVM's is never bound to them.
// Nothing of LLVM is loaded for it: once one of them is called, the part that is linked against
// libLLVM NN is loaded, jitmem/llvm-NN.so beside this file.
#define _GNU_SOURCE
#include "layers.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/// JITMEM_PRELOAD_LLVM is the major version, JITMEM_PRELOAD_SONAME what its library is called, and
/// JITMEM_PRELOAD_VERSION the version of its symbols.
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)
#define THIS "libjitmem-llvm-" STRING(JITMEM_PRELOAD_LLVM) ".so"

static struct {
  __typeof__(&jitmem_preload_configure) configure;
  __typeof__(&jitmem_preload_adopt) adopt;
  __typeof__(&jitmem_preload_made) made;
  __typeof__(&jitmem_preload_layer) layer;
  __typeof__(&jitmem_preload_figures) figures;
  __typeof__(&jitmem_preload_at_fork) at_fork;
} part;
/// Why the program stays with LLVM's memory; empty if it does not, or has not made a JIT.
static char aside[600];
static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

/// 0, or why the line is not there.
static int say(int fd, const char *format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (length > (int)sizeof line - 2)
    length = sizeof line - 2;
  line[length++] = '\n';
  // Where the reader is gone, or a limit is reached, the line is lost. The program is not told.
  sigset_t signals, pending, before;
  sigemptyset(&signals);
  sigpending(&pending);
  if (!sigismember(&pending, SIGPIPE))
    sigaddset(&signals, SIGPIPE);
  if (!sigismember(&pending, SIGXFSZ))
    sigaddset(&signals, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &signals, &before);
  ssize_t written;
  while ((written = write(fd, line, (size_t)length)) < 0 && errno == EINTR)
    ;
  int why = written < 0 ? errno : 0;
  if (why)
    while (sigtimedwait(&signals, NULL, &(struct timespec){0}) < 0 && errno == EINTR)
      ;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return why;
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

/// A function of the LLVM that this library is for: what refers to its version means no other.
static void *real(const char *name, const void *mine) {
  void *library = dlopen(JITMEM_PRELOAD_SONAME, RTLD_LAZY | RTLD_NOLOAD), *found = NULL;
  if (library) {
    found = dlsym(library, name);
    dlclose(library);
  }
  // Another build of that LLVM has the same version and may be called otherwise.
  struct link_map *module = NULL;
  void *program = found ? NULL : dlopen(NULL, RTLD_LAZY);
  if (program)
    dlinfo(program, RTLD_DI_LINKMAP, &module);
  for (; module && !found; module = module->l_next) {
    library = dlopen(module->l_name[0] ? module->l_name : NULL, RTLD_LAZY | RTLD_NOLOAD);
    if (!library)
      continue;
    found = dlvsym(library, name, JITMEM_PRELOAD_VERSION);
    if (found == mine)
      found = NULL;
    dlclose(library);
  }
  if (program)
    dlclose(program);
  if (found)
    return found;
  say(STDERR_FILENO,
      "jitmem: " THIS ": call %s of " JITMEM_PRELOAD_VERSION
      " in %s: no library of the process has "
      "it; run the program without " THIS,
      name, program_invocation_short_name);
  abort();
}

static void load_part(void) {
  // Beside this file, whose folder was noted when it was loaded: the program's may be another by
  // now.
  void *library =
      dlopen("$ORIGIN/jitmem/llvm-" STRING(JITMEM_PRELOAD_LLVM) ".so", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    step_aside("%s", dlerror());
    return;
  }
  *(void **)&part.layer = dlsym(library, "jitmem_preload_layer");
  *(void **)&part.made = dlsym(library, "jitmem_preload_made");
  *(void **)&part.adopt = dlsym(library, "jitmem_preload_adopt");
  *(void **)&part.figures = dlsym(library, "jitmem_preload_figures");
  *(void **)&part.at_fork = dlsym(library, "jitmem_preload_at_fork");
  *(void **)&part.configure = dlsym(library, "jitmem_preload_configure");
}

/// Whether the part was there when this thread began to fork: another may load it meanwhile.
static __thread bool forks;

static void before_fork(void) {
  forks = part.at_fork != NULL;
  if (forks)
    part.at_fork(JITMEM_PRELOAD_BEFORE_FORK);
}

static void in_parent(void) {
  if (forks)
    part.at_fork(JITMEM_PRELOAD_IN_PARENT);
}

static void in_child(void) {
  if (forks)
    part.at_fork(JITMEM_PRELOAD_IN_CHILD);
}

/// The program registers its handlers later. So they find jitmem's locks free: they run before
/// these in a process that forks, and after these in its child.
__attribute__((constructor)) static void register_fork_handlers(void) {
  pthread_atfork(before_fork, in_parent, in_child);
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

// The functions in front of LLVM's. One '@': not the version for references and calls of dlsym that
// name none. Those mean any LLVM, and get what they would get without this library.
#define IN_FRONT_OF(name, function)                                                                \
  __asm__(".symver " #function "," name "@" JITMEM_PRELOAD_VERSION);                               \
  __attribute__((visibility("default")))
#define REAL(name, mine) real(name, (const void *)(mine))

#define LLJIT(part) "_ZN4llvm3orc5LLJIT" part "ERNS0_17LLJITBuilderStateERNS_5ErrorE"
#define LLLAZYJIT(part) "_ZN4llvm3orc9LLLazyJIT" part "ERNS0_21LLLazyJITBuilderStateERNS_5ErrorE"

/// A constructor of LLJIT or LLLazyJIT: `void (this, builder's state, Error *)`. The state of the
/// latter begins with that of the former.
#define CONSTRUCTOR(function, name)                                                                \
  IN_FRONT_OF(name, function) void function(void *self, void *state, void *error);                 \
  void function(void *self, void *state, void *error) {                                            \
    void (*made)(void *, void *, void *) = (void (*)(void *, void *, void *))REAL(name, function); \
    bool ours = configure((const void *)made, state);                                              \
    made(self, state, error);                                                                      \
    if (ours)                                                                                      \
      stays("a JIT", part.made(self));                                                             \
  }
CONSTRUCTOR(lljit_complete, LLJIT("C1"))
CONSTRUCTOR(lljit_base, LLJIT("C2"))
CONSTRUCTOR(lllazyjit_complete, LLLAZYJIT("C1"))
CONSTRUCTOR(lllazyjit_base, LLLAZYJIT("C2"))

IN_FRONT_OF("LLVMOrcCreateLLJIT", create_lljit) void *create_lljit(void **result, void *builder);
void *create_lljit(void **result, void *builder) {
  void *(*create)(void **, void *) =
      (void *(*)(void **, void *))REAL("LLVMOrcCreateLLJIT", create_lljit);
  if (!builder && ready((const void *)create)) // LLVM makes one itself then, inside its library
    builder = ((void *(*)(void))REAL("LLVMOrcCreateLLJITBuilder", NULL))();
  bool ours = configure((const void *)create, builder);
  void *failed = create(result, builder);
  if (ours && !failed)
    stays("a JIT", part.made(*result));
  return failed;
}

#define RTDYLD "LLVMOrcCreateRTDyldObjectLinkingLayerWithSectionMemoryManager"
IN_FRONT_OF(RTDYLD, create_rtdyld) void *create_rtdyld(void *session);
void *create_rtdyld(void *session) {
  void *(*create)(void *) = (void *(*)(void *))REAL(RTDYLD, create_rtdyld);
  return adopted((const void *)create, create(session));
}

#define RESERVING RTDYLD "ReserveAlloc"
IN_FRONT_OF(RESERVING, create_reserving) void *create_reserving(void *session, int reserve);
void *create_reserving(void *session, int reserve) {
  void *(*create)(void *, int) = (void *(*)(void *, int))REAL(RESERVING, create_reserving);
  return adopted((const void *)create, create(session, reserve));
}

#define JITLINK "LLVMOrcCreateObjectLinkingLayerWithInProcessMemoryManager"
IN_FRONT_OF(JITLINK, create_jitlink) void *create_jitlink(void **result, void *session);
void *create_jitlink(void **result, void *session) {
  void *(*create)(void **, void *) = (void *(*)(void **, void *))REAL(JITLINK, create_jitlink);
  const char *why = NULL;
  void *made = ready((const void *)create) ? part.layer(session, &why) : NULL;
  stays("a layer", why);
  if (!made)
    return create(result, session);
  *result = made;
  return NULL;
}

/// Reads memory of this process. Less than all where it can't be read: that ends in no signal.
static size_t peek(void *to, uintptr_t from, size_t size) {
  struct iovec here = {to, size}, there = {(void *)from, size};
  ssize_t got = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
  return got < 0 ? 0 : (size_t)got;
}

/// Whether a mark lies in memory of which pages may be missing.
static bool contains(uintptr_t begin, uintptr_t end, const char *mark, size_t size) {
  static char some[1 << 16];
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  while (begin < end && end - begin >= size) {
    size_t left = end - begin, wanted = left < sizeof some ? left : sizeof some,
           step = wanted - size + 1;
    size_t got = peek(some, begin, wanted);
    if (got < wanted) { // page by page
      size_t of_page = page - begin % page;
      step = wanted = wanted < of_page ? wanted : of_page;
      got = peek(some, begin, wanted);
    }
    if (memmem(some, got, mark, size))
      return true;
    begin += step;
  }
  return false;
}

/// Whether a module has LLVM in it, by a message of report_fatal_error.
static bool contains_llvm(const struct dl_phdr_info *module) {
  // Inverted: libraries such as this one do not contain what they look for.
  static const volatile char inverted[] = {~'L', ~'L', ~'V', ~'M', ~' ', ~'E',
                                           ~'R', ~'R', ~'O', ~'R', ~':', ~' '};
  char mark[sizeof inverted];
  for (size_t i = 0; i < sizeof mark; ++i)
    mark[i] = (char)~inverted[i];
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    ElfW(Phdr) segment;
    if (peek(&segment, (uintptr_t)&module->dlpi_phdr[i], sizeof segment) < sizeof segment ||
        segment.p_type != PT_LOAD)
      continue;
    uintptr_t begin = module->dlpi_addr + segment.p_vaddr;
    if (contains(begin, begin + segment.p_filesz, mark, sizeof mark))
      return true;
  }
  return false;
}

/// The LLVM of the process: what says most of it.
struct llvm {
  enum { NONE, INSIDE, ANOTHER, OWN } kind;
  char text[PATH_MAX + 32];
};

/// Notes a library of LLVM's name, else a module that contains it.
static int find_llvm(struct dl_phdr_info *module, size_t size, void *noted) {
  (void)size;
  struct llvm *llvm = noted;
  const char *name = file_name(module->dlpi_name);
  int kind = NONE;
  if (strcmp(name, JITMEM_PRELOAD_SONAME) == 0)
    kind = OWN;
  else if (strncmp(name, "libLLVM", 7) == 0 && strchr("-.", name[7]))
    kind = ANOTHER;
  else if (llvm->kind == NONE && contains_llvm(module))
    kind = INSIDE;
  if (kind <= (int)llvm->kind)
    return 0;
  llvm->kind = kind;
  snprintf(llvm->text, sizeof llvm->text, "%s%s",
           module->dlpi_name[0] ? module->dlpi_name : "the program itself",
           kind == INSIDE ? ", linked statically" : "");
  return 0;
}

/// What JITMEM_PRELOAD_REPORT says: a file, to which a line is added, or stderr for 1.
static char *report_to;

/// Paths are those of the program's beginning: it may go to another folder.
__attribute__((constructor)) static void note_report(void) {
  const char *where = getenv("JITMEM_PRELOAD_REPORT");
  if (!where || !where[0])
    return;
  bool whole = where[0] == '/' || strcmp(where, "1") == 0;
  char *folder = whole ? NULL : getcwd(NULL, 0);
  if (asprintf(&report_to, "%s%s%s", folder ? folder : "", folder ? "/" : "", where) < 0)
    report_to = NULL;
  free(folder);
}

static void say_no_report(int why) {
  say(STDERR_FILENO,
      "jitmem: " THIS ": add the report of %s to %s: %s; have JITMEM_PRELOAD_REPORT name a file "
      "that the program can write to",
      program_invocation_short_name, report_to, strerror(why));
}

__attribute__((destructor)) static void report(void) {
  if (!report_to)
    return;
  int fd = strcmp(report_to, "1") == 0
               ? STDERR_FILENO
               : open(report_to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) {
    say_no_report(errno);
    return;
  }
  static struct llvm llvm = {.text = "none"};
  dl_iterate_phdr(find_llvm, &llvm);
  const char *note = switched_off() ? "JITMEM_PRELOAD=off" : aside;
  if (!note[0] && llvm.kind == ANOTHER)
    note = THIS " is for programs with " JITMEM_PRELOAD_SONAME;
  struct jitmem_preload_report done = {.mapper = "none"};
  if (part.figures)
    part.figures(&done);
  int why = say(
      fd,
      "jitmem-preload: pid=%ld program=%s llvm=%s layers=%llu allocations=%llu deallocations=%llu "
      "failures=%llu live=%llu committed=%llu mapper=\"%s\" note=\"%s\"",
      (long)getpid(), program_invocation_short_name, llvm.text, (unsigned long long)done.layers,
      (unsigned long long)done.allocations, (unsigned long long)done.deallocations,
      (unsigned long long)done.failures, (unsigned long long)done.live_bytes,
      (unsigned long long)done.committed_bytes, done.mapper, note);
  if (fd == STDERR_FILENO)
    return;
  close(fd);
  if (why)
    say_no_report(why);
}
