// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Threads, what they lock, and what is theirs alone.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

enum { THREADS = 16, ROUNDS = 1000 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int turn, rounds, destroyed;

static void destroy(void *value) {
  pthread_mutex_lock(&mutex);
  destroyed += *(int *)value;
  pthread_mutex_unlock(&mutex);
}

static void make_key(void) { pthread_key_create(&key, destroy); }

static void *work(void *number) {
  int own = *(int *)number;
  pthread_once(&once, make_key);
  pthread_setspecific(key, number);
  errno = own;
  for (int i = 0; i < ROUNDS; i++) {
    pthread_mutex_lock(&mutex);
    while (turn != own)
      pthread_cond_wait(&changed, &mutex);
    turn = (turn + 1) % THREADS;
    rounds++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
  }
  return pthread_getspecific(key) == number && errno == own ? number : NULL;
}

int main(void) {
  static pthread_t threads[THREADS];
  static int numbers[THREADS];
  int kept = 0;
  for (int i = 0; i < THREADS; i++) {
    numbers[i] = i;
    pthread_create(&threads[i], NULL, work, &numbers[i]);
  }
  for (int i = 0; i < THREADS; i++) {
    void *result;
    pthread_join(threads[i], &result);
    kept += result == &numbers[i];
  }
  pthread_key_delete(key);
  printf("%d rounds, %d kept, %d destroyed\n", rounds, kept, destroyed);
  return 42;
}
