/* Kernels for a few rows on the CPU: what one decode step of a small batch is made of.
 *
 * Activations are float32. Weights are float32, bfloat16 or float16 and become float32 in registers, so that a
 * result differs from float32 arithmetic on the widened weights by the order of summation alone. Vectors are those of
 * GCC and Clang (vector_size); the width follows from -march=native. Built and loaded by native.py.
 */
#include <math.h>
#include <omp.h>
#include <sched.h>
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

/* Floats of x, and rows, that stay in the first cache while weights stream by; bytes that are asked for ahead */
#define NEAR 8192
#define NEAR_ROWS (WIDTH == 16 ? 4 : 2)
#define STEP (4 * WIDTH)
#define AHEAD 8192
/* Bytes of weights that a thread takes at a time: a quarter of its share, between the least and, where they are read
 * once or again from the cache for more rows, the most. */
#define LEAST_BLOCK (1 << 16)
#define BLOCK_ONCE (1 << 20)
#define BLOCK_AGAIN (1 << 18)
/* Bytes that a waiting thread asks for ahead, and turns of its loop before it lets others have the core */
#define WAITING (1 << 17)
#define PATIENCE 10000

enum { F32, BF16, F16 };

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
typedef float vf_any __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf x) { *(vf_any *)p = x; }
INLINE vf splat(float x) { return (vf){0} + x; }

