// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Systems that run out of something: address space, descriptors, mappings, pages, file size.
// An error names the limit, nothing is lost, and the manager goes on when there is room again.

#include "limits.h"

// Makes a manager where the system may refuse; NULL if it did.
static jitmem_manager *try_manager(uint32_t kind, jitmem_error **error) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  if (jitmem_mapper_in_process(kind, &mapper, error) == JITMEM_OK)
    jitmem_manager_create(mapper, NULL, &manager, error);
  jitmem_mapper_free(mapper);
  return manager;
}

// ---- address space ----

LIMITED_EACH(address_space_for_a_smaller_window) {
  const uint64_t room[] = {700 * MIB, 300 * MIB, 100 * MIB, 20 * MIB};
  const uint64_t window[] = {512 * MIB, 256 * MIB, 64 * MIB, 16 * MIB};
  for (size_t i = 0; i < COUNT(room); i++) {
    set_limit(RLIMIT_AS, address_space() + room[i]);
    jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
    jitmem_stats stats = child_stats(manager);
    MUST(stats.reserved == window[i]);
    MUST(stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW);
    for (int j = 0; j < 50; j++)
      child_graph(manager);
    jitmem_manager_free(manager);
    set_limit(RLIMIT_AS, RLIM_INFINITY);
  }
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
  MUST(!(child_stats(manager).fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW));
  jitmem_manager_free(manager);
}

LIMITED_EACH(address_space_for_no_window) {
  set_limit(RLIMIT_AS, address_space() + 6 * MIB);
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_mapper_in_process(kind, &mapper, error));
  MUST_FAIL(JITMEM_OUT_OF_MEMORY, "RLIMIT_AS", "1073741824",
            jitmem_manager_create(mapper, NULL, &manager, error));
  jitmem_error *problem = NULL;
  MUST(jitmem_manager_create(mapper, NULL, &manager, &problem) == JITMEM_OUT_OF_MEMORY);
  MUST(jitmem_error_os_code(problem) == ENOMEM);
  jitmem_error_free(problem);
  MUST(manager == NULL);
  set_limit(RLIMIT_AS, RLIM_INFINITY);
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  child_graph(manager);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
}

// The smallest window holds a graph with code, constants and data, where there is hardly more
// address space than it takes, and where what there is lies in pieces.
LIMITED_EACH(address_space_for_the_smallest_window) {
  set_limit(RLIMIT_AS, address_space() + 2 * MIB);
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){.window_size = 64 * KIB});
  MUST(child_stats(manager).reserved == 64 * KIB);
  for (int i = 0; i < 100; i++)
    child_graph(manager);
  jitmem_manager_free(manager);
  // Every other 128 KiB are taken, and nothing is left beside the holes.
  enum { PIECES = 64 };
  set_limit(RLIMIT_AS, RLIM_INFINITY);
  char *pieces =
      mmap(NULL, PIECES * 256 * KIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUST(pieces != MAP_FAILED);
  for (int i = 0; i < PIECES; i++)
    MUST(munmap(pieces + (uint64_t)i * 256 * KIB, 128 * KIB) == 0);
  set_limit(RLIMIT_AS, address_space() + 2 * MIB);
  manager = child_manager(kind, (jitmem_manager_options){.window_size = 64 * KIB});
  for (int i = 0; i < 100; i++)
    child_graph(manager);
  jitmem_manager_free(manager);
}

// Allocates small graphs until there is no room for more, which must be told as an error; frees
// them when there is room again, and says how many there were.
static size_t use_up(jitmem_manager *manager, size_t most) {
  uint64_t *handles = mmap(NULL, most * sizeof *handles, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(handles != MAP_FAILED);
  const jitmem_segment segments[] = {segment(200, 0, RX), segment(100, 0, RW)};
  struct graph graph;
  size_t count = 0;
  jitmem_error *problem = NULL;
  while (count < most) {
    jitmem_status status =
        jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &handles[count], &problem);
    if (status == JITMEM_OUT_OF_MEMORY)
      MUST(strstr(jitmem_error_message(problem), "RLIMIT_AS") != NULL);
    else
      MUST(status == JITMEM_OK || status == JITMEM_WINDOW_FULL);
    if (status != JITMEM_OK)
      break;
    count++;
  }
  jitmem_error_free(problem);
  set_limit(RLIMIT_AS, RLIM_INFINITY);
  for (size_t i = 0; i < count; i++)
    MUST_OK(jitmem_manager_abandon(manager, handles[i], error));
  MUST(child_stats(manager).live == 0);
  child_graph(manager);
  MUST(munmap(handles, most * sizeof *handles) == 0);
  return count;
}

