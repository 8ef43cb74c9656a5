// Runs one function on several threads at once and times it: from the first start to the last end.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*TeamBody)(int thread, int threads, void* context);

struct TeamMember {
  TeamBody body;
  void* context;
  int thread, threads;
  pthread_barrier_t* start;
  double began, ended;
};

static double team_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// To the index-th core that this process may use: a caller that is pinned to the first one passes
// its pin on to new threads, and a scheduler that packs threads would leave two of them on one
// core.
static void team_pin(int index) {
  cpu_set_t cores;
  memset(&cores, 0xff, sizeof cores);
  sched_setaffinity(0, sizeof cores, &cores);
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
  index %= CPU_COUNT(&cores);
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &cores) && index-- == 0) {
      CPU_ZERO(&cores);
      CPU_SET(core, &cores);
      sched_setaffinity(0, sizeof cores, &cores);
    }
}

static void* team_main(void* pointer) {
  struct TeamMember* self = pointer;
  if (self->thread > 0) team_pin(self->thread);
  pthread_barrier_wait(self->start);
  self->began = team_now();
  self->body(self->thread, self->threads, self->context);
  self->ended = team_now();
  return NULL;
}

// Seconds, or a negative number when a thread or memory is not to be had.
static double team_run(int threads, TeamBody body, void* context) {
  struct TeamMember* members = calloc((size_t)threads, sizeof *members);
  pthread_t* ids = calloc((size_t)threads, sizeof *ids);
  pthread_barrier_t start;
  if (!members || !ids || pthread_barrier_init(&start, NULL, (unsigned)threads) != 0) {
    free(members);
    free(ids);
    return -1;
  }
  for (int t = 0; t < threads; ++t) {
    members[t] = (struct TeamMember){body, context, t, threads, &start, 0, 0};
    // The caller is member 0. A barrier that can no longer fill leaves no way on but out.
    if (t > 0 && pthread_create(&ids[t], NULL, team_main, &members[t]) != 0) abort();
  }
  team_main(&members[0]);
  double began = members[0].began, ended = members[0].ended;
  for (int t = 1; t < threads; ++t) {
    pthread_join(ids[t], NULL);
    if (members[t].began < began) began = members[t].began;
    if (members[t].ended > ended) ended = members[t].ended;
  }
  pthread_barrier_destroy(&start);
  free(members);
  free(ids);
  return ended - began;
}
