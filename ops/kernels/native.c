/* Kernels for a few rows on the CPU: what one decode step of a small batch is made of.
 *
 * Activations are float32. Weights are float32, bfloat16 or float16 and become float32 in registers, so that a
 * result differs from float32 arithmetic on the widened weights by the order of summation alone. Vectors are those of
 * GCC and Clang (vector_size); the width follows from -march=native. Built and loaded by native.py.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#define MAX_ROWS 8
#elif defined(__AVX2__) && defined(__FMA__)
#define WIDTH 8
#define MAX_ROWS 4
#else
#define WIDTH 4
#define MAX_ROWS 4
#endif

/* Outputs of one tile at most: many rows of weights at once keep the memory busy when there is one row of x. */
#define MAX_OUTPUTS 8

enum { F32, BF16, F16 };

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
typedef float vf_any __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf x) { *(vf_any *)p = x; }
INLINE vf splat(float x) { return x - (vf){0}; }

INLINE float sum(vf x) {
#if WIDTH == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    float s = 0;
    for (int i = 0; i < WIDTH; i++) s += x[i];
    return s;
#endif
}

INLINE float from_f16(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 x;
    memcpy(&x, &h, 2);
    return x;
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 5.9604644775390625e-8f;
    bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    float x;
    memcpy(&x, &bits, 4);
    return x;
#endif
}

/* `at` counts elements. */
INLINE float load_one(const void *p, long at, int kind) {
    if (kind == F32) return ((const float *)p)[at];
    uint16_t h = ((const uint16_t *)p)[at];
    if (kind == F16) return from_f16(h);
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE vf load_as(const void *p, long at, int kind) {
    if (kind == F32) return load((const float *)p + at);
    const uint16_t *h = (const uint16_t *)p + at;
    if (kind == BF16) return (vf)(__builtin_convertvector(*(const vh_any *)h, vu) << 16);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)h));
#elif WIDTH == 8 && defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h));
#else
    vf x;
    for (int i = 0; i < WIDTH; i++) x[i] = from_f16(h[i]);
    return x;
#endif
}

/* M rows of x against N rows of w: M * N sums in registers, every value of w read once. */
INLINE void tile(const float *x, long ldx, const void *w, long at, long k, const float *bias, float *y, long ldy,
                 int kind, const int M, const int N) {
    vf acc[MAX_ROWS][MAX_OUTPUTS];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = (vf){0};
    long i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
        vf row[MAX_OUTPUTS];
        for (int n = 0; n < N; n++) row[n] = load_as(w, at + n * k + i, kind);
        for (int m = 0; m < M; m++) {
            vf v = load(x + m * ldx + i);
            for (int n = 0; n < N; n++) acc[m][n] += v * row[n];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float s = sum(acc[m][n]);
            for (long j = i; j < k; j++) s += x[m * ldx + j] * load_one(w, at + n * k + j, kind);
            y[m * ldy + n] = s + (bias ? bias[n] : 0);
        }
}

/* Outputs of one tile for M rows: what fits the registers beside the loads. */
INLINE int tile_width(int m) {
#if WIDTH == 16
    return m <= 2 ? 8 : m <= 4 ? 4 : 3;
#else
    return m == 1 ? 8 : m == 2 ? 4 : m == 3 ? 3 : 2;
#endif
}

INLINE void strip(const float *x, long ldx, const void *w, long n0, long n1, long k, const float *bias, float *y,
                  long ldy, int kind, const int M) {
    const int N = tile_width(M);
    long n = n0;
    for (; n + N <= n1; n += N) tile(x, ldx, w, n * k, k, bias ? bias + n : 0, y + n, ldy, kind, M, N);
    for (; n < n1; n++) tile(x, ldx, w, n * k, k, bias ? bias + n : 0, y + n, ldy, kind, M, 1);
}

INLINE void rows_of(const float *x, long ldx, long m, const void *w, long n0, long n1, long k, const float *bias,
                    float *y, long ldy, int kind) {
    long tiles = (m + MAX_ROWS - 1) / MAX_ROWS;
    for (long t = 0, at = 0; t < tiles; t++) {
        long each = (m - at + tiles - t - 1) / (tiles - t);
        const float *px = x + at * ldx;
        float *py = y + at * ldy;
#define CASE(M) case M: strip(px, ldx, w, n0, n1, k, bias, py, ldy, kind, M); break;
        switch (each) {
            CASE(1) CASE(2) CASE(3) CASE(4)
#if MAX_ROWS == 8
            CASE(5) CASE(6) CASE(7) CASE(8)
#endif
        }
#undef CASE
        at += each;
    }
}

#define ROWS_OF(NAME, KIND)                                                                                        \
    static void NAME(const float *x, long ldx, long m, const void *w, long n0, long n1, long k, const float *bias, \
                     float *y, long ldy) {                                                                         \
        rows_of(x, ldx, m, w, n0, n1, k, bias, y, ldy, KIND);                                                      \
    }
ROWS_OF(rows_f32, F32)
ROWS_OF(rows_bf16, BF16)
ROWS_OF(rows_f16, F16)

typedef struct {
    const void *weight; /* (n, k) of `kind` */
    const float *bias;  /* (n) or null */
    long n, k;
    int kind;
} Matrix;

/* y (m, n) = x (m, k) @ weight^T + bias. Threads take blocks of rows as they come free: a core may be busy. */
void qwench_linear(const Matrix *w, const float *x, long ldx, float *y, long m, int threads) {
    long n = w->n, k = w->k;
    long block = (1 << 16) / (k * (w->kind == F32 ? 4 : 2));
    block = block < 24 ? 24 : block / 24 * 24; /* a multiple of every tile's width */
    long blocks = (n + block - 1) / block;
    if (m * n * k < 1 << 16) threads = 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long b = 0; b < blocks; b++) {
        long n0 = b * block, n1 = n0 + block < n ? n0 + block : n;
        (w->kind == F32 ? rows_f32 : w->kind == BF16 ? rows_bf16 : rows_f16)(x, ldx, m, w->weight, n0, n1, k, w->bias,
                                                                             y, n);
    }
}