static const uint64_t spare_room[] = {0, 4 * KIB, 64 * KIB, 200 * KIB, MIB};

// Whatever is missing is told as an error, and the process lives.
LIMITED_EACH(address_space_that_a_window_nearly_fills) {
  for (size_t i = 0; i < COUNT(spare_room); i++) {
    jitmem_error *problem = NULL;
    set_limit(RLIMIT_AS, address_space() + 64 * MIB + spare_room[i]);
    jitmem_manager *manager = try_manager(kind, &problem);
    MUST(manager != NULL || strstr(jitmem_error_message(problem), "RLIMIT_AS") != NULL);
    jitmem_error_free(problem);
    // As many as no window of 64 MiB holds, so that something must run out.
    set_limit(RLIMIT_AS, address_space() + 4 * MIB + spare_room[i]);
    if (manager != NULL)
      MUST(use_up(manager, 300000) < 300000);
    set_limit(RLIMIT_AS, RLIM_INFINITY);
    jitmem_manager_free(manager);
  }
}

// The window must not take so much that nothing is left to work with.
LIMITED_EACH(address_space_for_a_window_and_its_use) {
  for (size_t i = 0; i < COUNT(spare_room); i++) {
    const jitmem_segment segments[] = {segment(200, 0, RX), segment(100, 0, R), segment(9, 0, RW)};
    struct graph graph;
    set_limit(RLIMIT_AS, address_space() + 64 * MIB + spare_room[i]);
    jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
    MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, graph.memory, &graph.handle, error));
    set_limit(RLIMIT_AS, RLIM_INFINITY);
    jitmem_manager_free(manager);
  }
}

// Chunks have become large, and there is no room for another one of that size: a smaller one will
// do.
LIMITED_EACH(address_space_for_small_chunks_only) {
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){.window_size = 64 * MIB});
  const jitmem_segment small = segment(112, 0, RX);
  const uint64_t taken = kind == JITMEM_IN_PROCESS_TWO_VIEWS ? 112 : page_size();
  struct graph graph;
  // Until the chunks are full, whose number and size have grown by then.
  jitmem_stats stats;
  do {
    MUST_OK(jitmem_manager_allocate(manager, &small, 1, 0, graph.memory, &graph.handle, error));
    stats = child_stats(manager);
  } while (stats.committed < 4 * MIB || stats.free >= stats.chunks * taken);
  set_limit(RLIMIT_AS, address_space() + 512 * KIB);
  for (int i = 0; i < 100; i++)
    MUST_OK(jitmem_manager_allocate(manager, &small, 1, 0, graph.memory, &graph.handle, error));
}

// ---- descriptors, file size ----

LIMITED(descriptors_do_not_matter) {
  set_limit(RLIMIT_NOFILE, 3);
  MUST(dup(2) < 0 && errno == EMFILE);
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  MUST(child_stats(manager).mapper == JITMEM_MAPPER_TWO_VIEWS);
  for (int i = 0; i < 20; i++)
    child_graph(manager);
  const jitmem_segment code = segment(MIB, 0, RX);
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  jitmem_manager_free(manager);
}