INLINE float sum(vf x) {
#if WIDTH == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
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

INLINE long bytes_of(int kind) { return kind == F32 ? 4 : 2; }

/* Asks for memory that is needed later, so that it is on its way while what is there is added up. */
INLINE void fetch(const void *p, long bytes) {
    for (long line = 0; line < bytes; line += 64) __builtin_prefetch((const char *)p + line);
}

INLINE void pause_a_little(void) {
#if defined(__x86_64__)
    _mm_pause();
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
                 int add, int kind, const int M, const int N) {
    vf acc[MAX_ROWS][MAX_OUTPUTS];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = (vf){0};
    long i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
        vf row[MAX_OUTPUTS];
        for (int n = 0; n < N; n++) row[n] = load_as(w, at + n * k + i, kind);
        /* The rows of the next tile: the memory has several streams to follow while this one is added up. */
        if (kind == F32 || i % (2 * WIDTH) == 0)
            for (int n = 0; n < N; n++)
                __builtin_prefetch((const char *)w + (at + (n + N) * k + i) * bytes_of(kind));
        for (int m = 0; m < M; m++) {
            vf v = load(x + m * ldx + i);
            for (int n = 0; n < N; n++) acc[m][n] += v * row[n];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float s = sum(acc[m][n]);
            for (long j = i; j < k; j++) s += x[m * ldx + j] * load_one(w, at + n * k + j, kind);
            y[m * ldy + n] = s + (bias ? bias[n] : 0) + (add ? y[m * ldy + n] : 0);
        }
}

/* Outputs of one tile for M rows: what fits the registers beside the loads. */
INLINE int tile_width(int m) {
#if WIDTH == 16
    return m <= 4 ? 6 : 3;
#else
    return m == 1 ? 8 : m == 2 ? 4 : m == 3 ? 3 : 2;
#endif
}

INLINE void strip(const float *x, long ldx, const void *w, long n0, long n1, long k, const float *bias, float *y,
                  long ldy, int add, int kind, const int M) {
    const int N = tile_width(M);
    long n = n0;
    for (; n + N <= n1; n += N) tile(x, ldx, w, n * k, k, bias ? bias + n : 0, y + n, ldy, add, kind, M, N);
    for (; n < n1; n++) tile(x, ldx, w, n * k, k, bias ? bias + n : 0, y + n, ldy, add, kind, M, 1);
}

INLINE void rows_of(const float *x, long ldx, long m, const void *w, long n0, long n1, long k, const float *bias,
                    float *y, long ldy, int add, int kind) {
    long tiles = (m + MAX_ROWS - 1) / MAX_ROWS;
    for (long t = 0, at = 0; t < tiles; t++) {
        long each = (m - at + tiles - t - 1) / (tiles - t);
        const float *px = x + at * ldx;
        float *py = y + at * ldy;
#define CASE(M) case M: strip(px, ldx, w, n0, n1, k, bias, py, ldy, add, kind, M); break;
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

/* The product for M rows that stay in the first cache: w is read from its start to its end, one stream for the memory
 * to follow. */
INLINE void near(const float *x, long ldx, const void *w, long n0, long n1, long k, const float *bias, float *y,
                 long ldy, int add, int kind, const int M) {
    for (long n = n0; n < n1; n++) {
        vf acc[NEAR_ROWS][4];
        for (int m = 0; m < M; m++)
            for (int u = 0; u < 4; u++) acc[m][u] = (vf){0};
        long at = n * k, i = 0;
        for (; i + STEP <= k; i += STEP) {
            vf part[4];
            fetch((const char *)w + (at + i) * bytes_of(kind) + AHEAD, STEP * bytes_of(kind));
            for (int u = 0; u < 4; u++) part[u] = load_as(w, at + i + u * WIDTH, kind);
            for (int m = 0; m < M; m++)
                for (int u = 0; u < 4; u++) acc[m][u] += load(x + m * ldx + i + u * WIDTH) * part[u];
        }
        for (int m = 0; m < M; m++) {
            float s = sum(acc[m][0] + acc[m][1] + (acc[m][2] + acc[m][3]));
            for (long j = i; j < k; j++) s += x[m * ldx + j] * load_one(w, at + j, kind);
            y[m * ldy + n] = s + (bias ? bias[n] : 0) + (add ? y[m * ldy + n] : 0);
        }
    }
}

INLINE void rows_near(const float *x, long ldx, long m, const void *w, long n0, long n1, long k, const float *bias,
                      float *y, long ldy, int add, int kind) {
#define CASE(M) case M: near(x, ldx, w, n0, n1, k, bias, y, ldy, add, kind, M); break;
    switch (m) {
        CASE(1) CASE(2)
#if NEAR_ROWS == 4
        CASE(3) CASE(4)
#endif
    }
#undef CASE
}

#define ROWS_OF(NAME, KIND)                                                                                        \
    static void NAME(const float *x, long ldx, long m, const void *w, long n0, long n1, long k, const float *bias, \
                     float *y, long ldy, int add) {                                                                \
        if (m == 1 || (m <= NEAR_ROWS && m * k <= NEAR))                                                           \
            rows_near(x, ldx, m, w, n0, n1, k, bias, y, ldy, add, KIND);                                           \
        else rows_of(x, ldx, m, w, n0, n1, k, bias, y, ldy, add, KIND);                                            \
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

/* Tasks 0..count-1 of some threads. A thread goes through a share of its own in order, which reads memory faster, and
 * then helps with the others', since a core may be busy. */
typedef struct {
    long *next; /* of each share, a cache line apart */
    long count;
    int threads;
} Tasks;

INLINE long share_of(const Tasks *s, int t) { return t * s->count / s->threads; }

/* The next task of thread t, or -1. helped: 0 before the first call. */
INLINE long take(const Tasks *s, int t, int *helped) {
    for (; *helped < s->threads; ++*helped) {
        int of = (t + *helped) % s->threads;
        long task = __atomic_fetch_add(&s->next[of * 8], 1, __ATOMIC_RELAXED);
        if (task < share_of(s, of + 1)) return task;
    }
    return -1;
}

/* Rows of weights that a thread takes at a time. */
static long block_of(const Matrix *w, long m, int threads) {
    long row = w->k * bytes_of(w->kind), bytes = w->n * row / (4 * threads);
    long most = m > MAX_ROWS ? BLOCK_AGAIN : BLOCK_ONCE;
    long block = (bytes < LEAST_BLOCK ? LEAST_BLOCK : bytes > most ? most : bytes) / row;
    return block < 24 ? 24 : block / 24 * 24; /* a multiple of every tile's width */
}

/* What thread t does of qwench_linear. */
static void linear_share(const Matrix *w, const float *x, long ldx, float *y, long m, int add, const Tasks *s, int t) {
    long n = w->n, block = block_of(w, m, s->threads), b;
    int helped = 0;
    while ((b = take(s, t, &helped)) >= 0) {
        long n0 = b * block, n1 = n0 + block < n ? n0 + block : n;
        (w->kind == F32 ? rows_f32 : w->kind == BF16 ? rows_bf16 : rows_f16)(x, ldx, m, w->weight, n0, n1, w->k,
                                                                             w->bias, y, n, add);
    }
}

/* y (m, n) = x (m, k) @ weight^T + bias, on top of y where `add`. */
void qwench_linear(const Matrix *w, const float *x, long ldx, float *y, long m, int add, int threads) {
    if (m * w->n * w->k < 1 << 16) threads = 1;
    long next[threads * 8], block = block_of(w, m, threads);
    Tasks s = {next, (w->n + block - 1) / block, threads};
    for (int t = 0; t < threads; t++) next[t * 8] = share_of(&s, t);
#pragma omp parallel num_threads(threads) if (threads > 1)
    linear_share(w, x, ldx, y, m, add, &s, omp_get_thread_num());
}

INLINE vf larger(vf a, vf b) {
    vu mask = (vu)(a > b);
    return (vf)(((vu)a & mask) | ((vu)b & ~mask));
}

INLINE float highest(vf x) {
#if WIDTH == 16
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int i = 1; i < WIDTH; i++) most = x[i] > most ? x[i] : most;
    return most;
#endif
}

/* e^x to 2 units in the last place from -87 to 88, beyond that the ends; NaN and infinities become NaN. Cody and Waite's
 * reduction by ln 2 in two parts, then the Taylor polynomial of degree 7 on half a ln 2. */
INLINE vf exponential(vf x) {
    typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
    vf at = -larger(-larger(x, splat(-87.0f)), splat(-88.0f));
    vf turns = at * 1.44269504088896341f;
    vu half = (vu)splat(0.5f) | ((vu)turns & 0x80000000u);
    vi n = __builtin_convertvector(turns + (vf)half, vi);
    vf whole = __builtin_convertvector(n, vf);
    vf r = at - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vf)((n + 127) << 23) + (x - x);
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float dot(const float *a, const float *b, long n) {
    vf acc = {0};
    long i = 0;
    for (; i + WIDTH <= n; i += WIDTH) acc += load(a + i) * load(b + i);
    float s = sum(acc);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

/* y = x scaled to a root mean square of one, times the weight. */
INLINE void norm_row(const float *x, const float *weight, float *y, long n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    long i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(y + i, load(x + i) * scale * load(weight + i));
    for (; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void qwench_rms_norm(const float *x, const float *weight, float *y, long rows, long n, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * n > 1 << 15)
    for (long r = 0; r < rows; r++) norm_row(x + r * n, weight, y + r * n, n, eps);
}

/* total = x + other, y = its norm. */
void qwench_add_rms_norm(const float *x, const float *other, const float *weight, float *y, float *total, long rows,
                         long n, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * n > 1 << 15)
    for (long r = 0; r < rows; r++) {
        long i = r * n, end = i + n;
        for (; i + WIDTH <= end; i += WIDTH) store(total + i, load(x + i) + load(other + i));
        for (; i < end; i++) total[i] = x[i] + other[i];
        norm_row(total + r * n, weight, y + r * n, n, eps);
    }
}

/* Norm per head where there is a weight, then rotary positions of the half-split kind; sin is signed. */
INLINE void rotate(const float *x, const float *weight, const float *cos, const float *sin, float *y, long d,
                   float eps) {
    float scale = weight ? 1.0f / sqrtf(dot(x, x, d) / (float)d + eps) : 1.0f;
    long half = d / 2, i = 0;
    for (; i + WIDTH <= half; i += WIDTH) {
        vf a = load(x + i) * scale, b = load(x + i + half) * scale;
        if (weight) {
            a *= load(weight + i);
            b *= load(weight + i + half);
        }
        store(y + i, a * load(cos + i) + b * load(sin + i));
        store(y + i + half, b * load(cos + i + half) + a * load(sin + i + half));
    }
    for (; i < half; i++) {
        float a = x[i] * scale * (weight ? weight[i] : 1.0f);
        float b = x[i + half] * scale * (weight ? weight[i + half] : 1.0f);
        y[i] = a * cos[i] + b * sin[i];
        y[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* x: rows of (heads, d), one row every ldx; weight (heads, d) or null; cos and sin (rows, d); y (rows, heads, d). */
void qwench_norm_rotate(const float *x, long ldx, const float *weight, const float *cos, const float *sin, float *y,
                        long rows, long heads, long d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * heads * d > 1 << 15)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++)
            rotate(x + r * ldx + h * d, weight ? weight + h * d : 0, cos + r * d, sin + r * d,
                   y + (r * heads + h) * d, d, eps);
}

static void silu_row(const float *gate, const float *up, float *out, long n) {
    long i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vf g = load(gate + i);
        store(out + i, g * sigmoid(g) * load(up + i));
    }
    for (; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* gate_up: rows of (gate n, up n) -> silu(gate) * up. y may be gate_up for one row alone. */
void qwench_silu_mul(const float *gate_up, float *y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * n > 1 << 14)
    for (long r = 0; r < rows; r++) silu_row(gate_up + r * 2 * n, gate_up + r * 2 * n + n, y + r * n, n);
}

/* y = x, rows of (heads, d), times sigmoid(gate), one gate a head (each = 1) or an element (each = d). y may be x. */
void qwench_gate(const float *x, const float *gate, long ldg, float *y, long rows, long heads, long d, long each,
                 int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * heads * d > 1 << 14)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++) {
            const float *in = x + (r * heads + h) * d, *g = gate + r * ldg + h * each;
            float *out = y + (r * heads + h) * d;
            if (each == 1) {
                float s = 1.0f / (1.0f + expf(-*g));
                for (long i = 0; i < d; i++) out[i] = in[i] * s;
                continue;
            }
            long i = 0;
            for (; i + WIDTH <= d; i += WIDTH) store(out + i, load(in + i) * sigmoid(load(g + i)));
            for (; i < d; i++) out[i] = in[i] / (1.0f + expf(-g[i]));
        }
}

/* What follows the first product of ParScale's aggregator (arXiv 2505.10475, section 3.2): hidden (tokens, n), that
 * product; h: vectors (n), one every `of_stream` and `of_token`; w2 (streams, n), b2 (streams); y (tokens, n). */
void qwench_join(const float *hidden, const float *h, long of_stream, long of_token, const float *w2, const float *b2,
                 float smooth, float *y, long tokens, long streams, long n) {
    float share[streams];
    for (long t = 0; t < tokens; t++) {
        const float *in = hidden + t * n, *each = h + t * of_token;
        float *out = y + t * n, top = -INFINITY, total = 0;
        long i = 0;
        for (; i + WIDTH <= n; i += WIDTH) store(out + i, load(in + i) * sigmoid(load(in + i)));
        for (; i < n; i++) out[i] = in[i] / (1.0f + expf(-in[i]));
        for (long p = 0; p < streams; p++) {
            share[p] = dot(out, w2 + p * n, n) + b2[p];
            top = share[p] > top ? share[p] : top;
        }
        for (long p = 0; p < streams; p++) total += share[p] = expf(share[p] - top);
        for (long p = 0; p < streams; p++) share[p] = share[p] / total * (1 - smooth) + smooth / (float)streams;
        for (i = 0; i + WIDTH <= n; i += WIDTH) {
            vf sum = {0};
            for (long p = 0; p < streams; p++) sum += share[p] * load(each + p * of_stream + i);
            store(out + i, sum);
        }
        for (; i < n; i++) {
            out[i] = 0;
            for (long p = 0; p < streams; p++) out[i] += share[p] * each[p * of_stream + i];
        }
    }
}

#define KEYS 64      /* keys between two updates of the running softmax */
#define MOST_D 512   /* largest head; the callers check */
#define MOST_GROUP 8 /* query heads of one key head that go together */

typedef struct {
    float top[MOST_GROUP], total[MOST_GROUP], out[MOST_GROUP][MOST_D];
} Softmax;

/* Query heads that share each load of a key or value, and their sums that fit the registers */
#define TOGETHER 4
#define SUMS (WIDTH == 16 ? 24 : 8)

/* score (G, KEYS) = G queries (d) times `count` keys (d). soon: as many rows that are needed next, or null. */
INLINE void score_keys(const float *q, const float *keys, long count, long d, float scale, float (*score)[KEYS],
                       const float *soon, const int G) {
    for (long j = 0; j < count; j++) {
        const float *key = keys + j * d;
        vf acc[TOGETHER];
        long i = 0;
        for (int g = 0; g < G; g++) acc[g] = (vf){0};
        if (soon) fetch(soon + j * d, d * 4);
        for (; i + WIDTH <= d; i += WIDTH) {
            vf part = load(key + i);
            for (int g = 0; g < G; g++) acc[g] += load(q + g * d + i) * part;
        }
        for (int g = 0; g < G; g++) {
            float s = sum(acc[g]);
            for (long rest = i; rest < d; rest++) s += q[g * d + rest] * key[rest];
            score[g][j] = s * scale;
        }
    }
}

/* out (G, V vectors from i on) += score (G, count) times values (count, d). */
INLINE void add_part(float (*out)[MOST_D], float (*score)[KEYS], const float *values, long count, long d, long i,
                     const float *soon, const int G, const int V) {
    vf acc[TOGETHER][8];
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) acc[g][v] = load(out[g] + i + v * WIDTH);
    for (long j = 0; j < count; j++) {
        if (soon) fetch(soon + j * d + i, V * WIDTH * 4);
        for (int v = 0; v < V; v++) {
            vf value = load(values + j * d + i + v * WIDTH);
            for (int g = 0; g < G; g++) acc[g][v] += score[g][j] * value;
        }
    }
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) store(out[g] + i + v * WIDTH, acc[g][v]);
}

/* out (G, d) += score (G, count) times values (count, d); soon: see score_keys. */
INLINE void add_values(float (*out)[MOST_D], float (*score)[KEYS], const float *values, long count, long d,
                       const float *soon, const int G) {
    long i = 0;
#define WITH(V) for (; V * G <= SUMS && i + V * WIDTH <= d; i += V * WIDTH) add_part(out, score, values, count, d, i, soon, G, V);
    WITH(8) WITH(4) WITH(2) WITH(1)
#undef WITH
    for (; i < d; i++)
        for (int g = 0; g < G; g++)
            for (long j = 0; j < count; j++) out[g][i] += score[g][j] * values[j * d + i];
}

/* `count` more keys and values, KEYS at most, for G queries from g on. soon: the values, if they may not be in the
 * cache; next: keys of the next block; either may be null. */
INLINE void attend_block(Softmax *s, long g, const float *q, const float *keys, const float *values, long count,
                         long d, float scale, const float *soon, const float *next, const int G) {
    float score[TOGETHER][KEYS] __attribute__((aligned(64)));
    score_keys(q + g * d, keys, count, d, scale, score, soon, G);
    for (int i = 0; i < G; i++) {
        vf most = splat(s->top[g + i]), total = {0};
        for (long j = count; j % WIDTH; j++) score[i][j] = -1e30f;
        for (long j = 0; j < count; j += WIDTH) most = larger(load(score[i] + j), most);
        float top = highest(most), old = expf(s->top[g + i] - top);
        if (s->top[g + i] != top)
            for (long j = 0; j < d; j++) s->out[g + i][j] *= old;
        for (long j = 0; j < count; j += WIDTH) {
            vf p = exponential(load(score[i] + j) - top);
            store(score[i] + j, p);
            total += p;
        }
        for (long j = count; j % WIDTH; j++) total[j % WIDTH] -= score[i][j];
        s->total[g + i] = s->total[g + i] * old + sum(total);
        s->top[g + i] = top;
    }
    add_values(s->out + g, score, values, count, d, next, G);
}

/* n more keys and values (n, d) for `group` queries (group, d): the softmax over blocks of arXiv 1805.02867. */
static void attend_more(Softmax *s, const float *q, const float *keys, const float *values, long n, long group, long d,
                        float scale) {
    for (long at = 0; at < n; at += KEYS) {
        long count = n - at < KEYS ? n - at : KEYS;
        const float *k = keys + at * d, *v = values + at * d, *soon = v, *next = at + KEYS < n ? k + KEYS * d : 0;
        for (long g = 0; g < group; g += TOGETHER, soon = next = 0) {
#define CASE(G) case G: attend_block(s, g, q, k, v, count, d, scale, soon, next, G); break;
            switch (group - g) {
                CASE(1) CASE(2) CASE(3)
                default: attend_block(s, g, q, k, v, count, d, scale, soon, next, 4);
            }
#undef CASE
        }
    }
}

typedef struct {
    long heads, kv_heads, d;
    const float *keys, *values; /* (slots, kv_heads, capacity, d) */
    long slot_stride, head_stride;
    const float *prefix_keys, *prefix_values; /* (streams, kv_heads, prefix, d) or null */
    long prefix;
    float scale;
} Attention;

/* Queries (group, d) of key head h in one row over `length` keys of `slot` and the prefix of `stream`; y (group, d). */
static void attend_head(const Attention *a, const float *queries, long h, long slot, long length, long stream,
                        float *y) {
    long group = a->heads / a->kv_heads, d = a->d, own = slot * a->slot_stride + h * a->head_stride;
    for (long g0 = 0; g0 < group; g0 += MOST_GROUP) {
        long count = group - g0 < MOST_GROUP ? group - g0 : MOST_GROUP;
        const float *q = queries + g0 * d;
        Softmax s;
        for (long g = 0; g < count; g++) {
            s.top[g] = -1e30f;
            s.total[g] = 0;
            memset(s.out[g], 0, sizeof(float) * (size_t)d);
        }
        if (a->prefix) {
            long at = (stream * a->kv_heads + h) * a->prefix * d;
            attend_more(&s, q, a->prefix_keys + at, a->prefix_values + at, a->prefix, count, d, a->scale);
        }
        attend_more(&s, q, a->keys + own, a->values + own, length, count, d, a->scale);
        for (long g = 0; g < count; g++)
            for (long i = 0; i < d; i++) y[(g0 + g) * d + i] = s.out[g][i] / s.total[g];
    }
}

/* One query a row, q: rows of (heads, d) every ldq, over the first length[r] keys of slot[r] and the prefix of
 * stream[r]; y (rows, heads, d). */
void qwench_attend(const Attention *a, const float *q, long ldq, const long *slot, const long *length,
                   const long *stream, float *y, long rows, int threads) {
    long wide = a->heads / a->kv_heads * a->d;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long task = 0; task < rows * a->kv_heads; task++) {
        long r = task / a->kv_heads, h = task % a->kv_heads;
        attend_head(a, q + r * ldq + h * wide, h, slot[r], length[r], stream[r], y + r * a->heads * a->d + h * wide);
    }
}

