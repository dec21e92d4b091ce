/* Activations, and their gated form, for one number format. */

#define EACH_ACTIVATION(DO)                                                                      \
    switch (activation) {                                                                        \
        case 0: DO(silu) break;                                                                  \
        case 1: DO(gelu_tanh) break;                                                             \
        default: DO(gelu_erf)                                                                    \
    }

/* y = activation(e) u; without u, y = activation(e). */
void NAMED(gated)(long activation, const T *e, const T *u, T *y, long rows, long columns) {
#define GATED(name)                                                                              \
    for (long j = 0; j < columns; j++)                                                           \
        out[j] = STORE(name(LOAD(in[j])) * (by ? LOAD(by[j]) : 1.f));
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *in = e + i * columns, *by = u ? u + i * columns : NULL;
        T *out = y + i * columns;
        EACH_ACTIVATION(GATED)
    }
#undef GATED
}

/* Gradients of e and u, which were kept as int8 rows. */
void NAMED(gated_grad)(long activation, const T *grad, const int8_t *e, const float *e_scale,
                       const int8_t *u, const float *u_scale, T *de, T *du, long rows,
                       long columns) {
#define GATED_GRAD(name)                                                                         \
    for (long j = 0; j < columns; j++) {                                                         \
        float value = in[j] * scale, slope;                                                      \
        float active = name##_slope(value, &slope), g = LOAD(up[j]);                             \
        out[j] = STORE(g * slope * (by ? by[j] * by_scale : 1.f));                               \
        if (by) by_out[j] = STORE(g * active);                                                   \
    }
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *up = grad + i * columns;
        const int8_t *in = e + i * columns, *by = u ? u + i * columns : NULL;
        T *out = de + i * columns, *by_out = u ? du + i * columns : NULL;
        float scale = e_scale[i], by_scale = u ? u_scale[i] : 1.f;
        EACH_ACTIVATION(GATED_GRAD)
    }
#undef GATED_GRAD
}
#undef EACH_ACTIVATION
