/* One token a row through all layers of a LLaMA-like Flamingo, for one number format.

   One parallel region, in which threads wait for each other five times a layer, and five times a
   gated block: norms and what LoRA is multiplied with first are so small that each thread makes
   them for itself. Products are those of few_rows.h; what torch would hold in T between two
   operations is rounded to T here as well. */
#ifndef TOGETHER
#define TOGETHER (1L << 20) /* weights of a layer that are worth a second thread's waiting */

typedef struct {
    const float *weight, *bias; /* NULL: there is no such norm */
    float eps;
} norm;

typedef struct {
    const void *weight; /* (out, in) of T; int8 where there is a scale */
    const float *scale; /* (out) or NULL */
    const void *bias;   /* (out) of T or NULL */
    const float *a, *b; /* LoRA's (rank, in) and (out, rank) */
    long out, in, rank;
    float factor; /* of LoRA */
} matrix;

typedef struct {
    norm attn_norm, ff_norm;
    matrix to_q, to_out, up, down;
    float attn_gate, ff_gate; /* tanh is taken */
    long heads;
} gated;

typedef struct {
    const gated *before; /* or NULL */
    norm input_norm, q_norm, k_norm, ff_norm;
    matrix q, k, v, o, gate, up, down;
    void *keys, *values; /* (rows, kv_heads, room, head) of T: the cache */
    long room;
} layer;

typedef struct {
    const layer *layers;
    norm last;
    long count, width, heads, kv_heads, head, widest, rank, weights;
    float scaling;
} decoder;

typedef struct {
    void *x;               /* (rows, width) of T: embeddings, then what the head multiplies */
    const void *cos, *sin; /* (rows, head) of T */
    const uint8_t *mask;   /* (rows, length), 0 where nobody looks, or NULL */
    const void *media;     /* (rows, blocks, images, latents, 2 * inner) of T, or NULL */
    const int64_t *image;  /* (rows): the one that each row sees; none where it is out of range */
    long blocks, images, latents, rows, length; /* length: of the cache, with this token */
} step;
#endif

#define ROUND(x) LOAD(STORE(x))

/* What a thread has for itself, and what all share: (rows, widest) each. */
typedef struct {
    T *normed;
    float *turned, *narrow, *scores, *query, *sums;
    T *q, *k, *v, *seen, *wide, *other, *y;
} NAMED(desk);

static void NAMED(layer_norm)(const T *x, const norm *by, T *y, long rows, long columns) {
    for (long m = 0; m < rows; m++) {
        const T *in = x + m * columns;
        float mean = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : mean)
        for (long j = 0; j < columns; j++) mean += LOAD(in[j]);
        mean /= columns;
#pragma omp simd reduction(+ : squares)
        for (long j = 0; j < columns; j++) squares += (LOAD(in[j]) - mean) * (LOAD(in[j]) - mean);
        float root = 1.f / sqrtf(squares / columns + by->eps);
        for (long j = 0; j < columns; j++)
            y[m * columns + j] = STORE((LOAD(in[j]) - mean) * root * by->weight[j] + by->bias[j]);
    }
}

static void NAMED(rms)(const T *x, const norm *by, T *y, long rows, long columns) {
    float inverse[MOST];
    NAMED(rms_norm)(x, by->weight, by->eps, y, inverse, rows, columns);
}

/* LoRA's first product: all rank numbers of each row, from what is turned. */
static void NAMED(narrowed)(const matrix *w, const float *turned, float *narrow, long rows) {
    for (long n = 0; n < w->rank; n += PART)
        part_f32(turned, w->a, NULL, NULL, narrow, n, rows, w->in, w->rank, 0);
}

/* PART rows of a matrix from row n on, LoRA included, against all rows of what is turned. */
static void NAMED(rows_of)(const matrix *w, const float *turned, const float *narrow, T *y, long n,
                           long rows) {
    if (w->scale)
        NAMED(part)(turned, w->weight, w->scale, w->bias, y, n, rows, w->in, w->out, 1);
    else
        NAMED(part)(turned, w->weight, NULL, w->bias, y, n, rows, w->in, w->out, 0);
    if (!w->rank) return;
    for (long m = 0; m < rows; m++)
        for (long r = n; r < n + PART && r < w->out; r++) {
            const float *b = w->b + r * w->rank, *h = narrow + m * w->rank;
            float sum = 0.f;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < w->rank; i++) sum += b[i] * h[i];
            y[m * w->out + r] = STORE(LOAD(y[m * w->out + r]) + w->factor * sum);
        }
}

