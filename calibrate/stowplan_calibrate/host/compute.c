/* Arithmetic on host cores: clock, peak, products with quantised weights, attention. Returns seconds. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float lanes __attribute__((vector_size(WIDTH * 4)));
typedef float loose __attribute__((vector_size(WIDTH * 4), aligned(4)));

#define BLOCK 32 /* weights that share a scale */

typedef struct {
    uint64_t rounds;
    _Atomic uint64_t sink;
} spin;

/* Additions that wait for each other: one per clock on every core of this age. */
static void do_chain(const stow_member *member) {
    spin *task = member->task;
    uint64_t x = (uint64_t)member->index, y = task->rounds | 1;
    for (uint64_t i = 0; i < task->rounds; i++) {
#define ADD __asm__ volatile("" : "+r"(x)); x += y;
        ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD
    }
    task->sink += x;
}

/* 12 independent fused multiply-adds: enough to cover their latency on two pipes. */
static void do_fma(const stow_member *member) {
    spin *task = member->task;
    lanes sum[12], factor, addend;
    for (int j = 0; j < WIDTH; j++) factor[j] = 0.999f, addend[j] = 0.001f * (float)(j + member->index);
    for (int i = 0; i < 12; i++) sum[i] = addend;
    for (uint64_t round = 0; round < task->rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) sum[i] = sum[i] * factor + addend;
    }
    float all = 0.0f;
    for (int i = 0; i < 12; i++)
        for (int j = 0; j < WIDTH; j++) all += sum[i][j];
    task->sink += (uint64_t)fabsf(all);
}

double stow_chain(uint64_t rounds, int threads) {
    spin task = {rounds, 0};
    return stow_run(do_chain, &task, threads);
}

double stow_fma(uint64_t rounds, int threads) {
    spin task = {rounds, 0};
    return stow_run(do_fma, &task, threads);
}

int stow_vector_width(void) { return WIDTH; }

/* Formats of gemv: 0 fp32, 1 bf16, 2 q8_0 (34 bytes a block), 3 q4_0 (18 bytes a block). */
typedef struct {
    int format;
    const uint8_t *weights;
    const float *x;
    const int8_t *codes;
    const float *scales;
    const int *sums;
    float *y;
    size_t rows, columns;
} product;

