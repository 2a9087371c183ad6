// Rows picked by lists of rows: side by side, or summed with weights. Encoders of images and
// sounds use it for what moves between patches: merging, pooling, convolution, interpolation.
//
// index: int [rows of the output][TAPS]; a negative entry stands for a row of zeros.
// gather: out[t, j * n_cols + c] = x[index[t, j], c], with INTERLEAVED out[t, c * TAPS + j];
//   work-item (32 columns, j, t).
// mix_rows: out[t, c] (+)= sum_j w x[index[t, j], c], work-item (32 columns, t), with w
//   BY_CHANNEL   weights[j, c] (a depthwise convolution, a scale of each column), or
//   BY_ROW       weights[t, j] (pooling, interpolation), otherwise 1
// ADD      to what is in out
// BOUNDED  the result is kept within low and high

#include "include/lanes.cl"

VECTOR_ITEMS
kernel void gather(global const float* x, int n_cols, global const int* index, global float* out) {
    const int first = 32 * get_global_id(0), j = get_global_id(1), n = min(32, n_cols - first);
    const size_t t = get_global_id(2);
    const int row = index[t * TAPS + j];
    x += (size_t)max(row, 0) * n_cols + first;
#ifdef INTERLEAVED
    out += (t * n_cols + first) * TAPS + j;
#define PLACE(i) ((i) * TAPS)
#else
    out += (t * TAPS + j) * n_cols + first;
#define PLACE(i) (i)
#endif
    for (int i = 0; i < n; i++) out[PLACE(i)] = row < 0 ? 0.0f : x[i];
}

VECTOR_ITEMS
kernel void mix_rows(global const float* x, int n_cols, global const int* index,
#if defined(BY_CHANNEL) || defined(BY_ROW)
                global const float* weights,
#endif
#ifdef BOUNDED
                float low, float high,
#endif
                global float* out) {
    const int first = 32 * get_global_id(0), n = min(32, n_cols - first);
    const size_t t = get_global_id(1);
    out += t * n_cols + first;
    index += t * TAPS;
    float sum[32];
    UNROLLED(i, n, 32) {
#ifdef ADD
        sum[i] = out[i];
#else
        sum[i] = 0;
#endif
    }
    for (int j = 0; j < TAPS; j++) {
        if (index[j] < 0) continue;
        global const float* v = x + (size_t)index[j] * n_cols + first;
#if defined(BY_CHANNEL)
        global const float* w = weights + j * n_cols + first;
        UNROLLED(i, n, 32) sum[i] = fma(w[i], v[i], sum[i]);
#elif defined(BY_ROW)
        const float w = weights[t * TAPS + j];
        UNROLLED(i, n, 32) sum[i] = fma(w, v[i], sum[i]);
#else
        UNROLLED(i, n, 32) sum[i] += v[i];
#endif
    }
#ifdef BOUNDED
    UNROLLED(i, n, 32) sum[i] = clamp(sum[i], low, high);
#endif
    UNROLLED(i, n, 32) out[i] = sum[i];
}
