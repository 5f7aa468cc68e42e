/* One query a row over keys and values in a cache, with a prefix that rows share. */
#pragma once
#include "vectors.h"

#define KEYS 128     /* keys between two updates of the running softmax */
#define MOST_D 512   /* largest head; the callers check */
#define MOST_GROUP 8 /* query heads of one key head that go together */

typedef struct {
    float top[MOST_GROUP], total[MOST_GROUP], out[MOST_GROUP][MOST_D];
} Softmax;

/* Query heads that share each load of a key or value, and their sums that fit the registers */
#define TOGETHER 4
#define SUMS (WIDTH == 16 ? 24 : 8)

/* Asks for what is READ_AHEAD bytes after row j of `count` rows (d), where the rows end for what is needed next. */
#define READ_AHEAD 4096
INLINE void fetch_ahead(const float *rows, long j, long count, long d, const float *next, long from, long floats) {
    long at = j + READ_AHEAD / (4 * d);
    fetch(at < count ? rows + at * d + from : next + (at - count) * d + from, floats * 4);
}

/* score (G, KEYS) = G queries (d) times `count` keys (d). next: what is read after them, or null: they are near. */
INLINE void score_keys(const float *q, const float *keys, long count, long d, float scale, float (*score)[KEYS],
                       const float *next, const int G) {
    for (long j = 0; j < count; j++) {
        const float *key = keys + j * d;
        vf acc[TOGETHER];
        long i = 0;
        for (int g = 0; g < G; g++) acc[g] = (vf){0};
        if (next) fetch_ahead(keys, j, count, d, next, 0, d);
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
                     const float *next, const int G, const int V) {
    vf acc[TOGETHER][8];
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) acc[g][v] = load(out[g] + i + v * WIDTH);
    for (long j = 0; j < count; j++) {
        if (next) fetch_ahead(values, j, count, d, next, i, V * WIDTH);
        for (int v = 0; v < V; v++) {
            vf value = load(values + j * d + i + v * WIDTH);
            for (int g = 0; g < G; g++) acc[g][v] += score[g][j] * value;
        }
    }
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) store(out[g] + i + v * WIDTH, acc[g][v]);
}

/* out (G, d) += score (G, count) times values (count, d); next: see score_keys. */
INLINE void add_values(float (*out)[MOST_D], float (*score)[KEYS], const float *values, long count, long d,
                       const float *next, const int G) {
    long i = 0;
#define WITH(V) for (; V * G <= SUMS && i + V * WIDTH <= d; i += V * WIDTH) add_part(out, score, values, count, d, i, next, G, V);
    WITH(8) WITH(4) WITH(2) WITH(1)
#undef WITH
    for (; i < d; i++)
        for (int g = 0; g < G; g++)
            for (long j = 0; j < count; j++) out[g][i] += score[g][j] * values[j * d + i];
}

/* `count` more keys and values, KEYS at most, for G queries from g on. next: what is read after the values, or null
 * where keys and values are near. */
INLINE void attend_block(Softmax *s, long g, const float *q, const float *keys, const float *values, long count,
                         long d, float scale, const float *next, const int G) {
    float score[TOGETHER][KEYS] __attribute__((aligned(64)));
    score_keys(q + g * d, keys, count, d, scale, score, next ? values : 0, G);
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

/* n more keys and values (n, d) for `group` queries (group, d): the softmax over blocks of arXiv 1805.02867.
 * next: the keys that are read after them. */
static void attend_more(Softmax *s, const float *q, const float *keys, const float *values, long n, long group, long d,
                        float scale, const float *next) {
    for (long at = 0; at < n; at += KEYS) {
        long count = n - at < KEYS ? n - at : KEYS;
        const float *k = keys + at * d, *v = values + at * d, *after = at + KEYS < n ? k + KEYS * d : next;
        for (long g = 0; g < group; g += TOGETHER, after = 0) {
#define CASE(G) case G: attend_block(s, g, q, k, v, count, d, scale, after, G); break;
            switch (group - g) {
                CASE(1) CASE(2) CASE(3)
                default: attend_block(s, g, q, k, v, count, d, scale, after, 4);
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
        const float *k = a->keys + own, *next = k + a->head_stride;
        if (a->prefix) {
            long at = (stream * a->kv_heads + h) * a->prefix * d;
            next = a->prefix_keys + at + a->prefix * d;
            attend_more(&s, q, a->prefix_keys + at, a->prefix_values + at, a->prefix, count, d, a->scale, k);
        }
        attend_more(&s, q, k, a->values + own, length, count, d, a->scale, next);
        for (long g = 0; g < count; g++)
            for (long i = 0; i < d; i++) y[(g0 + g) * d + i] = s.out[g][i] / s.total[g];
    }
}

/* One query a row, q: rows of (heads, d) every ldq, over the first length[r] keys of slot[r] and the prefix of
 * stream[r]; y (rows, heads, d). The kernel alone: a step calls attend_head. */
void qwench_attend(const Attention *a, const float *q, long ldq, const long *slot, const long *length,
                   const long *stream, float *y, long rows, int threads) {
    long wide = a->heads / a->kv_heads * a->d;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long task = 0; task < rows * a->kv_heads; task++) {
        long r = task / a->kv_heads, h = task % a->kv_heads;
        attend_head(a, q + r * ldq + h * wide, h, slot[r], length[r], stream[r], y + r * a->heads * a->d + h * wide);
    }
}