static float widen(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static float dot_f32(const uint8_t *row, const product *p) {
    const float *w = (const float *)row;
    lanes sum[4] = {{0}};
    size_t i = 0;
    for (; i + 4 * WIDTH <= p->columns; i += 4 * WIDTH)
        for (int j = 0; j < 4; j++) sum[j] += *(const loose *)(w + i + j * WIDTH) * *(const loose *)(p->x + i + j * WIDTH);
    float total = 0.0f;
    for (int j = 0; j < 4; j++)
        for (int l = 0; l < WIDTH; l++) total += sum[j][l];
    for (; i < p->columns; i++) total += w[i] * p->x[i];
    return total;
}

static float dot_bf16(const uint8_t *row, const product *p) {
    const uint16_t *w = (const uint16_t *)row;
    float sum[4 * WIDTH] = {0.0f};
    size_t i = 0;
    for (; i + 4 * WIDTH <= p->columns; i += 4 * WIDTH)
        for (int j = 0; j < 4 * WIDTH; j++) sum[j] += widen(w[i + j]) * p->x[i + j];
    float total = 0.0f;
    for (int j = 0; j < 4 * WIDTH; j++) total += sum[j];
    for (; i < p->columns; i++) total += widen(w[i]) * p->x[i];
    return total;
}

static float scale_of(const uint8_t *block) {
    uint16_t bits;
    memcpy(&bits, block, 2);
    return widen(bits);
}

static int dot_codes(const int8_t *w, const int8_t *x) {
    int sum = 0;
    for (int j = 0; j < BLOCK; j++) sum += (int16_t)w[j] * (int16_t)x[j];
    return sum;
}

static float dot_q8(const uint8_t *row, const product *p) {
    float total = 0.0f;
    for (size_t b = 0; b < p->columns / BLOCK; b++, row += 34)
        total += scale_of(row) * p->scales[b] * (float)dot_codes((const int8_t *)(row + 2), p->codes + b * BLOCK);
    return total;
}

#define AHEAD 16 /* blocks unpacked together, so that no load waits for the stores just before it */

/* Codes 0 to 15 of some blocks, eight at a time; what they are above 8 is put right by the sums of x. */
static void unpack(uint8_t *to, const uint8_t *row, size_t blocks) {
    const uint64_t low = 0x0f0f0f0f0f0f0f0fu;
    for (size_t b = 0; b < blocks; b++, row += 18, to += BLOCK) {
        uint64_t packed[2], codes[4];
        memcpy(packed, row + 2, 16);
        codes[0] = packed[0] & low, codes[1] = packed[1] & low;
        codes[2] = packed[0] >> 4 & low, codes[3] = packed[1] >> 4 & low;
        memcpy(to, codes, BLOCK);
    }
}

static float dot_q4(const uint8_t *row, const product *p) {
    float total = 0.0f;
    uint8_t w[AHEAD * BLOCK];
    size_t blocks = p->columns / BLOCK;
    for (size_t b = 0; b < blocks; b += AHEAD) {
        size_t here = blocks - b < AHEAD ? blocks - b : AHEAD;
        unpack(w, row + b * 18, here);
        for (size_t i = 0; i < here; i++) {
            int sum = dot_codes((const int8_t *)w + i * BLOCK, p->codes + (b + i) * BLOCK) - 8 * p->sums[b + i];
            total += scale_of(row + (b + i) * 18) * p->scales[b + i] * (float)sum;
        }
    }
    return total;
}

static size_t row_bytes(int format, size_t columns) {
    switch (format) {
        case 0: return 4 * columns;
        case 1: return 2 * columns;
        case 2: return columns / BLOCK * 34;
        default: return columns / BLOCK * 18;
    }
}

static void do_gemv(const stow_member *member) {
    product *p = member->task;
    size_t first, last, size = row_bytes(p->format, p->columns);
    stow_share(member, p->rows, 16, &first, &last);
    for (size_t r = first; r < last; r++) {
        const uint8_t *row = p->weights + r * size;
        switch (p->format) {
            case 0: p->y[r] = dot_f32(row, p); break;
            case 1: p->y[r] = dot_bf16(row, p); break;
            case 2: p->y[r] = dot_q8(row, p); break;
            default: p->y[r] = dot_q4(row, p); break;
        }
    }
}

/* y = W x with weights of a format; scales are the upper halves of floats, so that no format needs a library. */
double stow_gemv(int format, const uint8_t *weights, const float *x, float *y, size_t rows, size_t columns, int threads) {
    if (columns % BLOCK || format < 0 || format > 3) return -1.0;
    int8_t *codes = malloc(columns);
    float *scales = malloc(columns / BLOCK * sizeof(float));
    int *sums = malloc(columns / BLOCK * sizeof(int));
    if (!codes || !scales || !sums) {
        free(codes);
        free(scales);
        free(sums);
        return -1.0;
    }
    for (size_t b = 0; b < columns / BLOCK; b++) {
        float largest = 1e-20f;
        for (int j = 0; j < BLOCK; j++) largest = fmaxf(largest, fabsf(x[b * BLOCK + j]));
        scales[b] = largest / 127.0f;
        sums[b] = 0;
        for (int j = 0; j < BLOCK; j++) {
            codes[b * BLOCK + j] = (int8_t)lrintf(x[b * BLOCK + j] / scales[b]);
            sums[b] += codes[b * BLOCK + j];
        }
    }
    product task = {format, weights, x, codes, scales, sums, y, rows, columns};
    double seconds = stow_run(do_gemv, &task, threads);
    free(codes);
    free(scales);
    free(sums);
    return seconds;
}

typedef struct {
    const float *a, *b;
    float *c;
    size_t m, n, k;
} matrices;

#define TILE_ROWS 6
#define TILE_LANES 2
#define DEPTH 256

static void do_tile(const matrices *t, size_t row, size_t column, size_t begin, size_t end) {
    lanes sum[TILE_ROWS][TILE_LANES];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int l = 0; l < TILE_LANES; l++) sum[r][l] = *(loose *)(t->c + (row + r) * t->n + column + l * WIDTH);
    for (size_t i = begin; i < end; i++) {
        const float *b = t->b + i * t->n + column;
        lanes right[TILE_LANES];
        for (int l = 0; l < TILE_LANES; l++) right[l] = *(const loose *)(b + l * WIDTH);
#pragma GCC unroll 6
        for (int r = 0; r < TILE_ROWS; r++) {
            float left = t->a[(row + r) * t->k + i];
#pragma GCC unroll 2
            for (int l = 0; l < TILE_LANES; l++) sum[r][l] += right[l] * left;
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int l = 0; l < TILE_LANES; l++) *(loose *)(t->c + (row + r) * t->n + column + l * WIDTH) = sum[r][l];
}

static void do_gemm(const stow_member *member) {
    const matrices *t = member->task;
    size_t first, last;
    stow_share(member, t->n, TILE_LANES * WIDTH, &first, &last);
    for (size_t row = 0; row < t->m; row++) memset(t->c + row * t->n + first, 0, (last - first) * sizeof(float));
    for (size_t begin = 0; begin < t->k; begin += DEPTH) {
        size_t end = begin + DEPTH < t->k ? begin + DEPTH : t->k;
        for (size_t column = first; column < last; column += TILE_LANES * WIDTH)
            for (size_t row = 0; row < t->m; row += TILE_ROWS) do_tile(t, row, column, begin, end);
    }
}

/* C[m, n] = A[m, k] B[k, n] in fp32; m is a multiple of 6, n of two vectors. */
double stow_gemm(const float *a, const float *b, float *c, size_t m, size_t n, size_t k, int threads) {
    if (m % TILE_ROWS || n % (TILE_LANES * WIDTH)) return -1.0;
    matrices task = {a, b, c, m, n, k};
    return stow_run(do_gemm, &task, threads);
}

typedef struct {
    const float *q;
    const uint16_t *keys, *values;
    float *out;
    int heads, kv_heads, width, context;
} attend;

/* One head after another: scores, running maximum and sum, weighted values, in one pass over the cache. */
static void do_attention(const stow_member *member) {
    const attend *t = member->task;
    size_t first, last;
    stow_share(member, (size_t)t->heads, 1, &first, &last);
    float sum[512];
    for (size_t head = first; head < last; head++) {
        size_t shared = head / (size_t)(t->heads / t->kv_heads);
        const float *q = t->q + head * (size_t)t->width;
        float largest = -1e30f, weight = 0.0f;
        memset(sum, 0, sizeof sum);
        for (int i = 0; i < t->context; i++) {
            size_t at = (shared * (size_t)t->context + (size_t)i) * (size_t)t->width;
            const uint16_t *key = t->keys + at, *value = t->values + at;
            float part[WIDTH] = {0.0f}, score = 0.0f;
            for (int j = 0; j < t->width; j += WIDTH)
                for (int l = 0; l < WIDTH; l++) part[l] += q[j + l] * widen(key[j + l]);
            for (int l = 0; l < WIDTH; l++) score += part[l];
            if (score > largest) {
                float shrink = expf(largest - score);
                weight *= shrink;
                for (int j = 0; j < t->width; j++) sum[j] *= shrink;
                largest = score;
            }
            float share = expf(score - largest);
            weight += share;
            for (int j = 0; j < t->width; j++) sum[j] += share * widen(value[j]);
        }
        for (int j = 0; j < t->width; j++) t->out[head * (size_t)t->width + (size_t)j] = sum[j] / weight;
    }
}

/* One query per head against a cache of `context` tokens in bf16, laid out [kv head, token, width]. */
double stow_attention(const float *q, const uint16_t *keys, const uint16_t *values, float *out, int heads, int kv_heads,
                      int width, int context, int threads) {
    if (width > 512 || width % WIDTH || kv_heads < 1 || heads % kv_heads) return -1.0;
    attend task = {q, keys, values, out, heads, kv_heads, width, context};
    return stow_run(do_attention, &task, threads);
}
