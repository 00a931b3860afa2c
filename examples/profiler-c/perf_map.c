// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "listeners.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// A line of the file.
struct line {
  struct line *next;
  uint64_t start, end;
  long offset, size;
};

static FILE *map;
static struct line *lines;

int perf_map_open(void) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
  map = fopen(path, "w");
  return map != NULL;
}

// Makes lines empty, which perf skips, whose code was where this is now.
static void drop_lines(uint64_t start, uint64_t end) {
  struct line **place = &lines;
  while (*place != NULL) {
    struct line *line = *place;
    if (line->end <= start || end <= line->start) {
      place = &line->next;
      continue;
    }
    fseek(map, line->offset, SEEK_SET);
    for (long i = 0; i < line->size; i++)
      fputc('\n', map);
    *place = line->next;
    free(line);
  }
}

static void add_line(const jitmem_allocation_segment *segment, const char *name) {
  struct line *line = malloc(sizeof *line);
  if (line == NULL)
    return;
  fseek(map, 0, SEEK_END);
  *line = (struct line){.next = lines,
                        .start = segment->address,
                        .end = segment->address + segment->size,
                        .offset = ftell(map)};
  line->size = fprintf(map, "%" PRIx64 " %" PRIx64 " %s\n", segment->address, segment->size, name);
  lines = line;
}

void perf_map_event(const jitmem_event *event) {
  if (map == NULL || event->kind != JITMEM_EVENT_FINALIZED)
    return;
  const jitmem_allocation *it = event->allocation;
  for (size_t i = 0; i < it->segment_count; i++) {
    const jitmem_allocation_segment *segment = &it->segments[i];
    if (!is_code(segment))
      continue;
    drop_lines(segment->address, segment->address + segment->size);
    add_line(segment, it->name ? it->name : "linked code");
  }
  fflush(map); // perf reads it when the process may be gone without an exit
}

void perf_map_close(void) {
  if (map != NULL)
    fclose(map);
  map = NULL;
  while (lines != NULL) {
    struct line *line = lines;
    lines = line->next;
    free(line);
  }
}
