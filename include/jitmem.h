/* SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */
/* Generated from src/capi: do not edit, `make header` writes it anew. */
/*
 * jitmem: memory for JIT-linked code, in this process or in another one. A whole program:
 *
 *   #include <jitmem.h>
 *   #include <stdio.h>
 *   #include <string.h>
 *
 *   int main(void) {
 *     const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; // x86-64: mov eax, 42; ret
 *     const jitmem_segment segment = {.content_size = sizeof code,
 *                                     .alignment = 16,
 *                                     .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
 *     jitmem_segment_memory memory;
 *     jitmem_mapper *mapper = NULL;
 *     jitmem_manager *manager = NULL;
 *     jitmem_error *error = NULL;
 *     uint64_t allocation;
 *     if (!jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) &&
 *         !jitmem_manager_create(mapper, NULL, &manager, &error) &&
 *         !jitmem_manager_allocate(manager, &segment, 1, 0, &memory, &allocation, &error)) {
 *       memcpy(memory.working_memory, code, sizeof code);
 *       if (!jitmem_manager_finalize(manager, allocation, NULL, 0, &error))
 *         printf("the answer is %d\n", ((int (*)(void))(uintptr_t)memory.address)());
 *     }
 *     int failed = error != NULL;
 *     if (failed)
 *       fprintf(stderr, "%s\n", jitmem_error_message(error));
 *     jitmem_error_free(error);
 *     jitmem_manager_free(manager); // with all that is left in it
 *     jitmem_mapper_free(mapper);
 *     return failed;
 *   }
 *
 * Contents
 *
 *   1.  Versions        which jitmem was compiled against, and which runs
 *   2.  Handles         what the library hands out
 *   3.  Errors          what a call came to, and why
 *   4.  Mappers         where memory comes from: this process, another one, another machine
 *   5.  Groups          one set of linked code in several executors
 *   6.  Events          what a manager tells its host of
 *   7.  Manager         allocate, finalize, deallocate: memory for link graphs
 *   8.  Images          linked code in a file, for later processes
 *   9.  Statistics      figures of a manager, and what lies where
 *   10. Transports      ways to call functions in an executor
 *   11. Executor        the other side: to be the process that runs linked code
 *   12. Custom mappers  memory that the host itself provides
 *
 * What holds for all functions
 *
 *   Results. What can fail returns a jitmem_status; 0 is success. Outputs are written only on
 *   success. `error` may be NULL; on failure `*error` is an object that says why, to be freed with
 *   jitmem_error_free. Other pointers may be NULL only where their function says so. A defect in
 *   jitmem is reported as JITMEM_INTERNAL; the handle refuses further work then.
 *
 *   An exhausted heap. Where malloc gives no memory, a call is refused with JITMEM_OUT_OF_MEMORY, and
 *   nothing is done, or it is done none the less, from a reserve of 256 KiB that the library has. All
 *   that gives memory back works, but for batches of more than 4,000 allocations, which may be refused
 *   as a whole. An error object that there is no memory for is one of a few that the library has: its
 *   status is right, and its message says that the heap is exhausted.
 *
 *   Handles. A free function does nothing with NULL. A handle that was freed is recognized and
 *   refused, however many others were made since. A handle is a number, not an address.
 *
 *   Callbacks. One is (fn, ctx, destroy): fn runs once, in the thread that completes the request,
 *   which may be the calling one before the call returns; then destroy(ctx) runs once. If the call
 *   is refused (its status is not 0) fn never runs and destroy has run. No lock is held meanwhile,
 *   so any function may be called. No function of the host may throw through the library.
 *
 *   Versions. A struct that begins with struct_size says which version of it the host has: what a
 *   shorter one lacks is 0. A struct that stands in arrays ends with reserved fields instead, which
 *   later versions may give a meaning: what the host sets must be 0 there, as in any initializer
 *   that does not name them, and what the library sets is 0. New enumerators come at the end, so a
 *   host must expect numbers that it does not know.
 *
 *   Working memory lies at addresses of its own, not at those of the code. It is aligned to the
 *   segment's alignment or to the page size, whichever is less; only `address` has larger
 *   alignments. A custom mapper's is aligned as its own memory is.
 *
 *   Forks. In process, parent and child both go on running what was linked before a fork, and
 *   linking: neither sees what the other does later. What was live at a fork is frozen: once it is
 *   deallocated, its bytes stay as they are while a child of that fork, or a child's child, is there
 *   (jitmem_stats.frozen, jitmem_fork_policy; told by the attaches of System V shared memory, without
 *   which it stays frozen until its chunk is empty). An allocation that was in flight at the fork is
 *   JITMEM_INVALID_HANDLE in the child under two views, and a callback that was waited for runs in
 *   the parent alone. A child waits for no lock of its parent's threads. fork must not be called in a
 *   handler of a signal that interrupted the library. Managers over an executor, and connections,
 *   answer JITMEM_INVALID_HANDLE in children, and to free them there gives up the child's copy alone.
 *   So does every manager in a child of _Fork or of a raw clone, for which no fork handler runs; it
 *   may run what it was made with until the parent deallocates it. Data of linked code is private to
 *   each process, in executors too unless they are told to share it (docs/second-process.md). What a
 *   custom mapper does in a child is its host's affair.
 *
 *   Time limits. What an executor is asked to do may take as long as linked code, actions and the
 *   host's own functions take, unless the host sets limits (jitmem_limits): an executor that is
 *   stopped, by a debugger or a freezer, goes on with everything when it is continued. By default
 *   only set-up (30 seconds each for connecting, a session, a first window) and the end are limited:
 *   what is freed of an executor that does not answer is waited for once, for 10 seconds. Nothing
 *   waits for an executor that does not read: what is sent to it is kept until it does.
 *   A session that ends in the executor waits 10 seconds for an action that runs; its memory stays.
 *   Finalize and deallocate with actions may be held back for 250 microseconds to travel together.
 */

#ifndef JITMEM_H
#define JITMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where an enumeration is passed or stored, it is a uint32_t. */
#ifdef __cplusplus
#define JITMEM_ENUM(name) enum name : uint32_t
#elif __STDC_VERSION__ >= 202311L
#define JITMEM_ENUM(name) enum name : uint32_t; typedef enum name name; enum name : uint32_t
#else
#define JITMEM_ENUM(name) typedef uint32_t name; enum name
#endif

/* ==== 1. Versions: which jitmem was compiled against, and which runs ==== */

/// The version that a program is compiled against; jitmem_version() is the one it runs with.
#define JITMEM_VERSION_MAJOR 0
#define JITMEM_VERSION_MINOR 1
#define JITMEM_VERSION_PATCH 0
#define JITMEM_VERSION_STRING "0.1.0"
#define JITMEM_VERSION \
  (JITMEM_VERSION_MAJOR << 16 | JITMEM_VERSION_MINOR << 8 | JITMEM_VERSION_PATCH)

/// The version of the library that runs: major << 16 | minor << 8 | patch, as JITMEM_VERSION.
///
/// Thread-safe; never fails.
uint32_t jitmem_version(void);

/// The version of the library that runs, as text such as "0.1.0". Static; do not free.
///
/// Thread-safe; never fails.
const char *jitmem_version_string(void);

/* ==== 2. Handles: what the library hands out ==== */

/// Why a call failed: status, errno and a message that names operation, value, cause and remedy.
/// Owned by its receiver; free it with jitmem_error_free. Not shared between threads
/// without the host's own ordering.
typedef struct jitmem_error jitmem_error;

/// A file that was read and checked whole, and what the last link made of it. One thread at a time uses an
/// image. It takes memory as jitmem_image_open has it, and a descriptor: the file stays open.
typedef struct jitmem_image jitmem_image;

/// Copies of linked graphs, to be stored as one image: a file from which later processes have them without
/// linking. It takes as much memory as they have content. One thread at a time uses a recorder.
typedef struct jitmem_image_recorder jitmem_image_recorder;

/// Divides what a mapper reserved among many link graphs. All functions on it are thread-safe and
/// may be called from inside its callbacks.
typedef struct jitmem_manager jitmem_manager;

/// Where memory comes from. May serve any number of managers; freeing it while managers use it is
/// fine. All functions on it are thread-safe.
typedef struct jitmem_mapper jitmem_mapper;

/// The sections of one object, or of all objects of a host: they are finalized together and freed
/// together. For linkers that ask for one section after the other and know one address of each. The manager's
/// mapper is JITMEM_IN_PROCESS_IN_PLACE. One thread at a time uses a group; different groups of one
/// manager may be used at the same time.
typedef struct jitmem_section_group jitmem_section_group;

/// An executor's service: controllers that know its symbols get memory in this process. Freeing it
/// ends their sessions. All functions on it are thread-safe.
typedef struct jitmem_service jitmem_service;

/// A way to call wrapper functions in an executor. May serve any number of mappers; freeing it while
/// mappers use it is fine. All functions on it are thread-safe.
typedef struct jitmem_transport jitmem_transport;

/// The right to write code and data of one finalized allocation while linked code may run them: inline
/// caches, the targets of stubs. An allocation is not deallocated while a scope of it is open. Scopes
/// do not exclude each other, of the same allocation neither: threads that write the same bytes agree among
/// themselves on the order. One thread at a time uses a scope.
///
/// After a fork code and constants are the other process's too and are not stored to any more, unless
/// the manager has JITMEM_FORK_REUSE; a pointer to them of before must not be used.
typedef struct jitmem_write_scope jitmem_write_scope;

/// Frees a callback's context; may be NULL where there is nothing to free.
typedef void (*jitmem_destroy_fn)(void *ctx);

/* ==== 3. Errors: what a call came to, and why ==== */

/// What a call came to. Numbers never change; new ones are added at the end.
JITMEM_ENUM(jitmem_status) {
  /// Done, or, for an asynchronous call, accepted.
  JITMEM_OK = 0,
  /// An argument can never be right: NULL, overflow, bad alignment, unknown enumerator.
  JITMEM_INVALID_ARGUMENT = 1,
  /// A handle or allocation that is not live here, or not in the state that the call needs.
  JITMEM_INVALID_HANDLE = 2,
  /// No window may hold the request.
  JITMEM_WINDOW_FULL = 3,
  /// The manager's own limit on bytes is reached.
  JITMEM_QUOTA_EXCEEDED = 4,
  /// The system gave no memory, address space, mapping or descriptor.
  JITMEM_OUT_OF_MEMORY = 5,
  /// The system forbids the operation (seccomp, SELinux, vm.memfd_noexec).
  JITMEM_DENIED = 6,
  /// An allocation action reported failure.
  JITMEM_ACTION_FAILED = 7,
  /// Not available in this build, on this system or with this mapper.
  JITMEM_UNSUPPORTED = 8,
  /// The executor is gone.
  JITMEM_DISCONNECTED = 9,
  /// A host-supplied mapper reported failure or broke its contract.
  JITMEM_MAPPER_FAILED = 10,
  /// The system reported something that none of the above names.
  JITMEM_SYSTEM = 11,
  /// A defect in jitmem; the handle refuses further work.
  JITMEM_INTERNAL = 12,
  /// It can't be done without waiting; nothing was done.
  JITMEM_WOULD_BLOCK = 13,
  /// The executor has not answered within a limit that the host has set (jitmem_limits).
  JITMEM_TIMED_OUT = 14,
  /// The host has cancelled it.
  JITMEM_CANCELLED = 15,
};

/// The status of an error. NULL: JITMEM_OK. A freed error: JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `error` is NULL or came from this library.
jitmem_status jitmem_error_status(const struct jitmem_error *error);

/// What happened, as UTF-8 text without final full stop: operation, value, cause, remedy. Valid
/// until the error is freed. NULL: "success".
///
/// Requires:
/// `error` is NULL or came from this library.
const char *jitmem_error_message(const struct jitmem_error *error);

/// errno of the system call behind an error; 0 if there was none, and for NULL.
///
/// Requires:
/// `error` is NULL or came from this library.
int32_t jitmem_error_os_code(const struct jitmem_error *error);

/// Frees an error. NULL and an error that was freed before: does nothing.
///
/// Requires:
/// `error` is NULL or came from this library, and neither it nor its message is used any more.
void jitmem_error_free(struct jitmem_error *error);

/// The name of a status, such as "JITMEM_WINDOW_FULL"; "unknown status" for other numbers. Static.
///
/// Thread-safe; never fails.
const char *jitmem_status_name(uint32_t status);

/* ==== 4. Mappers: where memory comes from: this process, another one, another machine ==== */

/// Which in-process mapper to make.
JITMEM_ENUM(jitmem_in_process_kind) {
  /// Two views where one probe shows that the system allows them and no debugger is there, else
  /// mprotect. A debugger is there if a process traces this one, or if the environment has
  /// JITMEM_DEBUG=1; with JITMEM_DEBUG=0 none is.
  JITMEM_IN_PROCESS_AUTO = 0,
  /// Two views of the same pages: no page ever turns executable, graphs share pages. Of shared
  /// anonymous memory or, where the system refuses that, of sealed memfds.
  JITMEM_IN_PROCESS_TWO_VIEWS = 1,
  /// Private pages whose protection changes; whole pages and system calls per allocation.
  /// Debuggers can set software breakpoints there.
  JITMEM_IN_PROCESS_MPROTECT = 2,
  /// Private pages that are written at their own addresses until finalize gives them their
  /// protection, for linkers that know one address per section: working_memory is the address. Whole
  /// pages and a system call per segment of code or constants, at finalize and at deallocate. No page
  /// that was sealed becomes writable again: it is replaced.
  JITMEM_IN_PROCESS_IN_PLACE = 3,
};

/// Makes a mapper of this process's own memory.
///
/// `kind` is one of jitmem_in_process_kind. On success `*mapper` is the new mapper, to be freed
/// with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for an unknown kind or NULL `mapper`; with
/// JITMEM_IN_PROCESS_TWO_VIEWS and _IN_PLACE, what the system answered to one probe (JITMEM_DENIED,
/// JITMEM_OUT_OF_MEMORY, JITMEM_UNSUPPORTED, JITMEM_SYSTEM); in place does not work where memory that
/// was written may not become executable (PR_SET_MDWE).
///
/// Requires:
/// `mapper` and `error` are NULL or places for a pointer.
jitmem_status jitmem_mapper_in_process(uint32_t kind,
                                       struct jitmem_mapper **mapper,
                                       struct jitmem_error **error);

/// Which service of an executor, and why this mapper. Set struct_size to
/// sizeof(jitmem_executor_options) and the rest to zero for the defaults.
typedef struct jitmem_executor_options {
  /// sizeof(jitmem_executor_options).
  size_t struct_size;
  /// Executor address of jitmem_service_open; 0: what the transport knows by this name.
  uint64_t service;
  /// The number published as jitmem_service_instance; 0: what the transport knows by this name, or
  /// the service that every process with this library has.
  uint64_t instance;
  /// Why a better mapper was not taken, for the statistics; copied; may be NULL.
  const char *instead_of;
} jitmem_executor_options;

/// Makes a mapper of another process's memory on this machine, through shared pages: what the linker
/// writes here is what the executor sees there, and no content is sent. A child that the executor forks has
/// linked code's data as it is then, and neither sees what the other writes, unless the executor shares it
/// (--fork-memory=shared, JITMEM_FORK_MEMORY).
///
/// `options` may be NULL. Calls the executor and waits for its answers, so it must not be called where
/// the transport's answers come from. On success `*mapper` is the new mapper, to be freed with
/// jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or a wrong struct_size, JITMEM_INVALID_HANDLE,
/// JITMEM_UNSUPPORTED if the executor has no service, or another version of it, or memfds can't be
/// handed to it (the message says what was tried), JITMEM_DISCONNECTED.
///
/// Requires:
/// `transport` is NULL or a handle of this library; `options` is NULL or a struct of the size that it
/// says; `mapper` and `error` are NULL or places for a pointer.
jitmem_status jitmem_mapper_shared(const struct jitmem_transport *transport,
                                   const struct jitmem_executor_options *options,
                                   struct jitmem_mapper **mapper,
                                   struct jitmem_error **error);

