// How fast this machine can read memory: threads sum disjoint parts of a buffer with vector loads.
//
// The best of several access patterns counts, since a ceiling must not depend on one prefetcher's
// taste.
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>

#include "team.h"

typedef int64_t Line __attribute__((vector_size(64)));
enum { kLineBytes = 64, kPageBytes = 4096 };

struct Pattern {
  int streams;         // pages read side by side by one thread
  int prefetch_bytes;  // distance of software prefetch, 0 for none
};
static const struct Pattern kPatterns[] = {{1, 0}, {1, 2048}, {2, 0}, {4, 0}, {4, 2048}};

struct Job {
  const char* data;
  size_t bytes;
  struct Pattern pattern;
  int passes;
};

static inline Line sum_stream(const char* data, size_t bytes, int prefetch_bytes) {
  Line s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  for (size_t i = 0; i + 4 * kLineBytes <= bytes; i += 4 * kLineBytes) {
    const Line* line = (const Line*)(data + i);
    if (prefetch_bytes) {
      for (int p = 0; p < 4; ++p) __builtin_prefetch(data + i + prefetch_bytes + p * kLineBytes);
    }
    s0 += line[0];
    s1 += line[1];
    s2 += line[2];
    s3 += line[3];
  }
  return s0 + s1 + s2 + s3;
}

static void read_part(int thread, int threads, void* context) {
  const struct Job* job = context;
  const size_t pages = job->bytes / kPageBytes;
  const size_t first = pages * (size_t)thread / (size_t)threads,
               last = pages * (size_t)(thread + 1) / (size_t)threads;
  const size_t streams = (size_t)job->pattern.streams;
  const size_t stride = (last - first) / streams;
  Line sum = {0};
  for (int pass = 0; pass < job->passes; ++pass) {
    // One page of each stream in turn; fewer than `streams` pages at the end are left unread.
    for (size_t page = 0; page < stride * streams; ++page) {
      const size_t at = first + page % streams * stride + page / streams;
      sum += sum_stream(job->data + at * kPageBytes, kPageBytes, job->pattern.prefetch_bytes);
    }
  }
  __asm__ volatile("" : : "m"(sum));  // the sum counts as used
}

int read_pattern_count(void) { return (int)(sizeof kPatterns / sizeof kPatterns[0]); }

// A buffer on huge pages where the kernel gives them, every page touched and no two lines equal;
// NULL when there is no room.
void* read_allocate(size_t bytes) {
  uint64_t* data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return NULL;
  madvise(data, bytes, MADV_HUGEPAGE);
  for (size_t i = 0; i < bytes / sizeof *data; ++i) data[i] = i;
  return data;
}

void read_free(void* data, size_t bytes) { munmap(data, bytes); }

// Bytes per second of `passes` over data[0, bytes); bytes a multiple of the page.
double read_bytes_per_s(const void* data, size_t bytes, int threads, int pattern, int passes) {
  struct Job job = {data, bytes, kPatterns[pattern], passes};
  const double seconds = team_run(threads, read_part, &job);
  return seconds > 0 ? (double)bytes * passes / seconds : -1;
}
