/* A few rows times a large matrix: every weight is read once, and threads share the rows of the matrix. */
#pragma once
#include <omp.h>

#include "vectors.h"

/* Rows of x of one tile, and its outputs, at most: many rows of weights at once keep the memory busy when there is one
 * row of x. */
#define MAX_ROWS (WIDTH == 16 ? 8 : 4)
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
#if WIDTH == 16
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
#if WIDTH == 16
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