/// Makes a mapper of the memory of a process on any machine: content travels in the transport's
/// messages, zero-fill does not.
///
/// As jitmem_mapper_shared, but for handing memfds over.
///
/// Requires:
/// As jitmem_mapper_shared.
jitmem_status jitmem_mapper_remote(const struct jitmem_transport *transport,
                                   const struct jitmem_executor_options *options,
                                   struct jitmem_mapper **mapper,
                                   struct jitmem_error **error);

/// Makes a mapper of another process's memory on this machine through LLVM's own shared-memory service
/// (ExecutorSharedMemoryMapperService), which executors have that know nothing of jitmem: protections
/// are set for each allocation, so each takes whole pages and a message.
///
/// The transport must know the service's bootstrap symbols by name. `instead_of` says why a better
/// mapper was not taken, for the statistics; copied; may be NULL. On success `*mapper` is the new
/// mapper, to be freed with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED if the executor
/// does not publish the service.
///
/// Requires:
/// `transport` is NULL or a handle of this library; `instead_of` is NULL or a NUL-terminated string;
/// `mapper` and `error` are NULL or places for a pointer. The executor's shared memory is its own, and
/// does not become smaller while the mapper or a manager of it is there.
jitmem_status jitmem_mapper_llvm_shared(const struct jitmem_transport *transport,
                                        const char *instead_of,
                                        struct jitmem_mapper **mapper,
                                        struct jitmem_error **error);

/// Makes a mapper of the memory of a process on any machine through LLVM's own memory manager service
/// (SimpleExecutorMemoryManager, of LLVM 14 to 19 or of LLVM 22), which every executor has: content
/// travels in the transport's messages, and each allocation has a reservation of its own. So it takes
/// whole pages, three messages from allocate to deallocate (one deallocates any number), and addresses
/// that the executor chooses.
///
/// The transport must know the service's bootstrap symbols by name, and the executor's pages must be as
/// large as this process's. `instead_of` says why a better mapper was not taken, for the statistics;
/// copied; may be NULL. On success `*mapper` is the new mapper, to be freed with jitmem_mapper_free.
/// Thread-safe.
///
/// What is different for its managers: each reservation counts as a window. An allocation that would
/// lie out of reach of 32-bit references from what is live is refused with JITMEM_WINDOW_FULL; with
/// JITMEM_GROWTH_ANOTHER_WINDOW only from what is live of the same JITDylib. JITMEM_PLACEMENT_FIXED is
/// JITMEM_UNSUPPORTED, commit has no effect, a quota counts whole reservations, and segments of
/// finalize lifetime stay until their allocation is deallocated. The try functions answer
/// JITMEM_WOULD_BLOCK.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED if the executor
/// does not publish the service.
///
/// Requires:
/// As jitmem_mapper_llvm_shared.
jitmem_status jitmem_mapper_llvm_simple(const struct jitmem_transport *transport,
                                        const char *instead_of,
                                        struct jitmem_mapper **mapper,
                                        struct jitmem_error **error);

/// Frees a mapper; managers that use it keep what they need. NULL and a mapper that was freed
/// before: does nothing.
///
/// Requires:
/// `mapper` is NULL or came from this library, and no other thread uses this handle.
void jitmem_mapper_free(struct jitmem_mapper *mapper);

/* ==== 5. Groups: one set of linked code in several executors ==== */

/// An executor that a group is to have. Set what is not chosen to zero.
typedef struct jitmem_new_executor {
  /// The way to it, which the host calls into it by as well.
  const struct jitmem_transport *transport;
  /// What errors and events call it; copied; NULL: its number.
  const char *name;
  /// As jitmem_executor_options.service.
  uint64_t service;
  /// As jitmem_executor_options.instance.
  uint64_t instance;
  /// 0.
  uint64_t reserved[2];
} jitmem_new_executor;

/// What has happened to a group.
JITMEM_ENUM(jitmem_group_change) {
  /// An executor has joined: it has all that the others have, and what is finalized from then on.
  JITMEM_GROUP_JOINED = 1,
  /// The host has removed an executor.
  JITMEM_GROUP_REMOVED = 2,
  /// An executor has ended, or its connection has, for instance because it broke the protocol of that.
  JITMEM_GROUP_DIED = 3,
  /// An executor was put out: its answer was none, it refused a whole message, or it did not answer within a
  /// limit.
  JITMEM_GROUP_PUT_OUT = 4,
};

/// Something that has happened to a group.
typedef struct jitmem_group_event {
  /// sizeof(jitmem_group_event) in this library.
  size_t struct_size;
  /// One of jitmem_group_change.
  uint32_t change;
  /// How many executors the group has now.
  uint32_t executors;
  /// The number of the executor.
  uint64_t executor;
  /// What the host calls it; its number if the host has said nothing.
  const char *name;
  /// Why it has left; NULL if it has joined or the host has removed it.
  const char *reason;
} jitmem_group_event;

/// Learns of an event of a group, which is valid during the call.
typedef void (*jitmem_group_event_fn)(void *ctx, const struct jitmem_group_event *event);

/// Who is told of a group's events. Set struct_size to sizeof(jitmem_group_observer).
///
/// `fn` runs in any thread and in several at a time, without a lock of the library's. The thread may be one
/// that reads answers, so it must not wait for an executor. After the last event `destroy` runs.
typedef struct jitmem_group_observer {
  /// sizeof(jitmem_group_observer).
  size_t struct_size;
  /// Called with ctx for each event.
  jitmem_group_event_fn fn;
  /// The host's own.
  void *ctx;
  /// Frees ctx after the last event, or if the group can't be made; may be NULL. It does not run where
  /// struct_size is wrong.
  jitmem_destroy_fn destroy;
} jitmem_group_observer;

/// What is known of an executor of a group.
typedef struct jitmem_group_executor {
  /// sizeof(jitmem_group_executor) in this library.
  size_t struct_size;
  /// Its number, given once in a group.
  uint64_t number;
  /// What the host calls it; its number if the host has said nothing.
  const char *name;
  /// Messages that were sent to it.
  uint64_t messages;
  /// Bytes of messages in both directions.
  uint64_t bytes;
} jitmem_group_executor;

/// Sees an executor of a group; what it sees is valid during the call.
typedef void (*jitmem_group_executor_fn)(void *ctx, const struct jitmem_group_executor *executor);

/// Makes a mapper over several executors on this machine, which are linked for once: code and constants are
/// one set of sealed pages that all map at the same addresses; writable data is private to each; actions run in
/// each, first to last, in all or in none. Calls into one go through its own transport.
///
/// Linked code refers to what an executor has by address, so all must have their programs and libraries at the
/// same addresses: fork them from one process, or start them without address-space randomization. The library
/// checks that of its own service; of other libraries the host must know it. Executors are numbered from 1.
///
/// An executor that ends, breaks the protocol, or does not answer within a limit of its transport leaves the
/// group, and the others go on; what is asked for when the last one has gone fails as with one executor. If its
/// process lives, it goes on showing what is linked at its addresses, and memory is used again without it: end the
/// process before anything is deallocated. A finalize action that fails in one executor is undone in the others, and the error names the executor. Memory
/// that was deallocated is used again when all executors have forgotten it. Segments of finalize lifetime stay
/// until deallocate, for executors that join later. jitmem_write_scope writes code and constants of all; writable
/// data can't be written so.
///
/// `observer` may be NULL. Waits for the executors, so it must not be called where their answers come from. On
/// success `*mapper` is the new mapper, to be freed with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, no executor or a wrong struct_size; JITMEM_INVALID_HANDLE; what
/// jitmem_mapper_add_executor says of an executor, which the message names.
///
/// Requires:
/// `executors` is NULL or points to `count` structs with strings and handles of this library; `observer` is NULL
/// or a struct of the size that it says, whose functions may be called from any thread; `mapper` and `error` are
/// NULL or places for a pointer.
jitmem_status jitmem_mapper_group(const struct jitmem_new_executor *executors,
                                  size_t count,
                                  const struct jitmem_group_observer *observer,
                                  struct jitmem_mapper **mapper,
                                  struct jitmem_error **error);

/// Has an executor join a group while that is used, and waits until it has all that the others have: windows,
/// chunks, and what the finalize actions of live allocations do, in the order in which they were finalized.
/// Nothing is linked. `*number` (may be NULL) is its number in the group. Thread-safe; must not be called where
/// answers come from.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, and for a mapper that is no group; JITMEM_INVALID_HANDLE;
/// JITMEM_UNSUPPORTED if the executor has no service, if memfds can't be handed to it through a socket, or if its
/// program lies at other addresses than the group's; JITMEM_DISCONNECTED, JITMEM_TIMED_OUT; that a window of the
/// group is not free there; what a finalize action says there. The session with it is ended then.
///
/// Requires:
/// `mapper` is NULL or a handle of this library; `executor` is NULL or a struct with a string and a handle of
/// this library; `number` and `error` are NULL or places for a number and a pointer.
jitmem_status jitmem_mapper_add_executor(const struct jitmem_mapper *mapper,
                                         const struct jitmem_new_executor *executor,
                                         uint64_t *number,
                                         struct jitmem_error **error);

/// Removes an executor from a group: its deallocation actions run and it gives the group's memory back. Waits for
/// that, for jitmem_limits.close at most: end the process of one that takes longer before anything is deallocated.
/// Must not be called where answers come from. Calls into it must have returned. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a mapper that is no group, a number that none of its executors has, and
/// for the last one; JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `mapper` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
jitmem_status jitmem_mapper_remove_executor(const struct jitmem_mapper *mapper,
                                            uint64_t number,
                                            struct jitmem_error **error);

/// Calls `see` in this thread for each executor that a group has now, without a lock. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, and for a mapper that is no group; JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `mapper` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or a place for a
/// pointer.
jitmem_status jitmem_mapper_executors(const struct jitmem_mapper *mapper,
                                      jitmem_group_executor_fn see,
                                      void *ctx,
                                      struct jitmem_error **error);

/* ==== 6. Events: what a manager tells its host of ==== */

/// Memory of one segment of a jitmem_allocation.
typedef struct jitmem_allocation_segment {
  /// First executor address.
  uint64_t address;
  /// Bytes, content and zero-fill.
  uint64_t size;
  /// Its place in the request.
  uint32_t index;
  /// Bits of jitmem_protection.
  uint32_t protection;
  /// One of jitmem_lifetime.
  uint32_t lifetime;
  /// 0: for fields of later versions.
  uint32_t reserved[5];
} jitmem_allocation_segment;

/// What a manager knows of an allocation. All that it points to is valid for as long as it is itself.
typedef struct jitmem_allocation {
  /// sizeof(jitmem_allocation) in this library.
  size_t struct_size;
  /// Its handle.
  uint64_t allocation;
  /// The JITDylib that it was allocated for; 0: none.
  uint64_t dylib;
  /// The host's tag; 0: none.
  uint64_t tag;
  /// Its name; NULL: none.
  const char *name;
  /// The name of its JITDylib; NULL: none.
  const char *dylib_name;
  /// Its segments, without those that have no memory: in JITMEM_EVENT_FINALIZED, _DEALLOCATED
  /// without those of finalize lifetime, which have served.
  const struct jitmem_allocation_segment *segments;
  /// How many there are.
  size_t segment_count;
} jitmem_allocation;

/// What a jitmem_event tells of.
JITMEM_ENUM(jitmem_event_kind) {
  /// Address space for a window was reserved.
  JITMEM_EVENT_WINDOW_RESERVED = 1,
  /// A window is being given back, with all that is in it.
  JITMEM_EVENT_WINDOW_RELEASED = 2,
  /// A chunk of a window has memory now.
  JITMEM_EVENT_CHUNK_MADE = 3,
  /// The memory of a chunk was given back; its addresses are free for another chunk.
  JITMEM_EVENT_CHUNK_RECLAIMED = 4,
  /// Memory was allocated; its content is still to be written.
  JITMEM_EVENT_ALLOCATED = 5,
  /// Content is in place and finalize actions have run; the answer is still to be given.
  JITMEM_EVENT_FINALIZED = 6,
  /// A finalized allocation is being deallocated: its deallocation actions are still to be run,
  /// and its memory is still its own.
  JITMEM_EVENT_DEALLOCATED = 7,
  /// An allocation goes that was not finalized: it was abandoned, or its finalize failed.
  JITMEM_EVENT_ABANDONED = 8,
  /// This process has forked; told in the thread that did.
  JITMEM_EVENT_FORKED_PARENT = 9,
  /// This process is the child of a fork, with a copy of all that the parent has. It has one
  /// thread, in which this is told before `fork` returns.
  JITMEM_EVENT_FORKED_CHILD = 10,
  /// Another process has taken the place of the one that ran the executor's linked code (`jitmem-executor
  /// --supervise`): code, constants and data are at the same addresses, data as it was finalized, and finalize
  /// actions have run again. Told in a thread of jitmem's to each manager of the executor, perhaps before or
  /// after the errors of calls that were pending; where processes end one after the other before their actions
  /// have run, once for all of them. Only where the session has a socket of its own.
  JITMEM_EVENT_EXECUTOR_RESTARTED = 11,
};

/// Something that happened in a manager.
typedef struct jitmem_event {
  /// sizeof(jitmem_event) in this library.
  size_t struct_size;
  /// Grows by one with each event of a manager, from 1 on.
  uint64_t sequence;
  /// Nanoseconds of CLOCK_MONOTONIC when it happened; 0 unless jitmem_observer.times is 1.
  uint64_t time;
  /// One of jitmem_event_kind.
  uint32_t kind;
  /// Bits of jitmem_protection for a chunk; else 0.
  uint32_t protection;
  /// First executor address of a window or chunk; else 0.
  uint64_t address;
  /// Bytes of a window or chunk; else 0.
  uint64_t size;
  /// The allocation; NULL for windows, chunks, forks and restarts.
  const struct jitmem_allocation *allocation;
  /// JITMEM_EVENT_EXECUTOR_RESTARTED: how often that has happened since the executor began to serve; else 0.
  uint64_t restarts;
  /// JITMEM_EVENT_EXECUTOR_RESTARTED: what has ended the process before, in words; else NULL.
  const char *reason;
} jitmem_event;

/// Learns of an event, which is valid during the call.
typedef void (*jitmem_event_fn)(void *ctx, const struct jitmem_event *event);

/// Who is told of a manager's events. Set struct_size to sizeof(jitmem_observer).
///
/// `fn` runs as often as something happens, in any thread and in several at a time, without a lock
/// of the library's: it may call any function but jitmem_manager_free of this manager. Before a
/// finalize, allocate, abandon or deallocate is answered: in the thread that waits for the answer, or else
/// where the callback with the answer runs, before that. What an executor's answer leads to besides (windows,
/// chunks) is told where callbacks run too, perhaps later than what follows; `sequence` has the
/// order in which things happened.
///
/// An allocation's events come in its order. JITMEM_EVENT_FINALIZED comes when its content can be
/// read and run, JITMEM_EVENT_DEALLOCATED before its deallocation actions run, and so before its
/// addresses can be another allocation's; a finalize that failed is told with its answer, when the
/// addresses may be used again. A manager that is freed tells of what is left as deallocated, last to
/// first, or abandoned, and then of its windows as released, before any of it happens; after the last
/// event `destroy` runs. Forks are told in both processes, where fork handlers run. A manager over LLVM's memory manager service has no windows and chunks to tell of.
typedef struct jitmem_observer {
  /// sizeof(jitmem_observer).
  size_t struct_size;
  /// Called with ctx for each event.
  jitmem_event_fn fn;
  /// The host's own.
  void *ctx;
  /// Frees ctx after the last event, or if the manager can't be made; may be NULL. It does not run
  /// where struct_size is wrong.
  jitmem_destroy_fn destroy;
  /// 1: events have the time, which costs a look at the clock.
  uint32_t times;
  /// 0.
  uint32_t reserved;
} jitmem_observer;

/// Sees what is known of an allocation; it is valid during the call.
typedef void (*jitmem_allocation_fn)(void *ctx, const struct jitmem_allocation *allocation);

