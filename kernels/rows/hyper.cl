// Hyper-connections: HC residual streams in the place of one (https://arxiv.org/abs/2409.19606),
// and with mixing by doubly stochastic matrices (https://arxiv.org/abs/2512.24880).
//
// streams: float [tokens][HC][n_cols]. A sublayer reads sum_h pre[h] stream[h]; stream d becomes
// post[d] out + sum_s mix[s][d] stream[s], without MIX post[d] out + stream[d].
// coefficients: [tokens][COEFFICIENTS]: pre, post, mix.
//
// coefficients  work-item: token; from the logits [tokens][LOGITS] in the order pre, post, mix,
//               each of which has its scale, and a base for each. Only what LOGITS has.
// ITERATIONS    of Sinkhorn's normalization, with MIX
// spread, reduce, distribute, gated_mean  work-item: (16 columns, token)

#include "include/lanes.cl"
#include "include/activation.cl"

#define COEFFICIENTS (HC * (2 + HC))
#define LOGITS_MIX (HC * (2 + HC))

#ifdef LOGITS
VECTOR_ITEMS
kernel void coefficients(global const float* logits, global const float* base,
                         global const float* scale, float eps, float magnitude, float post_eps,
                         global float* out) {
    const size_t t = get_global_id(0);
    logits += t * LOGITS;
    out += t * COEFFICIENTS;
    for (int i = 0; i < HC; i++) out[i] = SIGMOID(fma(logits[i], scale[0], base[i])) + eps;
#if LOGITS > HC
    for (int i = HC; i < 2 * HC; i++)
        out[i] = magnitude * SIGMOID(fma(logits[i], scale[1], base[i])) + post_eps;
#endif
#if LOGITS == LOGITS_MIX
    float mix[HC][HC];  // [source][destination]
    for (int s = 0; s < HC; s++) {
        float top = -INFINITY, sum = 0;
        for (int d = 0; d < HC; d++) {
            const int i = 2 * HC + s * HC + d;
            mix[s][d] = fma(logits[i], scale[2], base[i]);
            top = fmax(top, mix[s][d]);
        }
        for (int d = 0; d < HC; d++) sum += mix[s][d] = exp(mix[s][d] - top);
        for (int d = 0; d < HC; d++) mix[s][d] = mix[s][d] / sum + eps;
    }
    for (int i = 0; i < ITERATIONS; i++) {
        for (int s = 0; i > 0 && s < HC; s++) {
            float sum = eps;
            for (int d = 0; d < HC; d++) sum += mix[s][d];
            for (int d = 0; d < HC; d++) mix[s][d] /= sum;
        }
        for (int d = 0; d < HC; d++) {
            float sum = eps;
            for (int s = 0; s < HC; s++) sum += mix[s][d];
            for (int s = 0; s < HC; s++) mix[s][d] /= sum;
        }
    }
    for (int s = 0; s < HC; s++)
        for (int d = 0; d < HC; d++) out[2 * HC + s * HC + d] = mix[s][d];
#endif
}
#endif

// post[h] = 2 sigmoid(logits[h] / HC), where nothing else is needed.
VECTOR_ITEMS
kernel void injection(global const float* logits, global float* out) {
    const size_t t = get_global_id(0);
    for (int h = 0; h < HC; h++)
        out[t * COEFFICIENTS + HC + h] = 2 * SIGMOID(logits[t * HC + h] / HC);
}

#define COLUMN(row) ((row) * n_cols + 16 * get_global_id(0))
#define TOKEN ((size_t)get_global_id(1))

VECTOR_ITEMS
kernel void spread(global const float* x, int n_cols, global float* streams) {
    const float16 v = vload16(0, x + COLUMN(TOKEN));
    for (int h = 0; h < HC; h++) vstore16(v, 0, streams + COLUMN(TOKEN * HC + h));
}

// MEAN: all streams count alike.
VECTOR_ITEMS
kernel void reduce(global const float* streams,
#ifndef MEAN
                   global const float* coefficients,
#endif
                   int n_cols, global float* out) {
    float16 sum = 0;
    for (int h = 0; h < HC; h++) {
#ifdef MEAN
        const float pre = 1.0f / HC;
#else
        const float pre = coefficients[TOKEN * COEFFICIENTS + h];
#endif
        sum = fma((float16)(pre), vload16(0, streams + COLUMN(TOKEN * HC + h)), sum);
    }
    vstore16(sum, 0, out + COLUMN(TOKEN));
}

VECTOR_ITEMS
kernel void distribute(global const float* x, global const float* coefficients, int n_cols,
                       global float* streams) {
    const float16 v = vload16(0, x + COLUMN(TOKEN));
    float16 old[HC];
    for (int h = 0; h < HC; h++) old[h] = vload16(0, streams + COLUMN(TOKEN * HC + h));
    coefficients += TOKEN * COEFFICIENTS;
    for (int d = 0; d < HC; d++) {
        float16 sum = v * coefficients[HC + d];
#ifdef MIX
        for (int s = 0; s < HC; s++)
            sum = fma((float16)(coefficients[(2 + s) * HC + d]), old[s], sum);
#else
        sum += old[d];
#endif
        vstore16(sum, 0, streams + COLUMN(TOKEN * HC + d));
    }
}

// out = mean_h streams[h] * sigmoid(gate[h])
VECTOR_ITEMS
kernel void gated_mean(global const float* streams, global const float* gate, int n_cols,
                       global float* out) {
    float16 sum = 0;
    for (int h = 0; h < HC; h++) {
        const size_t at = COLUMN(TOKEN * HC + h);
        sum = fma(vload16(0, streams + at), SIGMOID(vload16(0, gate + at)), sum);
    }
    vstore16(sum / HC, 0, out + COLUMN(TOKEN));
}
