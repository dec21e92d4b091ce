/* What the kernels share: number formats, and names that carry them.

   Plain C that compilers vectorise for the CPU they run on; no intrinsics, so the same files serve
   x86 and Arm. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT 127.f
#define ALONE 16384 /* numbers that one thread is done with before a second one has woken */
#define INFINITE 0x7f800000u /* bits of +inf: larger ones are NaN */
#define TINIEST 0x00800000u  /* bits of the smallest normal float */

typedef uint16_t bf16;

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float load_f32(float x) { return x; }
static inline float store_f32(float x) { return x; }
static inline float load_bf16(bf16 x) { return float_of((uint32_t)x << 16); }

/* To the nearest, ties to even, as torch rounds. */
static inline bf16 store_bf16(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > INFINITE ? 0x7fc0u : rounded;
}

/* exp for x <= 0, within 2e-7 relative: 2^n p(f), Cephes' polynomial. NaN stays NaN. */
static inline float exp_negative(float x) {
    float t = (x < -87.f ? -87.f : x) * 1.44269504f, n = rintf(t), f = (t - n) * 0.693147181f;
    float p = 1.9875691e-4f;
    p = p * f + 1.3981999e-3f;
    p = p * f + 8.3334519e-3f;
    p = p * f + 4.1665796e-2f;
    p = p * f + 1.6666665e-1f;
    p = p * f + 5.0000001e-1f;
    p = p * f * f + f + 1.f;
    return p * float_of((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) {
    float e = exp_negative(-fabsf(x)), far = 1.f / (1.f + e);
    return x >= 0.f ? far : e * far;
}

/* Abramowitz and Stegun 7.1.26, within 1.5e-7. */
static inline float erf_of(float x) {
    float a = fabsf(x), t = 1.f / (1.f + 0.3275911f * a);
    float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t +
               0.254829592f) * t;
    float far = 1.f - p * exp_negative(-a * a);
    return x < 0.f ? -far : far;
}

/* Each activation, and with its slope: silu, and GELU by tanh (gelu_new) or by erf. */
static inline float silu_slope(float x, float *slope) {
    float s = sigmoid(x);
    *slope = s + x * s * (1.f - s);
    return x * s;
}

static inline float gelu_tanh_slope(float x, float *slope) {
    /* 0.5 (1 + tanh z) is sigmoid(2 z). */
    float s = sigmoid(1.59576912f * x * (1.f + 0.044715f * x * x));
    *slope = s + x * s * (1.f - s) * 1.59576912f * (1.f + 0.134145f * x * x);
    return x * s;
}

static inline float gelu_erf_slope(float x, float *slope) {
    float below = 0.5f * (1.f + erf_of(x * 0.707106781f));
    *slope = below + x * 0.398942280f * exp_negative(-0.5f * x * x);
    return x * below;
}

static inline float silu(float x) { return x * sigmoid(x); }
static inline float gelu_tanh(float x) {
    return x * sigmoid(1.59576912f * x * (1.f + 0.044715f * x * x));
}
static inline float gelu_erf(float x) { return 0.5f * x * (1.f + erf_of(x * 0.707106781f)); }
