// out[t, r] (+)= sum_k W[r, k] x[t, k] on a CPU: one work-item, 16 rows of W at a time.
//
// Global size (row ranges, token tiles), local size 1. A work-item takes a contiguous share of
// the groups of 16 rows and up to NT tokens; a block's 32 columns are unpacked once for all of
// them. For one token the order of operations is the same whatever NT is and whoever shares the
// batch, so a sequence's numbers do not depend on its company.
//
// TYPE_x      the weights' type (unpack.cl)           NT       most tokens of a tile
// ACT_INT      activations are integers in pairs of shorts with (d, d * sum) per 32 columns;
//             otherwise, and for float weights, they are float
// BIAS        add bias[r] (with GLU in the order of the packed rows, padding included)
//                                       ADD      add to out instead of storing
// GLU_SILU, GLU_GELU   groups alternate between gate and up: out is act(gate) * up, a quarter
//             of the work-item's groups at a time written as 32 columns; with QUANTIZE_OUT as
//             the next matrix's integer activations.

#include "lanes.cl"
#include "unpack.cl"
#include "activation.cl"

#define PREFETCH_BYTES 6144  // how far ahead of the codes in use; 2 to 8 KiB do nearly as well

#if defined(ACT_INT)
#define X_ARGS global const int* x, global const float2* xd
#define X x, xd
#else
#define X_ARGS global const float* x
#define X x
#endif

#ifdef LOW_BITS

// Adds to acc the products of one group with nt tokens.
INLINE void dot_group(global const uchar* q, global const uchar* s, X_ARGS, int t0, int nt,
                      int n_blocks, float16* acc) {
    for (int b = 0; b < n_blocks; b++, q += QBYTES) {
        vpair w[16];
        float16 d, m;
        #pragma unroll
        for (int i = 0; i < QBYTES; i += 64) PREFETCH(q + PREFETCH_BYTES + i);
        unpack_scales(s, b, &d, &m);
        unpack_codes(q, s, b, w);
#ifdef ACT_INT
        for (int t = 0; t < nt; t++) {
            const size_t at = (size_t)(t0 + t) * n_blocks + b;
            global const int* xb = x + at * 16;
            int16 s0 = 0, s1 = 0;
            #pragma unroll
            for (int p = 0; p < 16; p += 2) {
                s0 = madd(w[p], as_vpair((int16)(xb[p])), s0);
                s1 = madd(w[p + 1], as_vpair((int16)(xb[p + 1])), s1);
            }
            const float2 xs = xd[at];
            acc[t] = fma(convert_float16(s0 + s1) * xs.x, d, acc[t]);
#ifdef WITH_M
            acc[t] = fma(m, (float16)(xs.y), acc[t]);
#endif
        }
#else
        #pragma unroll
        for (int p = 0; p < 16; p++) {
            const float16 w0 = fma(EVEN(w[p]), d, m), w1 = fma(ODD(w[p]), d, m);
            for (int t = 0; t < nt; t++) {
                global const float* xb = x + ((size_t)(t0 + t) * n_blocks + b) * 32 + 2 * p;
                acc[t] = fma(w1, (float16)(xb[1]), fma(w0, (float16)(xb[0]), acc[t]));
            }
        }
#endif
    }
}
#define GROUP_BYTES ((size_t)n_blocks * QBYTES)
#define GROUP_SCALES ((size_t)(n_blocks / SUPER) * SBYTES)
#define CALL_DOT(g, acc)                                                              \
    dot_group(w + (g) * GROUP_BYTES, w + scales_at + (g) * GROUP_SCALES, X, t0, nt, n_blocks, acc)

#else

INLINE void dot_group(global const uchar* w, X_ARGS, int t0, int nt, int n_cols, float16* acc) {
    for (int k = 0; k < n_cols; k++) {
        const float16 wk = LOAD_WEIGHT(w, k);
        for (int t = 0; t < nt; t++)
            acc[t] = fma(wk, (float16)(x[(size_t)(t0 + t) * n_cols + k]), acc[t]);
    }
}
#define CALL_DOT(g, acc) dot_group(w + (size_t)(g) * n_blocks * (QBYTES / 32), X, t0, nt, n_blocks, acc)

#endif

INLINE void store_rows(float16 v, global float* out, int n) {
    if (n >= ROWS) {
        vstore16(v, 0, out);
    } else {
        float tail[16];
        vstore16(v, 0, tail);
        for (int i = 0; i < n; i++) out[i] = tail[i];
    }
}

// n_blocks: K / 32 (float weights: K). counts[count_at]: the number of tokens.
kernel void matmul(global const uchar* w, ulong scales_at, X_ARGS, int n_blocks, int n_rows,
                   global const int* counts, int count_at,
#ifdef BIAS
                   global const float* bias,
#endif
#ifdef QUANTIZE_OUT
                   global short* out_q, global float2* out_d
#else
                   global float* out, int out_stride, int out_offset
#endif
) {
#ifdef GLU
    const int unit = 4;  // groups: two pairs of gate and up, 32 columns of output
#else
    const int unit = 1;
#endif
    const int n_units = (n_rows + ROWS * unit - 1) / (ROWS * unit);
    const int first = (int)((long)n_units * get_global_id(0) / get_global_size(0));
    const int last = (int)((long)n_units * (get_global_id(0) + 1) / get_global_size(0));
    const int t0 = get_global_id(1) * NT;
#if NT == 1
    const int nt = 1;
#else
    const int nt = min(NT, counts[count_at] - t0);
#endif
    for (int u = first; u < last; u++) {
#ifdef GLU
        float16 h[2][NT];
        for (int i = 0; i < 2; i++) {
            float16 up[NT];
#ifdef BIAS
            for (int t = 0; t < nt; t++) {
                h[i][t] = vload16(4 * u + 2 * i, bias);
                up[t] = vload16(4 * u + 2 * i + 1, bias);
            }
#else
            for (int t = 0; t < nt; t++) h[i][t] = up[t] = 0;
#endif
            CALL_DOT(4 * u + 2 * i, h[i]);
            CALL_DOT(4 * u + 2 * i + 1, up);
            for (int t = 0; t < nt; t++) h[i][t] = GLU(h[i][t], up[t]);
        }
        for (int t = 0; t < nt; t++) {
#ifdef QUANTIZE_OUT
            const size_t at = (size_t)(t0 + t) * n_units + u;
            out_d[at] = quantize32(h[0][t], h[1][t], out_q + at * 32);
#else
            global float* o = out + (size_t)(t0 + t) * out_stride + out_offset + u * 32;
            store_rows(h[0][t], o, n_rows / 2 - u * 32);
            store_rows(h[1][t], o + 16, n_rows / 2 - u * 32 - 16);
#endif
        }
#else
        float16 acc[NT];
        for (int t = 0; t < nt; t++) acc[t] = 0;
        CALL_DOT(u, acc);
        const int n = n_rows - u * ROWS;
        for (int t = 0; t < nt; t++) {
            global float* o = out + (size_t)(t0 + t) * out_stride + out_offset + u * ROWS;
            float16 v = acc[t];
#ifdef BIAS
            if (n >= ROWS) v += vload16(u, bias);
            else for (int i = 0; i < n; i++) ((float*)&v)[i] += bias[u * ROWS + i];
#endif
#ifdef ADD
            if (n >= ROWS) v += vload16(0, o);
            else for (int i = 0; i < n; i++) ((float*)&v)[i] += o[i];
#endif
            store_rows(v, o, n);
        }
#endif
    }
}
