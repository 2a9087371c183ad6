// out[t, r] (+)= sum_k W[r, k] x[t, k] on a CPU: one work-item, 16 rows of W at a time.
//
// Global size (row ranges, token tiles), local size 1. A work-item takes a contiguous share of
// the groups of 16 rows and up to NT tokens; a block's 32 columns are unpacked once for all of
// them. For one token the order of operations is the same whatever NT is and whoever shares the
// batch, so a sequence's numbers do not depend on its company.
//
// TYPE_x      the weights' type (unpack.cl)           NT       most tokens of a tile
// PREFETCH_BYTES   how far ahead of the codes in use memory is asked for
// ACT_INT      activations are integers in pairs of shorts with (d, d * sum) per 32 columns;
//             otherwise, and for float weights, they are float
// X_BYTES     they have 8 bits (bytes.cl)
// X_SPAN      so many blocks of them share d (unpack.cl makes SPAN of it)
// BIAS        add bias[r] (with GLU in the order of the packed rows, padding included)
// SCALE       multiply with a factor after that     ADD    add to out instead of storing
// GLU_SILU, GLU_GELU   groups alternate between gate and up: out is act(gate) * up, a quarter
//             of the work-item's groups at a time written as 32 columns; with QUANTIZE_OUT as
//             the next matrix's integer activations.
// SUMMED      of one token: so many experts, one after the other, whose results are added up by
//             their shares, in the order of combine() in moe.cl; sums is room for a row
// NORM_NEXT   of one token: the work-item that ends last normalizes the whole row (norm_row.cl),
//             so that a launch less comes before the next matrix; with POST what it normalizes
//             is a stream, to which the row's own norm is added first

#include "include/lanes.cl"
#if NT == 1 && defined(ACT_INT) && !defined(X_BYTES)
#define IN_PLACE  // unpacking is what takes the time
#endif
#include "quantization/unpack.cl"
#include "include/activation.cl"
#include "matrix/rows.cl"
#ifdef NORM_NEXT
#include "include/group.cl"
#include "rows/norm_row.cl"
#endif

#ifdef X_BYTES
typedef float4 x_scale_t;
#else
typedef float2 x_scale_t;
#endif
#ifdef ACT_INT
#define X_ARGS global const int* x, global const x_scale_t* xd
#define X x, xd
#else
#define X_ARGS global const float* x
#define X x
#endif

#ifdef LOW_BITS
#define GROUP_BYTES ((size_t)n_blocks * QBYTES)
#define GROUP_SCALES ((size_t)(n_blocks / SUPER) * SBYTES)
#define CODES_AT(g) (w + (first_group + (g)) * GROUP_BYTES)
#define SCALES_AT(g) (w + scales_at + (first_group + (g)) * GROUP_SCALES)
#if defined(X_BYTES)
#include "matrix/bytes.cl"
#else
#include "matrix/dot_pairs.cl"
#if SPAN > 1 && NT >= 8 && defined(TILE_BYTES) && !defined(EXPERTS)
#include "matrix/dot_amx.cl"
#elif SPAN > 1 && NT >= 32
#include "matrix/dot_tiles.cl"
#endif
#endif
#ifdef GROUPS  // that are computed together
#define CALL_DOT(g, both, acc) \
    dot_groups(CODES_AT(g), SCALES_AT(g), both, X, IN, nt, n_blocks, acc)
#else
#define CALL_DOT(g, both, acc) \
    dot_group(CODES_AT(g), SCALES_AT(g), X, IN, nt, n_blocks, (acc)[0])
#endif

#else

// So many tokens at a time have their sums in registers, which a number that is not known to the
// compiler would put into memory.
#define DEFINE_DOT_TOKENS(n)                                                                     \
    INLINE void dot_tokens_##n(global const uchar* w, X_ARGS, IN_ARG, int t0_, int n_cols,       \
                               float16* acc) {                                                   \
        float16 a[n];                                                                            \
        global const float* row[n];                                                              \
        for (int t = 0; t < n; t++) {                                                            \
            a[t] = acc[t0_ + t];                                                                 \
            row[t] = x + (size_t)ROW_IN(t0_ + t) * n_cols;                                       \
        }                                                                                        \
        for (int k = 0; k < n_cols; k++) {                                                       \
            const float16 wk = LOAD_WEIGHT(w, k);                                                \
            _Pragma("unroll") for (int t = 0; t < n; t++)                                        \
                a[t] = fma(wk, (float16)(row[t][k]), a[t]);                                      \
        }                                                                                        \
        for (int t = 0; t < n; t++) acc[t0_ + t] = a[t];                                         \
    }
#if NT >= 8
DEFINE_DOT_TOKENS(8)
#endif
DEFINE_DOT_TOKENS(1)

INLINE void dot_group(global const uchar* w, X_ARGS, IN_ARG, int nt, int n_cols, float16* acc) {
    int t = 0;
#if NT >= 8
    for (; t + 8 <= nt; t += 8) dot_tokens_8(w, X, IN, t, n_cols, acc);
#endif
    for (; t < nt; t++) dot_tokens_1(w, X, IN, t, n_cols, acc);
}
#define CALL_DOT(g, both, acc) \
    dot_group(w + (first_group + (g)) * n_blocks * (QBYTES / 32), X, IN, nt, n_blocks, (acc)[0])

#endif
#ifndef GROUPS
#define GROUPS 1
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
#ifdef SUMMED
#define SUMMANDS SUMMED
#else
#define SUMMANDS 1
#endif