typedef struct {
    const float *norm1, *norm2, *qk_norm; /* (h), (h), (heads + kv_heads, d) or null */
    Matrix qkv, out, gate_up, down;       /* gates of the attention's output below q, k and v */
    Attention attention;
} Layer;

/* What a thread reads before it is needed, while it waits for the others. */
typedef struct {
    const char *at, *end;
} Ahead;

/* One step of a decoder, as its threads share it. */
typedef struct {
    const float *cos, *sin;
    const long *slot, *position, *stream;
    float *x, *normed, *qkv, *mixed, *gate_up, *product, eps;
    long rows, *next[2]; /* of the tasks of this phase and of the next one */
    int threads;
    long arrived __attribute__((aligned(64)));
} Step;

/* One thread's place in it. */
typedef struct {
    Step *step;
    int t;
    long phase;
    Ahead ahead;
} Worker;

/* Waits until every thread is here, which ends a phase. */
static void meet(Worker *k) {
    Step *s = k->step;
    long wanted = ++k->phase * s->threads;
    __atomic_fetch_add(&s->arrived, 1, __ATOMIC_ACQ_REL);
    for (long turns = 0; __atomic_load_n(&s->arrived, __ATOMIC_ACQUIRE) < wanted; turns++) {
        if (k->ahead.at < k->ahead.end) {
            fetch(k->ahead.at, 128);
            k->ahead.at += 128;
        } else if (turns > PATIENCE) {
            sched_yield();
        } else {
            pause_a_little();
        }
    }
}

