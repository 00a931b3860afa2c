// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Puts a function's machine code into memory and calls it.
#include <jitmem.h>
#include <stdio.h>
#include <string.h>

#ifdef __aarch64__
static const uint32_t add[] = {0x0b010000, 0xd65f03c0}; // add w0, w0, w1; ret
#else
static const uint8_t add[] = {0x8d, 0x04, 0x37, 0xc3}; // lea eax, [rdi + rsi]; ret
#endif

int main(void) {
  const jitmem_segment code = {.content_size = sizeof add,
                               .alignment = 16,
                               .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  uint64_t allocation;

  if (!jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) &&
      !jitmem_manager_create(mapper, NULL, &manager, &error) &&
      !jitmem_manager_allocate(manager, &code, 1, 0, &memory, &allocation, &error)) {
    memcpy(memory.working_memory, add, sizeof add);
    if (!jitmem_manager_finalize(manager, allocation, NULL, 0, &error)) {
      int (*function)(int, int) = (int (*)(int, int))(uintptr_t)memory.address;
      printf("40 + 2 = %d\n", function(40, 2));
      jitmem_manager_deallocate(manager, &allocation, 1, &error);
    }
  }
  int failed = error != NULL;
  if (failed)
    fprintf(stderr, "plain-c: %s\n", jitmem_error_message(error));
  jitmem_error_free(error);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return failed;
}