/* y = W x, each thread some rows of W; nobody waits. */
static void NAMED(multiply)(const matrix *w, const NAMED(desk) *own, T *y, long rows) {
    NAMED(narrowed)(w, own->turned, own->narrow, rows);
#pragma omp for nowait
    for (long n = 0; n < w->out; n += PART)
        NAMED(rows_of)(w, own->turned, own->narrow, y, n, rows);
}

/* x += factor W `from`. */
static void NAMED(add_product)(const matrix *w, const NAMED(desk) *own, const T *from, float factor,
                               T *x, long rows) {
    NAMED(turn)(from, own->turned, rows, w->in);
    NAMED(narrowed)(w, own->turned, own->narrow, rows);
#pragma omp for
    for (long n = 0; n < w->out; n += PART) {
        NAMED(rows_of)(w, own->turned, own->narrow, own->y, n, rows);
        for (long m = 0; m < rows; m++)
            for (long i = m * w->out + n; i < m * w->out + w->out && i < m * w->out + n + PART; i++)
                x[i] = STORE(LOAD(x[i]) + ROUND(factor * LOAD(own->y[i])));
    }
}

/* wide = silu(W x) * (V x), or gelu(W x) without a V. */
static void NAMED(widened)(const matrix *w, const matrix *v, const NAMED(desk) *own, long rows) {
    float *narrow = own->narrow + rows * w->rank;
    NAMED(narrowed)(w, own->turned, own->narrow, rows);
    if (v) NAMED(narrowed)(v, own->turned, narrow, rows);
#pragma omp for
    for (long n = 0; n < w->out; n += PART) {
        long high = w->out - n < PART ? w->out - n : PART;
        NAMED(rows_of)(w, own->turned, own->narrow, own->wide, n, rows);
        if (v) NAMED(rows_of)(v, own->turned, narrow, own->other, n, rows);
        for (long m = 0; m < rows; m++) {
            T *wide = own->wide + m * w->out + n, *other = own->other + m * w->out + n;
            if (v)
                for (long r = 0; r < high; r++)
                    wide[r] = STORE(ROUND(silu(LOAD(wide[r]))) * LOAD(other[r]));
            else
                for (long r = 0; r < high; r++) wide[r] = STORE(gelu_erf(LOAD(wide[r])));
        }
    }
}

/* One query against `count` keys that lie `apart` numbers from each other, and their values. */
static void NAMED(attend)(const NAMED(desk) *own, const T *q, const T *keys, const T *values,
                          long apart, const uint8_t *may, long count, long size, float scaling,
                          T *y) {
    float top = -INFINITY, total = 0.f, *query = own->query, *sums = own->sums;
    for (long j = 0; j < size; j++) query[j] = LOAD(q[j]), sums[j] = 0.f;
    for (long t = 0; t < count; t++) {
        const T *key = keys + t * apart;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < size; j++) sum += query[j] * LOAD(key[j]);
        own->scores[t] = may && !may[t] ? -INFINITY : sum * scaling;
        top = own->scores[t] > top ? own->scores[t] : top;
    }
#pragma omp simd reduction(+ : total)
    for (long t = 0; t < count; t++) {
        float s = own->scores[t], e = s == -INFINITY ? 0.f : exp_negative(s - top);
        own->scores[t] = e;
        total += e;
    }
    for (long t = 0; t < count; t++) {
        const T *value = values + t * apart;
        float share = own->scores[t];
        for (long j = 0; j < size; j++) sums[j] += share * LOAD(value[j]);
    }
    for (long j = 0; j < size; j++) y[j] = STORE(sums[j] / total);
}

/* One head of a query or key: normalised where the model does so, then rotated to its position. */
static void NAMED(rotated)(const NAMED(desk) *own, const T *x, const norm *by, const T *cos,
                           const T *sin, long size, T *y) {
    if (by->weight) {
        NAMED(rms)(x, by, own->normed, 1, size);
        x = own->normed;
    }
    for (long j = 0, half = size / 2; j < half; j++) {
        float low = LOAD(x[j]), high = LOAD(x[j + half]);
        y[j] = STORE(ROUND(low * LOAD(cos[j])) - ROUND(high * LOAD(sin[j])));
        y[j + half] = STORE(ROUND(high * LOAD(cos[j + half])) + ROUND(low * LOAD(sin[j + half])));
    }
}

