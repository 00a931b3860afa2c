// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A program that is linked statically, whose own unwinder finds frames of linked code.
#include "../../../capi-tests/hop.h"

#include <jitmem.h>
#include <stdio.h>

static jitmem_error *error;

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, error ? jitmem_error_message(error) : "no frames are found");
  jitmem_error_free(error);
  return 1;
}

int main(void) {
  jitmem_mapper *mapper;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) != JITMEM_OK)
    return failed("mapper");
  jitmem_manager *manager;
  if (jitmem_manager_create(mapper, NULL, &manager, &error) != JITMEM_OK)
    return failed("manager");
  const jitmem_segment segments[] = {
      {.content_size = sizeof hop_code,
       .alignment = 16,
       .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC},
      {.content_size = SECTION_ROOM, .alignment = 8, .protection = JITMEM_PROT_READ},
  };
  jitmem_segment_memory memory[2];
  uint64_t allocation, numbers[2];
  if (jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, &error) != JITMEM_OK)
    return failed("allocate");
  const struct section section = section_for(memory[1].address, memory[0].address);
  memcpy(memory[0].working_memory, hop_code, sizeof hop_code);
  memcpy(memory[1].working_memory, section.bytes, section.size);
  jitmem_action action;
  if (jitmem_manager_eh_frame_action(manager, memory[1].address, section.size, numbers, &action,
                                     &error) != JITMEM_OK)
    return failed("action");
  if (jitmem_manager_finalize(manager, allocation, &action, 1, &error) != JITMEM_OK)
    return failed("finalize");
  const struct walk found = walk_through(memory[0].address);
  if (found.inside != 1 || found.behind == 0)
    return failed("walk");
  if (jitmem_manager_deallocate(manager, &allocation, 1, &error) != JITMEM_OK)
    return failed("deallocate");
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  // The test looks for this line.
  printf("frames are found\n");
  return 0;
}