LIMITED(descriptors_run_out) {
  deny(SYS_mremap, EPERM); // two views are of memfds then
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
  const jitmem_segment code = segment(100, 0, RX);
  struct graph graph;
  set_limit(RLIMIT_NOFILE, 3);
  MUST(dup(2) < 0 && errno == EMFILE);
  for (int i = 0; i < 20; i++)
    MUST_FAIL(JITMEM_OUT_OF_MEMORY, "RLIMIT_NOFILE", "memfd_create",
              jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  MUST(child_stats(manager).chunks == 0);
  set_limit(RLIMIT_NOFILE, 20);
  child_graph(manager);
  // A chunk once made needs no descriptor any more.
  MUST_OK(jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  set_limit(RLIMIT_NOFILE, 3);
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST_OK(jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  jitmem_manager_free(manager);

  // That there is none for the probe decides nothing: there may be one later.
  manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  MUST(child_stats(manager).mapper == JITMEM_MAPPER_TWO_VIEWS);
  set_limit(RLIMIT_NOFILE, 20);
  child_graph(manager);
  jitmem_manager_free(manager);
}

LIMITED_EACH(the_size_of_files_does_not_matter) {
  set_limit(RLIMIT_FSIZE, 0);
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
  child_graph(manager);
  const jitmem_segment segments[] = {segment(5 * MIB, 0, RX), segment(3 * MIB, 5 * MIB, RW)};
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &graph.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  jitmem_manager_free(manager);
  manager = child_manager(JITMEM_IN_PROCESS_AUTO, (jitmem_manager_options){0});
  MUST(child_stats(manager).mapper == JITMEM_MAPPER_TWO_VIEWS);
  MUST(child_stats(manager).fallbacks == 0);
  jitmem_manager_free(manager);
}

LIMITED(files_must_stay_small) {
  // A memfd is a file: one that would be larger is an error here and must not be a signal.
  deny(SYS_mremap, EPERM); // two views are of memfds then
  set_limit(RLIMIT_FSIZE, 16 * KIB);
  jitmem_manager *manager = child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){0});
  const jitmem_segment code = segment(100 * KIB, 0, RX);
  struct graph graph;
  MUST_FAIL(JITMEM_OUT_OF_MEMORY, "RLIMIT_FSIZE", "memfd_create",
            jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  set_limit(RLIMIT_FSIZE, RLIM_INFINITY);
  child_graph(manager);
}

// ---- locked memory ----

LIMITED_EACH(memory_must_be_locked) {
  // root may lock whatever it likes.
  MUST(geteuid() != 0 || seteuid(65534) == 0);
  set_limit(RLIMIT_MEMLOCK, 8 * MIB);
  MUST(mlockall(MCL_FUTURE) == 0);
  // So that something is locked already.
  MUST(mmap(NULL, 64 * KIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
  jitmem_error *problem = NULL;
  MUST(try_manager(kind, &problem) == NULL);
  const char *message = jitmem_error_message(problem);
  MUST(jitmem_error_status(problem) == JITMEM_OUT_OF_MEMORY);
  MUST(strstr(message, "RLIMIT_MEMLOCK") != NULL && strstr(message, "cgroup") == NULL);
  jitmem_error_free(problem);
  // A window that fits under the limit is locked and works.
  child_graph(child_manager(kind, (jitmem_manager_options){.window_size = 1 * MIB}));
}

// ---- what passes ----

LIMITED(a_shortage_at_the_choice_decides_nothing) {
  deny(SYS_mremap, EPERM); // two views are of memfds then, which need a descriptor
  set_limit(RLIMIT_NOFILE, 3);
  jitmem_mapper *mapper = NULL;
  MUST_OK(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, error));
  set_limit(RLIMIT_NOFILE, 100);
  jitmem_manager *manager = NULL;
  MUST_OK(jitmem_manager_create(mapper, NULL, &manager, error));
  MUST(strstr(stats_of(manager).mapper_name, "memfds") != NULL);
  child_graph(manager);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
}

// ---- mappings ----

// Makes mappings until the kernel has no more; alternating protections keep them from merging.
static void *take_all_mappings(size_t *size) {
  const size_t pages = 1 << 17;
  *size = pages * page_size();
  void *start = mmap(NULL, *size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUST(start != MAP_FAILED);
  for (size_t i = 1; i < pages; i += 2)
    if (mprotect((char *)start + i * page_size(), page_size(), PROT_READ) != 0) {
      MUST(errno == ENOMEM);
      // The last step takes two; one more may be left.
      mmap(NULL, page_size(), PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      return start;
    }
  SKIP_CHILD("vm.max_map_count is above %zu here", pages);
}

LIMITED_EACH(mappings_run_out) {
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
  const jitmem_segment segments[] = {segment(100, 0, RX), segment(100, 0, R), segment(100, 0, RW)};
  struct graph kept, graph;
  MUST_OK(jitmem_manager_allocate(manager, segments, 3, 0, kept.memory, &kept.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, kept.handle, NULL, 0, error));
  size_t size = 0;
  void *start = take_all_mappings(&size);

  jitmem_stats before = child_stats(manager);
  const jitmem_segment large = segment(MIB, 0, RX);
  for (int i = 0; i < 5; i++) {
    // A new chunk is needed; with mprotect its place may be had but not its protection.
    jitmem_error *problem = NULL;
    jitmem_status status =
        jitmem_manager_allocate(manager, &large, 1, 0, graph.memory, &graph.handle, &problem);
    if (status == JITMEM_OK)
      status = jitmem_manager_finalize(manager, graph.handle, NULL, 0, &problem);
    MUST(status == JITMEM_OUT_OF_MEMORY);
    MUST(jitmem_error_os_code(problem) == ENOMEM);
    if (strstr(jitmem_error_message(problem), "vm.max_map_count") == NULL) {
      fprintf(stderr, "no word of vm.max_map_count: %s\n", jitmem_error_message(problem));
      _exit(CHILD_FAILED);
    }
    jitmem_error_free(problem);
  }
  jitmem_stats after = child_stats(manager);
  MUST(after.live == before.live && after.in_flight == 0);
  // Two views need no mapping for what fits their chunks.
  if (kind == JITMEM_IN_PROCESS_TWO_VIEWS)
    child_graph(manager);

  MUST(munmap(start, size) == 0);
  child_graph(manager);
  MUST_OK(jitmem_manager_allocate(manager, &large, 1, 0, graph.memory, &graph.handle, error));
  MUST_OK(jitmem_manager_finalize(manager, graph.handle, NULL, 0, error));
  MUST_OK(jitmem_manager_deallocate(manager, &graph.handle, 1, error));
  MUST_OK(jitmem_manager_deallocate(manager, &kept.handle, 1, error));
  MUST(child_stats(manager).live == 0);
  jitmem_manager_free(manager);
}

LIMITED_EACH(mappings_run_out_before_everything_is_freed) {
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){0});
  const jitmem_segment one = segment(20000, 0, RX);
  uint64_t handles[100];
  struct graph graph;
  for (size_t i = 0; i < COUNT(handles); i++) {
    MUST_OK(jitmem_manager_allocate(manager, &one, 1, 0, graph.memory, &handles[i], error));
    MUST_OK(jitmem_manager_finalize(manager, handles[i], NULL, 0, error));
  }
  size_t size = 0;
  void *start = take_all_mappings(&size);
  // Freeing must get through, whatever it can't make trap or give back.
  for (size_t i = 0; i < COUNT(handles); i += 2)
    jitmem_manager_deallocate(manager, &handles[i], 1, NULL);
  for (size_t i = 1; i < COUNT(handles); i += 2)
    jitmem_manager_deallocate(manager, &handles[i], 1, NULL);
  jitmem_stats stats = child_stats(manager);
  MUST(stats.live + stats.padding + stats.finalized == 0);
  MUST(munmap(start, size) == 0);
  child_graph(manager);
  jitmem_manager_free(manager);
}

// ---- pages ----

enum { POPULATE_WRITE = 23 };

static void must_lack_pages_of_code(const char *operation, const char *remedy) {
  jitmem_manager *manager =
      child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){.commit = 1});
  const jitmem_segment code = segment(100, 0, RX);
  struct graph graph;
  MUST_FAIL(JITMEM_OUT_OF_MEMORY, operation, remedy,
            jitmem_manager_allocate(manager, &code, 1, 0, graph.memory, &graph.handle, error));
  MUST(child_stats(manager).chunks == 0);
  // Without commit no page is asked for.
  jitmem_manager *other =
      child_manager(JITMEM_IN_PROCESS_TWO_VIEWS, (jitmem_manager_options){.commit = 0});
  child_graph(other);
  jitmem_manager_free(other);
  jitmem_manager_free(manager);
}

LIMITED(pages_run_out_on_commit) {
  deny_with(SYS_madvise, 2, POPULATE_WRITE, ENOMEM);
  must_lack_pages_of_code("MADV_POPULATE_WRITE", "free memory");
}

LIMITED(pages_of_memfds_run_out_on_commit) {
  deny(SYS_mremap, EPERM);
  deny(SYS_fallocate, ENOSPC);
  must_lack_pages_of_code("fallocate", "shared memory is full");
}

LIMITED_EACH(pages_are_taken_before_linux_5_14) {
  deny_with(SYS_madvise, 2, POPULATE_WRITE, EINVAL);
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){.commit = 1});
  const jitmem_segment segments[] = {segment(MIB, 0, RX), segment(MIB, 0, RW)};
  struct graph graph;
  MUST_OK(jitmem_manager_allocate(manager, segments, 2, 0, graph.memory, &graph.handle, error));
  for (size_t i = 0; i < COUNT(segments); i++) {
    unsigned char resident[MIB / 4096];
    const uint64_t first = graph.memory[i].address & -page_size();
    MUST(mincore((void *)first, MIB, resident) == 0);
    for (size_t page = 0; page < MIB / page_size(); page++)
      MUST(resident[page] & 1);
  }
  jitmem_manager_free(manager);
}