VECTOR_ITEMS
kernel void matmul(global const uchar* w, ulong scales_at,
#ifdef ACT_INT
                   global const int* x, global const x_scale_t* xd,
#else
                   global const float* x,
#endif
                   int n_blocks, int n_rows, global const int* counts, int count_at,
#ifdef EXPERTS
                   global const int4* tiles, global const int* in_rows, global const int* out_rows,
#endif
#ifdef WEIGHTED
                   global const float* weights_of,
#endif
#ifdef SUMMED
                   global const float* shares, global float* sums,
#endif
#ifdef BIAS
                   global const float* bias,
#endif
#ifdef SCALE
                   float scale,
#endif
#ifdef QUANTIZE_OUT
                   global code_t* out_q, global scale_t* out_d
#else
                   global float* out, int out_stride, int out_offset
#endif
#ifdef NORM_NEXT
                   , volatile global int* arrived, global const float* weight,
#ifdef POST
                   global float* stream, global const float* post_weight, float post_eps,
#endif
#ifdef FLOATS
                   global float* normed,
#endif
#ifdef QUANTIZE
                   global code_t* normed_q, global scale_t* normed_d,
#endif
                   float eps
#endif
) {
#ifdef GLU
    const int unit = 4;  // groups: two pairs of gate and up, 32 columns of output
#else
    const int unit = GROUPS;
#endif
    const int n_units = (n_rows + ROWS * unit - 1) / (ROWS * unit);
    const int first = (int)((long)n_units * get_global_id(0) / get_global_size(0));
    const int last = (int)((long)n_units * (get_global_id(0) + 1) / get_global_size(0));
    for (int e = 0; e < SUMMANDS; e++) {
        BEGIN_TILE(get_global_id(1) + e, n_rows / ROWS);
        for (int u = first; u < last; u++) {
#ifdef GLU
            float16 h[2][NT];
            for (int i = 0; i < 2; i++) {
                float16 acc[2][NT];  // gate and up
                const int g = 4 * u + 2 * i;
                for (int t = 0; t < nt; t++) {
#ifdef BIAS
                    acc[0][t] = vload16(first_group + g, bias);
                    acc[1][t] = vload16(first_group + g + 1, bias);
#else
                    acc[0][t] = acc[1][t] = 0;
#endif
                }
                for (int k = 0; k < 2; k += GROUPS) CALL_DOT(g + k, true, acc + k);
                for (int t = 0; t < nt; t++)
                    h[i][t] = GLU(acc[0][t] * WEIGHT_OF(t), acc[1][t] * WEIGHT_OF(t));
            }
            for (int t = 0; t < nt; t++) {
#ifdef QUANTIZE_OUT
                const size_t at = (size_t)ROW_OUT(t) * n_units + u;
                out_d[at] = quantize32(h[0][t], h[1][t], out_q + at * 32);
#else
                global float* o = out + (size_t)ROW_OUT(t) * out_stride + out_offset + u * 32;
                store_rows(h[0][t], o, n_rows / 2 - u * 32);
                store_rows(h[1][t], o + 16, n_rows / 2 - u * 32 - 16);
#endif
            }
#else
            float16 acc[GROUPS][NT];
            for (int i = 0; i < GROUPS; i++)
                for (int t = 0; t < nt; t++) acc[i][t] = 0;
            CALL_DOT(u * GROUPS, (u * GROUPS + 1) * ROWS < n_rows, acc);
            for (int i = 0; i < GROUPS * nt; i++) {
                const int t = i % nt, g = u * GROUPS + i / nt, n = n_rows - g * ROWS;
                if (n <= 0) break;
#ifdef SUMMED
                global float* o = out + g * ROWS;
#else
                global float* o = out + (size_t)ROW_OUT(t) * out_stride + out_offset + g * ROWS;
#endif
                float16 v = acc[i / nt][t];
#ifdef BIAS
                if (n >= ROWS) v += vload16(first_group + g, bias);
                else for (int k = 0; k < n; k++) ((float*)&v)[k] += bias[g * ROWS + k];
#endif
#ifdef SCALE
                v *= scale;
#endif
#ifdef SUMMED
                v = fma((float16)(shares[e]), v, e == 0 ? (float16)(0) : vload16(g, sums));
                if (e + 1 < SUMMED) {
                    vstore16(v, g, sums);
                    continue;
                }
#endif
#ifdef ADD
                if (n >= ROWS) v += vload16(0, o);
                else for (int k = 0; k < n; k++) ((float*)&v)[k] += o[k];
#endif
                store_rows(v, o, n);
            }
#endif
        }
#ifdef SUMMED
        in_rows -= tile.y;
#endif
    }
#ifdef NORM_NEXT
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    if (atomic_inc(arrived) == (int)get_global_size(0) - 1) {
        mem_fence(CLK_GLOBAL_MEM_FENCE);
        *arrived = 0;  // for the next launch
#ifdef POST
        add_normed(stream, out, n_rows, post_weight, post_eps, 0);
#else
        global const float* stream = out;
#endif
        const float2 s = statistics(stream, n_rows, eps, 0);
#ifdef QUANTIZE
        write_codes(stream, n_rows, s, weight, normed_q, normed_d);
#endif
#ifdef FLOATS
        write_normed(stream, n_rows, s, weight, normed);
#endif
    }
#endif
}