/* A gated block: the image that each row sees, then the feed-forward. */
static void NAMED(looked)(const gated *block, const step *now, const NAMED(desk) *own, long number,
                          long width) {
    long rows = now->rows, inner = block->to_q.out, size = inner / block->heads;
    long image = now->latents * 2 * inner;
    T *x = now->x;
    if (now->media) {
        NAMED(layer_norm)(x, &block->attn_norm, own->normed, rows, width);
        NAMED(turn)(own->normed, own->turned, rows, width);
        NAMED(multiply)(&block->to_q, own, own->q, rows);
#pragma omp barrier
#pragma omp for
        for (long i = 0; i < rows * block->heads; i++) {
            long m = i / block->heads, seen = now->image[m];
            T *y = own->seen + i * size;
            if (seen < 0 || seen >= now->images) {
                memset(y, 0, size * sizeof(T));
                continue;
            }
            const T *media = now->media;
            media += ((m * now->blocks + number) * now->images + seen) * image;
            media += i % block->heads * size;
            NAMED(attend)(own, own->q + i * size, media, media + inner, 2 * inner, NULL,
                          now->latents, size, 1.f / sqrtf(size), y);
        }
        NAMED(add_product)(&block->to_out, own, own->seen, block->attn_gate, x, rows);
    }
    NAMED(layer_norm)(x, &block->ff_norm, own->normed, rows, width);
    NAMED(turn)(own->normed, own->turned, rows, width);
    NAMED(widened)(&block->up, NULL, own, rows);
    NAMED(add_product)(&block->down, own, own->wide, block->ff_gate, x, rows);
}

/* A decoder layer: the token's key and value go into the cache, its query looks at all of it. */
static void NAMED(passed)(const decoder *all, const layer *at, const step *now,
                          const NAMED(desk) *own) {
    long rows = now->rows, size = all->head, kv = all->kv_heads, each = all->heads / kv;
    T *x = now->x;
    NAMED(rms)(x, &at->input_norm, own->normed, rows, all->width);
    NAMED(turn)(own->normed, own->turned, rows, all->width);
    NAMED(multiply)(&at->q, own, own->q, rows);
    NAMED(multiply)(&at->k, own, own->k, rows);
    NAMED(multiply)(&at->v, own, own->v, rows);
#pragma omp barrier
#pragma omp for
    for (long i = 0; i < rows * kv; i++) {
        long m = i / kv, last = (now->length - 1) * size;
        const T *cos = (const T *)now->cos + m * size, *sin = (const T *)now->sin + m * size;
        T *keys = (T *)at->keys + i * at->room * size;
        T *values = (T *)at->values + i * at->room * size;
        NAMED(rotated)(own, own->k + i * size, &at->k_norm, cos, sin, size, keys + last);
        memcpy(values + last, own->v + i * size, size * sizeof(T));
        for (long h = i * each; h < (i + 1) * each; h++) {
            T *query = own->normed + size;
            NAMED(rotated)(own, own->q + h * size, &at->q_norm, cos, sin, size, query);
            NAMED(attend)(own, query, keys, values, size,
                          now->mask ? now->mask + m * now->length : NULL, now->length, size,
                          all->scaling, own->seen + h * size);
        }
    }
    NAMED(add_product)(&at->o, own, own->seen, 1.f, x, rows);
    NAMED(rms)(x, &at->ff_norm, own->normed, rows, all->width);
    NAMED(turn)(own->normed, own->turned, rows, all->width);
    NAMED(widened)(&at->gate, &at->up, own, rows);
    NAMED(add_product)(&at->down, own, own->wide, 1.f, x, rows);
}

void NAMED(decode)(const decoder *all, const step *now) {
    long rows = now->rows, wide = rows * all->widest;
    long longest = now->length > now->latents ? now->length : now->latents;
    T *shared = malloc(7 * wide * sizeof(T));
#pragma omp parallel if (all->weights > TOGETHER * all->count)
    {
        long turned = wide + rows * LANES, narrow = 2 * rows * all->rank;
        T *normed = malloc((wide + 2 * all->widest) * sizeof(T));
        float *own = malloc((turned + narrow + longest + 2 * all->widest) * sizeof(float));
        NAMED(desk) desk = {.normed = normed, .turned = own, .narrow = own + turned};
        desk.scores = desk.narrow + narrow, desk.query = desk.scores + longest;
        desk.sums = desk.query + all->widest;
        T **places[] = {&desk.q, &desk.k, &desk.v, &desk.seen, &desk.wide, &desk.other, &desk.y};
        for (int i = 0; i < 7; i++) *places[i] = shared + i * wide;
        for (long i = 0, number = 0; i < all->count; i++) {
            const layer *at = all->layers + i;
            if (at->before) NAMED(looked)(at->before, now, &desk, number++, all->width);
            NAMED(passed)(all, at, now, &desk);
        }
#pragma omp single
        NAMED(rms)(now->x, &all->last, now->x, rows, all->width);
        free(normed);
        free(own);
    }
    free(shared);
}
#undef ROUND
