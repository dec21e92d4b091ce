/* Activations, and their gated form, for one number format.

   Whether there is a second factor is asked outside of the loops: inside, gcc 12 leaves them scalar,
   which took up to thirty times as long. */

#define EACH_ACTIVATION(DO)                                                                      \
    switch (activation) {                                                                        \
        case 0: DO(silu) break;                                                                  \
        case 1: DO(gelu_tanh) break;                                                             \
        default: DO(gelu_erf)                                                                    \
    }

/* y = activation(e) u; without u, y = activation(e). */
void NAMED(gated)(long activation, const T *e, const T *u, T *y, long rows, long columns) {
#define GATED(name)                                                                              \
    for (long j = 0; j < columns; j++) out[j] = STORE(name(LOAD(in[j])) * LOAD(by[j]));
#define LONE(name)                                                                               \
    for (long j = 0; j < columns; j++) out[j] = STORE(name(LOAD(in[j])));
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *in = e + i * columns, *by = u ? u + i * columns : NULL;
        T *out = y + i * columns;
        if (by) EACH_ACTIVATION(GATED)
        else EACH_ACTIVATION(LONE)
    }
#undef GATED
#undef LONE
}

/* Gradients of e and u, which were kept as int8 rows. */
void NAMED(gated_grad)(long activation, const T *grad, const int8_t *e, const float *e_scale,
                       const int8_t *u, const float *u_scale, T *de, T *du, long rows,
                       long columns) {
#define GATED_GRAD(name)                                                                         \
    for (long j = 0; j < columns; j++) {                                                         \
        float slope, active = name##_slope(in[j] * scale, &slope), g = LOAD(up[j]);              \
        out[j] = STORE(g * slope * (by[j] * by_scale));                                          \
        by_out[j] = STORE(g * active);                                                           \
    }
#define LONE_GRAD(name)                                                                          \
    for (long j = 0; j < columns; j++) {                                                         \
        float slope;                                                                             \
        name##_slope(in[j] * scale, &slope);                                                     \
        out[j] = STORE(LOAD(up[j]) * slope);                                                     \
    }
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *up = grad + i * columns;
        const int8_t *in = e + i * columns, *by = u ? u + i * columns : NULL;
        T *out = de + i * columns, *by_out = u ? du + i * columns : NULL;
        float scale = e_scale[i], by_scale = u ? u_scale[i] : 1.f;
        if (by) EACH_ACTIVATION(GATED_GRAD)
        else EACH_ACTIVATION(LONE_GRAD)
    }
#undef GATED_GRAD
#undef LONE_GRAD
}
#undef EACH_ACTIVATION
