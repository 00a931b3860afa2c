// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a process without LLVM does with images: it links them by the C API, with symbols that dlsym
// finds, and calls functions whose results are known. Prints the milliseconds from the first image
// to the addresses of all symbols, and how many symbols there are.
//   jitmem-bench-image-alone LLVM-RELEASE IMAGE... -- [SYMBOL ARGUMENT RESULT]...

#include <jitmem.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static jitmem_error *error = NULL;

static void fail(const char *what) {
  fprintf(stderr, "jitmem-bench-image-alone: %s\n", what);
  exit(1);
}

static void must(jitmem_status status) {
  if (status != JITMEM_OK)
    fail(jitmem_error_message(error));
}

static void *array(size_t count, size_t size) {
  void *elements = calloc(count + 1, size);
  if (elements == NULL)
    fail("no memory");
  return elements;
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

// The exports of an image that is linked now. It stays open to the end of the process.
typedef struct {
  jitmem_image_export *exports;
  size_t count;
} loaded_image;

static loaded_image load(const char *path, const char *llvm, jitmem_manager *manager) {
  const jitmem_image_key key = {.name = "LLVM", .value = llvm};
  jitmem_image *image = NULL;
  must(jitmem_image_open(path, &key, 1, &image, &error));
  size_t count = 0;
  must(jitmem_image_imports(image, NULL, 0, &count, &error));
  const char **names = array(count, sizeof *names);
  uint64_t *addresses = array(count, sizeof *addresses);
  must(jitmem_image_imports(image, names, count, &count, &error));
  for (size_t i = 0; i != count; i++) {
    addresses[i] = (uintptr_t)dlsym(RTLD_DEFAULT, names[i]);
    if (addresses[i] == 0)
      fail(names[i]);
  }
  const jitmem_image_link_request request = {
      .struct_size = sizeof request, .addresses = addresses, .address_count = count};
  uint64_t allocation = 0;
  must(jitmem_image_link(image, manager, &request, &error));
  must(jitmem_image_finalize(image, NULL, 0, &allocation, &error));
  loaded_image loaded = {NULL, 0};
  must(jitmem_image_exports(image, NULL, 0, &loaded.count, &error));
  loaded.exports = array(loaded.count, sizeof *loaded.exports);
  must(jitmem_image_exports(image, loaded.exports, loaded.count, &loaded.count, &error));
  free(names);
  free(addresses);
  return loaded;
}

static uint64_t find(const loaded_image *images, size_t count, const char *symbol) {
  for (size_t i = 0; i != count; i++)
    for (size_t j = 0; j != images[i].count; j++)
      if (strcmp(images[i].exports[j].symbol, symbol) == 0)
        return images[i].exports[j].address;
  return 0;
}

int main(int count, char **arguments) {
  int end = 2;
  while (end < count && strcmp(arguments[end], "--") != 0)
    end++;
  if (end >= count || (count - end - 1) % 3 != 0)
    fail("usage: jitmem-bench-image-alone LLVM-RELEASE IMAGE... -- [SYMBOL ARGUMENT RESULT]...");
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  must(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error));
  must(jitmem_manager_create(mapper, NULL, &manager, &error));
  if (dlopen("libm.so.6", RTLD_NOW | RTLD_GLOBAL) == NULL)
    fail(dlerror());
  const size_t images = (size_t)end - 2;
  loaded_image *loaded = array(images, sizeof *loaded);
  size_t symbols = 0;
  const double start = milliseconds();
  for (size_t i = 0; i != images; i++) {
    loaded[i] = load(arguments[2 + i], arguments[1], manager);
    symbols += loaded[i].count;
  }
  const double elapsed = milliseconds() - start;
  for (int i = end + 1; i != count; i += 3) {
    const uint64_t address = find(loaded, images, arguments[i]);
    if (address == 0)
      fail(arguments[i]);
    const int result = ((int (*)(int))(uintptr_t)address)(atoi(arguments[i + 1]));
    if (result != atoi(arguments[i + 2])) {
      fprintf(stderr, "%s(%s) is %d, not %s\n", arguments[i], arguments[i + 1], result,
              arguments[i + 2]);
      return 1;
    }
  }
  printf("%.6f %zu\n", elapsed, symbols);
  return 0;
}
