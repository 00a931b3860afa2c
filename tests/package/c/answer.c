// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A C program that uses the installed package: puts a function into jitmem's memory and calls it.
#include <jitmem.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; // mov eax, 42; ret
#elif defined(__aarch64__)
static const unsigned char code[] = {0x40, 5, 0x80, 0x52, 0xc0, 3, 0x5f, 0xd6}; // mov w0, 42; ret
#else
#error "no machine code for this architecture"
#endif

static jitmem_error *error;

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, jitmem_error_message(error));
  jitmem_error_free(error);
  return 1;
}

int main(void) {
  if (jitmem_version() != JITMEM_VERSION ||
      strcmp(jitmem_version_string(), JITMEM_VERSION_STRING) != 0) {
    fprintf(stderr, "header %s, library %s\n", JITMEM_VERSION_STRING, jitmem_version_string());
    return 1;
  }
  jitmem_mapper *mapper;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) != JITMEM_OK)
    return failed("mapper");
  jitmem_manager *manager;
  if (jitmem_manager_create(mapper, NULL, &manager, &error) != JITMEM_OK)
    return failed("manager");
  const jitmem_segment segment = {.content_size = sizeof code,
                                  .alignment = 16,
                                  .protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC};
  jitmem_segment_memory memory;
  uint64_t allocation;
  if (jitmem_manager_allocate(manager, &segment, 1, 0, &memory, &allocation, &error) != JITMEM_OK)
    return failed("allocate");
  memcpy(memory.working_memory, code, sizeof code);
  if (jitmem_manager_finalize(manager, allocation, NULL, 0, &error) != JITMEM_OK)
    return failed("finalize");
  int (*function)(void) = (int (*)(void))(uintptr_t)memory.address;
  const int answer = function();
  if (jitmem_manager_deallocate(manager, &allocation, 1, &error) != JITMEM_OK)
    return failed("deallocate");
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  // The tests look for this line.
  printf("jitmem %s answers %d\n", jitmem_version_string(), answer);
  return answer == 42 ? 0 : 1;
}
