/* Kernels for a few rows on the CPU: what one decode step of a small batch is made of. Here: the whole step.
 *
 * Activations are float32. Weights are float32, bfloat16 or float16 and become float32 in registers, so that a
 * result differs from float32 arithmetic on the widened weights by the order of summation alone. Built and loaded by
 * native/.
 */
#include "attention.h"
#include "blocks.h"
#include "products.h"
#include "rows.h"
#include "team.h"

/* Bytes that a waiting thread asks for ahead */
#define WAITING (1 << 17)

typedef struct {
    const float *norm1, *norm2, *qk_norm; /* (h), (h), (heads + kv_heads, d) or null */
    Matrix qkv, out, gate_up, down;       /* gates of the attention's output below q, k and v */
    Attention attention;
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm;
    Matrix words; /* (vocabulary, hidden) */
    long count, streams;
    float eps;
} Decoder;

/* One step of a decoder, as its threads share it. */
typedef struct {
    const float *cos, *sin;
    const long *slot, *position, *stream;
    float *x, *normed, *qkv, *mixed, *gate_up, *product, eps;
    long rows, *next[2]; /* of the tasks of this phase and of the next one */
    Team team;
} Step;

/* One thread's place in it. */
typedef struct {
    Step *step;
    int t, phase;
    Ahead ahead;
} Worker;

/* Ends a phase. */
INLINE void next_phase(Worker *k) { meet(&k->step->team, ++k->phase, &k->ahead); }

/* The tasks of the phase that begins now, or with `later` of the next one. */
INLINE Tasks tasks_of(const Worker *k, long count, int later) {
    return (Tasks){k->step->next[(k->phase + later) % 2], count, k->step->team.threads};
}

INLINE Tasks tasks_for(const Worker *k, const Matrix *w, int later) {
    long block = block_of(w, k->step->rows, k->step->team.threads);
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
    long row = bytes_of(w->kind, w->k), at = share_of(&s, k->t) * block_of(w, k->step->rows, s.threads) * row;
    k->ahead.at = (const char *)w->weight + at;
    k->ahead.end = k->ahead.at + (w->n * row - at < WAITING ? w->n * row - at : WAITING);
}

static void product(Worker *k, const Matrix *w, const float *x, float *y, int add) {
    Tasks s = tasks_for(k, w, 0);
    Rows r = {x, y, w->k, w->n, add};
    linear_share(w, &r, k->step->rows, &s, k->t);
}

static void words_share(const Worker *k, const Decoder *m, const long *ids) {
    for (long r = k->t; r < k->step->rows; r += k->step->team.threads)
        widen_row(&m->words, ids[r / m->streams], k->step->x + r * m->words.k);
}

/* y may be the step's x. */
static void norm_share(const Worker *k, const float *weight, long n, float *y) {
    const Step *s = k->step;
    for (long r = k->t; r < s->rows; r += s->team.threads) norm_row(s->x + r * n, weight, y + r * n, n, s->eps);
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
    next_phase(k);
    product(k, &w->qkv, s->normed, s->qkv, 0);
    Tasks mix = tasks_of(k, s->rows * heads, 1);
    mix.next[k->t * 8] = share_of(&mix, k->t);
    look_ahead(k, 0);
    next_phase(k);
    while ((task = take(&mix, k->t, &helped)) >= 0) mix_head(s, w, task / heads, task % heads);
    share_out(k, &w->out);
    look_ahead(k, &w->out);
    next_phase(k);
    product(k, &w->out, s->mixed, s->x, 1);
    look_ahead(k, &w->gate_up);
    next_phase(k);
    norm_share(k, w->norm2, hidden, s->normed);
    share_out(k, &w->gate_up);
    next_phase(k);
    product(k, &w->gate_up, s->normed, s->gate_up, 0);
    look_ahead(k, &w->down);
    next_phase(k);
    for (long r = 0; r < s->rows; r++) {
        long i = k->t * inner / s->team.threads, end = (k->t + 1) * inner / s->team.threads;
        const float *gate = s->gate_up + r * 2 * inner + i;
        silu_row(gate, gate + inner, s->product + r * inner + i, end - i);
    }
    share_out(k, &w->down);
    next_phase(k);
    product(k, &w->down, s->product, s->x, 1);
    look_ahead(k, after ? &after->qkv : 0);
    next_phase(k);
}

/* One token of each of `count` sequences, in all its streams, from its word to the last norm.
 *
 * ids, slots, positions (count): keys and values of stream p go to position positions[i] of slot slots[i] * streams + p,
 * which nothing else of this step does. cos and sin: tables (positions, d). x (count * streams, hidden) is written.
 * scratch: see step.py. The threads stay together from the first layer to the last.
 */
void qwench_step(const Decoder *m, const long *ids, const long *slots, const long *positions, long count,
                 const float *cos, const float *sin, float *x, float *scratch, int threads) {
    const Layer *first = m->layers, *end = first + m->count;
    long rows = count * m->streams, hidden = first->out.n, slot[rows], position[rows], stream[rows];
    for (long r = 0; r < rows; r++) {
        stream[r] = r % m->streams;
        slot[r] = slots[r / m->streams] * m->streams + stream[r];
        position[r] = positions[r / m->streams];
    }
    Step s = {.cos = cos, .sin = sin, .slot = slot, .position = position, .stream = stream, .x = x, .eps = m->eps,
              .normed = scratch, .rows = rows, .team.patience = threads > omp_get_num_procs() ? 0 : PATIENCE};
    s.qkv = s.normed + rows * hidden;
    s.mixed = s.qkv + rows * first->qkv.n;
    s.gate_up = s.mixed + rows * first->attention.heads * first->attention.d;
    s.product = s.gate_up + rows * first->gate_up.n;
    long next[2][threads * 8];
    s.next[0] = next[0];
    s.next[1] = next[1];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp single
        s.team.threads = omp_get_num_threads(); /* may be fewer than were asked for */
        Worker k = {.step = &s, .t = omp_get_thread_num()};
        words_share(&k, m, ids);
        for (const Layer *w = first; w < end; w++) layer_share(&k, w, w + 1 < end ? w + 1 : 0);
        norm_share(&k, m->norm, hidden, x);
    }
}