/* The tasks of the phase that begins now, or with `later` of the next one. */
INLINE Tasks tasks_of(const Worker *k, long count, int later) {
    return (Tasks){k->step->next[(k->phase + later) % 2], count, k->step->threads};
}

INLINE Tasks tasks_for(const Worker *k, const Matrix *w, int later) {
    long block = block_of(w, k->step->rows, k->step->threads);
    return tasks_of(k, (w->n + block - 1) / block, later);
}

/* Called in the phase before the product with w: who does what of it. */
static void share_out(const Worker *k, const Matrix *w) {
    Tasks s = tasks_for(k, w, 1);
    s.next[k->t * 8] = share_of(&s, k->t);
}

/* While waiting, the thread reads what it will do first of the product with w; null: nothing. */
static void look_ahead(Worker *k, const Matrix *w) {
    k->ahead.at = k->ahead.end = 0;
    if (!w) return;
    Tasks s = tasks_for(k, w, 0);
    long row = w->k * bytes_of(w->kind), at = share_of(&s, k->t) * block_of(w, k->step->rows, s.threads) * row;
    k->ahead.at = (const char *)w->weight + at;
    k->ahead.end = k->ahead.at + (w->n * row - at < WAITING ? w->n * row - at : WAITING);
}

static void product(Worker *k, const Matrix *w, const float *x, float *y, int add) {
    Tasks s = tasks_for(k, w, 0);
    linear_share(w, x, w->k, y, k->step->rows, add, &s, k->t);
}

