/* All kernels, for float32 and bfloat16. */
#include "common.h"

#define JOIN_(name, format) name##_##format
#define JOIN(name, format) JOIN_(name, format)
#define NAMED(name) JOIN(name, FORMAT)
#define LOAD JOIN(load, FORMAT)
#define STORE JOIN(store, FORMAT)

#define FORMAT f32
#define T float
#include "kernels.h"
#undef FORMAT
#undef T

#define FORMAT bf16
#define T bf16
#include "kernels.h"
#undef FORMAT
#undef T

/* Cross-entropy of logits that are sums of int8 products.

   loss: one a row. coarse and fine: the probabilities times `column`, as int8 rows in steps of
   `scale` and of scale / 254. One level would lose the many small ones: next to 0.5, all below
   0.002 are 0. The sums are overwritten. */
void cross_entropy_f32(int32_t *sums, const float *row, const float *column, const int64_t *target,
                       float *loss, int8_t *coarse, int8_t *fine, float *scale, long rows,
                       long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        int32_t *in = sums + i * columns;
        int8_t *out = coarse + i * columns, *rest = fine + i * columns;
        float top = -INFINITY, sum = 0.f, largest = 0.f, step = row[i];
#pragma omp simd reduction(max : top)
        for (long j = 0; j < columns; j++) {
            float logit = in[j] * step * column[j];
            top = logit > top ? logit : top;
        }
        float wanted = in[target[i]] * step * column[target[i]];
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < columns; j++) {
            float e = exp_negative(in[j] * step * column[j] - top);
            sum += e;
            in[j] = (int32_t)bits_of(e);
        }
        loss[i] = logf(sum) + top - wanted;
        float inverse = 1.f / sum;
#pragma omp simd reduction(max : largest)
        for (long j = 0; j < columns; j++) {
            float g = float_of((uint32_t)in[j]) * inverse * column[j];
            largest = g > largest ? g : largest;
        }
        float steps = largest > 0.f ? inverse * LIMIT / largest : 0.f;
        /* Without a largest one, something is NaN; it must show in the gradient too. */
        scale[i] = largest > 0.f ? largest / LIMIT : NAN;
        for (long j = 0; j < columns; j++) {
            float value = float_of((uint32_t)in[j]) * column[j] * steps, whole = rintf(value);
            out[j] = (int8_t)(int32_t)whole;
            rest[j] = (int8_t)(int32_t)rintf((value - whole) * 254.f);
        }
    }
}
