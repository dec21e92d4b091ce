/* int8 rows, for one number format: FORMAT names it, T holds it. */

/* Without a column scale it is called with a literal NULL, so that compilers drop the question from
   the loops: with it, gcc 12 leaves the first one scalar. */
static inline void NAMED(quantise_row)(const T *row, const float *column, int8_t *q, float *scale,
                                       long columns) {
    /* Compared as integers: NaN is then the largest of all, and cannot be overlooked. */
    uint32_t top = 0;
#pragma omp simd reduction(max : top)
    for (long j = 0; j < columns; j++) {
        float value = LOAD(row[j]) * (column ? column[j] : 1.f);
        uint32_t bits = bits_of(value) & 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    float largest = float_of(top);
    float inverse = top >= TINIEST && top < INFINITE ? LIMIT / largest : 0.f;
    *scale = top >= INFINITE ? NAN : inverse > 0.f ? largest / LIMIT : 0.f;
    for (long j = 0; j < columns; j++)
        q[j] = (int8_t)(int32_t)rintf(LOAD(row[j]) * (column ? column[j] : 1.f) * inverse);
}

void NAMED(quantise_rows)(const T *x, long stride, const float *column, int8_t *q, float *scale,
                          long rows, long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        const T *row = x + i * stride;
        int8_t *out = q + i * columns;
        if (column) NAMED(quantise_row)(row, column, out, scale + i, columns);
        else NAMED(quantise_row)(row, NULL, out, scale + i, columns);
    }
}

/* down and right are the steps, in numbers, to the next row and column of the sums. */
void NAMED(scale_sums)(const int32_t *sums, long down, long right, const float *row,
                       const float *column, T *out, long rows, long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        float scale = row[i];
        const int32_t *in = sums + i * down;
        if (right == 1)
            for (long j = 0; j < columns; j++)
                out[i * columns + j] = STORE((float)in[j] * scale * (column ? column[j] : 1.f));
        else
            for (long j = 0; j < columns; j++)
                out[i * columns + j] =
                    STORE((float)in[j * right] * scale * (column ? column[j] : 1.f));
    }
}

void NAMED(scale_int8)(const int8_t *q, const float *row, const float *column, T *out, long rows,
                       long columns) {
#pragma omp parallel for if (rows * columns > ALONE)
    for (long i = 0; i < rows; i++) {
        float scale = row[i];
        for (long j = 0; j < columns; j++)
            out[i * columns + j] =
                STORE((float)q[i * columns + j] * scale * (column ? column[j] : 1.f));
    }
}
