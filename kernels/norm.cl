// Normalization of rows, and what is done with its result, in one pass.
//
// Work-group of WG items (1 on CPUs), group: n_cols values of a row (token); rows of x are
// `stride` apart and begin at `offset`.
// NORM_RMS, NORM_LAYER, NORM_NONE   the formula; NORM_NONE only converts
// WEIGHT, BIAS                      what the normalized values are multiplied with, and added to
// POST     x += rms_norm(y) * post_weight first (the norm after a sublayer, Gemma's way)
// QUANTIZE out is integer activations (activation.cl; n_cols a multiple of 32), else float
// X_SPAN   so many blocks of 32 of them share a scale
// GATHER   row t of the output is row rows[t] of x

#include "lanes.cl"
#include "activation.cl"
#include "group.cl"

// sum of (x - mean)^power over a row; power 1 or 2.
INLINE float moment(global const float* x, int n, float mean, int power, local float* partial) {
    float16 sum = 0;
    for (int i = 16 * LID; i + 16 <= n; i += 16 * WG) {
        const float16 v = vload16(0, x + i) - mean;
        sum = power == 1 ? sum + v : fma(v, v, sum);
    }
    float total = sum16(sum);
    if (LID == 0)
        for (int i = n & ~15; i < n; i++) {
            const float v = x[i] - mean;
            total = power == 1 ? total + v : fma(v, v, total);
        }
    return sum_group(total, partial);
}

INLINE float rms_factor(global const float* x, int n, float eps, local float* partial) {
    return 1.0f / sqrt(moment(x, n, 0.0f, 2, partial) / n + eps);
}

// (mean, factor) that normalize a row.
INLINE float2 statistics(global const float* x, int n, float eps, local float* partial) {
#if defined(NORM_RMS)
    return (float2)(0.0f, rms_factor(x, n, eps, partial));
#elif defined(NORM_LAYER)
    const float mean = moment(x, n, 0.0f, 1, partial) / n;
    return (float2)(mean, 1.0f / sqrt(moment(x, n, mean, 2, partial) / n + eps));
#else
    return (float2)(0.0f, 1.0f);
#endif
}

#if defined(NORM_NONE)
#define NORMED(load) load(x)
#elif defined(BIAS)
#define NORMED(load) ((load(x) - s.x) * s.y * load(weight) + load(bias))
#elif defined(WEIGHT)
#define NORMED(load) ((load(x) - s.x) * s.y * load(weight))
#else
#define NORMED(load) ((load(x) - s.x) * s.y)
#endif
#define FIRST(p) vload16(0, p + i)
#define SECOND(p) vload16(1, p + i)
#define THIRD(p) vload16(2, p + i)
#define FOURTH(p) vload16(3, p + i)
#define SCALAR(p) p[i]

VECTOR_ITEMS
kernel void norm(global float* x, int n_cols, int stride, int offset, float eps,
#ifdef WEIGHT
                 global const float* weight,
#endif
#ifdef BIAS
                 global const float* bias,
#endif
#ifdef POST
                 global const float* y, global const float* post_weight, float post_eps,
#endif
#ifdef GATHER
                 global const int* rows,
#endif
#ifdef QUANTIZE
                 global code_t* out_q, global scale_t* out_d
#else
                 global float* out, int out_stride, int out_offset
#endif
) {
    PARTIAL(partial);
    const size_t t = get_group_id(0);
    const int group = get_group_id(1);
#ifdef GATHER
    const size_t row = rows[t];
#else
    const size_t row = t;
#endif
    x += row * stride + offset + group * n_cols;
#ifdef WEIGHT
    weight += group * n_cols;
#endif
#ifdef POST
    y += row * n_cols;
    const float factor = rms_factor(y, n_cols, post_eps, partial);
    for (int i = 16 * LID; i + 16 <= n_cols; i += 16 * WG)
        vstore16(FIRST(x) + FIRST(y) * factor * FIRST(post_weight), 0, x + i);
    if (LID == 0)
        for (int i = n_cols & ~15; i < n_cols; i++) x[i] += y[i] * factor * post_weight[i];
#if WG > 1
    barrier(CLK_GLOBAL_MEM_FENCE);
#endif
#endif
    const float2 s = statistics(x, n_cols, eps, partial);
#ifdef QUANTIZE
    const size_t at = t * get_num_groups(1) + group;
    out_q += at * n_cols;
    out_d += at * (n_cols / 32);
#ifdef X_SPAN
    for (int first = 32 * X_SPAN * LID; first < n_cols; first += 32 * X_SPAN * WG) {
        float16 most = 0;
        float largest_sum = 0;
        for (int i = first; i < first + 32 * X_SPAN; i += 64) {
            const float16 a = fabs(NORMED(FIRST)), b = fabs(NORMED(SECOND));
            const float16 c = fabs(NORMED(THIRD)), d = fabs(NORMED(FOURTH));
            most = fmax(most, fmax(fmax(a, b), fmax(c, d)));
            largest_sum = fmax(largest_sum, sum16(a + b + (c + d)));
        }
        const float d = fmax(max16(most) / SPAN_CODE_MAX, largest_sum / SPAN_SUM_MAX);
        const float inverse = d > 0 ? 1.0f / d : 0.0f;
        for (int i = first; i < first + 32 * X_SPAN; i += 32)
            out_d[i / 32] = codes32(NORMED(FIRST), NORMED(SECOND), d, inverse, out_q + i);
    }
#else
    for (int i = 32 * LID; i < n_cols; i += 32 * WG)
        out_d[i / 32] = quantize32(NORMED(FIRST), NORMED(SECOND), out_q + i);
#endif
#else
    out += t * out_stride + out_offset + group * n_cols;
    for (int i = 16 * LID; i + 16 <= n_cols; i += 16 * WG) vstore16(NORMED(FIRST), 0, out + i);
    if (LID == 0)
        for (int i = n_cols & ~15; i < n_cols; i++) out[i] = NORMED(SCALAR);
#endif
}
