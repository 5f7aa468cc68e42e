/* Vectors of floats: those of GCC and Clang (vector_size), as wide as -march=native has them. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__) && defined(__FMA__)
#define WIDTH 8
#else
#define WIDTH 4
#endif

/* What a matrix is stored in. Q8 and Q4: blocks of GROUP values, as GGUF has them (Q8_0 and Q4_1). */
enum { F32, BF16, F16, Q8, Q4 };
#define GROUP 32

/* code * scale, float16 */
typedef struct {
    uint16_t scale;
    int8_t code[GROUP];
} Block8;

/* code * scale + offset, float16; the codes of the first half are the low bits */
typedef struct {
    uint16_t scale, offset;
    uint8_t code[GROUP / 2];
} Block4;

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
typedef float vf_any __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
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

/* Bytes of so many values, whole blocks of them. */
INLINE long bytes_of(int kind, long values) {
    if (kind >= Q8) return values / GROUP * (long)(kind == Q8 ? sizeof(Block8) : sizeof(Block4));
    return values * (kind == F32 ? 4 : 2);
}

/* Asks for memory that is needed later, so that it is on its way while what is there is added up. */
INLINE void fetch(const void *p, long bytes) {
    for (long line = 0; line < bytes; line += 64) __builtin_prefetch((const char *)p + line);
}

INLINE void from_f16_pair(const uint16_t *h, float *x) {
#if defined(__F16C__)
    int pair;
    memcpy(&pair, h, 4);
    __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(pair));
    x[0] = both[0], x[1] = both[1];
#else
    x[0] = from_f16(h[0]), x[1] = from_f16(h[1]);
#endif
}

INLINE float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The value after `at` others. */
INLINE float load_one(const void *p, long at, int kind) {
    if (kind == F32) return ((const float *)p)[at];
    if (kind == BF16) return from_bf16(((const uint16_t *)p)[at]);
    if (kind == F16) return from_f16(((const uint16_t *)p)[at]);
    long j = at % GROUP;
    if (kind == Q8) {
        const Block8 *block = (const Block8 *)p + at / GROUP;
        return (float)block->code[j] * from_f16(block->scale);
    }
    const Block4 *block = (const Block4 *)p + at / GROUP;
    int code = j < GROUP / 2 ? block->code[j] & 15 : block->code[j - GROUP / 2] >> 4;
    return (float)code * from_f16(block->scale) + from_f16(block->offset);
}

/* GCC takes __builtin_convertvector of bytes apart, one by one. */
INLINE vi load_bytes(const void *p, const int sign) {
#if WIDTH == 16
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    return (vi)(sign ? _mm512_cvtepi8_epi32(x) : _mm512_cvtepu8_epi32(x));
#elif WIDTH == 8
    __m128i x = _mm_loadl_epi64((const __m128i *)p);
    return (vi)(sign ? _mm256_cvtepi8_epi32(x) : _mm256_cvtepu8_epi32(x));
#else
    vi x;
    for (int i = 0; i < WIDTH; i++) x[i] = sign ? ((const int8_t *)p)[i] : ((const uint8_t *)p)[i];
    return x;
#endif
}

/* The vector after `at` and `more` others; in blocks `at` are whole ones, and `more` is known when this is compiled. */
INLINE vf load_as(const void *p, long at, long more, int kind) {
    if (kind == F32) return load((const float *)p + at + more);
    if (kind == Q8) {
        const Block8 *block = (const Block8 *)p + (unsigned long)at / GROUP + more / GROUP;
        vi code = load_bytes(block->code + more % GROUP, 1);
        return __builtin_convertvector(code, vf) * from_f16(block->scale);
    }
    if (kind == Q4) {
        const Block4 *block = (const Block4 *)p + (unsigned long)at / GROUP + more / GROUP;
        vi pair = load_bytes(block->code + more % (GROUP / 2), 0);
        vi code = more % GROUP < GROUP / 2 ? pair & 15 : pair >> 4;
        float both[2];
        from_f16_pair(&block->scale, both);
        return __builtin_convertvector(code, vf) * both[0] + both[1];
    }
    const uint16_t *h = (const uint16_t *)p + at + more;
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
