// How many operations per second this machine's arithmetic can retire, operands in registers.
//
// Compiled once per instruction set: PEAK_<set> picks the step, and bench/roofline.py the flags. A
// step is what an exact kernel of that set issues per vector of products, not a saturating
// shortcut.
#define _GNU_SOURCE
#include <stdint.h>

#include "team.h"

// Independent accumulators: latency (4 to 5 cycles) times two issues per cycle, rounded up to even.
enum { kChains = 10, kStepsPerCheck = 1024 };

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Hides a value from the optimizer: equal steps are neither merged nor hoisted. No instruction.
#define FRESH(v) __asm__ volatile("" : "+v"(v))
#define FRESH_SSE(v) __asm__ volatile("" : "+x"(v))

#if defined(PEAK_AMX_INT8) || defined(PEAK_AMX_BF16)
// 16 rows x 64 bytes per tile; six accumulators cover the latency of 52 cycles at 16 per product.
#include <sys/syscall.h>
#include <unistd.h>
#if defined(PEAK_AMX_INT8)
#define TILE_PRODUCT(c) _tile_dpbssd(c, 6, 7)
enum { kMacs = 16 * 16 * 64 };
#else
#define TILE_PRODUCT(c) _tile_dpbf16ps(c, 6, 7)
enum { kMacs = 16 * 16 * 32 };
#endif
enum { kArchRequestPermission = 0x1023, kTileData = 18, kTiles = 8, kProducts = 6 };

static int prepare(void) { return (int)syscall(SYS_arch_prctl, kArchRequestPermission, kTileData); }

static double run_steps(int64_t steps) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int t = 0; t < kTiles; ++t) config.row_bytes[t] = 64, config.rows[t] = 16;
  _tile_loadconfig(&config);
  // The tile intrinsics are macros around asm statements: no loop, no comma.
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < steps; ++i) {
    TILE_PRODUCT(0);
    TILE_PRODUCT(1);
    TILE_PRODUCT(2);
    TILE_PRODUCT(3);
    TILE_PRODUCT(4);
    TILE_PRODUCT(5);
  }
  _tile_release();
  return 2.0 * kMacs * kProducts * (double)steps;
}

#else
static int prepare(void) { return 0; }

#if defined(PEAK_SSE2_INT8)  // widened to int16: pmaddwd, paddd
typedef __m128i Vec;
enum { kMacs = 8 };
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm_add_epi32(acc, _mm_madd_epi16(a, b)); }
#elif defined( \
    PEAK_AVX2_INT8)  // sign trick: vpmaddubsw on |a| and sign(a) b, vpmaddwd by one, vpaddd
typedef __m256i Vec;
enum { kMacs = 32 };
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), b));
}
#elif defined(PEAK_AVX_VNNI_INT8)
typedef __m256i Vec;
enum { kMacs = 32 };
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
#elif defined(PEAK_AVX512_VNNI_INT8)
typedef __m512i Vec;
enum { kMacs = 64 };
#define HIDE FRESH
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm512_dpbusd_epi32(acc, a, b); }
#elif defined(PEAK_SSE2_F32)
typedef __m128 Vec;
enum { kMacs = 4 };
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm_add_ps(acc, _mm_mul_ps(a, b)); }
#elif defined(PEAK_AVX2_F32)
typedef __m256 Vec;
enum { kMacs = 8 };
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm256_fmadd_ps(a, b, acc); }
#elif defined(PEAK_AVX512_F32)
typedef __m512 Vec;
enum { kMacs = 16 };
#define HIDE FRESH
static inline Vec step(Vec acc, Vec a, Vec b) { return _mm512_fmadd_ps(a, b, acc); }
#elif defined(PEAK_AVX512_BF16)
typedef __m512 Vec;
enum { kMacs = 32 };
#define HIDE FRESH
static inline Vec step(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
#elif defined(PEAK_AVX2_VECTOR)  // vpaddd: every vector port executes it
typedef __m256i Vec;
#define IS_COUNTED
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return (void)b, _mm256_add_epi32(acc, a); }
#elif defined(PEAK_AVX512_VECTOR)
typedef __m512i Vec;
#define IS_COUNTED
#define HIDE FRESH
static inline Vec step(Vec acc, Vec a, Vec b) { return (void)b, _mm512_add_epi32(acc, a); }
#elif defined(PEAK_AVX2_SHUFFLE)
typedef __m256i Vec;
#define IS_COUNTED
#define HIDE FRESH_SSE
static inline Vec step(Vec acc, Vec a, Vec b) { return (void)b, _mm256_unpacklo_epi32(acc, a); }
#elif defined(PEAK_AVX512_SHUFFLE)
typedef __m512i Vec;
#define IS_COUNTED
#define HIDE FRESH
static inline Vec step(Vec acc, Vec a, Vec b) { return (void)b, _mm512_unpacklo_epi32(acc, a); }
#else
#error "name the instruction set: -DPEAK_..."
#endif

// Operations of a step: two for each multiply-accumulate, or one instruction.
#if defined(IS_COUNTED)
enum { kOps = 1 };
#else
enum { kOps = 2 * kMacs };
#endif

static double run_steps(int64_t steps) {
  // Zeros: the speed does not depend on the values, and no float becomes denormal. Every loop over
  // acc is unrolled, or it would live in memory.
  Vec acc[kChains], a = {0}, b = {0};
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) acc[c] = a;
  HIDE(b);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      HIDE(a);
      acc[c] = step(acc[c], a, b);
      HIDE(acc[c]);
    }
  }
  return (double)kOps * kChains * (double)steps;
}
#endif

struct Job {
  double seconds;
  double* ops;  // per thread
};

static void work(int thread, int threads, void* context) {
  (void)threads;
  const struct Job* job = context;
  const double end = team_now() + job->seconds;
  double ops = 0;
  while (team_now() < end) ops += run_steps(kStepsPerCheck);
  job->ops[thread] = ops;
}

// Operations (two per multiply-accumulate, or one per instruction) per second of all threads together; negative when it
// cannot run.
double peak_ops_per_s(int threads, double seconds) {
  if (prepare() != 0) return -1;
  double* ops = calloc((size_t)threads, sizeof *ops);
  if (!ops) return -1;
  struct Job job = {seconds, ops};
  const double elapsed = team_run(threads, work, &job);
  double total = 0;
  for (int t = 0; t < threads; ++t) total += ops[t];
  free(ops);
  return elapsed > 0 ? total / elapsed : -1;
}