LIMITED_EACH(pages_of_data_run_out_on_commit) {
  deny_with(SYS_madvise, 2, POPULATE_WRITE, ENOMEM);
  jitmem_manager *manager = child_manager(kind, (jitmem_manager_options){.commit = 1});
  const jitmem_segment data = segment(100, 0, RW);
  struct graph graph;
  for (int i = 0; i < 20; i++)
    MUST_FAIL(JITMEM_OUT_OF_MEMORY, "MADV_POPULATE_WRITE", "free memory",
              jitmem_manager_allocate(manager, &data, 1, 0, graph.memory, &graph.handle, error));
  jitmem_stats stats = child_stats(manager);
  MUST(stats.chunks == 0 && stats.committed == 0 && stats.in_flight == 0);
  jitmem_manager_free(manager);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      LIMIT(address_space_for_a_smaller_window_two_views),
      LIMIT(address_space_for_a_smaller_window_mprotect),
      LIMIT(address_space_for_the_smallest_window_two_views),
      LIMIT(address_space_for_the_smallest_window_mprotect),
      LIMIT(address_space_for_no_window_two_views),
      LIMIT(address_space_for_no_window_mprotect),
      LIMIT(address_space_that_a_window_nearly_fills_two_views),
      LIMIT(address_space_that_a_window_nearly_fills_mprotect),
      LIMIT(address_space_for_a_window_and_its_use_two_views),
      LIMIT(address_space_for_a_window_and_its_use_mprotect),
      LIMIT(address_space_for_small_chunks_only_two_views),
      LIMIT(address_space_for_small_chunks_only_mprotect),
      LIMIT(descriptors_do_not_matter),
      LIMIT(descriptors_run_out),
      LIMIT(the_size_of_files_does_not_matter_two_views),
      LIMIT(the_size_of_files_does_not_matter_mprotect),
      LIMIT(files_must_stay_small),
      LIMIT(memory_must_be_locked_two_views),
      LIMIT(memory_must_be_locked_mprotect),
      LIMIT(a_shortage_at_the_choice_decides_nothing),
      LIMIT(mappings_run_out_two_views),
      LIMIT(mappings_run_out_mprotect),
      LIMIT(mappings_run_out_before_everything_is_freed_two_views),
      LIMIT(mappings_run_out_before_everything_is_freed_mprotect),
      LIMIT(pages_run_out_on_commit),
      LIMIT(pages_of_memfds_run_out_on_commit),
      LIMIT(pages_are_taken_before_linux_5_14_two_views),
      LIMIT(pages_are_taken_before_linux_5_14_mprotect),
      LIMIT(pages_of_data_run_out_on_commit_two_views),
      LIMIT(pages_of_data_run_out_on_commit_mprotect),
  };
  return RUN_LIMITS(tests, argc, argv);
}
