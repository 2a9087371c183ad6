// A row's norm, by the WG items of a work-group (group.cl): for norm.cl, and for the product that
// ends with it (matmul_simd.cl with NORM_NEXT). After activation.cl and group.cl.
//
// NORM_RMS, NORM_LAYER, NORM_NONE   the formula; NORM_NONE only converts
// NORM_WEIGHT, NORM_BIAS            what normalized values are multiplied with, and added to
// QUANTIZE  they can be written as integer activations (activation.cl; n a multiple of 32)
// OUT_SPAN  so many blocks of 32 of them share a scale

#ifdef NORM_WEIGHT
#define NORM_WEIGHT_ARG global const float *weight,
#define NORM_WEIGHT_OF weight,
#else
#define NORM_WEIGHT_ARG
#define NORM_WEIGHT_OF
#endif
#ifdef NORM_BIAS
#define NORM_BIAS_ARG global const float *bias,
#define NORM_BIAS_OF bias,
#else
#define NORM_BIAS_ARG
#define NORM_BIAS_OF
#endif

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
#elif defined(NORM_BIAS)
#define NORMED(load) ((load(x) - s.x) * s.y * load(weight) + load(bias))
#elif defined(NORM_WEIGHT)
#define NORMED(load) ((load(x) - s.x) * s.y * load(weight))
#else
#define NORMED(load) ((load(x) - s.x) * s.y)
#endif
#define FIRST(p) vload16(0, p + i)
#define SECOND(p) vload16(1, p + i)
#define THIRD(p) vload16(2, p + i)
#define FOURTH(p) vload16(3, p + i)
#define SCALAR(p) p[i]

// x += rms_norm(y) * weight for a row of n values (the norm after a sublayer, Gemma's way).
INLINE void add_normed(global float* x, global const float* y, int n, global const float* weight,
                       float eps, local float* partial) {
    const float factor = rms_factor(y, n, eps, partial);
    for (int i = 16 * LID; i + 16 <= n; i += 16 * WG)
        vstore16(FIRST(x) + FIRST(y) * factor * FIRST(weight), 0, x + i);
    if (LID == 0)
        for (int i = n & ~15; i < n; i++) x[i] += y[i] * factor * weight[i];
#if WG > 1
    barrier(CLK_GLOBAL_MEM_FENCE);
#endif
}

// Writes the n normalized values of a row as codes and scales.
#ifdef QUANTIZE
INLINE void write_codes(global const float* x, int n, float2 s, NORM_WEIGHT_ARG NORM_BIAS_ARG
                        global code_t* out_q, global scale_t* out_d) {
#ifdef OUT_SPAN
    for (int first = 32 * OUT_SPAN * LID; first < n; first += 32 * OUT_SPAN * WG) {
        float16 most = 0;
        float largest_sum = 0, nan = 0;
        for (int i = first; i < first + 32 * OUT_SPAN; i += 64) {
            const float16 a = fabs(NORMED(FIRST)), b = fabs(NORMED(SECOND));
            const float16 c = fabs(NORMED(THIRD)), d = fabs(NORMED(FOURTH));
            most = fmax(most, fmax(fmax(a, b), fmax(c, d)));
            const float sum = sum16(a + b + (c + d));
            largest_sum = fmax(largest_sum, sum);
            nan = isnan(sum) ? sum : nan;
        }
        const float d = fmax(max16(most) / SPAN_CODE_MAX, largest_sum / SPAN_SUM_MAX) + nan;
        const float inverse = d > LEAST ? 1.0f / d : 0.0f;
        for (int i = first; i < first + 32 * OUT_SPAN; i += 32)
            out_d[i / 32] = codes32(NORMED(FIRST), NORMED(SECOND), d, inverse, out_q + i);
    }
#else
    for (int i = 32 * LID; i < n; i += 32 * WG)
        out_d[i / 32] = quantize32(NORMED(FIRST), NORMED(SECOND), out_q + i);
#endif
}
#endif

// Writes them as floats, maybe over x.
INLINE void write_normed(global const float* x, int n, float2 s, NORM_WEIGHT_ARG NORM_BIAS_ARG
                         global float* out) {
    for (int i = 16 * LID; i + 16 <= n; i += 16 * WG) vstore16(NORMED(FIRST), 0, out + i);
    if (LID == 0)
        for (int i = n & ~15; i < n; i++) out[i] = NORMED(SCALAR);
}
