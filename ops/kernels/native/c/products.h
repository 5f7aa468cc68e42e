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
#define AHEAD 8192
/* Bytes of weights that a thread takes at a time: a quarter of its share, between the least and, where they are read
 * once or again from the cache for more rows, the most. */
#define LEAST_BLOCK (1 << 16)
#define BLOCK_ONCE (1 << 20)
#define BLOCK_AGAIN (1 << 18)
/* (n, k) of `kind`, and what is added to the products. */
typedef struct {
    const void *weight;
    const float *bias; /* (n) or null */
    long n, k;
    int kind;
} Matrix;

/* Rows of x, one every ldx, and of y, one every ldy; `add`: on top of what y holds. */
typedef struct {
    const float *x;
    float *y;
    long ldx, ldy;
    int add;
} Rows;

INLINE void finish(const Matrix *w, const Rows *r, long m, long n, float s) {
    float *y = r->y + m * r->ldy + n;
    *y = s + (w->bias ? w->bias[n] : 0) + (r->add ? *y : 0);
}

/* M rows of x, from m0, against N rows of w, from n0: M * N sums in registers, every value of w read once. */
INLINE void tile(const Matrix *w, const Rows *r, long m0, long n0, int kind, const int M, const int N) {
    const int U = kind >= Q8 ? GROUP / WIDTH : 1;
    const float *x = r->x + m0 * r->ldx;
    long k = w->k, at = n0 * k, i = 0;
    vf acc[MAX_ROWS][MAX_OUTPUTS];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = (vf){0};
    for (; i + U * WIDTH <= k; i += U * WIDTH) {
        /* The rows of the next tile: the memory has several streams to follow while this one is added up. */
        if (kind == F32 || i % (2 * WIDTH) == 0)
            for (int n = 0; n < N; n++)
                __builtin_prefetch((const char *)w->weight + bytes_of(kind, at + (n + N) * k + i));
        for (int u = 0; u < U; u++) {
            vf row[MAX_OUTPUTS];
            for (int n = 0; n < N; n++) row[n] = load_as(w->weight, at + n * k + i, u * WIDTH, kind);
            for (int m = 0; m < M; m++) {
                vf v = load(x + m * r->ldx + i + u * WIDTH);
                for (int n = 0; n < N; n++) acc[m][n] += v * row[n];
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float s = sum(acc[m][n]);
            for (long j = i; j < k; j++) s += x[m * r->ldx + j] * load_one(w->weight, at + n * k + j, kind);
            finish(w, r, m0 + m, n0 + n, s);
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

INLINE void strip(const Matrix *w, const Rows *r, long m0, long n0, long n1, int kind, const int M) {
    const int N = tile_width(M);
    long n = n0;
    for (; n + N <= n1; n += N) tile(w, r, m0, n, kind, M, N);
    for (; n < n1; n++) tile(w, r, m0, n, kind, M, 1);
}

INLINE void rows_of(const Matrix *w, const Rows *r, long m, long n0, long n1, int kind) {
    long tiles = (m + MAX_ROWS - 1) / MAX_ROWS;
    for (long t = 0, at = 0; t < tiles; t++) {
        long each = (m - at + tiles - t - 1) / (tiles - t);
#define CASE(M) case M: strip(w, r, at, n0, n1, kind, M); break;
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
INLINE void near(const Matrix *w, const Rows *r, long n0, long n1, int kind, const int M) {
    const int U = kind >= Q8 ? GROUP / WIDTH : 4;
    long k = w->k, step = U * WIDTH;
    for (long n = n0; n < n1; n++) {
        vf acc[NEAR_ROWS][8];
        for (int m = 0; m < M; m++)
            for (int u = 0; u < U; u++) acc[m][u] = (vf){0};
        long at = n * k, i = 0;
        for (; i + step <= k; i += step) {
            vf part[8];
            fetch((const char *)w->weight + bytes_of(kind, at + i) + AHEAD, bytes_of(kind, step));
            for (int u = 0; u < U; u++) part[u] = load_as(w->weight, at + i, u * WIDTH, kind);
            for (int m = 0; m < M; m++)
                for (int u = 0; u < U; u++) acc[m][u] += load(r->x + m * r->ldx + i + u * WIDTH) * part[u];
        }
        for (int m = 0; m < M; m++) {
            vf total = acc[m][0];
            for (int u = 1; u < U; u++) total += acc[m][u];
            float s = sum(total);
            for (long j = i; j < k; j++) s += r->x[m * r->ldx + j] * load_one(w->weight, at + j, kind);
            finish(w, r, m, n, s);
        }
    }
}

INLINE void rows_near(const Matrix *w, const Rows *r, long m, long n0, long n1, int kind) {
#define CASE(M) case M: near(w, r, n0, n1, kind, M); break;
    switch (m) {
        CASE(1) CASE(2)
#if WIDTH == 16
        CASE(3) CASE(4)
#endif
    }
#undef CASE
}

#define ROWS_OF(NAME, KIND)                                                                \
    static void NAME(const Matrix *w, const Rows *r, long m, long n0, long n1) {                                \
        if (m == 1 || (m <= NEAR_ROWS && m * w->k <= NEAR)) rows_near(w, r, m, n0, n1, KIND);                   \
        else rows_of(w, r, m, n0, n1, KIND);                                                                    \
    }
ROWS_OF(rows_f32, F32)
ROWS_OF(rows_bf16, BF16)
ROWS_OF(rows_f16, F16)
ROWS_OF(rows_q8, Q8)
ROWS_OF(rows_q4, Q4)

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
    long row = bytes_of(w->kind, w->k), bytes = w->n * row / (4 * threads);
    long most = m > MAX_ROWS ? BLOCK_AGAIN : BLOCK_ONCE;
    long block = (bytes < LEAST_BLOCK ? LEAST_BLOCK : bytes > most ? most : bytes) / row;
    return block < 24 ? 24 : block / 24 * 24; /* a multiple of every tile's width */
}

/* What thread t does of qwench_linear. */
static void linear_share(const Matrix *w, const Rows *r, long m, const Tasks *s, int t) {
    static void (*const rows[])(const Matrix *, const Rows *, long, long, long) = {rows_f32, rows_bf16, rows_f16,
                                                                                 rows_q8, rows_q4};
    long n = w->n, block = block_of(w, m, s->threads), b;
    int helped = 0;
    while ((b = take(s, t, &helped)) >= 0) {
        long n0 = b * block;
        rows[w->kind](w, r, m, n0, n0 + block < n ? n0 + block : n);
    }
}

/* y (m, n) = x (m, k) @ weight^T + bias, on top of y where `add`. */
void qwench_linear(const Matrix *w, const float *x, long ldx, float *y, long m, int add, int threads) {
    if (m * w->n * w->k < 1 << 16) threads = 1;
    long next[threads * 8], block = block_of(w, m, threads);
    Tasks s = {next, (w->n + block - 1) / block, threads};
    Rows r = {x, y, ldx, w->n, add};
    for (int t = 0; t < threads; t++) next[t * 8] = share_of(&s, t);
#pragma omp parallel num_threads(threads) if (threads > 1)
    linear_share(w, &r, m, &s, omp_get_thread_num());
}

/* k values after `at` others as float32, y (k); in blocks both are whole ones. */
static void widen_piece(const Matrix *w, long at, long k, float *y) {
    long i = 0;
#define WIDEN(KIND, U)                                                                                       \
    case KIND:                                                                                               \
        for (; i + U * WIDTH <= k; i += U * WIDTH)                                                           \
            for (int u = 0; u < U; u++) store(y + i + u * WIDTH, load_as(w->weight, at + i, u * WIDTH, KIND)); \
        break;
    switch (w->kind) {
        WIDEN(F32, 1) WIDEN(BF16, 1) WIDEN(F16, 1) WIDEN(Q8, GROUP / WIDTH) WIDEN(Q4, GROUP / WIDTH)
    }
#undef WIDEN
    for (; i < k; i++) y[i] = load_one(w->weight, at + i, w->kind);
}

/* Row n as float32, y (k). */
static void widen_row(const Matrix *w, long n, float *y) { widen_piece(w, n * w->k, w->k, y); }

/* Rows n0..n1-1 as float32, y (n1 - n0, k). */
void qwench_widen(const Matrix *w, long n0, long n1, float *y, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && (n1 - n0) * w->k > 1 << 15)
    for (long n = n0; n < n1; n++) widen_row(w, n, y + (n - n0) * w->k);
}