/* y may be the step's x. */
static void norm_share(const Worker *k, const float *weight, long n, float *y) {
    const Step *s = k->step;
    for (long r = k->t; r < s->rows; r += s->threads) norm_row(s->x + r * n, weight, y + r * n, n, s->eps);
}

/* Keys, values and attention of one row and key head, with what the row's query heads need before and after. */
static void mix_head(const Step *s, const Layer *w, long r, long h) {
    const Attention *a = &w->attention;
    long d = a->d, group = a->heads / a->kv_heads, turned = a->heads + a->kv_heads, wide = w->qkv.n;
    long gates = wide - (turned + a->kv_heads) * d, each = gates / a->heads, first = h * group;
    float *row = s->qkv + r * wide, *y = s->mixed + (r * a->heads + first) * d;
    long place = s->slot[r] * a->slot_stride + h * a->head_stride + s->position[r] * d;
    const float *c = s->cos + s->position[r] * d, *n = s->sin + s->position[r] * d, *qk = w->qk_norm;
    for (long g = first; g < first + group; g++)
        rotate(row + g * d, qk ? qk + g * d : 0, c, n, row + g * d, d, s->eps);
    rotate(row + (a->heads + h) * d, qk ? qk + (a->heads + h) * d : 0, c, n, (float *)a->keys + place, d, s->eps);
    memcpy((float *)a->values + place, row + (turned + h) * d, sizeof(float) * (size_t)d);
    attend_head(a, row + first * d, h, s->slot[r], s->position[r] + 1, s->stream[r], y);
    if (gates) qwench_gate(y, row + wide - gates + first * each, 0, y, 1, group, d, each, 1);
}

