/* Kernels for a few rows on the CPU: what one decode step of a small batch is made of.
 *
 * Activations are float32. Weights are float32, bfloat16 or float16 and become float32 in registers, so that a
 * result differs from float32 arithmetic on the widened weights by the order of summation alone. Vectors are those of
 * GCC and Clang (vector_size); the width follows from -march=native. Built and loaded by native.py.
 */
#include <math.h>
#include <omp.h>
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
/* rows of one call of qwench_step */
#define MOST_STEP_ROWS 256

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

/* y (m, n) = x (m, k) @ weight^T + bias, on top of y where `add`. Threads take blocks of rows as they come free: a
 * core may be busy. */
void qwench_linear(const Matrix *w, const float *x, long ldx, float *y, long m, int add, int threads) {
    long n = w->n, k = w->k, row = k * bytes_of(w->kind), bytes = n * row / (4 * threads);
    long most = m > MAX_ROWS ? BLOCK_AGAIN : BLOCK_ONCE;
    long block = (bytes < LEAST_BLOCK ? LEAST_BLOCK : bytes > most ? most : bytes) / row;
    block = block < 24 ? 24 : block / 24 * 24; /* a multiple of every tile's width */
    long blocks = (n + block - 1) / block;
    if (m * n * k < 1 << 16) threads = 1;
    long next[threads * 8]; /* a cache line each */
    for (int t = 0; t < threads; t++) next[t * 8] = t * blocks / threads;
    /* A thread goes through a share of its own in order, which reads memory faster, and then helps with the others'. */
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int i = 0; i < threads; i++) {
        long t = (omp_get_thread_num() + i) % threads, end = (t + 1) * blocks / threads, b;
        while ((b = __atomic_fetch_add(&next[t * 8], 1, __ATOMIC_RELAXED)) < end) {
            long n0 = b * block, n1 = n0 + block < n ? n0 + block : n;
            (w->kind == F32 ? rows_f32 : w->kind == BF16 ? rows_bf16 : rows_f16)(x, ldx, m, w->weight, n0, n1, k,
                                                                                 w->bias, y, n, add);
        }
    }
}