/// Calls `see` in this thread with what is known of a live allocation: the tag and the names that it
/// was allocated with, its JITDylib, and its segments, those of finalize lifetime included. No lock
/// is held meanwhile. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL; JITMEM_INVALID_HANDLE if it is not live in this manager, or if it
/// has neither tag nor name and the manager has neither an observer nor the option `usage`.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or
/// a place for a pointer.
jitmem_status jitmem_manager_describe(const struct jitmem_manager *manager,
                                      uint64_t allocation,
                                      jitmem_allocation_fn see,
                                      void *ctx,
                                      struct jitmem_error **error);

/* ==== 7. Manager: allocate, finalize, deallocate: memory for link graphs ==== */

/// Bits of a segment's protection. Writable and executable together is refused.
JITMEM_ENUM(jitmem_protection) {
  /// The executor may read it.
  JITMEM_PROT_READ = 1,
  /// The executor may write it.
  JITMEM_PROT_WRITE = 2,
  /// The executor may run it.
  JITMEM_PROT_EXEC = 4,
};

/// How long a segment lives.
JITMEM_ENUM(jitmem_lifetime) {
  /// Until it is deallocated.
  JITMEM_LIFETIME_STANDARD = 0,
  /// Until the finalize actions have run.
  JITMEM_LIFETIME_FINALIZE = 1,
  /// Never in executor memory: it gets address 0 and no working memory.
  JITMEM_LIFETIME_NO_ALLOC = 2,
};

/// What the code of a segment is for. Code of one hint lies together, so that what runs often is dense: it
/// takes fewer pages of memory, and fewer entries of the processor's caches for addresses.
///
/// It has an effect on segments of standard lifetime that may be read and run, and not written; and in windows
/// of 32 MiB and more. Where no further chunk is to be had, and where half of a window's chunks are in use, code
/// lies among that of other hints. Of segments of one graph with different hints, parts may lie on both sides of
/// other graphs' code, where libgcc's search of sections of frames that were registered does not find
/// the later ones; an index of frames does.
JITMEM_ENUM(jitmem_code_hint) {
  /// Nothing is known.
  JITMEM_CODE_NORMAL = 0,
  /// It runs often.
  JITMEM_CODE_HOT = 1,
  /// It runs rarely: paths of errors, initializers.
  JITMEM_CODE_COLD = 2,
  /// Jumps to code that lies elsewhere.
  JITMEM_CODE_STUB = 3,
};

/// Where the first window goes.
JITMEM_ENUM(jitmem_placement) {
  /// Where the executor's own images are in reach of 32-bit references.
  JITMEM_PLACEMENT_DEFAULT = 0,
  /// So that jitmem_manager_options.address and every one of its addresses are in reach.
  JITMEM_PLACEMENT_NEAR = 1,
  /// Exactly at jitmem_manager_options.address, a multiple of the page size.
  JITMEM_PLACEMENT_FIXED = 2,
};

/// What happens when the window is full.
JITMEM_ENUM(jitmem_growth) {
  /// The request fails with JITMEM_WINDOW_FULL.
  JITMEM_GROWTH_ERROR = 0,
  /// Another window is reserved; what belongs to one JITDylib stays inside one.
  JITMEM_GROWTH_ANOTHER_WINDOW = 1,
};

/// What happens in this process to code and constants that forked children see, once they are
/// deallocated.
JITMEM_ENUM(jitmem_fork_policy) {
  /// They stay as they are for as long as any child of an earlier fork is there, and their chunk goes
  /// back as a whole. jitmem_stats.frozen says how many bytes do.
  JITMEM_FORK_FREEZE = 0,
  /// They are used again: children do not run what their parent has deallocated.
  JITMEM_FORK_REUSE = 1,
};

/// Whether fresh memory is taken in huge pages, 2 MiB on x86-64, in this process or, with shared pages, in
/// both.
JITMEM_ENUM(jitmem_huge_pages) {
  /// Only what jitmem_manager_collapse finds.
  JITMEM_HUGE_PAGES_ON_CALL = 0,
  /// Where memory of one protection has so much in use in a window, 32 MiB, that one more is little beside
  /// it. The allocation that begins one waits for it, some 100 µs.
  JITMEM_HUGE_PAGES_WHERE_LARGE = 1,
};

/// Sizes for jitmem_manager_options.window_size that have a name.
JITMEM_ENUM(jitmem_window_size) {
  /// 128 MiB, as far as a direct branch of AArch64 reaches: for code that branches to all else in its
  /// window without stubs.
  JITMEM_WINDOW_SIZE_BRANCH_REACH = 134217728,
};

/// Choices for a manager. Set struct_size to sizeof(jitmem_manager_options) and the rest to zero
/// for the defaults.
typedef struct jitmem_manager_options {
  /// sizeof(jitmem_manager_options).
  size_t struct_size;
  /// Bytes of address space per window, rounded up to pages; 64 KiB, or four pages of 64 KiB, to 2 GiB less 2 MiB. 0: 1 GiB. The
  /// smallest holds a graph of code, constants and data where 2 MiB of address space are left. One of
  /// jitmem_window_size may be meant.
  uint64_t window_size;
  /// For JITMEM_PLACEMENT_NEAR and _FIXED: the address; else 0.
  uint64_t address;
  /// Most bytes handed out at a time, rounding included; jitmem_manager_set_quota changes it. 0: no
  /// limit.
  uint64_t quota;
  /// One of jitmem_placement.
  uint32_t placement;
  /// One of jitmem_growth.
  uint32_t growth;
  /// 1: take the pages of a chunk when it is made, so that a shortage is an error then and not a
  /// kill later. 0: pages are taken when touched. A custom mapper is told by prepare_async.
  uint32_t commit;
  /// 1: close the writer views of this manager's memory, for reading too, while nothing is in flight.
  /// The first allocation that comes then opens them, the last one to be finalized or abandoned closes
  /// them, and deallocating code opens them for a moment: a system call per chunk each time. 0: they
  /// stay open. Data that linked code may write has no such view in this process; a custom mapper is
  /// not told, and a remote executor keeps its own open.
  uint32_t close_writers;
  /// For JITMEM_PLACEMENT_NEAR: further addresses that must be in reach of everything, read during
  /// the call. Two that are too far apart for one window are JITMEM_INVALID_ARGUMENT. A window may
  /// become smaller than asked for, so that it reaches all.
  const uint64_t *addresses;
  /// Number of them; `address` counts as well then, unless it is 0.
  size_t address_count;
  /// Who is told of what comes and goes; read during the call. NULL: no one. Costs the manager a
  /// table of its allocations.
  const struct jitmem_observer *observer;
  /// 1: count how much each JITDylib and each tag has, for jitmem_manager_usage. Costs the same
  /// table.
  uint32_t usage;
  /// 1: what is deallocated is used again only once jitmem_manager_reclaim says so, since other
  /// threads may still run it. 0: at once.
  uint32_t defer_reclamation;
  /// One of jitmem_fork_policy.
  uint32_t fork_policy;
  /// One of jitmem_huge_pages.
  uint32_t huge_pages;
} jitmem_manager_options;

/// One segment of a request.
typedef struct jitmem_segment {
  /// Bytes that the linker writes.
  uint64_t content_size;
  /// Zero bytes behind them.
  uint64_t zero_fill_size;
  /// Alignment of the first byte: a power of two up to 1 GiB. A window that is twice as large has a place
  /// for it, wherever it lies.
  uint64_t alignment;
  /// Bits of jitmem_protection.
  uint32_t protection;
  /// One of jitmem_lifetime.
  uint32_t lifetime;
  /// One of jitmem_code_hint.
  uint32_t code_hint;
  /// 0: for fields of later versions.
  uint32_t reserved[3];
} jitmem_segment;

/// Memory of one segment.
typedef struct jitmem_segment_memory {
  /// Its address in the executor; 0 for a no-alloc segment.
  uint64_t address;
  /// Where its content_size bytes are written, by one thread at a time, until finalize or
  /// abandon is called; all of them must be written. NULL for a no-alloc segment.
  void *working_memory;
  /// Written 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_segment_memory;

/// A call of a wrapper function in the executor: (const char *args, size_t size), answering
/// LLVM's CWrapperFunctionResult with a serialized error.
typedef struct jitmem_wrapper_call {
  /// Executor address; 0: no call.
  uint64_t function;
  /// Serialized arguments; copied during the call that takes them. May be NULL if args_size is 0.
  const void *args;
  /// Bytes of args.
  size_t args_size;
} jitmem_wrapper_call;

/// An allocation action: a call on finalize and its twin on deallocate.
typedef struct jitmem_action {
  /// Run on finalize.
  struct jitmem_wrapper_call finalize;
  /// Run on deallocate, if the finalize call succeeded.
  struct jitmem_wrapper_call dealloc;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_action;

/// Receives a new manager, which it owns, or an error, which is valid during the call.
typedef void (*jitmem_created_fn)(void *ctx,
                                  struct jitmem_manager *manager,
                                  const struct jitmem_error *error);

/// Makes a manager over a mapper and reserves its first window.
///
/// `options` may be NULL for the defaults. On success `*manager` is the new manager, to be freed
/// with jitmem_manager_free. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or bad options, JITMEM_INVALID_HANDLE for a freed
/// mapper, JITMEM_OUT_OF_MEMORY where no address space is to be had, what the mapper answers.
///
/// Requires:
/// `mapper` is NULL or a handle of this library; `options` is NULL or points to a struct of the
/// size that it says; `manager` and `error` are NULL or places for a pointer.
jitmem_status jitmem_manager_create(const struct jitmem_mapper *mapper,
                                    const struct jitmem_manager_options *options,
                                    struct jitmem_manager **manager,
                                    struct jitmem_error **error);

/// jitmem_manager_create without waiting: `fn` receives the manager.
///
/// Requires:
/// As jitmem_manager_create; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_create_async(const struct jitmem_mapper *mapper,
                                          const struct jitmem_manager_options *options,
                                          jitmem_created_fn fn,
                                          void *ctx,
                                          jitmem_destroy_fn destroy,
                                          struct jitmem_error **error);

/// Changes the quota of a manager: the most bytes handed out at a time, rounding included; 0: no limit.
/// It may be below what is in use: nothing more is handed out then until enough is deallocated.
/// Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
jitmem_status jitmem_manager_set_quota(const struct jitmem_manager *manager,
                                       uint64_t quota,
                                       struct jitmem_error **error);

/// Frees a manager: what is still finalized goes last to first with its deallocation actions,
/// what is in flight is abandoned, and the windows are released. No code of it may run any more.
/// NULL and a manager that was freed before: does nothing.
///
/// Requires:
/// `manager` is NULL or came from this library, and no other thread uses this handle.
void jitmem_manager_free(struct jitmem_manager *manager);

/// Receives an allocation: its handle and one entry of `memory` per segment, valid during the
/// call; or an error, valid during the call, and then `allocation` is 0 and `memory` NULL.
typedef void (*jitmem_allocated_fn)(void *ctx,
                                    uint64_t allocation,
                                    const struct jitmem_segment_memory *memory,
                                    size_t count,
                                    const struct jitmem_error *error);

/// Allocates memory for the segments of one graph.
///
/// `dylib` identifies the graph's JITDylib (its address will do; 0: none): everything of one
/// JITDylib lies in one window. `memory` receives one entry per segment, `*allocation` the handle,
/// from here to jitmem_manager_deallocate; never 0 and never all ones. `count` is 0 to 256.
/// Thread-safe. Waits for the mapper where a window must be reserved.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, sizes that overflow, alignment no power of two, unknown or
/// writable and executable protection, unknown lifetime), JITMEM_INVALID_HANDLE (freed manager; in a
/// forked child, one over an executor), JITMEM_WINDOW_FULL, JITMEM_QUOTA_EXCEEDED, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED,
/// JITMEM_MAPPER_FAILED. Nothing is allocated then.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `segments` and `memory` are NULL or arrays of
/// `count`; `allocation` and `error` are NULL or places to write.
jitmem_status jitmem_manager_allocate(const struct jitmem_manager *manager,
                                      const struct jitmem_segment *segments,
                                      size_t count,
                                      uint64_t dylib,
                                      struct jitmem_segment_memory *memory,
                                      uint64_t *allocation,
                                      struct jitmem_error **error);

/// jitmem_manager_allocate without waiting: `fn` receives the allocation. `segments` is read during
/// this call only.
///
/// Requires:
/// As jitmem_manager_allocate; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_allocate_async(const struct jitmem_manager *manager,
                                            const struct jitmem_segment *segments,
                                            size_t count,
                                            uint64_t dylib,
                                            jitmem_allocated_fn fn,
                                            void *ctx,
                                            jitmem_destroy_fn destroy,
                                            struct jitmem_error **error);

/// jitmem_manager_allocate where that needs no waiting; JITMEM_WOULD_BLOCK, without an error object,
/// where it does: nothing is done then, and jitmem_manager_allocate_async will do it.
///
/// Requires:
/// As jitmem_manager_allocate.
jitmem_status jitmem_manager_try_allocate(const struct jitmem_manager *manager,
                                          const struct jitmem_segment *segments,
                                          size_t count,
                                          uint64_t dylib,
                                          struct jitmem_segment_memory *memory,
                                          uint64_t *allocation,
                                          struct jitmem_error **error);

/// Writes `size` bytes at `offset` of a segment's content, with all checks: for hosts that would
/// rather not write through working_memory. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or bytes outside the content, JITMEM_INVALID_HANDLE for
/// an allocation that is not in flight.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `bytes` is NULL or has `size` bytes; `error` is
/// NULL or a place for a pointer.
jitmem_status jitmem_manager_write(const struct jitmem_manager *manager,
                                   uint64_t allocation,
                                   size_t segment,
                                   uint64_t offset,
                                   const void *bytes,
                                   size_t size,
                                   struct jitmem_error **error);

/// Learns how a request ended: `error` is NULL for success, else valid during the call.
typedef void (*jitmem_done_fn)(void *ctx, const struct jitmem_error *error);

/// Makes an allocation's content visible in the executor and runs its finalize actions first to
/// last. Afterwards its working memory must not be touched.
///
/// `actions` may be NULL if `count` is 0. If an action fails, the deallocation twins of those
/// before it run last to first. Actions run in this thread for a mapper of this process.
/// Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT, JITMEM_INVALID_HANDLE (not in flight; nothing is done then);
/// JITMEM_ACTION_FAILED, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_MAPPER_FAILED: the memory is
/// free again and the allocation gone.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `actions` is NULL or has `count` entries whose
/// arguments are as long as they say; `error` is NULL or a place for a pointer. The functions are
/// wrapper functions.
jitmem_status jitmem_manager_finalize(const struct jitmem_manager *manager,
                                      uint64_t allocation,
                                      const struct jitmem_action *actions,
                                      size_t count,
                                      struct jitmem_error **error);

/// jitmem_manager_finalize without waiting. `actions` is read during this call only.
///
/// Requires:
/// As jitmem_manager_finalize; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_finalize_async(const struct jitmem_manager *manager,
                                            uint64_t allocation,
                                            const struct jitmem_action *actions,
                                            size_t count,
                                            jitmem_done_fn fn,
                                            void *ctx,
                                            jitmem_destroy_fn destroy,
                                            struct jitmem_error **error);

/// jitmem_manager_finalize without actions where that needs no waiting; JITMEM_WOULD_BLOCK, without an
/// error object, where it does: nothing is done then.
///
/// Requires:
/// As jitmem_manager_finalize.
jitmem_status jitmem_manager_try_finalize(const struct jitmem_manager *manager,
                                          uint64_t allocation,
                                          struct jitmem_error **error);

/// Gives up an allocation that was not finalized; its working memory must not be touched any more.
/// Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_HANDLE if it is not in flight.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
jitmem_status jitmem_manager_abandon(const struct jitmem_manager *manager,
                                     uint64_t allocation,
                                     struct jitmem_error **error);