static void layer_share(Worker *k, const Layer *w, const Layer *after) {
    Step *s = k->step;
    long hidden = w->out.n, inner = w->down.k, heads = w->attention.kv_heads, task;
    int helped = 0;
    norm_share(k, w->norm1, hidden, s->normed);
    share_out(k, &w->qkv);
    meet(k);
    product(k, &w->qkv, s->normed, s->qkv, 0);
    Tasks mix = tasks_of(k, s->rows * heads, 1);
    mix.next[k->t * 8] = share_of(&mix, k->t);
    look_ahead(k, 0);
    meet(k);
    while ((task = take(&mix, k->t, &helped)) >= 0) mix_head(s, w, task / heads, task % heads);
    share_out(k, &w->out);
    look_ahead(k, &w->out);
    meet(k);
    product(k, &w->out, s->mixed, s->x, 1);
    look_ahead(k, &w->gate_up);
    meet(k);
    norm_share(k, w->norm2, hidden, s->normed);
    share_out(k, &w->gate_up);
    meet(k);
    product(k, &w->gate_up, s->normed, s->gate_up, 0);
    look_ahead(k, &w->down);
    meet(k);
    for (long r = 0; r < s->rows; r++) {
        long i = k->t * inner / s->threads, end = (k->t + 1) * inner / s->threads;
        const float *gate = s->gate_up + r * 2 * inner + i;
        silu_row(gate, gate + inner, s->product + r * inner + i, end - i);
    }
    share_out(k, &w->down);
    meet(k);
    product(k, &w->down, s->product, s->x, 1);
    look_ahead(k, after ? &after->qkv : 0);
    meet(k);
}

