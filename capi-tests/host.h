// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A custom mapper as a host would write one, with knobs to make it late, wrong or failing.
//
// With shared content its executor is this process, by two mappings of a memfd per chunk. With
// copied content the executor's addresses mean nothing here, as if it were another machine's: a
// library that touched them would crash.

#ifndef HOST_H
#define HOST_H

#include "code.h"
#include "wrapper.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

enum operation { RESERVE, PREPARE, INITIALIZE, DEINITIALIZE, RECLAIM, RELEASE, OPERATIONS };

// How requests are answered: inside the call, by another thread, or when the test says so.
enum timing { AT_ONCE, BY_A_THREAD, WHEN_TOLD };

struct host;

struct job {
  struct host *host;
  enum operation operation;
  jitmem_request request;
  uint64_t address, size;
  const jitmem_mapper_segment *segments;
  const jitmem_action *actions;
  const jitmem_mapper_retired *retired;
  size_t count, action_count;
  uint32_t protection, lifetime;
};

struct host_chunk {
  uint64_t address, size;
  void *writer;
};

struct host_window {
  uint64_t address, size;
  uint8_t *bytes;
};

// Deallocation actions to remember; its key is its place plus 1.
struct teardown {
  int used;
  size_t count;
  jitmem_wrapper_call calls[8];
  char args[8];
};

struct host {
  uint32_t content;
  enum timing timing;

  // Knobs.
  uint32_t fails[OPERATIONS];
  const char *message;
  int answers_twice, lies_about_windows, gives_no_memory;
  uint64_t lie_address, lie_size, smaller;
  int chunks_later;

  // What was seen.
  unsigned calls[OPERATIONS], destroyed;
  jitmem_status second_answer;
  uint32_t placement, commit;
  uint64_t wanted_address;
  const char *wrong;

  pthread_mutex_t lock;
  pthread_cond_t idle;
  unsigned busy;
  struct job held[16];
  unsigned held_count;
  struct host_window windows[16];
  struct host_chunk chunks[256];
  struct teardown teardowns[64];
};

static inline void host_complain(struct host *host, const char *wrong) {
  if (host->wrong == NULL)
    host->wrong = wrong;
}

static inline void host_answer(struct job *job, uint32_t status, const char *message,
                               uint64_t value, uint64_t size) {
  struct host *host = job->host;
  if (jitmem_mapper_complete(job->request, status, message, value, size, NULL) != JITMEM_OK)
    host_complain(host, "an answer was refused");
  if (host->answers_twice)
    host->second_answer = jitmem_mapper_complete(job->request, status, message, value, size, NULL);
}

// Where the executor's byte at `address` is in this process.
static inline uint8_t *host_bytes(struct host *host, uint64_t address) {
  if (host->content == JITMEM_CONTENT_SHARED)
    return at(address);
  for (size_t i = 0; i < COUNT(host->windows); i++) {
    struct host_window *window = &host->windows[i];
    if (window->size > 0 && address - window->address < window->size)
      return window->bytes + (address - window->address);
  }
  abort();
}

// ---- windows and chunks ----