/// jitmem_manager_abandon without waiting.
///
/// Requires:
/// As jitmem_manager_abandon; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_abandon_async(const struct jitmem_manager *manager,
                                           uint64_t allocation,
                                           jitmem_done_fn fn,
                                           void *ctx,
                                           jitmem_destroy_fn destroy,
                                           struct jitmem_error **error);

/// Runs the deallocation actions of finalized allocations, last allocation first, each one's last
/// action first, and frees their memory. No code of them may run any more. Waits until no
/// jitmem_write_scope of them is open.
///
/// `count` may be 0. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT, JITMEM_INVALID_HANDLE (one of them is not finalized here or is
/// named twice), JITMEM_INVALID_ARGUMENT too if this thread began a write scope of one of them that is
/// open: nothing is done then; JITMEM_ACTION_FAILED: all actions were run nevertheless, the
/// memory is free, and the message names every failure.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `allocations` is NULL or has `count` entries;
/// `error` is NULL or a place for a pointer.
jitmem_status jitmem_manager_deallocate(const struct jitmem_manager *manager,
                                        const uint64_t *allocations,
                                        size_t count,
                                        struct jitmem_error **error);

/// jitmem_manager_deallocate where that needs no waiting and no action; JITMEM_WOULD_BLOCK, without an
/// error object, where it does: nothing is done then.
///
/// Requires:
/// As jitmem_manager_deallocate.
jitmem_status jitmem_manager_try_deallocate(const struct jitmem_manager *manager,
                                            const uint64_t *allocations,
                                            size_t count,
                                            struct jitmem_error **error);

/// jitmem_manager_deallocate without waiting. `allocations` is read during this call only.
///
/// Requires:
/// As jitmem_manager_deallocate; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_deallocate_async(const struct jitmem_manager *manager,
                                              const uint64_t *allocations,
                                              size_t count,
                                              jitmem_done_fn fn,
                                              void *ctx,
                                              jitmem_destroy_fn destroy,
                                              struct jitmem_error **error);

/// Has memory that is nearly full put into huge pages, of which at most an eighth was not in use; all of it
/// counts as committed from then on. Linked code runs on meanwhile. If `bytes` is not NULL it is set to how
/// many bytes lie in huge pages then, of those that were asked for by this call. What lies in chunks that
/// are smaller stays as it is. Some 100 µs to 1 ms each: for hosts that have linked much of what they will run
/// for long. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE (freed; in a forked child, a manager over an executor); if the system
/// refuses all of them, why:
/// EINVAL before Linux 6.1 or without huge pages, EAGAIN or ENOMEM for a shortage of the moment.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or a place for what
/// they are set to.
jitmem_status jitmem_manager_collapse(const struct jitmem_manager *manager,
                                      uint64_t *bytes,
                                      struct jitmem_error **error);

/// Gives everything back to the system that holds nothing: empty chunks, pages inside chunks, and
/// windows; and the free pages of this process's heap (malloc_trim). For hosts that know of memory
/// pressure, or that will be idle; a manager gives back most of it by itself, but for the heap. If
/// `bytes` is not NULL it is set to how many bytes of memory were given back, those of the heap left
/// out. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE (freed; in a forked child, a manager over an executor); if nothing could
/// be given back, what the
/// mapper answers.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or a place for what
/// they are set to.
jitmem_status jitmem_manager_trim(const struct jitmem_manager *manager,
                                  uint64_t *bytes,
                                  struct jitmem_error **error);

/// A request for memory that says more than the arguments of jitmem_manager_allocate. Set struct_size
/// to sizeof(jitmem_allocation_request) and the rest to zero for the defaults.
typedef struct jitmem_allocation_request {
  /// sizeof(jitmem_allocation_request).
  size_t struct_size;
  /// The segments of one graph; may be NULL if segment_count is 0.
  const struct jitmem_segment *segments;
  /// How many there are.
  size_t segment_count;
  /// The graph's JITDylib, as for jitmem_manager_allocate; 0: none.
  uint64_t dylib;
  /// A number that means something to the host, for its events, errors and usage. 0: none.
  uint64_t tag;
  /// A name, for instance that of the graph or function: UTF-8, at most 4,096 bytes, copied. NULL:
  /// none.
  const char *name;
  /// The name of the JITDylib, likewise.
  const char *dylib_name;
} jitmem_allocation_request;

/// jitmem_manager_allocate for an allocation with a tag or a name. The manager keeps a copy of them for as
/// long as the allocation is there, in a table that it would not have otherwise; errors about the
/// allocation show them, and events and jitmem_manager_describe have them.
///
/// Errors: as jitmem_manager_allocate; JITMEM_INVALID_ARGUMENT for names that are too long or not UTF-8.
///
/// Requires:
/// As jitmem_manager_allocate; `request` is NULL or points to a struct of the size that it says, and its names
/// are NULL or NUL-terminated.
jitmem_status jitmem_manager_request(const struct jitmem_manager *manager,
                                     const struct jitmem_allocation_request *request,
                                     struct jitmem_segment_memory *memory,
                                     uint64_t *allocation,
                                     struct jitmem_error **error);

/// jitmem_manager_request without waiting: `fn` receives the allocation. `request` is read during this
/// call only.
///
/// Requires:
/// As jitmem_manager_request; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_request_async(const struct jitmem_manager *manager,
                                           const struct jitmem_allocation_request *request,
                                           jitmem_allocated_fn fn,
                                           void *ctx,
                                           jitmem_destroy_fn destroy,
                                           struct jitmem_error **error);

/// jitmem_manager_request where that needs no waiting; JITMEM_WOULD_BLOCK, without an error object,
/// where it does: nothing is done then, and jitmem_manager_request_async will do it.
///
/// Requires:
/// As jitmem_manager_request.
jitmem_status jitmem_manager_try_request(const struct jitmem_manager *manager,
                                         const struct jitmem_allocation_request *request,
                                         struct jitmem_segment_memory *memory,
                                         uint64_t *allocation,
                                         struct jitmem_error **error);

/// What a section holds.
JITMEM_ENUM(jitmem_section_kind) {
  /// Code: read and executed once it is finalized.
  JITMEM_SECTION_CODE = 0,
  /// Constants: read once they are finalized.
  JITMEM_SECTION_CONSTANTS = 1,
  /// Data: read and written.
  JITMEM_SECTION_DATA = 2,
};

/// Makes a group without sections.
///
/// `dylib` is the number of the JITDylib, or of what else refers to its own code and data: all of it lies in
/// one window. With 0 that holds where the manager has one window, as it does by default. On success
/// `*group` is the new group, to be freed with jitmem_section_group_free. It keeps the manager's memory,
/// also when the manager is freed. Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED with another mapper
/// than JITMEM_IN_PROCESS_IN_PLACE.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `group` and `error` are NULL or places for a pointer.
jitmem_status jitmem_section_group_create(const struct jitmem_manager *manager,
                                          uint64_t dylib,
                                          struct jitmem_section_group **group,
                                          struct jitmem_error **error);

/// Gives memory for a section, at the address where it stays.
///
/// `kind` is one of jitmem_section_kind; `alignment` is a power of two, or 0 for none, and at most 1 GiB: a
/// window that is twice as large has a place for it, wherever it lies. `name` is for errors and may be NULL.
/// `*memory` reads zero, and may be written until the group is finalized, data until the group is freed. A
/// section of 0 bytes has an address of its own. Sections of one kind share pages until they are finalized.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, an unknown kind, an alignment that is no power of two or more than
/// 1 GiB), JITMEM_INVALID_HANDLE, JITMEM_WINDOW_FULL, JITMEM_QUOTA_EXCEEDED, JITMEM_OUT_OF_MEMORY.
///
/// Requires:
/// `group` is NULL or a handle of this library; `name` is NULL or a NUL-terminated string; `memory` and
/// `error` are NULL or places for a pointer.
jitmem_status jitmem_section_group_allocate(const struct jitmem_section_group *group,
                                            uint32_t kind,
                                            uint64_t size,
                                            uint64_t alignment,
                                            const char *name,
                                            void **memory,
                                            struct jitmem_error **error);

/// Has the next finalize register an `.eh_frame` section, which lies in a section of the group, with the
/// unwinder, so that exceptions pass through the code that it describes. It is deregistered before the group's
/// memory goes.
///
/// `section` has `size` bytes and ends with a zero length inside or behind them, as linkers lay it out.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; what lies in no section), JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `group` is NULL or a handle of this library; `section` is NULL, or such a section is there when the group
/// is finalized and stays as it is until the group is freed; `error` is NULL or a place for a pointer.
jitmem_status jitmem_section_group_register_eh_frame(const struct jitmem_section_group *group,
                                                     const void *section,
                                                     uint64_t size,
                                                     struct jitmem_error **error);

/// Gives all sections of a group that were allocated since the last time their protection, and registers
/// their frames. May be called again: what is allocated afterwards lies in other pages.
///
/// Errors: JITMEM_INVALID_HANDLE, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_ACTION_FAILED (a section of
/// frames is none). The sections that were to be finalized are gone then, and what was finalized before
/// stays. For a group of jitmem_rtdyld_create_context also the first failure of jitmem_rtdyld_finalize_memory since
/// the last call, once.
///
/// Requires:
/// `group` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
jitmem_status jitmem_section_group_finalize(const struct jitmem_section_group *group,
                                            struct jitmem_error **error);

/// Deregisters the frames of a group and gives its memory back, finalized or not. Its code must not run any
/// more. NULL and a group that was freed before: does nothing.
///
/// Requires:
/// `group` is NULL or came from this library, and no other thread uses this handle.
void jitmem_section_group_free(struct jitmem_section_group *group);

/// LLVMMemoryManagerCreateContextCallback of
/// LLVMOrcCreateRTDyldObjectLinkingLayerWithMCJITMemoryManagerLikeCallbacks, for which
/// `manager`, a jitmem_manager, is CreateContextCtx: a section group for each object. For MCJIT the host calls
/// it, and passes what it gives to LLVMCreateSimpleMCJITMemoryManager as Opaque.
///
/// The five functions that follow are the other callbacks. For instance:
///
///   LLVMOrcCreateRTDyldObjectLinkingLayerWithMCJITMemoryManagerLikeCallbacks(
///       session, manager, jitmem_rtdyld_create_context, jitmem_rtdyld_notify_terminating,
///       jitmem_rtdyld_allocate_code_section, jitmem_rtdyld_allocate_data_section,
///       jitmem_rtdyld_finalize_memory, jitmem_rtdyld_destroy)
///
/// The manager's mapper is JITMEM_IN_PROCESS_IN_PLACE; with another one, finalize fails and says why. LLVM
/// registers frames itself. NULL if there is no memory for it. Thread-safe.
///
/// Requires:
/// `manager` is NULL or a jitmem_manager.
void *jitmem_rtdyld_create_context(void *manager);

/// LLVMMemoryManagerNotifyTerminatingCallback: does nothing. The manager stays the host's.
///
/// Requires:
/// Any argument will do.
void jitmem_rtdyld_notify_terminating(void *_manager);

/// LLVMMemoryManagerAllocateCodeSectionCallback. `opaque` is what jitmem_rtdyld_create_context gave. Where
/// there is no memory for the section, LLVM would end the process for NULL; so it gets memory that is never
/// run, and finalize says why. NULL if there is none of that either.
///
/// Requires:
/// `opaque` is NULL or such a pointer; `section_name` is NULL or a NUL-terminated string.
uint8_t *jitmem_rtdyld_allocate_code_section(void *opaque,
                                             size_t size,
                                             unsigned int alignment,
                                             unsigned int _section_id,
                                             const char *section_name);

/// LLVMMemoryManagerAllocateDataSectionCallback: constants if `is_read_only`, else data. As
/// jitmem_rtdyld_allocate_code_section.
///
/// Requires:
/// As jitmem_rtdyld_allocate_code_section.
uint8_t *jitmem_rtdyld_allocate_data_section(void *opaque,
                                             size_t size,
                                             unsigned int alignment,
                                             unsigned int _section_id,
                                             const char *section_name,
                                             int is_read_only);

/// LLVMMemoryManagerFinalizeMemoryCallback: gives the sections that were allocated since the last time their
/// protection. 0 on success; else 1, and `*message`, if `message` is not NULL, is a string from malloc that
/// says why, which LLVM frees, or NULL without memory for it. If one of these sections was refused, none of them is
/// executable, now or later, and what refers to them must not run; their memory goes with the group. Sections that
/// are allocated afterwards are not affected.
///
/// MCJIT does not look at the answer and gives addresses out all the same: its host calls
/// jitmem_section_group_finalize with Opaque before it uses one. That tells the first failure since the last such
/// call, once.
///
/// Requires:
/// `opaque` is NULL or what jitmem_rtdyld_create_context gave; `message` is NULL or a place for a pointer.
int jitmem_rtdyld_finalize_memory(void *opaque,
                                  char **message);

/// LLVMMemoryManagerDestroyCallback: gives the sections back. NULL: does nothing.
///
/// Requires:
/// `opaque` is NULL or what jitmem_rtdyld_create_context gave, and nothing uses it any more.
void jitmem_rtdyld_destroy(void *opaque);

/// Opens a finalized allocation for writing, by jitmem_write_scope_store and _pointer.
///
/// On success `*scope` is the new scope, to be ended with jitmem_write_scope_end. It keeps the manager's
/// memory, also when the manager is freed. Thread-safe. Waits only while an executor gives memory of the
/// allocation's chunk back, for jitmem_limits.memory, or for 10 seconds where that is no limit.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_TIMED_OUT, JITMEM_INVALID_HANDLE (it is not finalized, or a
/// deallocation waits for scopes that are open), JITMEM_UNSUPPORTED with mappers that do not write
/// finalized memory in place: remote, LLVM's services, custom.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `scope` and `error` are NULL or places for a pointer.
jitmem_status jitmem_write_scope_begin(const struct jitmem_manager *manager,
                                       uint64_t allocation,
                                       struct jitmem_write_scope **scope,
                                       struct jitmem_error **error);

/// Stores 4, 8 or 16 bytes at an executor address at once, after all that this thread wrote before:
/// linked code sees all of the new value or all of the old one, in another process too.
///
/// `address` is a multiple of `size`; `value` has `size` bytes, in the order in which they shall lie in
/// memory. Linked code sees data at once. It runs new code when the scope has ended, if not before; code
/// that runs meanwhile must be right with the old value and with the new one.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, another size, a misaligned address, or one outside the
/// allocation), JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED (code or constants of this process's mprotect
/// mapper; 16 bytes on a processor that has no such store).
///
/// Requires:
/// `scope` is NULL or a handle of this library; `value` is NULL or has `size` bytes; `error` is NULL or
/// a place for a pointer.
jitmem_status jitmem_write_scope_store(const struct jitmem_write_scope *scope,
                                       uint64_t address,
                                       const void *value,
                                       size_t size,
                                       struct jitmem_error **error);

/// Gives where `size` bytes at an executor address are written, for hosts that write themselves.
///
/// `*pointer` may be written until the scope ends. All of these bytes count as changed.
///
/// Errors: as jitmem_write_scope_store, for any size and alignment.
///
/// Requires:
/// `scope` is NULL or a handle of this library; `pointer` and `error` are NULL or places for a pointer.
jitmem_status jitmem_write_scope_pointer(const struct jitmem_write_scope *scope,
                                         uint64_t address,
                                         uint64_t size,
                                         void **pointer,
                                         struct jitmem_error **error);

/// Ends a scope. Where code was changed, every thread of this process then runs what was written before
/// the end: each core that runs one is made to serialize (membarrier, where the system has it). In
/// another process, cores see the change by themselves, at the latest with their next interrupt.
///
/// The handle is gone in any case. Deallocations that waited for the scope are done, in this thread, and
/// their callbacks run. Waits for the executor only where its processor needs cache maintenance. NULL
/// and a scope that has ended before: does nothing.
///
/// Errors: what the executor answers.
///
/// Requires:
/// `scope` is NULL or came from this library, and no other thread uses this handle; `error` is NULL or a
/// place for a pointer.
jitmem_status jitmem_write_scope_end(struct jitmem_write_scope *scope,
                                     struct jitmem_error **error);