/* One token a row through all layers and the last norm: x (rows, hidden) is read and written; keys and values go into
 * the caches at position[r] of slot[r], which no other row has. cos and sin: tables (positions, d). scratch: see
 * native_step.py. The threads stay together from the first layer to the last. */
void qwench_step(const Layer *layers, long count, const float *norm, float *x, const float *cos, const float *sin, const long *slot,
                 const long *position, const long *stream, float *scratch, long rows, float eps, int threads) {
    const Attention *a = &layers->attention;
    Step s = {.cos = cos, .sin = sin, .slot = slot, .position = position, .stream = stream, .x = x, .eps = eps,
              .normed = scratch, .rows = rows, .threads = threads};
    s.qkv = s.normed + rows * layers->out.n;
    s.mixed = s.qkv + rows * layers->qkv.n;
    s.gate_up = s.mixed + rows * a->heads * a->d;
    s.product = s.gate_up + rows * layers->gate_up.n;
    long next[2][threads * 8];
    s.next[0] = next[0];
    s.next[1] = next[1];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp single
        s.threads = omp_get_num_threads(); /* may be fewer than were asked for */
        Worker k = {.step = &s, .t = omp_get_thread_num()};
        for (const Layer *w = layers; w < layers + count; w++)
            layer_share(&k, w, w + 1 < layers + count ? w + 1 : 0);
        norm_share(&k, norm, layers->out.n, x);
    }
}
