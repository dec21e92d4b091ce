/* Softmax of attention scores (batch, heads, queries, keys), for one number format.

   bias: (heads, queries, keys) or NULL, the same for the whole batch. mask: bytes (batch, queries,
   keys), 0 where a query may not look, or NULL; mask_across and mask_down are its steps to the next
   batch row and query, 0 for one row for all. causal: the last query sees all keys, each earlier
   one a key less. */

#define ROW                                                                                      \
    T *row = scores + i * keys;                                                                  \
    const T *by = bias ? bias + i % (heads * queries) * keys : NULL;                             \
    const uint8_t *may =                                                                         \
        mask ? mask + i / (heads * queries) * mask_across + i % queries * mask_down : NULL;      \
    long seen = causal ? keys - queries + i % queries + 1 : keys;                                \
    NAMED(score)(held, row, by, may, seen, scaling, keys);

static inline void NAMED(score)(float *held, const T *row, const T *by, const uint8_t *may,
                                long seen, float scaling, long keys) {
    for (long j = 0; j < keys; j++) held[j] = LOAD(row[j]) * scaling + (by ? LOAD(by[j]) : 0.f);
    if (may)
        for (long j = 0; j < keys; j++) held[j] = may[j] ? held[j] : -INFINITY;
    for (long j = seen; j < keys; j++) held[j] = -INFINITY;
}

/* Scores become probabilities, in place; total is the log of the sum of exponentials a row. */
void NAMED(softmax)(T *scores, const T *bias, const uint8_t *mask, long mask_across,
                    long mask_down, long causal, float scaling, float *total, long batch,
                    long heads, long queries, long keys) {
#pragma omp parallel if (batch * heads * queries * keys > ALONE)
    {
        float *held = malloc(keys * sizeof(float));
#pragma omp for
        for (long i = 0; i < batch * heads * queries; i++) {
            ROW
            float top = -INFINITY, sum = 0.f;
#pragma omp simd reduction(max : top)
            for (long j = 0; j < keys; j++) top = held[j] > top ? held[j] : top;
            /* A query that may look nowhere gets zeros. */
            float base = top > -INFINITY ? top : 0.f;
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < keys; j++) {
                held[j] = held[j] == -INFINITY ? 0.f : exp_negative(held[j] - base);
                sum += held[j];
            }
            float inverse = sum == 0.f ? 0.f : 1.f / sum;
            total[i] = sum == 0.f ? INFINITY : base + logf(sum);
            for (long j = 0; j < keys; j++) row[j] = STORE(held[j] * inverse);
        }
        free(held);
    }
}

/* Scores become probabilities again, from the total; the gradient of the probabilities becomes
   that of the products of queries and keys. Both in place. */
void NAMED(softmax_grad)(T *scores, const T *bias, const uint8_t *mask, long mask_across,
                         long mask_down, long causal, float scaling, const float *total, T *grad,
                         long batch, long heads, long queries, long keys) {
#pragma omp parallel if (batch * heads * queries * keys > ALONE)
    {
        float *held = malloc(keys * sizeof(float));
#pragma omp for
        for (long i = 0; i < batch * heads * queries; i++) {
            ROW
            T *g = grad + i * keys;
            float along = 0.f, base = total[i];
#pragma omp simd reduction(+ : along)
            for (long j = 0; j < keys; j++) {
                held[j] = held[j] == -INFINITY ? 0.f : exp_negative(held[j] - base);
                along += held[j] * LOAD(g[j]);
            }
#pragma omp simd
            for (long j = 0; j < keys; j++) {
                row[j] = STORE(held[j]);
                g[j] = STORE(held[j] * (LOAD(g[j]) - along) * scaling);
            }
        }
        free(held);
    }
}
#undef ROW