static inline void host_reserve(struct job *job) {
  struct host *host = job->host;
  uint64_t size = host->smaller ? host->smaller : job->size;
  int shared = host->content == JITMEM_CONTENT_SHARED;
  void *bytes = mmap(NULL, size, shared ? PROT_NONE : PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (bytes == MAP_FAILED)
    abort();
  pthread_mutex_lock(&host->lock);
  size_t i = 0;
  while (host->windows[i].size > 0)
    if (++i == COUNT(host->windows))
      abort();
  // Addresses where nothing is mapped, 8 GiB apart.
  uint64_t address = shared ? (uintptr_t)bytes : 0x600000000000 + (i << 33);
  host->windows[i] = (struct host_window){.address = address, .size = size, .bytes = bytes};
  pthread_mutex_unlock(&host->lock);
  host_answer(job, JITMEM_OK, NULL, address, size);
}

static inline void host_release(struct job *job) {
  struct host *host = job->host;
  pthread_mutex_lock(&host->lock);
  for (size_t i = 0; i < COUNT(host->chunks); i++) {
    struct host_chunk *chunk = &host->chunks[i];
    if (chunk->size > 0 && chunk->address - job->address < job->size) {
      munmap(chunk->writer, chunk->size);
      *chunk = (struct host_chunk){0};
    }
  }
  int found = 0;
  for (size_t i = 0; i < COUNT(host->windows); i++) {
    struct host_window *window = &host->windows[i];
    if (window->address == job->address && window->size == job->size) {
      munmap(window->bytes, window->size);
      *window = (struct host_window){0};
      found = 1;
    }
  }
  pthread_mutex_unlock(&host->lock);
  // A lie that was refused may come back as it was told.
  int lie =
      host->lies_about_windows && job->address == host->lie_address && job->size == host->lie_size;
  if (!found && !lie)
    host_complain(host, "a window is released that was not reserved");
  host_answer(job, JITMEM_OK, NULL, 0, 0);
}

static inline uint32_t host_prepare(void *ctx, uint64_t address, uint64_t size, uint32_t protection,
                                    uint32_t lifetime, void **working_memory) {
  struct host *host = ctx;
  pthread_mutex_lock(&host->lock);
  host->calls[PREPARE]++;
  uint32_t status = host->fails[PREPARE];
  if (lifetime > JITMEM_LIFETIME_FINALIZE || address % page_size() != 0 || size % page_size() != 0)
    host_complain(host, "a chunk is misaligned or of no lifetime that takes memory");
  if (status == JITMEM_OK && host->content == JITMEM_CONTENT_SHARED && !host->gives_no_memory) {
    size_t i = 0;
    while (host->chunks[i].size > 0)
      if (++i == COUNT(host->chunks))
        abort();
    int fd = memfd_create("host", MFD_CLOEXEC);
    int flags = protection & JITMEM_PROT_EXEC ? PROT_EXEC | PROT_READ : PROT_READ;
    if (protection & JITMEM_PROT_WRITE)
      flags |= PROT_WRITE;
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0 ||
        mmap(at(address), size, flags, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
      abort();
    void *writer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (writer == MAP_FAILED)
      abort();
    close(fd);
    host->chunks[i] = (struct host_chunk){.address = address, .size = size, .writer = writer};
    *working_memory = writer;
  }
  pthread_mutex_unlock(&host->lock);
  return status;
}

static inline uint32_t host_reclaim(void *ctx, uint64_t address, uint64_t size) {
  struct host *host = ctx;
  pthread_mutex_lock(&host->lock);
  host->calls[RECLAIM]++;
  uint32_t status = host->fails[RECLAIM];
  if (status == JITMEM_OK && host->content == JITMEM_CONTENT_SHARED) {
    int found = 0;
    for (size_t i = 0; i < COUNT(host->chunks); i++) {
      struct host_chunk *chunk = &host->chunks[i];
      if (chunk->address == address && chunk->size == size) {
        munmap(chunk->writer, size);
        *chunk = (struct host_chunk){0};
        found = mmap(at(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                     0) != MAP_FAILED;
      }
    }
    if (!found)
      host_complain(host, "a chunk is reclaimed that was not prepared");
  }
  pthread_mutex_unlock(&host->lock);
  return status;
}

// ---- allocations ----

static inline int host_call(const jitmem_wrapper_call *call) {
  if (call->function == 0)
    return 1;
  struct wrapper_result result =
      ((wrapper_function *)(uintptr_t)call->function)(call->args, call->args_size);
  int succeeded = result.size == 1 && result.data.bytes[0] == 0;
  if (result.size > sizeof result.data.bytes)
    free(result.data.pointer);
  return succeeded;
}

static inline int host_tear_down(struct teardown *teardown) {
  int succeeded = 1;
  for (size_t i = teardown->count; i-- > 0;)
    succeeded &= host_call(&teardown->calls[i]);
  *teardown = (struct teardown){0};
  return succeeded;
}

static inline void host_copy_in(struct host *host, const jitmem_mapper_segment *segment) {
  if (!all_bytes_are((const uint8_t *)segment->reserved, sizeof segment->reserved, 0) ||
      segment->zeroed > 1 || segment->content_size > segment->size)
    host_complain(host, "a segment makes no sense");
  if (host->content == JITMEM_CONTENT_SHARED) {
    if (segment->content != NULL || segment->content_size != 0)
      host_complain(host, "content is in place and comes none the less");
    return;
  }
  uint8_t *bytes = host_bytes(host, segment->address);
  if (segment->content_size > 0)
    memcpy(bytes, segment->content, segment->content_size);
  if (!segment->zeroed)
    memset(bytes + segment->content_size, 0, segment->size - segment->content_size);
}

static inline void host_initialize(struct job *job) {
  struct host *host = job->host;
  for (size_t i = 0; i < job->count; i++)
    host_copy_in(host, &job->segments[i]);
  pthread_mutex_lock(&host->lock);
  size_t key = 0;
  while (host->teardowns[key].used)
    if (++key == COUNT(host->teardowns))
      abort();
  struct teardown *teardown = &host->teardowns[key];
  teardown->used = 1;
  pthread_mutex_unlock(&host->lock);
  for (size_t i = 0; i < job->action_count; i++) {
    if (!host_call(&job->actions[i].finalize)) {
      host_tear_down(teardown);
      host_answer(job, JITMEM_ACTION_FAILED, "an action has failed", 0, 0);
      return;
    }
    jitmem_wrapper_call call = job->actions[i].dealloc;
    if (call.function == 0)
      continue;
    // The tests' arguments are one byte at most.
    if (call.args_size > 0)
      teardown->args[teardown->count] = *(const char *)call.args;
    call.args = &teardown->args[teardown->count];
    teardown->calls[teardown->count++] = call;
  }
  if (teardown->count > 0) {
    host_answer(job, JITMEM_OK, NULL, key + 1, 0);
  } else {
    teardown->used = 0;
    host_answer(job, JITMEM_OK, NULL, 0, 0);
  }
}

static inline void host_deinitialize(struct job *job) {
  struct host *host = job->host;
  int succeeded = 1;
  for (size_t i = job->count; i-- > 0;) {
    const jitmem_mapper_retired *retired = &job->retired[i];
    if (retired->key > COUNT(host->teardowns) ||
        (retired->key > 0 && !host->teardowns[retired->key - 1].used))
      host_complain(host, "a key that was never answered");
    else if (retired->key > 0)
      succeeded &= host_tear_down(&host->teardowns[retired->key - 1]);
    if (host->content == JITMEM_CONTENT_SHARED && retired->segment_count > 0)
      host_complain(host, "segments that were not copied are on their way out");
    for (size_t j = 0; j < retired->segment_count; j++) {
      const jitmem_mapper_segment *segment = &retired->segments[j];
      uint8_t *bytes = host_bytes(host, segment->address);
      for (uint64_t k = 0; k < segment->size; k++)
        bytes[k] = trap[k % sizeof trap];
    }
  }
  host_answer(job, succeeded ? JITMEM_OK : JITMEM_ACTION_FAILED, "an action has failed", 0, 0);
}

// ---- requests ----

static inline void host_perform(struct job *job) {
  struct host *host = job->host;
  uint32_t status = host->fails[job->operation];
  if (status != JITMEM_OK) {
    host_answer(job, status, host->message, 0, 0);
    return;
  }
  switch (job->operation) {
  case PREPARE: {
    void *working = NULL;
    host_prepare(host, job->address, job->size, job->protection, job->lifetime, &working);
    host_answer(job, JITMEM_OK, NULL, (uintptr_t)working, 0);
    break;
  }
  case RECLAIM:
    host_reclaim(host, job->address, job->size);
    host_answer(job, JITMEM_OK, NULL, 0, 0);
    break;
  case RESERVE:
    if (host->lies_about_windows)
      host_answer(job, JITMEM_OK, NULL, host->lie_address, host->lie_size);
    else
      host_reserve(job);
    break;
  case INITIALIZE:
    host_initialize(job);
    break;
  case DEINITIALIZE:
    host_deinitialize(job);
    break;
  case RELEASE:
    host_release(job);
    break;
  default:
    abort();
  }
}

static inline void *host_thread(void *argument) {
  struct job *job = argument;
  struct host *host = job->host;
  host_perform(job);
  free(job);
  pthread_mutex_lock(&host->lock);
  if (--host->busy == 0)
    pthread_cond_broadcast(&host->idle);
  pthread_mutex_unlock(&host->lock);
  return NULL;
}

static inline void host_dispatch(struct job job) {
  struct host *host = job.host;
  pthread_mutex_lock(&host->lock);
  // These two count themselves, unless they fail.
  int counts = host->fails[job.operation] == JITMEM_OK &&
               (job.operation == PREPARE || job.operation == RECLAIM);
  host->calls[job.operation] += !counts;
  if (host->timing == WHEN_TOLD) {
    if (host->held_count == COUNT(host->held))
      abort();
    host->held[host->held_count++] = job;
  }
  host->busy += host->timing == BY_A_THREAD;
  pthread_mutex_unlock(&host->lock);
  if (host->timing == AT_ONCE)
    host_perform(&job);
  if (host->timing != BY_A_THREAD)
    return;
  struct job *kept = malloc(sizeof *kept);
  pthread_t thread;
  if (kept == NULL)
    abort();
  *kept = job;
  if (pthread_create(&thread, NULL, host_thread, kept) != 0)
    abort();
  pthread_detach(thread);
}

// Answers what was held back, and from now on at once.
static inline void host_tell(struct host *host) {
  host->timing = AT_ONCE;
  for (unsigned i = 0; i < host->held_count; i++)
    host_perform(&host->held[i]);
  host->held_count = 0;
}

static inline void host_wait(struct host *host) {
  pthread_mutex_lock(&host->lock);
  while (host->busy > 0)
    pthread_cond_wait(&host->idle, &host->lock);
  pthread_mutex_unlock(&host->lock);
}

// ---- the table ----

static inline void on_reserve(void *ctx, uint64_t size, uint32_t placement, uint64_t address,
                              jitmem_request request) {
  struct host *host = ctx;
  host->placement = placement;
  host->wanted_address = address;
  host_dispatch((struct job){.host = host, .operation = RESERVE, .request = request, .size = size});
}

static inline void on_initialize(void *ctx, const jitmem_mapper_segment *segments,
                                 size_t segment_count, const jitmem_action *actions,
                                 size_t action_count, jitmem_request request) {
  host_dispatch((struct job){.host = ctx,
                             .operation = INITIALIZE,
                             .request = request,
                             .segments = segments,
                             .count = segment_count,
                             .actions = actions,
                             .action_count = action_count});
}

static inline void on_deinitialize(void *ctx, const jitmem_mapper_retired *retired, size_t count,
                                   jitmem_request request) {
  host_dispatch((struct job){.host = ctx,
                             .operation = DEINITIALIZE,
                             .request = request,
                             .retired = retired,
                             .count = count});
}

static inline void on_release(void *ctx, uint64_t address, uint64_t size, jitmem_request request) {
  host_dispatch((struct job){
      .host = ctx, .operation = RELEASE, .request = request, .address = address, .size = size});
}

static inline void on_prepare(void *ctx, const jitmem_mapper_chunk *chunk, jitmem_request request) {
  struct host *host = ctx;
  if (!all_bytes_are((const uint8_t *)chunk->reserved, sizeof chunk->reserved, 0))
    host_complain(host, "a chunk makes no sense");
  host->commit = chunk->commit;
  host_dispatch((struct job){.host = host,
                             .operation = PREPARE,
                             .request = request,
                             .address = chunk->address,
                             .size = chunk->size,
                             .protection = chunk->protection,
                             .lifetime = chunk->lifetime});
}

static inline void on_reclaim(void *ctx, uint64_t address, uint64_t size, jitmem_request request) {
  host_dispatch((struct job){
      .host = ctx, .operation = RECLAIM, .request = request, .address = address, .size = size});
}

static inline void on_destroy(void *ctx) { ((struct host *)ctx)->destroyed++; }

#endif