/// Ends an epoch: everything that was deallocated before belongs to it or to one before it. With
/// jitmem_manager_options.defer_reclamation, a host that has code deallocated which threads may still
/// run
///
/// 1. sees to it that no thread enters the code any more, and deallocates it: its actions run, its
///    handle is gone;
/// 2. calls this;
/// 3. waits until every thread has been outside of linked code at least once since;
/// 4. calls jitmem_manager_reclaim with `*epoch`.
///
/// `*epoch` receives the number, which counts up from 1. Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED with LLVM's
/// memory manager service.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `epoch` and `error` are NULL or places to write.
jitmem_status jitmem_manager_advance_epoch(const struct jitmem_manager *manager,
                                           uint64_t *epoch,
                                           struct jitmem_error **error);

/// Gives back what was deallocated up to `epoch`, which jitmem_manager_advance_epoch answered. No thread
/// may be inside any more. Until then its code runs as before and its addresses are not used again.
///
/// `bytes` may be NULL; else it receives how much was given back, rounding included. A manager that is
/// freed gives everything back. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL and for an epoch that has not ended, JITMEM_INVALID_HANDLE,
/// JITMEM_UNSUPPORTED with LLVM's memory manager service; what the mapper answers, and the memory is free
/// all the same.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or places to write.
jitmem_status jitmem_manager_reclaim(const struct jitmem_manager *manager,
                                     uint64_t epoch,
                                     uint64_t *bytes,
                                     struct jitmem_error **error);

/// jitmem_manager_reclaim without waiting; the bytes that wait are in the statistics.
///
/// Requires:
/// As jitmem_manager_reclaim; `fn` and `destroy` may be called with `ctx`, from any thread.
jitmem_status jitmem_manager_reclaim_async(const struct jitmem_manager *manager,
                                           uint64_t epoch,
                                           jitmem_done_fn fn,
                                           void *ctx,
                                           jitmem_destroy_fn destroy,
                                           struct jitmem_error **error);

/// How far an allocation has come.
JITMEM_ENUM(jitmem_phase) {
  /// Its content is being written.
  JITMEM_PHASE_IN_FLIGHT = 1,
  /// It is being finalized.
  JITMEM_PHASE_FINALIZING = 2,
  /// It is finalized.
  JITMEM_PHASE_FINALIZED = 3,
  /// It is being deallocated or abandoned; its memory is still its own.
  JITMEM_PHASE_ENDING = 4,
  /// It was deallocated, and its memory is not used again yet: it waits to be reclaimed
  /// (jitmem_manager_options.defer_reclamation), or forked children see it. `allocation` is 0.
  JITMEM_PHASE_DEALLOCATED = 5,
  /// The memory is being handed out or taken back at this moment, perhaps by the thread that a
  /// signal has interrupted. Whose it is can't be told: `allocation` is 0.
  JITMEM_PHASE_CHANGING = 6,
};

/// What a look-up came to.
JITMEM_ENUM(jitmem_lookup_answer) {
  /// No allocation lies there.
  JITMEM_LOOKUP_NOTHING = 0,
  /// The location is filled in.
  JITMEM_LOOKUP_FOUND = 1,
  /// The location is NULL, misaligned or of a wrong size, or the manager is none. Nothing was written.
  JITMEM_LOOKUP_REFUSED = 2,
};

/// A segment of an allocation. Set struct_size to sizeof(jitmem_location) before a look-up.
typedef struct jitmem_location {
  /// sizeof(jitmem_location); afterwards the bytes that this library filled in.
  size_t struct_size;
  /// The manager, which stays its owner's; NULL for one that Rust code made.
  const struct jitmem_manager *manager;
  /// The allocation's handle; 0 in JITMEM_PHASE_DEALLOCATED and JITMEM_PHASE_CHANGING.
  /// jitmem_manager_describe gives its names, with a lock: not in a signal handler.
  uint64_t allocation;
  /// The JITDylib that it was allocated for; 0: none.
  uint64_t dylib;
  /// The host's tag; 0: none.
  uint64_t tag;
  /// First executor address of the segment.
  uint64_t address;
  /// Bytes that were asked for, content and zero-fill.
  uint64_t size;
  /// Bits of jitmem_protection.
  uint32_t protection;
  /// One of jitmem_lifetime.
  uint32_t lifetime;
  /// One of jitmem_phase.
  uint32_t phase;
  /// 0.
  uint32_t reserved;
} jitmem_location;

/// Finds the allocation that an address of this process lies in, in whichever manager of this process's
/// memory: for crash handlers, unwinders and profilers. Addresses of other processes' managers and of
/// custom mappers are looked up with jitmem_manager_lookup.
///
/// Async-signal-safe and lock-free: it takes no lock, waits for nothing, allocates nothing, makes no
/// system call and never faults, whatever the signal has interrupted and for any address. It works in
/// forked children too, however they were made. errno stays as it is.
///
/// A finalized allocation that is there from before the call until after it is found with certainty,
/// whatever other threads do to others meanwhile, and nothing is ever taken for it. What is in flight, being
/// finalized or going is found with its jitmem_phase as of one moment, and may be missed while that
/// changes. Segments of finalize lifetime are gone once their allocation is finalized.
///
/// Most look-ups take a few steps. An address of a window where nothing lies, or where much has come and gone
/// since the last look, takes a look at every record of that manager: about a millisecond for 100,000 small
/// graphs.
///
/// Requires:
/// `location` is NULL or has `struct_size` bytes.
jitmem_lookup_answer jitmem_lookup(uint64_t address,
                                   struct jitmem_location *location);

/// jitmem_lookup in one manager, for addresses of its executor: async-signal-safe and lock-free as that.
///
/// A manager over LLVM's memory manager service looks at the segments one after the other: about as long as
/// jitmem_lookup takes where nothing lies. In a forked child of the process that uses an executor, it
/// finds what there was at the fork.
///
/// Requires:
/// `manager` is NULL or a handle of this library that is not freed during the call; `location` is NULL or
/// has `struct_size` bytes.
jitmem_lookup_answer jitmem_manager_lookup(const struct jitmem_manager *manager,
                                           uint64_t address,
                                           struct jitmem_location *location);

/// Sees a segment of a live allocation; it is valid during the call.
typedef void (*jitmem_location_fn)(void *ctx, const struct jitmem_location *location);

/// Calls `see` in this thread with every segment of every live allocation of a manager, those of one
/// allocation one after the other; an allocation without memory comes once, with address and size 0. Not
/// for signal handlers. Thread-safe.
///
/// No lock is held during the calls, which may use the manager but not free it. An allocation that is there
/// from before the walk until after it comes exactly once; one that comes or goes meanwhile comes once, as it was
/// at one moment, or not at all. What is being deallocated or abandoned does not come.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE; JITMEM_OUT_OF_MEMORY if the heap has no room
/// for the segments of one allocation.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or a
/// place for a pointer.
jitmem_status jitmem_manager_walk(const struct jitmem_manager *manager,
                                  jitmem_location_fn see,
                                  void *ctx,
                                  struct jitmem_error **error);

/// Makes an action for a finalize of this manager, by which the executor's unwinder finds the frames that an
/// `.eh_frame` section describes, until the allocation is deallocated: exceptions pass through its code, and
/// backtraces show it. Where that unwinder asks an index (jitmem_stats.frames_found_by) and content is shared, finalize and
/// deallocate need no message for it.
///
/// The section has `size` bytes at executor address `start` and ends with a zero length inside or behind them, as
/// linkers lay it out. It is best a read-only part of the allocation that has the code. `args` is a place for
/// two numbers, which `*action` points to.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED where it is not known what
/// registers frames in the executor. Thread-safe. Waits for nothing.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `args` is NULL or a place for two numbers; `action` is NULL or a place for an
/// action; `error` is NULL or a place for a pointer. When the action is run such a section is there, and it stays as it is
/// until the allocation is deallocated.
jitmem_status jitmem_manager_eh_frame_action(const struct jitmem_manager *manager,
                                             uint64_t start,
                                             uint64_t size,
                                             uint64_t *args,
                                             struct jitmem_action *action,
                                             struct jitmem_error **error);

/// Gives the addresses of the wrapper functions of this process by which its indexes know an `.eh_frame` section and
/// forget it, for linkers that make actions themselves; each takes the section's range (LLVM's
/// `SPSExecutorAddrRange`).
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL; JITMEM_UNSUPPORTED where the unwinder of this process asks for no index: the
/// program is not linked with jitmem/unwind.c, or the unwinder is not that of libgcc_s. Thread-safe.
///
/// Requires:
/// `register_` and `deregister` are NULL or places for numbers; `error` is NULL or a place for a pointer.
jitmem_status jitmem_eh_frame_functions(uint64_t *register_,
                                        uint64_t *deregister,
                                        struct jitmem_error **error);

/// The frame description of the function of linked code that `pc` is in, by the indexes of this process; NULL for all else,
/// and for NULL. `bases` is libgcc's `struct dwarf_eh_bases`, three pointers, and is written where something is found. It is
/// what jitmem/unwind.c calls for libgcc's `_Unwind_Find_FDE`. Async-signal-safe and lock-free.
///
/// Requires:
/// `bases` is NULL or a place for three pointers. What has been linked is there while its code is unwound.
const void *jitmem_find_fde(const void *pc,
                            void *bases);

/* ==== 8. Images: linked code in a file, for later processes ==== */

