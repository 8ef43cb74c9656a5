// How fast this machine can read memory: threads sum disjoint parts of a buffer with vector loads.
//
// Either as a few long streams, or as runs of bytes that lie next to each other, in random order: so lie the pages of a
// cache. The best of several access patterns counts, since a ceiling must not depend on one prefetcher's taste.
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

// How many runs ahead software prefetches.
static const int kRunsAhead[] = {0, 1, 2, 4, 16};

struct Job {
  const char* data;
  size_t bytes, run_bytes;  // run_bytes 0: streams
  int pattern, passes;
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

static Line read_streams(const struct Job* job, size_t first, size_t last) {
  const struct Pattern pattern = kPatterns[job->pattern];
  const size_t streams = (size_t)pattern.streams;
  const size_t stride = (last - first) / streams;
  Line sum = {0};
  // One page of each stream in turn; fewer than `streams` pages at the end are left unread.
  for (size_t page = 0; page < stride * streams; ++page) {
    const size_t at = first + page % streams * stride + page / streams;
    sum += sum_stream(job->data + at * kPageBytes, kPageBytes, pattern.prefetch_bytes);
  }
  return sum;
}

static size_t count_runs(size_t bytes, size_t run_bytes) {
  size_t runs = 1;
  while (2 * runs * run_bytes <= bytes) runs *= 2;
  return runs;
}

// The i-th run that is read. The golden ratio spreads neighbours; an odd step and a power of two visit every run once.
static const char* run_at(const struct Job* job, size_t runs, size_t i) {
  return job->data + (i * ((size_t)((double)runs * 0.618) | 1) & (runs - 1)) * job->run_bytes;
}

static Line read_runs(const struct Job* job, size_t runs, size_t first, size_t last) {
  const size_t ahead = (size_t)kRunsAhead[job->pattern];
  Line sum = {0};
  for (size_t i = first; i < last; ++i) {
    const char* run = run_at(job, runs, i);
    const char* next = run_at(job, runs, i + ahead);
    for (size_t at = 0; at + kLineBytes <= job->run_bytes; at += kLineBytes) {
      if (ahead > 0) __builtin_prefetch(next + at);
      sum += *(const Line*)(run + at);
    }
  }
  return sum;
}

static void read_part(int thread, int threads, void* context) {
  const struct Job* job = context;
  const size_t units =
      job->run_bytes > 0 ? count_runs(job->bytes, job->run_bytes) : job->bytes / kPageBytes;
  const size_t first = units * (size_t)thread / (size_t)threads,
               last = units * (size_t)(thread + 1) / (size_t)threads;
  Line sum = {0};
  for (int pass = 0; pass < job->passes; ++pass)
    sum += job->run_bytes > 0 ? read_runs(job, units, first, last) : read_streams(job, first, last);
  __asm__ volatile("" : : "m"(sum));  // the sum counts as used
}

int read_pattern_count(size_t run_bytes) {
  return run_bytes > 0 ? (int)(sizeof kRunsAhead / sizeof kRunsAhead[0])
                       : (int)(sizeof kPatterns / sizeof kPatterns[0]);
}

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

// Bytes per second of `passes` over data[0, bytes). bytes is a multiple of the page, run_bytes of the line.
double read_bytes_per_s(const void* data, size_t bytes, size_t run_bytes, int threads, int pattern,
                        int passes) {
  struct Job job = {data, bytes, run_bytes, pattern, passes};
  const double seconds = team_run(threads, read_part, &job);
  if (run_bytes > 0) bytes = count_runs(bytes, run_bytes) * run_bytes;
  return seconds > 0 ? (double)bytes * passes / seconds : -1;
}