INLINE vf larger(vf a, vf b) {
    vu mask = (vu)(a > b);
    return (vf)(((vu)a & mask) | ((vu)b & ~mask));
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

/* gate_up: rows of (gate n, up n) -> silu(gate) * up. y may be gate_up for one row alone. */
void qwench_silu_mul(const float *gate_up, float *y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * n > 1 << 14)
    for (long r = 0; r < rows; r++) {
        const float *gate = gate_up + r * 2 * n, *up = gate + n;
        float *out = y + r * n;
        long i = 0;
        for (; i + WIDTH <= n; i += WIDTH) {
            vf g = load(gate + i);
            store(out + i, g * sigmoid(g) * load(up + i));
        }
        for (; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
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

#define KEYS 64      /* keys between two updates of the running softmax */
#define MOST_D 512   /* largest head; the callers check */
#define MOST_GROUP 8 /* query heads of one key head that go together */

typedef struct {
    float top[MOST_GROUP], total[MOST_GROUP], out[MOST_GROUP][MOST_D];
} Softmax;

/* out (d) += score (count) times values (count, d), sums in registers; next: as many rows that come soon, or null. */
INLINE void add_values(float *out, const float *score, const float *values, long count, long d, const float *next) {
    long i = 0;
    for (; i + 4 * WIDTH <= d; i += 4 * WIDTH) {
        vf a = load(out + i), b = load(out + i + WIDTH), c = load(out + i + 2 * WIDTH), e = load(out + i + 3 * WIDTH);
        for (long j = 0; j < count; j++) {
            const float *v = values + j * d + i;
            if (next) fetch(next + j * d + i, 4 * WIDTH * 4);
            a += score[j] * load(v);
            b += score[j] * load(v + WIDTH);
            c += score[j] * load(v + 2 * WIDTH);
            e += score[j] * load(v + 3 * WIDTH);
        }
        store(out + i, a);
        store(out + i + WIDTH, b);
        store(out + i + 2 * WIDTH, c);
        store(out + i + 3 * WIDTH, e);
    }
    for (; i + WIDTH <= d; i += WIDTH) {
        vf a = load(out + i);
        for (long j = 0; j < count; j++) a += score[j] * load(values + j * d + i);
        store(out + i, a);
    }
    for (; i < d; i++)
        for (long j = 0; j < count; j++) out[i] += score[j] * values[j * d + i];
}

/* n more keys and values (n, d) for `group` queries (group, d): the softmax over blocks of arXiv 1805.02867. */
static void attend_more(Softmax *s, const float *q, const float *keys, const float *values, long n, long group, long d,
                        float scale) {
    float score[KEYS] __attribute__((aligned(64)));
    for (long at = 0; at < n; at += KEYS) {
        long count = n - at < KEYS ? n - at : KEYS;
        for (long g = 0; g < group; g++) {
            float top = s->top[g];
            for (long j = 0; j < count; j++) {
                if (g == 0) fetch(values + (at + j) * d, d * 4);
                score[j] = dot(q + g * d, keys + (at + j) * d, d) * scale;
                top = score[j] > top ? score[j] : top;
            }
            for (long j = count; j < KEYS; j++) score[j] = top - 1000.0f;
            float *out = s->out[g], old = expf(s->top[g] - top);
            if (s->top[g] != top)
                for (long i = 0; i < d; i++) out[i] *= old;
            vf total = {0};
            for (long j = 0; j < count; j += WIDTH) {
                vf p = exponential(load(score + j) - top);
                store(score + j, p);
                total += p;
            }
            for (long j = count; j % WIDTH; j++) total[j % WIDTH] -= score[j];
            s->total[g] = s->total[g] * old + sum(total);
            s->top[g] = top;
            const float *next = g == 0 && at + KEYS < n ? keys + (at + KEYS) * d : 0;
            add_values(out, score, values + at * d, count, d, next);
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

/* One query a row, q: rows of (heads, d) every ldq, over the first length[r] keys of slot[r] and the prefix of
 * stream[r]; y (rows, heads, d). */
void qwench_attend(const Attention *a, const float *q, long ldq, const long *slot, const long *length,
                   const long *stream, float *y, long rows, int threads) {
    long group = a->heads / a->kv_heads, d = a->d;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long task = 0; task < rows * a->kv_heads; task++) {
        long r = task / a->kv_heads, h = task % a->kv_heads;
        long own = slot[r] * a->slot_stride + h * a->head_stride;
        for (long g0 = 0; g0 < group; g0 += MOST_GROUP) {
            long count = group - g0 < MOST_GROUP ? group - g0 : MOST_GROUP;
            const float *queries = q + r * ldq + (h * group + g0) * d;
            Softmax s;
            for (long g = 0; g < count; g++) {
                s.top[g] = -1e30f;
                s.total[g] = 0;
                memset(s.out[g], 0, sizeof(float) * (size_t)d);
            }
            if (a->prefix) {
                long at = (stream[r] * a->kv_heads + h) * a->prefix * d;
                attend_more(&s, queries, a->prefix_keys + at, a->prefix_values + at, a->prefix, count, d, a->scale);
            }
            attend_more(&s, queries, a->keys + own, a->values + own, length[r], count, d, a->scale);
            float *out = y + (r * a->heads + h * group + g0) * d;
            for (long g = 0; g < count; g++)
                for (long i = 0; i < d; i++) out[g * d + i] = s.out[g][i] / s.total[g];
        }
    }
}

typedef struct {
    const float *norm1, *norm2, *qk_norm; /* (h), (h), (heads + kv_heads, d) or null */
    Matrix qkv, out, gate_up, down;       /* gates of the attention's output below q, k and v */
    Attention attention;
} Layer;

/* One token a row through all layers: x (rows, hidden) is read and written; keys and values go into the caches at
 * position[r] of slot[r]. cos and sin: tables (positions, d). scratch: see native_step.py. */
void qwench_step(const Layer *layers, long count, float *x, const float *cos, const float *sin, const long *slot,
                 const long *position, const long *stream, float *scratch, long rows, float eps, int threads) {
    long lengths[MOST_STEP_ROWS];
    for (long r = 0; r < rows; r++) lengths[r] = position[r] + 1;
    for (const Layer *w = layers; w < layers + count; w++) {
        const Attention *a = &w->attention;
        long d = a->d, hidden = w->out.n, wide = w->qkv.n, inner = w->down.k, turned = a->heads + a->kv_heads;
        long gates = wide - (turned + a->kv_heads) * d;
        float *normed = scratch, *qkv = normed + rows * hidden, *mixed = qkv + rows * wide;
        float *gate_up = mixed + rows * a->heads * d, *product = gate_up + rows * 2 * inner;
        qwench_rms_norm(x, w->norm1, normed, rows, hidden, eps, threads);
        qwench_linear(&w->qkv, normed, hidden, qkv, rows, 0, threads);
        for (long r = 0; r < rows; r++) {
            float *row = qkv + r * wide;
            long place = slot[r] * a->slot_stride + position[r] * d;
            const float *c = cos + position[r] * d, *s = sin + position[r] * d;
            for (long h = 0; h < turned; h++)
                rotate(row + h * d, w->qk_norm ? w->qk_norm + h * d : 0, c, s,
                       h < a->heads ? row + h * d : (float *)a->keys + place + (h - a->heads) * a->head_stride, d, eps);
            for (long h = 0; h < a->kv_heads; h++)
                memcpy((float *)a->values + place + h * a->head_stride, row + (turned + h) * d,
                       sizeof(float) * (size_t)d);
        }
        qwench_attend(a, qkv, wide, slot, lengths, stream, mixed, rows, threads);
        if (gates)
            qwench_gate(mixed, qkv + wide - gates, wide, mixed, rows, a->heads, d, gates / a->heads, threads);
        qwench_linear(&w->out, mixed, a->heads * d, x, rows, 1, threads);
        qwench_rms_norm(x, w->norm2, normed, rows, hidden, eps, threads);
        qwench_linear(&w->gate_up, normed, hidden, gate_up, rows, 0, threads);
        qwench_silu_mul(gate_up, product, rows, inner, threads);
        qwench_linear(&w->down, product, inner, x, rows, 1, threads);
    }
}
