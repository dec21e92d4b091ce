/* Few rows against a whole weight, for one number format: FORMAT names it, T holds it.

   The weight (N, K) holds T, or int8 with a scale a row. It is memory that takes the time, so each
   weight is read from it once for up to MOST rows of x. */
#ifndef MOST
#define MOST 8
#define PART 16   /* rows of the weight that are read a block of columns at a time */
#define NEAR 4096 /* numbers of x in a block: they stay in the L1 cache for all rows of a part */
#define AHEAD 2   /* rows: asked for before their turn, because a block ends before a stream shows */
#define SIDE 4    /* sums of a row side by side: none waits for the addition before it */
#define GROUP 4   /* rows of x at a time: SIDE * GROUP sums fit into the registers, or nearly so */
#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

/* Vectors of the compiler, of no one CPU; it would add the sums of a plain loop one by one. */
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t lanes32 __attribute__((vector_size(4 * LANES)));
typedef int16_t lanes16 __attribute__((vector_size(2 * LANES)));
typedef int8_t lanes8 __attribute__((vector_size(LANES)));

INLINE lanes lanes_f32(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE lanes lanes_bf16(const bf16 *x) {
    lanes16 v;
    memcpy(&v, x, sizeof v);
    return (lanes)(__builtin_convertvector(v, lanes32) << 16);
}

INLINE lanes lanes_i8(const int8_t *x) {
    lanes8 v;
    memcpy(&v, x, sizeof v);
    /* In two steps: gcc 12 goes from 8 to 32 bits number by number. */
    lanes16 wider = __builtin_convertvector(v, lanes16);
    return __builtin_convertvector(__builtin_convertvector(wider, lanes32), lanes);
}

/* By quarters, then two and two: in turn, each addition would wait for the one before. */
INLINE float sum_of(lanes v) {
    union {
        lanes all;
        quad part[LANES / 4];
    } x = {v};
    quad q = x.part[0];
    for (int i = 1; i < LANES / 4; i++)
        q += x.part[i];
    return (q[0] + q[1]) + (q[2] + q[3]);
}

/* (rows, columns) with LANES numbers of each row in turn: one stream, whatever the row's length. */
INLINE long place(long row, long column, long rows) {
    return (column / LANES * rows + row) * LANES + column % LANES;
}
#endif

/* The weight is T or, if `whole`, int8; known where these are inlined, it is no question there. */
INLINE lanes NAMED(weights_at)(const void *weight, long i, int whole) {
    return whole ? lanes_i8((const int8_t *)weight + i)
                 : JOIN(lanes, FORMAT)((const T *)weight + i);
}

INLINE float NAMED(weight_at)(const void *weight, long i, int whole) {
    return whole ? (float)((const int8_t *)weight)[i] : LOAD(((const T *)weight)[i]);
}

/* Adds to sums[m * PART] the products of `count` weights from `at` on with row m of `some` of x. */
INLINE void NAMED(add_dots)(const float *x, long rows, const void *weight, long at, long ahead,
                            float *sums, long count, int whole, int some) {
    lanes s[GROUP][SIDE] = {0};
    long j = 0, size = whole ? 1 : sizeof(T);
    for (; j + SIDE * LANES <= count; j += SIDE * LANES)
        for (int u = 0; u < SIDE; u++) {
            long k = j + u * LANES;
            lanes w = NAMED(weights_at)(weight, at + k, whole);
            if (u * LANES * size % 64 == 0) /* once a cache line, to the L2 cache */
                __builtin_prefetch((const char *)weight + (at + k + ahead) * size, 0, 2);
            for (int m = 0; m < some; m++)
                s[m][u] += w * lanes_f32(x + place(m, k, rows));
        }
    for (int m = 0; m < some; m++) {
        float sum = sum_of(s[m][0] + s[m][1] + (s[m][2] + s[m][3]));
        for (long k = j; k < count; k++)
            sum += NAMED(weight_at)(weight, at + k, whole) * x[place(m, k, rows)];
        sums[m * PART] += sum;
    }
}

/* PART rows of the weight from row n on, fewer at its end, against all rows of x. */
INLINE void NAMED(part)(const float *x, const void *weight, const float *scale, const T *bias,
                        T *y, long n, long rows, long columns, long out, int whole) {
    float sums[MOST * PART] = {0};
    long high = out - n < PART ? out - n : PART, block = NEAR / rows / (SIDE * LANES);
    block *= SIDE * LANES;
    for (long k = 0; k < columns; k += block) {
        long count = columns - k < block ? columns - k : block;
        for (long r = 0; r < high; r++)
            for (long m = 0; m < rows; m += GROUP) {
                const float *from = x + place(m, k, rows);
                long at = (n + r) * columns + k, ahead = AHEAD * columns;
                float *to = sums + m * PART + r;
                if (rows - m == 1)
                    NAMED(add_dots)(from, rows, weight, at, ahead, to, count, whole, 1);
                else if (rows - m == 2)
                    NAMED(add_dots)(from, rows, weight, at, ahead, to, count, whole, 2);
                else if (rows - m == 3)
                    NAMED(add_dots)(from, rows, weight, at, ahead, to, count, whole, 3);
                else
                    NAMED(add_dots)(from, rows, weight, at, ahead, to, count, whole, GROUP);
            }
    }
    for (long m = 0; m < rows; m++)
        for (long r = 0; r < high; r++)
            y[m * out + n + r] = STORE(sums[m * PART + r] * (scale ? scale[n + r] : 1.f) +
                                       (bias ? LOAD(bias[n + r]) : 0.f));
}

/* Lays rows of x as `place` says; there is room for LANES more columns. */
static void NAMED(turn)(const T *x, float *turned, long rows, long columns) {
    for (long m = 0; m < rows; m++)
        for (long k = 0; k < columns; k++)
            turned[place(m, k, rows)] = LOAD(x[m * columns + k]);
}

INLINE void NAMED(product)(const T *x, const void *weight, const float *scale, const T *bias, T *y,
                           long rows, long columns, long out, int whole) {
    float *turned = malloc((columns + LANES) * rows * sizeof(float));
    NAMED(turn)(x, turned, rows, columns);
    long parts = (out + PART - 1) / PART;
    /* What is known where this is inlined has to be so inside of the parallel part, too. */
    if (whole) {
#pragma omp parallel for if (columns * out > ALONE)
        for (long i = 0; i < parts; i++)
            NAMED(part)(turned, weight, scale, NULL, y, i * PART, rows, columns, out, 1);
    } else {
#pragma omp parallel for if (columns * out > ALONE)
        for (long i = 0; i < parts; i++)
            NAMED(part)(turned, weight, NULL, bias, y, i * PART, rows, columns, out, 0);
    }
    free(turned);
}

void NAMED(few_rows)(const T *x, const T *weight, const T *bias, T *y, long rows, long columns,
                     long out) {
    for (long m = 0; m < rows; m += MOST)
        NAMED(product)(x + m * columns, weight, NULL, bias, y + m * out,
                       rows - m < MOST ? rows - m : MOST, columns, out, 0);
}

void NAMED(few_rows_int8)(const T *x, const int8_t *weight, const float *scale, T *y, long rows,
                          long columns, long out) {
    for (long m = 0; m < rows; m += MOST)
        NAMED(product)(x + m * columns, weight, scale, NULL, y + m * out,
                       rows - m < MOST ? rows - m : MOST, columns, out, 1);
}
