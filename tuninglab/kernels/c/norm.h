/* RMS norm for one number format, forward and the gradient of its input. */

void NAMED(rms_norm)(const T *x, const float *weight, float eps, T *y, float *inverse, long rows,
                     long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *in = x + i * columns;
        T *out = y + i * columns;
        float squares = 0.f;
#pragma omp simd reduction(+ : squares)
        for (long j = 0; j < columns; j++) squares += LOAD(in[j]) * LOAD(in[j]);
        float root = 1.f / sqrtf(squares / columns + eps);
        inverse[i] = root;
        for (long j = 0; j < columns; j++) out[j] = STORE(LOAD(in[j]) * root * weight[j]);
    }
}

void NAMED(rms_norm_grad)(const T *grad, const T *x, const float *inverse, const float *weight,
                          T *dx, long rows, long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *in = x + i * columns, *g = grad + i * columns;
        T *out = dx + i * columns;
        float root = inverse[i], along = 0.f;
#pragma omp simd reduction(+ : along)
        for (long j = 0; j < columns; j++) along += LOAD(g[j]) * weight[j] * LOAD(in[j]);
        along *= root * root / columns;
        for (long j = 0; j < columns; j++)
            out[j] = STORE((LOAD(g[j]) * weight[j] - LOAD(in[j]) * along) * root);
    }
}
