/* Matrices into blocks of GGUF, as its own library makes them. */
#pragma once
#include "products.h"

/* To the nearest, halves to even. */
INLINE uint16_t to_f16(float x) {
#if defined(__F16C__)
    return _cvtss_sh(x, 0);
#elif defined(__aarch64__)
    __fp16 y = (__fp16)x;
    uint16_t h;
    memcpy(&h, &y, 2);
    return h;
#else
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return (uint16_t)(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (bits < 0x38800000) { /* a multiple of 2^-24, which is what the sum keeps beside 0.5 */
        float y;
        memcpy(&y, &bits, 4);
        y += 0.5f;
        memcpy(&bits, &y, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
#endif
}

INLINE void to_block8(const float *x, Block8 *block) {
    float most = 0;
    for (int i = 0; i < GROUP; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float rest = 0; /* NaN where a value is no number, which a scale then tells */
    for (int i = 0; i < GROUP; i++) rest += x[i] - x[i];
    float scale = most / 127 + rest, inverse = scale > 0 ? 1 / scale : 0;
    block->scale = to_f16(scale);
    for (int i = 0; i < GROUP; i++) {
        float code = rest == 0 ? x[i] * inverse : 0, whole = truncf(code);
        block->code[i] = (int8_t)(whole + truncf(2 * (code - whole))); /* halves away from zero */
    }
}

INLINE void to_block4(const float *x, Block4 *block) {
    float low = x[0], high = x[0];
    for (int i = 1; i < GROUP; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float rest = 0;
    for (int i = 0; i < GROUP; i++) rest += x[i] - x[i];
    float scale = (high - low) / 15 + rest, inverse = scale > 0 ? 1 / scale : 0;
    uint8_t code[GROUP];
    block->scale = to_f16(scale);
    block->offset = to_f16(low);
    for (int i = 0; i < GROUP; i++) {
        int c = rest == 0 ? (int)((x[i] - low) * inverse + 0.5f) : 0;
        code[i] = (uint8_t)(c > 15 ? 15 : c);
    }
    for (int i = 0; i < GROUP / 2; i++) block->code[i] = (uint8_t)(code[i] | code[i + GROUP / 2] << 4);
}

/* Values that are widened at a time: room on a thread's stack, whatever the rows */
#define WIDENED (64 * GROUP)

/* w in blocks of `kind`, row after row. */
void qwench_to_blocks(const Matrix *w, int kind, void *out, int threads) {
    long k = w->k, count = k / GROUP;
#pragma omp parallel for num_threads(threads) if (threads > 1 && w->n * k > 1 << 15)
    for (long n = 0; n < w->n; n++) {
        float piece[WIDENED];
        for (long b = 0; b < count; b++) {
            long in = b * GROUP % WIDENED, left = k - b * GROUP;
            if (!in) widen_piece(w, n * k + b * GROUP, left < WIDENED ? left : WIDENED, piece);
            if (kind == Q8) to_block8(piece + in, (Block8 *)out + n * count + b);
            else to_block4(piece + in, (Block4 *)out + n * count + b);
        }
    }
}
