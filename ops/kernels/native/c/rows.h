/* Norms, rotary positions, SwiGLU, gates and the join of streams: row by row. */
#pragma once
#include "vectors.h"

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
 * product; h: vectors (n), one every `of_stream` and `of_token`; w2 (streams, n), b2 (streams); y (tokens, n). share:
 * room for (streams). */
void qwench_join(const float *hidden, const float *h, long of_stream, long of_token, const float *w2, const float *b2,
                 float smooth, float *y, float *share, long tokens, long streams, long n) {
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