/// Something that code depends on besides jitmem's version and the processor: the linker and its version,
/// options, the build-id of a library whose structures the code knows.
typedef struct jitmem_image_key {
  /// What it is.
  const char *name;
  /// Which. An image is opened only where all names and values are those that it was stored with.
  const char *value;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_key;

/// A segment of a graph where it was linked.
typedef struct jitmem_image_segment {
  /// Where it is in the executor.
  uint64_t address;
  /// What the linker has written: as many bytes as the segment has content.
  const void *content;
  /// What was asked for.
  struct jitmem_segment segment;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_segment;

/// Bytes that say where something outside of the graph is: best a pointer of 8 bytes. Their content says where the symbol
/// was: if that is in another graph of the image, they depend on that graph, and later processes are not asked for the symbol.
typedef struct jitmem_image_import {
  /// Their address: inside the content of a segment of the same graph.
  uint64_t slot;
  /// What they say where it is.
  const char *symbol;
  /// What is added to the symbol's address, before the slot's is subtracted.
  int64_t addend;
  /// JITMEM_IMAGE_DISTANCE_64: an address inside the segment that the distance is counted from. Else 0.
  uint64_t origin;
  /// One of jitmem_image_reference_kind. A distance of 4 bytes must fit in every process that links the image: the
  /// default place of windows has the process's own images in reach.
  uint32_t kind;
  /// 0: for fields of later versions.
  uint32_t reserved[3];
} jitmem_image_import;

/// How a slot says where its target is.
JITMEM_ENUM(jitmem_image_reference_kind) {
  /// 8 bytes: an address.
  JITMEM_IMAGE_ABSOLUTE_64 = 1,
  /// 4 bytes: a signed distance from the slot.
  JITMEM_IMAGE_RELATIVE_32 = 2,
  /// 8 bytes: a distance from the slot.
  JITMEM_IMAGE_RELATIVE_64 = 3,
  /// 8 bytes: a distance from `origin`.
  JITMEM_IMAGE_DISTANCE_64 = 4,
  /// 8 bytes: the distance from the slot to an address that is the same in all processes. The target does not count, and
  /// an import can't be of this kind.
  JITMEM_IMAGE_RELATIVE_FIXED_64 = 5,
};

/// Bytes that depend on where something of the image is. What refers to its own segment by a distance need not
/// be told.
typedef struct jitmem_image_reference {
  /// Address of the bytes: inside the content of a segment of the same graph.
  uint64_t slot;
  /// An address inside the segment that is meant. The content of the slot says which of it: it may be another
  /// address of the segment, or one outside of it at some distance.
  uint64_t target;
  /// JITMEM_IMAGE_DISTANCE_64: an address inside the segment that the distance is counted from. Else 0.
  uint64_t origin;
  /// One of jitmem_image_reference_kind.
  uint32_t kind;
  /// 0: for fields of later versions.
  uint32_t reserved[3];
} jitmem_image_reference;

/// A symbol that later processes find.
typedef struct jitmem_image_export {
  /// Its name.
  const char *symbol;
  /// Its address, inside a segment of the graph; of an image that is not linked: 0.
  uint64_t address;
  /// What the host wants to know of it; kept as it is.
  uint64_t flags;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_export;

/// A section of unwind information (`.eh_frame`).
typedef struct jitmem_image_frames {
  /// Its address, inside the content of a segment.
  uint64_t start;
  /// Bytes.
  uint64_t size;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_frames;

/// A call of a wrapper function. Its parts lie in the graph, so that they are right wherever the image lies. All 0: no call.
typedef struct jitmem_image_call {
  /// Address of a pointer to the function: the slot of an import or a reference of kind JITMEM_IMAGE_ABSOLUTE_64.
  uint64_t function;
  /// Address of its serialized arguments: inside the content of a segment of the same graph. What they have of addresses is told
  /// as references and imports.
  uint64_t args;
  /// Bytes of them.
  uint64_t args_size;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_call;

/// An allocation action that later processes run too.
typedef struct jitmem_image_action {
  /// Run on finalize.
  struct jitmem_image_call finalize;
  /// Run on deallocate.
  struct jitmem_image_call dealloc;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_image_action;

/// A linked graph: what jitmem_image_recorder_record copies. Set struct_size to sizeof(jitmem_image_graph) and
/// what it does not have to zero. Each array may be NULL if its count is 0.
typedef struct jitmem_image_graph {
  /// sizeof(jitmem_image_graph).
  size_t struct_size;
  /// What errors call it; may be NULL.
  const char *name;
  /// Its segments. Those without memory may be left out.
  const struct jitmem_image_segment *segments;
  size_t segment_count;
  /// Pointers to what is outside of the image.
  const struct jitmem_image_import *imports;
  size_t import_count;
  /// What depends on addresses inside of it.
  const struct jitmem_image_reference *references;
  size_t reference_count;
  /// What later processes look up.
  const struct jitmem_image_export *exports;
  size_t export_count;
  /// Its unwind information.
  const struct jitmem_image_frames *frames;
  size_t frames_count;
  /// What is run when it is finalized and deallocated, besides what registers its frames.
  const struct jitmem_image_action *actions;
  size_t action_count;
} jitmem_image_graph;

/// Makes a recorder without graphs.
///
/// On success `*recorder` is the new recorder, to be freed with jitmem_image_recorder_free. Thread-safe. Never
/// waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_OUT_OF_MEMORY.
///
/// Requires:
/// `recorder` and `error` are NULL or places for a pointer.
jitmem_status jitmem_image_recorder_create(struct jitmem_image_recorder **recorder,
                                           struct jitmem_error **error);

/// Copies a graph that is linked: to be called once its content is written, for the addresses that it will have, and
/// before it runs, since it would be stored as it is then. `*id` names it to the recorder; `id` may be NULL.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, unknown kinds, names that are not UTF-8, a range beyond the last address,
/// alignment to more than 1 GiB), JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED for a segment that lives only until finalize;
/// JITMEM_OUT_OF_MEMORY. Nothing is recorded then. Whether graphs fit together is checked when they are stored.
///
/// Requires:
/// `recorder` is NULL or a handle of this library; `graph` is NULL or points to a struct of the size that it says, whose arrays
/// have as many entries, and contents as many bytes, as it says, and whose names are NULL or NUL-terminated; `id` is
/// NULL or a place for a number; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_recorder_record(const struct jitmem_image_recorder *recorder,
                                           const struct jitmem_image_graph *graph,
                                           uint64_t *id,
                                           struct jitmem_error **error);

/// Forgets a graph: its allocation is gone, or about to go. Graphs that refer to it can't be stored from then on.
/// Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE (also for an `id` that was forgotten before).
///
/// Requires:
/// `recorder` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_recorder_forget(const struct jitmem_image_recorder *recorder,
                                           uint64_t id,
                                           struct jitmem_error **error);

/// Writes everything that is recorded to the file `path`, in the place of one that is there. A process that opens it at any time
/// has all of the old one or all of the new one, also after the system has crashed. Until it is whole the file is PATH.new; a
/// process that stores to the same path at that time waits for its turn. Only this user may read or write it.
///
/// `key` has what else the code depends on; it may be NULL if `key_count` is 0. Waits for the disk.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; what was recorded does not fit together: a slot outside of the content of its graph,
/// slots or graphs that overlap, a reference to what is not recorded or to a graph that was forgotten, a name that means two
/// places outside, an action whose function is in no slot),
/// JITMEM_INVALID_HANDLE, JITMEM_WINDOW_FULL for more than a window holds, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_SYSTEM: what
/// the system says of the file. Where that is said of its directory, the file is replaced, and may be the old one after a crash of
/// the system.
///
/// Requires:
/// `recorder` is NULL or a handle of this library; `path` is NULL or NUL-terminated; `key` is NULL or has `key_count` entries,
/// whose strings are NULL or NUL-terminated; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_recorder_store(const struct jitmem_image_recorder *recorder,
                                          const char *path,
                                          const struct jitmem_image_key *key,
                                          size_t key_count,
                                          struct jitmem_error **error);

/// Frees a recorder and its copies. NULL and one that was freed before: does nothing.
///
/// Requires:
/// `recorder` is NULL or came from this library, and no other thread uses this handle.
void jitmem_image_recorder_free(struct jitmem_image_recorder *recorder);

/// Reads a file that jitmem_image_recorder_store has written, and checks all of it. Takes at most nine system calls besides the
/// heap's, and for more than 16 MiB one for each 4 MiB. The file stays open, to be read again when it is linked. A file of 320 KiB
/// to 8 MiB is read at once, into memory that the image has until it is linked; in this process the largest segment of 256 KiB to
/// 2 MiB that is not writable stays there, and what is left goes with the image.
///
/// `key` is what it was stored with; it may be NULL if `key_count` is 0. On success `*image` is the image, to be freed with
/// jitmem_image_free. Thread-safe. Waits for the disk.
///
/// Errors: JITMEM_UNSUPPORTED if it was stored for another key, by another version of jitmem, or on another processor, and
/// says what differs; JITMEM_INVALID_ARGUMENT for NULL, and if the file is none, or is torn or damaged; JITMEM_DENIED if it
/// belongs to another user than this one or root, or others may write it; JITMEM_OUT_OF_MEMORY; JITMEM_SYSTEM: what the system
/// says of the file.
///
/// Requires:
/// `path` is NULL or NUL-terminated; `key` is NULL or has `key_count` entries, whose strings are NULL or NUL-terminated;
/// `image` and `error` are NULL or places for a pointer.
jitmem_status jitmem_image_open(const char *path,
                                const struct jitmem_image_key *key,
                                size_t key_count,
                                struct jitmem_image **image,
                                struct jitmem_error **error);

/// Gives the symbols that are outside of an image, each once. The first `capacity` of them are written to `symbols`, `*count`
/// is how many there are: with a capacity of 0 `symbols` may be NULL. The strings are valid until the image is freed.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `image` is NULL or a handle of this library; `symbols` is NULL or has `capacity` entries; `count` is NULL or a place for a
/// number; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_imports(const struct jitmem_image *image,
                                   const char **symbols,
                                   size_t capacity,
                                   size_t *count,
                                   struct jitmem_error **error);

/// Gives the symbols that may be looked up in an image, with the addresses that the last link has given them: 0 before. They are
/// written as jitmem_image_imports does.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `image` is NULL or a handle of this library; `exports` is NULL or has `capacity` entries; `count` is NULL or a place for a
/// number; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_exports(const struct jitmem_image *image,
                                   struct jitmem_image_export *exports,
                                   size_t capacity,
                                   size_t *count,
                                   struct jitmem_error **error);

/// How an image is to be linked. Set struct_size to sizeof(jitmem_image_link_request) and the rest to zero for the
/// defaults.
typedef struct jitmem_image_link_request {
  /// sizeof(jitmem_image_link_request).
  size_t struct_size;
  /// Addresses in the executor, in the order of jitmem_image_imports; may be NULL if address_count is 0.
  const uint64_t *addresses;
  /// How many there are: one for each import.
  size_t address_count;
  /// The JITDylib, as for jitmem_manager_allocate; 0: none.
  uint64_t dylib;
  /// A number that means something to the host, as in jitmem_allocation_request.
  uint64_t tag;
  /// A name: UTF-8, at most 4,096 bytes, copied. NULL: none.
  const char *name;
  /// The name of the JITDylib, likewise.
  const char *dylib_name;
  /// 1: frames are not registered. No exception passes through the code then. 0: finalize registers them.
  uint64_t without_frames;
} jitmem_image_link_request;

/// Allocates memory for all of an image in a manager and fills it in for the addresses that it has got. It is one
/// allocation, which is the image's until jitmem_image_finalize; what an earlier link has left in flight is given
/// up. An image may be linked any number of times. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, not one address for each import, or two segments too far from each other for a
/// distance of 4 bytes, where each segment has a reservation of its own; the file was written to since it was opened, and is not
/// what was stored), JITMEM_INVALID_HANDLE, JITMEM_SYSTEM (what the system says of the file), and as jitmem_manager_allocate. Nothing
/// is left allocated then.
///
/// Requires:
/// `image` and `manager` are NULL or handles of this library; `request` is NULL or points to a struct of the size that it says, whose
/// addresses are as many as it says and whose names are NULL or NUL-terminated; `error` is NULL or a place for a pointer.
jitmem_status jitmem_image_link(const struct jitmem_image *image,
                                const struct jitmem_manager *manager,
                                const struct jitmem_image_link_request *request,
                                struct jitmem_error **error);

/// Makes a linked image visible in the executor, registers its frames, runs the actions that are stored with it, and `actions`
/// behind those, first to last, as jitmem_manager_finalize does. `*allocation` is its handle from then on, for
/// jitmem_manager_deallocate, and the image may be freed. Where the executor's unwinder asks an index and content is shared, frames
/// take no message.
/// `actions` may be NULL if `count` is 0. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; nothing is linked), JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED where it is not known what
/// registers frames in the executor (jitmem_image_link_request.without_frames): the image is in flight as before. As
/// jitmem_manager_finalize, and JITMEM_INVALID_HANDLE if the manager was freed: the memory is free then, and the image may be
/// linked again.
///
/// Requires:
/// `image` is NULL or a handle of this library; `actions` is as for jitmem_manager_finalize; `allocation` is NULL or a place
/// for a handle; `error` is NULL or a place for a pointer. The unwind information and the actions of the file are right: nothing that
/// others have written is in it.
jitmem_status jitmem_image_finalize(const struct jitmem_image *image,
                                    const struct jitmem_action *actions,
                                    size_t count,
                                    uint64_t *allocation,
                                    struct jitmem_error **error);

/// Frees an image; what is in flight of it is given up, what was finalized stays. NULL and one that was freed before:
/// does nothing.
///
/// Requires:
/// `image` is NULL or came from this library, and no other thread uses this handle.
void jitmem_image_free(struct jitmem_image *image);

/* ==== 9. Statistics: figures of a manager, and what lies where ==== */

/// Which mapper a manager uses.
JITMEM_ENUM(jitmem_mapper_kind) {
  /// This process, two views of the same pages.
  JITMEM_MAPPER_TWO_VIEWS = 1,
  /// This process, one view whose protection changes.
  JITMEM_MAPPER_MPROTECT = 2,
  /// The host's own table of callbacks.
  JITMEM_MAPPER_CUSTOM = 3,
  /// Another process on this machine, shared pages.
  JITMEM_MAPPER_SHARED = 4,
  /// A process anywhere, content in messages.
  JITMEM_MAPPER_REMOTE = 5,
  /// Another process on this machine, through LLVM's own shared-memory service.
  JITMEM_MAPPER_LLVM_SHARED = 6,
  /// A process anywhere, through LLVM's own memory manager service.
  JITMEM_MAPPER_LLVM_SIMPLE = 7,
  /// This process, one view that is written in place until finalize.
  JITMEM_MAPPER_IN_PLACE = 8,
};

/// What was fallen back from; bits of jitmem_stats.fallbacks.
JITMEM_ENUM(jitmem_fallback) {
  /// Two views were refused, or a debugger is there, so pages change protection; fallback_reason
  /// says why.
  JITMEM_FALLBACK_MPROTECT = 1,
  /// The window is smaller than asked for: address space is limited.
  JITMEM_FALLBACK_SMALLER_WINDOW = 2,
  /// A window lies out of 32-bit reach of the process's images.
  JITMEM_FALLBACK_OUT_OF_REACH = 4,
  /// A better way to the executor, a better mapper for it, or better pages for two views could not
  /// be had; fallback_reason says why.
  JITMEM_FALLBACK_SECOND_BEST = 8,
};

/// How frames of linked code become known to the unwinder.
JITMEM_ENUM(jitmem_frames) {
  /// By actions of the host's, of which nothing is known.
  JITMEM_FRAMES_ACTIONS = 0,
  /// By an index that the executor's unwinder reads. Where content is shared no message is needed for them; else an
  /// action enters them.
  JITMEM_FRAMES_INDEX = 1,
  /// By actions that register them, since the executor's unwinder asks for no index: that is another program than
  /// jitmem-executor or one with jitmem/unwind.c, or its unwinder is not libgcc's.
  JITMEM_FRAMES_UNWINDER_ASKS_NONE = 2,
  /// By actions that register them, since there was no room for an index of some window.
  JITMEM_FRAMES_NO_ROOM = 3,
};

/// Figures of one moment. Sizes in bytes, counts since the manager was made unless said otherwise.
/// Set struct_size to sizeof(jitmem_stats) before the call.
typedef struct jitmem_stats {
  /// sizeof(jitmem_stats); afterwards the bytes that this library filled in.
  size_t struct_size;
  /// Address space of all windows.
  uint64_t reserved;
  /// Pages that may hold memory: those of which something was handed out since they were last given
  /// back to the system.
  uint64_t committed;
  /// Bytes asked for by live allocations.
  uint64_t live;
  /// Bytes lost to rounding and alignment in live allocations.
  uint64_t padding;
  /// Bytes in chunks that are not handed out: chunk_bytes - live - padding - waiting, less guards.
  uint64_t free;
  /// Kernel mappings at most, writer views and reserved gaps included.
  uint64_t mappings;
  /// Windows now.
  uint64_t windows;
  /// Chunks now.
  uint64_t chunks;
  /// Allocations now that are not finalized.
  uint64_t in_flight;
  /// Allocations now that are finalized.
  uint64_t finalized;
  /// Allocations made.
  uint64_t allocate_calls;
  /// Allocations finalized.
  uint64_t finalize_calls;
  /// Allocations abandoned.
  uint64_t abandon_calls;
  /// Allocations deallocated.
  uint64_t deallocate_calls;
  /// Requests that ended in an error.
  uint64_t failures;
  /// Times jitmem entered the kernel in this process, all managers together.
  uint64_t system_calls;
  /// Bytes from the lowest to the highest byte of the chunks in use, widest window.
  uint64_t span;
  /// One of jitmem_mapper_kind.
  uint32_t mapper;
  /// Bits of jitmem_fallback.
  uint32_t fallbacks;
  /// The mapper in words; valid until the manager is freed.
  const char *mapper_name;
  /// What was fallen back from when the manager was made, and why, in words; NULL if nothing was.
  /// Valid until the manager is freed.
  const char *fallback_reason;
  /// Ranges that the kernel refused to unmap in this process; lost until it exits.
  uint64_t unmap_failures;
  /// Messages sent to the executor for the mapper's purposes, all its managers together.
  uint64_t messages;
  /// Bytes of these messages and of their answers.
  uint64_t message_bytes;
  /// Address space of all chunks.
  uint64_t chunk_bytes;
  /// Bytes of this process's memory for what is noted of allocations and of free ranges. They sink
  /// when allocations go, but for some hundred KiB.
  uint64_t records;
  /// Bytes of what is deallocated and waits for jitmem_manager_reclaim, rounding included; neither
  /// live nor free.
  uint64_t waiting;
  /// Bytes that were freed and stay as they were, because other processes that were forked may see
  /// them.
  uint64_t frozen;
  /// Answers of the executor that had more bytes than was asked for, or than jitmem_limits.answer: each failed its
  /// call. This and the next two: of all that was asked over the transport.
  uint64_t answers_too_large;
  /// Answers that came when their call had been given up, or its limit was over.
  uint64_t answers_late;
  /// Answers to no call: each ended its connection.
  uint64_t answers_unexpected;
  /// One of jitmem_frames.
  uint64_t frames_found_by;
  /// Allocations whose frames are found by an index, so that no action registers them. This and the next one: of all
  /// managers over the mapper.
  uint64_t frames_indexed;
  /// Allocations whose frames an action registers.
  uint64_t frames_registered;
  /// Huge pages that the system has granted.
  uint64_t huge_pages;
  /// Those that it has refused; the error of jitmem_manager_collapse says why.
  uint64_t huge_pages_refused;
  /// How often another process has taken the place of the one that ran the executor's linked code, since the
  /// executor began to serve: JITMEM_EVENT_EXECUTOR_RESTARTED.
  uint64_t executor_restarts;
} jitmem_stats;

/// Fills `stats`. Thread-safe; the figures are those of one moment.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or a wrong struct_size, JITMEM_INVALID_HANDLE (freed; in
/// a forked child, a manager over an executor).
///
/// Requires:
/// `manager` is NULL or a handle of this library; `stats` is NULL or has `struct_size` bytes;
/// `error` is NULL or a place for a pointer.
jitmem_status jitmem_manager_stats(const struct jitmem_manager *manager,
                                   struct jitmem_stats *stats,
                                   struct jitmem_error **error);

/// What a jitmem_layout_item is.
JITMEM_ENUM(jitmem_layout_kind) {
  /// A reserved window.
  JITMEM_LAYOUT_WINDOW = 0,
  /// A chunk of a window.
  JITMEM_LAYOUT_CHUNK = 1,
  /// A range of a chunk that is handed out.
  JITMEM_LAYOUT_RANGE = 2,
};

/// One piece of the layout.
typedef struct jitmem_layout_item {
  /// First executor address.
  uint64_t address;
  /// Bytes.
  uint64_t size;
  /// One of jitmem_layout_kind.
  uint32_t kind;
  /// Bits of jitmem_protection; 0 for a window.
  uint32_t protection;
  /// One of jitmem_lifetime; 0 for a window.
  uint32_t lifetime;
  /// One of jitmem_code_hint: what the code of its chunk is for, which may be less than was asked for.
  uint32_t code_hint;
  /// The allocation that a range belongs to, where the manager knows: of what was allocated with a
  /// tag or name, or with an observer or the option `usage`; else 0.
  uint64_t allocation;
  /// 0: for fields of later versions.
  uint32_t reserved[2];
} jitmem_layout_item;

/// Sees one piece of the layout; `item` is valid during the call.
typedef void (*jitmem_layout_fn)(void *ctx, const struct jitmem_layout_item *item);

/// Calls `visit` in this thread for each window, followed by its chunks in address order, each
/// followed by the ranges in it that are handed out, in address order. A picture of one moment: while
/// it is taken, some 10 ns for each range, the manager serves no other call, and memory is needed for
/// all of it; jitmem_manager_walk stops no other call for long. No lock is held during the calls.
/// Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE (freed; in a forked
/// child, a manager over an executor), JITMEM_OUT_OF_MEMORY.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `visit` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
jitmem_status jitmem_manager_layout(const struct jitmem_manager *manager,
                                    jitmem_layout_fn visit,
                                    void *ctx,
                                    struct jitmem_error **error);

/// What usage is counted by.
JITMEM_ENUM(jitmem_usage_by) {
  /// The JITDylib; 0 for what has none.
  JITMEM_USAGE_BY_DYLIB = 0,
  /// The host's tag; 0 for what has none.
  JITMEM_USAGE_BY_TAG = 1,
};

/// What the allocations of one JITDylib, or with one tag, have at one moment. Sizes in bytes as
/// asked for, without rounding. Set struct_size to sizeof(jitmem_usage) before jitmem_manager_usage.
typedef struct jitmem_usage {
  /// sizeof(jitmem_usage); afterwards the bytes that this library filled in.
  size_t struct_size;
  /// The JITDylib or the tag.
  uint64_t key;
  /// Everything: the sum of the next three.
  uint64_t live;
  /// Executable segments.
  uint64_t code;
  /// Segments that can only be read.
  uint64_t constants;
  /// Writable segments.
  uint64_t data;
  /// Allocations that are not finalized.
  uint64_t in_flight;
  /// Allocations that are finalized.
  uint64_t finalized;
  /// From jitmem_manager_all_usage the name of the JITDylib, valid during the call; else NULL.
  const char *name;
} jitmem_usage;

/// Fills `usage` for one JITDylib or tag, `key`; all zero if it has nothing. `by` is one of
/// jitmem_usage_by. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, an unknown `by` or a wrong struct_size;
/// JITMEM_UNSUPPORTED if the manager was made without the option `usage`.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `usage` is NULL or has `struct_size` bytes;
/// `error` is NULL or a place for a pointer.
jitmem_status jitmem_manager_usage(const struct jitmem_manager *manager,
                                   uint32_t by,
                                   uint64_t key,
                                   struct jitmem_usage *usage,
                                   struct jitmem_error **error);

/// Sees what one JITDylib or tag has; it is valid during the call.
typedef void (*jitmem_usage_fn)(void *ctx, const struct jitmem_usage *usage);

/// Calls `see` in this thread for each JITDylib, or each tag, that has anything, in the order of
/// their numbers. A picture of one moment; no lock is held during the calls. Thread-safe.
///
/// Errors: as jitmem_manager_usage.
///
/// Requires:
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
jitmem_status jitmem_manager_all_usage(const struct jitmem_manager *manager,
                                       uint32_t by,
                                       jitmem_usage_fn see,
                                       void *ctx,
                                       struct jitmem_error **error);

/* ==== 10. Transports: ways to call functions in an executor ==== */

/// How long what is asked of an executor may take, in milliseconds; 0: the default;
/// UINT64_MAX: as long as the executor takes. Set struct_size to sizeof(jitmem_limits) and the rest to zero
/// for the defaults.
///
/// An executor that is stopped, by a debugger or a freezer, is not dead: without a limit what was asked
/// of it is answered when it is continued. A request whose limit is over is answered with
/// JITMEM_TIMED_OUT. What the executor may still do is not undone by that: an allocation whose finalize
/// or deallocate was not answered in time is the host's no more, and its memory is not used again before
/// the executor has answered.
typedef struct jitmem_limits {
  /// sizeof(jitmem_limits).
  size_t struct_size;
  /// Until the executor has introduced itself; then until a mapper has its session and its way to pass
  /// descriptors; then until a manager has its first window. Each of the three may take that long.
  /// Default: 30,000.
  uint64_t set_up;
  /// A request of a manager's that runs no linked code: memory is reserved, mapped, given back.
  /// Default: UINT64_MAX.
  uint64_t memory;
  /// What runs linked code: finalize and deallocate with actions, and jitmem_transport_call; an executor that joins a group
  /// runs the actions of up to 16 allocations in as many times the limit. Default:
  /// UINT64_MAX.
  uint64_t code;
  /// A connection or session as a whole, from its beginning. Afterwards it has ended, whatever the
  /// executor does, and all that waits for it is answered with JITMEM_TIMED_OUT. Default:
  /// UINT64_MAX.
  uint64_t session;
  /// The end of managers, mappers and transport of one executor together. Afterwards they are left as
  /// they are; the executor's memory goes with it. Default: 10,000.
  uint64_t close;
  /// Bytes, not milliseconds, that the answer to a call may have; UINT64_MAX: any number. A larger answer
  /// fails the call with JITMEM_MAPPER_FAILED and takes no memory. What mappers and managers ask for is bounded
  /// further, by what they ask. No effect in custom transports, which have their answers already. Default:
  /// 268,435,456.
  uint64_t answer;
} jitmem_limits;

/// Names one call of a custom transport, which it answers with jitmem_transport_answer.
typedef uint64_t jitmem_call;

/// Names callbacks that wait to be run, once, by jitmem_task_run.
typedef uint64_t jitmem_task;

/// A transport made by the host. Set struct_size to sizeof(jitmem_transport_callbacks).
typedef struct jitmem_transport_callbacks {
  /// sizeof(jitmem_transport_callbacks).
  size_t struct_size;
  /// Passed to every function.
  void *ctx;
  /// Called once when nothing uses the transport any more; may be NULL.
  jitmem_destroy_fn destroy;
  /// Calls the wrapper function at executor address `function` with `args`, which are valid during
  /// this call only, and has the answer given, now or later, from any thread, exactly once, with
  /// jitmem_transport_answer. Called with no lock held, from any thread, several at a time; must
  /// not wait for the answer and must not throw. Not NULL.
  void (*call)(void *ctx, uint64_t function, const void *args, size_t args_size, jitmem_call call);
  /// The executor address that was published as `name` when the connection was made; 0 if none
  /// was. Called from any thread. NULL: no names are known.
  uint64_t (*symbol)(void *ctx, const char *name);
  /// Has jitmem_task_run called with `task`, now or later, from any thread, exactly once: there run
  /// the callbacks of asynchronous requests that the executor has answered, which may block and
  /// which wait for no other task. Called from any thread; must not throw. NULL: they run in threads
  /// of jitmem's or where jitmem_transport_answer is called.
  void (*dispatch)(void *ctx, jitmem_task task);
  /// How long the executor may take; copied; NULL: the defaults. They count for what mappers and managers
  /// ask over this transport, and for jitmem_transport_call.
  const struct jitmem_limits *limits;
  /// What the executor is known by among this host's transports: the ends of all that have the same
  /// pointer are waited for together (jitmem_limits.close). It is compared only. NULL: of this one alone.
  const void *executor;
} jitmem_transport_callbacks;

/// Makes a transport of a host's callbacks.
///
/// `callbacks` is copied. `destroy` is called with `ctx` once, when nothing uses the transport any
/// more or if this call fails. On success `*transport` is the new transport, to be freed with
/// jitmem_transport_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, a wrong struct_size, a missing function. If the struct
/// can't be read (NULL, a wrong struct_size, fields that this library does not know) `destroy` is
/// not called.
///
/// Requires:
/// `callbacks` is NULL or points to a struct of the size that it says, whose functions may be called
/// as documented; `transport` and `error` are NULL or places for a pointer.
jitmem_status jitmem_transport_custom(const struct jitmem_transport_callbacks *callbacks,
                                      struct jitmem_transport **transport,
                                      struct jitmem_error **error);

/// Makes a transport of one end of a connected stream socket, at whose other end any ORC executor
/// serves, for instance one that was started with filedescs=N,N.
///
/// Waits until the executor has introduced itself, for 30 seconds at most, and has the default limits
/// (jitmem_transport_connect has others). From then on the transport owns `fd`, which
/// nothing else may read or write, has it closed on exec and reads it in threads of its own; when the handle
/// and the last mapper are gone it ends the connection. If this call fails `fd` is the caller's
/// still. What linked code asks of a controller's ORC runtime (jit-dispatch) gets an empty answer. On
/// success `*transport` is the new transport, to be freed with jitmem_transport_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or no connected stream socket; JITMEM_TIMED_OUT;
/// JITMEM_DISCONNECTED if the other end is closed; JITMEM_MAPPER_FAILED if it is no executor; JITMEM_OUT_OF_MEMORY.
///
/// Requires:
/// `fd` is no descriptor that something else in this process owns; `transport` and `error` are NULL
/// or places for a pointer.
jitmem_status jitmem_transport_socket(int32_t fd,
                                      struct jitmem_transport **transport,
                                      struct jitmem_error **error);

/// jitmem_transport_socket with limits of the host's, which count for what mappers and managers ask over
/// the transport as well.
///
/// `limits` is copied; NULL: the defaults.
///
/// Errors: as there, and JITMEM_INVALID_ARGUMENT for limits with a wrong struct_size.
///
/// Requires:
/// As jitmem_transport_socket; `limits` is NULL or a struct of the size that it says.
jitmem_status jitmem_transport_connect(int32_t fd,
                                       const struct jitmem_limits *limits,
                                       struct jitmem_transport **transport,
                                       struct jitmem_error **error);

/// Sends a token over one end of a connected stream socket, before anything else is sent there, to an executor
/// that wants one: jitmem-executor with --token-file. Then jitmem_transport_socket, or LLVM's
/// SimpleRemoteEPC, may have the descriptor, which stays the caller's here. An executor closes the
/// connection on which another token comes. Nothing is encrypted. May wait until the executor reads.
/// Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, no connected stream socket, or less than 16 or more than
/// 4096 bytes; JITMEM_DISCONNECTED if the other end is closed.
///
/// Requires:
/// `fd` is a descriptor that the caller may use, or none; `token` is NULL or has `size` bytes; `error` is
/// NULL or a place for a pointer.
jitmem_status jitmem_transport_send_token(int32_t fd,
                                          const void *token,
                                          size_t size,
                                          struct jitmem_error **error);

/// Answers a call of a custom transport, from any thread.
///
/// `status` is a jitmem_status: 0 with the result's `size` bytes at `bytes` (copied); another with
/// `message` (NULL or UTF-8 text, copied), which for a function that answered an out-of-band error is
/// JITMEM_MAPPER_FAILED, and for an executor that is gone JITMEM_DISCONNECTED. Callbacks of
/// those who wait may run inside this call. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a call that was answered before or never made;
/// JITMEM_INVALID_ARGUMENT for `bytes` NULL with a size (the call is not answered).
///
/// Requires:
/// `bytes` has `size` bytes or is NULL; `message` is NULL or a NUL-terminated string; `error` is NULL
/// or a place for a pointer.
jitmem_status jitmem_transport_answer(jitmem_call call,
                                      uint32_t status,
                                      const char *message,
                                      const void *bytes,
                                      size_t size,
                                      struct jitmem_error **error);

/// Runs the callbacks that a custom transport's `dispatch` was given.
///
/// Errors: JITMEM_INVALID_HANDLE for a task that has run before or never was one.
///
/// Requires:
/// `error` is NULL or a place for a pointer.
jitmem_status jitmem_task_run(jitmem_task task, struct jitmem_error **error);

/// Receives the result of a call; `bytes` is valid during the call of this function only.
typedef void (*jitmem_bytes_fn)(void *ctx, const void *bytes, size_t size);

/// Calls the wrapper function at executor address `function` with `args` and waits for its result,
/// with which `result` (may be NULL) is called in this thread before this call returns. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_MAPPER_FAILED with the
/// function's own message, JITMEM_DISCONNECTED, JITMEM_TIMED_OUT.
///
/// Requires:
/// `transport` is NULL or a handle of this library; `args` has `args_size` bytes or is NULL; `result`
/// may be called with `ctx`; `error` is NULL or a place for a pointer.
jitmem_status jitmem_transport_call(const struct jitmem_transport *transport,
                                    uint64_t function,
                                    const void *args,
                                    size_t args_size,
                                    jitmem_bytes_fn result,
                                    void *ctx,
                                    struct jitmem_error **error);

/// The address that the executor published as `name` when the connection was made. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, text that is not UTF-8, or a name that was not
/// published; JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `transport` is NULL or a handle of this library; `name` is NULL or a NUL-terminated string;
/// `address` is NULL or a place for a number; `error` is NULL or a place for a pointer.
jitmem_status jitmem_transport_symbol(const struct jitmem_transport *transport,
                                      const char *name,
                                      uint64_t *address,
                                      struct jitmem_error **error);

/// Frees a transport; mappers that use it keep what they need. NULL and a transport that was freed
/// before: does nothing.
///
/// Requires:
/// `transport` is NULL or came from this library, and no other thread uses this handle.
void jitmem_transport_free(struct jitmem_transport *transport);

/// Receives the result of a call, or why there is none: then `error` is not NULL. Both are valid during
/// this call only.
typedef void (*jitmem_called_fn)(void *ctx,
                                 const void *bytes,
                                 size_t size,
                                 const struct jitmem_error *error);

/// jitmem_transport_call without waiting: `fn` receives the result. `args` is copied.
///
/// `limit` is how many milliseconds the call may take, after which `fn` receives JITMEM_TIMED_OUT; 0: the
/// transport's jitmem_limits.code; UINT64_MAX: as long as it takes. `*call` (`call` may be NULL) is a
/// number for jitmem_transport_cancel, written before `fn` can run. Thread-safe.
///
/// Requires:
/// As jitmem_transport_call; `call` is NULL or a place for a number; `fn` and `destroy` may be called with
/// `ctx`, from any thread.
jitmem_status jitmem_transport_start(const struct jitmem_transport *transport,
                                     uint64_t function,
                                     const void *args,
                                     size_t args_size,
                                     uint64_t limit,
                                     jitmem_called_fn fn,
                                     void *ctx,
                                     jitmem_destroy_fn destroy,
                                     uint64_t *call,
                                     struct jitmem_error **error);

/// Answers a call that jitmem_transport_start has made with JITMEM_CANCELLED; its callback runs inside this
/// call. The executor is not told, and goes on with it; what it answers is dropped. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a call that was answered before or never made, or that the parent of this
/// process has made.
///
/// Requires:
/// `error` is NULL or a place for a pointer.
jitmem_status jitmem_transport_cancel(uint64_t call,
                                      struct jitmem_error **error);

/* ==== 11. Executor: the other side: to be the process that runs linked code ==== */

/// What a wrapper function returns: LLVM's CWrapperFunctionResult. Up to 8 bytes are in `data`, first
/// byte lowest; more are in a block from malloc that `data` is the address of; with size 0, `data` is
/// 0 or the address of an error message from malloc.
typedef struct jitmem_wrapper_result {
  /// Bytes, or an address.
  uint64_t data;
  /// Number of bytes.
  size_t size;
} jitmem_wrapper_result;

/// The wrapper function with which a controller opens a session; not to be called from C. It is what
/// dlsym finds in an executor that has loaded this library, and what jitmem_service_symbols
/// publishes.
///
/// Requires:
/// `args` has `size` bytes.
struct jitmem_wrapper_result jitmem_service_open(const char *args,
                                                 size_t size);

/// Hands the answer of a wrapper function in orc-rt's form to its session: orc-rt's
/// orc_rt_WrapperFunctionReturn. The session takes `answer` over.
typedef void (*jitmem_session_return_fn)(void *session,
                                         struct jitmem_wrapper_result answer,
                                         uint64_t call);

/// jitmem_service_open in the form that executors of LLVM's ORC runtime (orc-rt) call, which is
/// orc_rt_WrapperFunction; not to be called from C. The functions that its answer names have that form
/// too. All of them answer by `reply` before they return, and take `args` over.
///
/// Requires:
/// `args` is a buffer from malloc as jitmem_wrapper_result has it; `reply` is NULL or may be called with
/// `session` and `call`.
void jitmem_service_open_by_session(void *session,
                                    struct jitmem_wrapper_result args,
                                    jitmem_session_return_fn reply,
                                    uint64_t call);

/// Makes a service of its own in this process.
///
/// On success `*service` is the new service, to be freed with jitmem_service_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL.
///
/// Requires:
/// `service` and `error` are NULL or places for a pointer.
jitmem_status jitmem_service_create(struct jitmem_service **service, struct jitmem_error **error);

/// Sees one bootstrap symbol; `name` is static.
typedef void (*jitmem_symbol_fn)(void *ctx, const char *name, uint64_t address);

/// Calls `visit` in this thread for each symbol that the executor must publish to its controller
/// (ORC: as bootstrap symbols). Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// Requires:
/// `service` is NULL or a handle of this library; `visit` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
jitmem_status jitmem_service_symbols(const struct jitmem_service *service,
                                     jitmem_symbol_fn visit,
                                     void *ctx,
                                     struct jitmem_error **error);

/// As jitmem_service_symbols, for executors of LLVM's ORC runtime (orc-rt): the function is
/// jitmem_service_open_by_session, under jitmem_service_open's name.
///
/// Errors: as jitmem_service_symbols.
///
/// Requires:
/// As jitmem_service_symbols has it.
jitmem_status jitmem_service_session_symbols(const struct jitmem_service *service,
                                             jitmem_symbol_fn visit,
                                             void *ctx,
                                             struct jitmem_error **error);

/// Frees a service and ends its sessions: deallocation actions that are left run, last to first, in
/// this thread, and the memory goes, so no linked code may run any more. NULL and a service that was
/// freed before: does nothing.
///
/// Requires:
/// `service` is NULL or came from this library, and no other thread uses this handle.
void jitmem_service_free(struct jitmem_service *service);

/// A name that an executor publishes to its controller, and the address or number behind it.
typedef struct jitmem_bootstrap_symbol {
  /// UTF-8 text.
  const char *name;
  /// What the name stands for.
  uint64_t address;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_bootstrap_symbol;

/// What a process does before linked code runs in it, such as to bound itself by jitmem_executor_contain. Returns NULL,
/// or why it can't serve: a string in that process, which ends with this reason.
typedef const char *(*jitmem_prepare_fn)(void *ctx);

/// How an executor goes on when linked code has ended its process. Set struct_size to sizeof(jitmem_supervision).
typedef struct jitmem_supervision {
  /// sizeof(jitmem_supervision).
  size_t struct_size;
  /// So many times another process takes its place, at least 1, such as 10,
  uint32_t restarts;
  /// in so many seconds, at least 1, such as 60. Once more ends the executor.
  uint32_t seconds;
  /// Seconds after which a call of linked code ends its process. 0: none.
  uint32_t time_limit;
  /// 0.
  uint32_t reserved;
  /// Called in each of these processes before it serves, with `ctx` as it was when jitmem_executor_serve was
  /// called. May be NULL.
  jitmem_prepare_fn prepare;
  /// For `prepare`.
  void *ctx;
} jitmem_supervision;

/// Choices for an executor. Set struct_size to sizeof(jitmem_serve_options) and the rest to zero
/// for the defaults.
typedef struct jitmem_serve_options {
  /// sizeof(jitmem_serve_options).
  size_t struct_size;
  /// What the host publishes beside the services' own names, or in place of them.
  const struct jitmem_bootstrap_symbol *symbols;
  /// Number of them.
  size_t symbol_count;
  /// The service that controllers with jitmem open sessions with. NULL: one that ends with the
  /// call.
  const struct jitmem_service *service;
  /// The controller's LLVM, 14 to 22. Until 16 it expects another first message than since, and
  /// nothing that it sends tells which. 0: 22.
  uint32_t llvm_version;
  /// 1: libstdc++, libgcc_s and libm are never loaded. 0: they are, once the controller looks for
  /// a symbol that the process has not.
  uint32_t c_only;
  /// Bytes that a controller which does not read may leave, beyond what the stream takes; then threads wait
  /// with what they have to say. One message may exceed it. 0: 64 MiB.
  uint64_t unread_bytes;
  /// Calls of linked code to the controller that wait meanwhile; further ones fail. 0: 1024.
  uint64_t unread_calls;
  /// Linked code runs in a process of its own, which is replaced when it ends: docs/second-process.md, "Supervised".
  /// For controllers with jitmem, and without `service`. NULL: it runs in this process.
  const struct jitmem_supervision *supervision;
} jitmem_serve_options;

/// Serves one controller as LLVM's llvm-jitlink-executor does: introduces this process, then does
/// what is called, until the controller hangs up.
///
/// `in_fd` is read and `out_fd` written; they may be the same socket. Both are duplicated and stay
/// the host's. `options` may be NULL for the defaults. Linked code runs in other threads; this one
/// waits until all of it has returned. Then deallocation actions that are left run, last to first, and
/// the controller's memory goes. Thread-safe: several controllers may be served at a time.
///
/// With `supervision` linked code runs in a child of a process that is forked for this call. Of this process only
/// the calling thread takes part, which waits, and nothing is left in it: when this returns, both processes are
/// gone. They have this one's memory and descriptors as they are at the call, and none of its other threads; where
/// linked code runs, `in_fd` and `out_fd` are /dev/null. What C's
/// streams hold is written where linked code's process ends, so call fflush before; functions of atexit do not run
/// there, unless linked code calls exit. Functions of pthread_atfork run once here, and in the forked process once for
/// each child. Both are killed when the calling thread ends.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a number that is no open descriptor, an unknown llvm_version,
/// a wrong struct_size, a symbol without name; JITMEM_INVALID_HANDLE for a service that was freed;
/// JITMEM_DISCONNECTED if the controller breaks the protocol or the stream fails, with the message
/// that llvm-jitlink-executor has for it; JITMEM_ACTION_FAILED if deallocation actions that were left
/// answered so; what the system refuses before the first message. With `supervision` also: JITMEM_INVALID_ARGUMENT for
/// 0 restarts or seconds, and for a service; JITMEM_DISCONNECTED with what has ended linked code's process where no
/// other takes its place, once the controller was told, and where `prepare` fails at first; JITMEM_ACTION_FAILED if a
/// finalize action fails that is run again; JITMEM_DENIED where the bounds of this process refuse a fork.
///
/// Requires:
/// `options` is NULL or points to a struct of the size that it says; names of symbols are strings;
/// the descriptors stay open during the call; `error` is NULL or a place for a pointer. The controller
/// is trusted as much as this program: it writes memory by address and calls what it has written. With `supervision`
/// no other thread holds a lock at the call that linked code, what is published or `prepare` need; the C library's,
/// and this library's, are seen to.
jitmem_status jitmem_executor_serve(int in_fd,
                                    int out_fd,
                                    const struct jitmem_serve_options *options,
                                    struct jitmem_error **error);

/// What linked code may not do: docs/containment.md has a row for each.
JITMEM_ENUM(jitmem_profile) {
  /// It may do what the process may.
  JITMEM_PROFILE_NONE = 0,
  /// Start programs, reach other processes' memory, devices and the system's administration.
  JITMEM_PROFILE_NO_EXEC = 1,
  /// That, start processes, make sockets, open files but to read those of `readable`.
  JITMEM_PROFILE_CONFINED = 2,
  /// That, and open anything; change code.
  JITMEM_PROFILE_SEALED = 3,
};

/// Bits of what the kernel has refused to a process that is otherwise bounded.
JITMEM_ENUM(jitmem_not_in_force) {
  /// Landlock (Linux 5.13, for JITMEM_PROFILE_NO_EXEC 5.19): devices can be opened, though not used, and files of the
  /// system written as their modes say.
  JITMEM_NO_LANDLOCK = 1,
  /// PR_SET_MDWE (Linux 6.3): a filter refuses the same calls.
  JITMEM_NO_MDWE = 2,
};

/// Bounds for linked code, and with it for the process. Set struct_size to sizeof(jitmem_containment) and the rest
/// to zero for none.
typedef struct jitmem_containment {
  /// sizeof(jitmem_containment).
  size_t struct_size;
  /// A jitmem_profile. With any, all capabilities are dropped, too.
  uint32_t profile;
  /// 1: no memory is writable and executable, and none that is there becomes executable. So it is with
  /// JITMEM_PROFILE_SEALED.
  uint32_t fixed_code;
  /// 1: no sockets but Unix sockets.
  uint32_t no_network;
  /// 1: no new memfds, shared memory and mappings that grow down, which RLIMIT_DATA does not count.
  uint32_t no_shared_memory;
  /// 1: all capabilities are dropped without a profile, too.
  uint32_t no_capabilities;
  /// 1: nothing is refused; the kernel logs what would be.
  uint32_t audit;
  /// With JITMEM_PROFILE_CONFINED what can be read: files, and folders with all in them.
  const char *const *readable;
  /// Number of them.
  size_t readable_count;
} jitmem_containment;

/// Puts bounds in force, for good: what jitmem-executor's options of these names do, for a program whose whole purpose
/// is to be an executor. To be called when all else is open that it needs, right before jitmem_executor_serve and in
/// the same thread: filters of system calls are for all threads, but capabilities and paths for this one and those
/// that it starts. Called again, it adds bounds.
///
/// `not_in_force` may be NULL; else it gets the bits of jitmem_not_in_force that hold. Not thread-safe beside
/// itself.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a wrong struct_size, an unknown profile, a flag that is neither 0 nor 1, a path
/// that can't be found; what the system says where it refuses capabilities, filters, or, for
/// JITMEM_PROFILE_CONFINED, Landlock. Some of the bounds may be in force then.
///
/// Requires:
/// `bounds` points to a struct of the size that it says; paths are strings; `not_in_force` is NULL or a place for a
/// number, `error` NULL or a place for a pointer.
jitmem_status jitmem_executor_contain(const struct jitmem_containment *bounds,
                                      uint32_t *not_in_force,
                                      struct jitmem_error **error);

/* ==== 12. Custom mappers: memory that the host itself provides ==== */

/// How content gets into the executor.
JITMEM_ENUM(jitmem_content) {
  /// `prepare` gives memory that the executor sees.
  JITMEM_CONTENT_SHARED = 0,
  /// `initialize` receives the content and copies it.
  JITMEM_CONTENT_COPIED = 1,
};

/// Names one request to a custom mapper, which it answers with jitmem_mapper_complete.
typedef uint64_t jitmem_request;

/// One segment on its way into, or out of, a custom mapper's executor.
typedef struct jitmem_mapper_segment {
  /// First executor address.
  uint64_t address;
  /// Bytes, zero-fill and rounding included.
  uint64_t size;
  /// The content, valid until the request is completed; NULL if it is in place or on the way out.
  const void *content;
  /// Bytes of content.
  uint64_t content_size;
  /// Bits of jitmem_protection.
  uint32_t protection;
  /// One of jitmem_lifetime.
  uint32_t lifetime;
  /// 1: what follows the content is known to be zero; 0: the mapper must make it so.
  uint32_t zeroed;
  /// 0: for fields of later versions.
  uint32_t reserved[5];
} jitmem_mapper_segment;

/// One allocation on its way out.
typedef struct jitmem_mapper_retired {
  /// What `initialize` answered; 0 if it had nothing to remember.
  uint64_t key;
  /// Its copied segments; valid until the request is completed.
  const struct jitmem_mapper_segment *segments;
  /// Number of them.
  size_t segment_count;
  /// 0: for fields of later versions.
  uint64_t reserved[2];
} jitmem_mapper_retired;

/// A chunk that a custom mapper makes usable.
typedef struct jitmem_mapper_chunk {
  /// First executor address.
  uint64_t address;
  /// Bytes, a multiple of page_size.
  uint64_t size;
  /// Bits of jitmem_protection.
  uint32_t protection;
  /// One of jitmem_lifetime.
  uint32_t lifetime;
  /// 1: jitmem_manager_options.commit: take the pages now, so that a shortage is an error here. 0: they
  /// may be taken when they are touched.
  uint32_t commit;
  /// 0: for fields of later versions.
  uint32_t reserved[5];
} jitmem_mapper_chunk;

/// A mapper made by the host. Set struct_size to sizeof(jitmem_mapper_callbacks).
///
/// The functions are called with no lock held, from any thread, several at a time. Those that take a
/// jitmem_request answer it, now or later, from any thread, with jitmem_mapper_complete, exactly
/// once. Arrays are valid until then. None may be NULL but destroy, and prepare and reclaim or their
/// asynchronous twins; none may throw. They may call any function of this library; jitmem_manager_allocate from inside `prepare` or `reclaim` never waits for what
/// these are about to change, and answers JITMEM_WINDOW_FULL where it would have to.
typedef struct jitmem_mapper_callbacks {
  /// sizeof(jitmem_mapper_callbacks).
  size_t struct_size;
  /// Chunks are multiples of this power of two.
  uint64_t page_size;
  /// Allocations are kept multiples of this power of two apart, at most page_size.
  uint64_t granule;
  /// One of jitmem_content.
  uint32_t content;
  /// 0.
  uint32_t reserved;
  /// Passed to every function.
  void *ctx;
  /// Called once when nothing uses the mapper any more; may be NULL.
  jitmem_destroy_fn destroy;
  /// Reserves a window of `size` bytes (a smaller multiple of page_size will do) as `placement`
  /// and `address` say; near several addresses, `address` is in their middle, and a window that does
  /// not reach them all is given back. Answers its address as `value` and, in `size`, its size.
  void (*reserve)(void *ctx,
                  uint64_t size,
                  uint32_t placement,
                  uint64_t address,
                  jitmem_request request);
  /// Makes a chunk usable; with shared content, `*working_memory` is where all its bytes are
  /// written, all zero now. Returns a jitmem_status. May be NULL if there is a prepare_async.
  uint32_t (*prepare)(void *ctx,
                      uint64_t address,
                      uint64_t size,
                      uint32_t protection,
                      uint32_t lifetime,
                      void **working_memory);
  /// Makes an allocation visible and runs the finalize actions first to last, remembering the
  /// deallocation actions. Answers a key for deinitialize as `value`; 0 if there is nothing to
  /// do then.
  void (*initialize)(void *ctx,
                     const struct jitmem_mapper_segment *segments,
                     size_t segment_count,
                     const struct jitmem_action *actions,
                     size_t action_count,
                     jitmem_request request);
  /// Runs the deallocation actions of allocations, last to first.
  void (*deinitialize)(void *ctx,
                       const struct jitmem_mapper_retired *retired,
                       size_t count,
                       jitmem_request request);
  /// Takes the pages of an empty chunk back. Returns a jitmem_status; on failure the chunk stays. May be
  /// NULL if there is a reclaim_async.
  uint32_t (*reclaim)(void *ctx, uint64_t address, uint64_t size);
  /// Gives a window back with all that is in it.
  void (*release)(void *ctx, uint64_t address, uint64_t size, jitmem_request request);
  /// Called in place of prepare; NULL: prepare is called. Makes a chunk usable, which is described
  /// during this call, and answers, in this call or later, working memory as `value` (0 with copied
  /// content), or a failure with its reason. An allocation that needs a chunk then waits for the
  /// answer, and jitmem_manager_try_allocate declines it. Given with reclaim_async, or not at all.
  void (*prepare_async)(void *ctx, const struct jitmem_mapper_chunk *chunk, jitmem_request request);
  /// Called in place of reclaim; NULL: reclaim is called. On failure the chunk stays.
  void (*reclaim_async)(void *ctx, uint64_t address, uint64_t size, jitmem_request request);
} jitmem_mapper_callbacks;

/// Answers a request to a custom mapper, from any thread.
///
/// `status` is a jitmem_status; if it is not 0, `message` (NULL or UTF-8 text, copied) says why.
/// `value` and `size` are what the callback's documentation asks for, else 0. The requester's
/// callback may run inside this call. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a request that was answered before or never made.
///
/// Requires:
/// `message` is NULL or a NUL-terminated string; `error` is NULL or a place for a pointer.
jitmem_status jitmem_mapper_complete(jitmem_request request,
                                     uint32_t status,
                                     const char *message,
                                     uint64_t value,
                                     uint64_t size,
                                     struct jitmem_error **error);

/// Makes a mapper of the host's callbacks.
///
/// `callbacks` is copied. `destroy` is called with `ctx` once, when nothing uses the mapper any more
/// or if this call fails. On success `*mapper` is the new mapper, to be freed with
/// jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, a wrong struct_size, a missing function, page_size or
/// granule that is no power of two, an unknown content. If the struct can't be read (NULL, a
/// wrong struct_size, fields that this library does not know) `destroy` is not called.
///
/// Requires:
/// `callbacks` is NULL or points to a struct of the size that it says, whose functions may be called
/// as documented; `mapper` and `error` are NULL or places for a pointer.
jitmem_status jitmem_mapper_custom(const struct jitmem_mapper_callbacks *callbacks,
                                   struct jitmem_mapper **mapper,
                                   struct jitmem_error **error);

#undef JITMEM_ENUM

#ifdef __cplusplus
}
#endif

#endif
