// out[t, r] (+)= sum_k W[r, k] x[t, k] for few tokens on a GPU: memory-bound.
//
// Work-group: 16 lanes (the rows of a group) x SLICES; slice s takes blocks s, s + SLICES, ...
// so that neighbouring lanes read neighbouring words and many loads are in flight. Partial sums
// meet in local memory. Grid: (groups, or pairs of gate and up with GLU; tiles of NT tokens).
// Defines as in matmul_simd.cl, less QUANTIZE_OUT.

#include "lanes.cl"
#include "unpack.cl"
#include "activation.cl"
#include "rows.cl"

#if defined(ACT_INT)
#define X_ARGS global const short2* x, global const float2* xd
#define X x, xd
#else
#define X_ARGS global const float* x
#define X x
#endif

#ifdef LOW_BITS
INLINE void dot_group(global const uchar* w, ulong scales_at, ulong g, X_ARGS, IN_ARG, int nt,
                      int n_blocks, int slice, int lane, float* acc) {
    global const uchar* s = w + scales_at + g * (n_blocks / SUPER) * SBYTES;
    global const uchar* q = w + g * n_blocks * QBYTES;
    for (int b = slice; b < n_blocks; b += SLICES) {
        short2 c[16];
        float d[PARTS], m[PARTS];
        unpack_scales(s, b, d, m, lane);
        unpack_codes(q + (ulong)b * QBYTES, s, b, c, lane);
        for (int t = 0; t < nt; t++) {
            const size_t at = (size_t)ROW_IN(t) * n_blocks + b;
#ifdef ACT_INT
            int sum[PARTS] = {0}, last = 0;  // products; activations of the second half
            #pragma unroll
            for (int p = 0; p < 16; p++) {
                const short2 v = x[at * 16 + p];
                sum[p * PARTS / 16] += (int)c[p].x * v.x + (int)c[p].y * v.y;
                if (p >= 8) last += v.x + v.y;
            }
            const float2 xs = xd[at];
            for (int i = 0; i < PARTS; i++) acc[t] = fma((float)sum[i] * xs.x, d[i], acc[t]);
#ifdef WITH_M
            acc[t] = fma(m[0], xs.y, acc[t]);
#if PARTS == 2
            acc[t] = fma(m[1] - m[0], (float)last * xs.x, acc[t]);
#endif
#endif
#else
            #pragma unroll
            for (int p = 0; p < 16; p++) {
                const int i = p * PARTS / 16;
                acc[t] = fma(fma(EVEN(c[p]), d[i], m[i]), x[at * 32 + 2 * p], acc[t]);
                acc[t] = fma(fma(ODD(c[p]), d[i], m[i]), x[at * 32 + 2 * p + 1], acc[t]);
            }
#endif
        }
    }
}
#else
INLINE void dot_group(global const uchar* w, ulong scales_at, ulong g, X_ARGS, IN_ARG, int nt,
                      int n_cols, int slice, int lane, float* acc) {
    w += g * n_cols * (QBYTES / 32);
    for (int k = slice; k < n_cols; k += SLICES) {
        const float wk = LOAD_WEIGHT(w, k);
        for (int t = 0; t < nt; t++) acc[t] = fma(wk, x[(size_t)ROW_IN(t) * n_cols + k], acc[t]);
    }
}
#endif

INLINE float sum_slices(float v, int slice, int lane, local float* partial) {
    partial[slice * ROWS + lane] = v;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = SLICES / 2; step > 0; step /= 2) {
        if (slice < step)
            partial[slice * ROWS + lane] += partial[(slice + step) * ROWS + lane];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float total = partial[lane];
    barrier(CLK_LOCAL_MEM_FENCE);
    return total;
}

kernel void matmul(global const uchar* w, ulong scales_at, X_ARGS, int n_blocks, int n_rows,
                   global const int* counts, int count_at, TILE_ARGS WEIGHTS_ARG
#ifdef BIAS
                   global const float* bias,
#endif
#ifdef SCALE
                   float scale,
#endif
                   global float* out, int out_stride, int out_offset) {
    local float partial[SLICES * ROWS];
    const int lane = get_local_id(0) % ROWS, slice = get_local_id(0) / ROWS;
    const int g = get_group_id(0);
    BEGIN_TILE(get_group_id(1), n_rows / ROWS);
    float acc[NT];
    for (int t = 0; t < NT; t++) acc[t] = 0;
#ifdef GLU
    float up[NT];
    for (int t = 0; t < NT; t++) up[t] = 0;
    dot_group(w, scales_at, first_group + 2 * g, X, IN, nt, n_blocks, slice, lane, acc);
    dot_group(w, scales_at, first_group + 2 * g + 1, X, IN, nt, n_blocks, slice, lane, up);
    n_rows /= 2;
#else
    dot_group(w, scales_at, first_group + g, X, IN, nt, n_blocks, slice, lane, acc);
#endif
    const int row = g * ROWS + lane;
    for (int t = 0; t < nt; t++) {
        float v = sum_slices(acc[t], slice, lane, partial);
#ifdef GLU
        float u = sum_slices(up[t], slice, lane, partial);
#ifdef BIAS
        v += bias[(first_group + 2 * g) * ROWS + lane];
        u += bias[(first_group + 2 * g + 1) * ROWS + lane];
#endif
        v = GLU(v * WEIGHT_OF(t), u * WEIGHT_OF(t));
#endif
        if (slice == 0 && row < n_rows) {
            global float* o = out + (size_t)ROW_OUT(t) * out_stride + out_offset + row;
#if defined(BIAS) && !defined(GLU)
            v += bias[first_group * ROWS + row];
#endif
#ifdef SCALE
            v *= scale;
#endif
#ifdef ADD
            v += *o;
#endif
            *o = v;
        }
    }
}
