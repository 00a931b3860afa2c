// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors whose answers are cut off, noise, or say that they are larger than anything: an error
// each time, never a crash, and nothing is left behind.

#include "here.h"

#include <stdatomic.h>

enum lie { EMPTY, CUT, LONG, NOISE, HUGE_LENGTHS, FLIPPED, LIES };

// Tells one lie, in the answer to one call.
struct liar {
  struct here here;
  enum lie lie;
  int at, calls;
  uint64_t random;
};

// The service's functions. Only those are called: what a lie makes of an address would be any code.
static _Atomic uint64_t functions[8];

static int is_function(uint64_t address, int honest) {
  for (size_t i = 0; i < COUNT(functions); i++) {
    uint64_t known = atomic_load(&functions[i]);
    if (known == 0 && honest)
      atomic_store(&functions[i], known = address);
    if (known == address)
      return 1;
  }
  return 0;
}

static size_t tell(struct liar *liar, char *bytes, size_t size) {
  switch (liar->lie) {
  case EMPTY:
    return 0;
  case CUT:
    return size ? next_random(&liar->random) % size : 0;
  case LONG:
    return 2 * size;
  case NOISE:
    for (size_t i = 0; i < size; i++)
      bytes[i] = (char)next_random(&liar->random);
    return size;
  case HUGE_LENGTHS:
    // The flag of a reply stays: what follows is what it says that it is.
    for (size_t i = 1; i < size; i++)
      bytes[i] = (char)(i % sizeof(uint64_t) ? 0xff : 0x7f);
    return size;
  default:
    if (size)
      bytes[next_random(&liar->random) % size] ^= (char)(1 << next_random(&liar->random) % 8);
    return size;
  }
}

static void lying_call(void *ctx, uint64_t function, const void *args, size_t size,
                       jitmem_call call) {
  struct liar *liar = ctx;
  if (!is_function(function, liar->at < 0)) {
    const char *message = "no function is there";
    OK(jitmem_transport_answer(call, JITMEM_MAPPER_FAILED, message, NULL, 0, error));
    return;
  }
  struct wrapper_result result = call_here(function, args, size);
  if (liar->calls++ != liar->at) {
    answer_with(call, result);
    return;
  }
  int inline_bytes = result.size <= sizeof result.data.bytes;
  char *bytes = calloc(2, result.size + 1);
  assert_non_null(bytes);
  memcpy(bytes, inline_bytes ? result.data.bytes : result.data.pointer, result.size);
  size_t told = tell(liar, bytes, result.size);
  OK(jitmem_transport_answer(call, JITMEM_OK, NULL, bytes, told, error));
  free(bytes);
  if (!inline_bytes)
    free(result.data.pointer);
}

// A life in which any step may fail, and none may crash or hang.
static jitmem_status life_with(struct here *here, int shared) {
  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_status failed =
      (shared ? jitmem_mapper_shared : jitmem_mapper_remote)(here->transport, NULL, &mapper, NULL);
  if (failed == JITMEM_OK)
    failed = jitmem_manager_create(mapper, NULL, &manager, NULL);
  for (int i = 0; failed == JITMEM_OK && i < 2; i++) {
    const jitmem_segment segments[] = {segment(64, 0, RX), segment(64, 64, RW)};
    jitmem_segment_memory memory[2];
    uint64_t allocation;
    failed = jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, NULL);
    if (failed == JITMEM_OK)
      failed = jitmem_manager_finalize(manager, allocation, NULL, 0, NULL);
    if (failed == JITMEM_OK)
      failed = jitmem_manager_deallocate(manager, &allocation, 1, NULL);
  }
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return failed;
}

static void bytes_that_mean_nothing(void **state) {
  (void)state;
  for (int shared = 0; shared < 2; shared++) {
    struct liar honest = {.at = -1};
    here_set_up(&honest.here, lying_call);
    assert_int_equal(life_with(&honest.here, shared), JITMEM_OK);
    here_tear_down(&honest.here);
    assert_true(honest.calls >= (shared ? 2 : 6));
    unsigned tries = rounds(40) * honest.calls, failures = 0;
    for (int lie = EMPTY; lie < LIES; lie++)
      for (unsigned i = 0; i < tries; i++) {
        struct liar liar = {
            .lie = lie, .at = (int)(i % honest.calls), .random = 88172645463325252 + i};
        here_set_up(&liar.here, lying_call);
        failures += life_with(&liar.here, shared) != JITMEM_OK;
        here_tear_down(&liar.here);
      }
    // Some lies are not noticed: nothing needs the answer to a release, or there is another way to
    // pass descriptors.
    assert_true(failures > tries / 2);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bytes_that_mean_nothing),
  };
  return at_rest(cmocka_run_group_tests_name("lies", tests, NULL, NULL));
}
