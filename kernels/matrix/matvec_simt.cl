// out[t, r] (+)= sum_k W[r, k] x[t, k] for few tokens on a GPU: memory-bound.
//
// Work-group: 16 lanes (the rows of a group) x SLICES; slice s takes blocks s, s + SLICES, ...
// so that neighbouring lanes read neighbouring words and many loads are in flight. Partial sums
// meet in local memory, where slice s adds up those of tokens s, s + SLICES, ... Grid: (groups, or
// pairs of gate and up with GLU; tiles of NT tokens).
// Defines as in matmul_simd.cl, less QUANTIZE_OUT; SHORTS_x of dots.cl. Integer sums are exact, and
// so are the same in all forms.

#include "include/lanes.cl"
#include "include/dots.cl"
#include "quantization/unpack.cl"
#ifdef SHORTS_QUADS
#include "quantization/byte_codes.cl"
#endif
#include "include/activation.cl"
#include "matrix/rows.cl"

#if defined(ACT_INT)
#define X_ARGS global const short2* x, global const float2* xd
#define X x, xd
#else
#define X_ARGS global const float* x
#define X x
#endif

// An item's sums of all tokens are in local memory, SUM_STRIDE apart: as a private array they would
// be in registers only if the loop over tokens was unrolled, which compilers take long for.
#define SUM_STRIDE (SLICES * ROWS)

#ifdef LOW_BITS
#if NT == 1
#define SUM(t) sum_
#else
#define SUM(t) sums[(t) * SUM_STRIDE]
#endif

#ifdef ACT_INT

// The products of a block with a token's codes, for each float scale; last: the sum of the codes of
// the second half, where offsets of halves differ.
#ifdef SHORTS_QUADS

#if defined(TABLE_LOW) && CODE_AT == 0
#define DOT dot_quad_u  // a table that is moved up
#else
#define DOT dot_quad_s
#endif
#if defined(SCALES_CHARS) || defined(SCALES_NIBBLES)
#define INT_SCALES
#endif

typedef struct {
    int codes[QUADS];
#ifdef INT_SCALES
    int scales[2];
#endif
} Codes;

INLINE void load_codes(global const uchar* q, global const uchar* s, int b, Codes* w, int lane) {
    unpack_quads(q, w->codes, lane);
#ifdef INT_SCALES
    global const uchar* super = s + (b / SUPER) * SBYTES;
    #pragma unroll
    for (int i = 0; i < 2; i++) w->scales[i] = half_scale(super, b % SUPER, i, lane);
#endif
}

INLINE void dot_block(const Codes* w, global const int4* x, int* dot_, int* last) {
    dot_sum sums[2], ones = 0;
    int v[16];  // loaded before the first product: behind assembler LLVM does not load four at once
    #pragma unroll
    for (int k = 0; k < 4; k++) vstore4(x[k], k, v);
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        sums[i] = 0;
        #pragma unroll
        for (int q = 4 * i; q < 4 * i + 4; q++) {
            const int first = v[4 * (q / 2) + q % 2], second = v[4 * (q / 2) + q % 2 + 2];
            sums[i] = DOT(w->codes[q], first, second, sums[i]);
            if (i == 1) ones = DOT(0x01010101, first, second, ones);
        }
    }
    const int first_half = dot_total(sums[0]), second_half = dot_total(sums[1]);
    *last = dot_total(ones);
#if PARTS == 2
    dot_[0] = first_half;
    dot_[1] = second_half;
#elif defined(INT_SCALES)
    dot_[0] = (first_half >> BYTE_AT) * w->scales[0] + (second_half >> BYTE_AT) * w->scales[1];
#else
    dot_[0] = (first_half + second_half) << CODE_AT;
#endif
}

#else

typedef struct { short2 codes[16]; } Codes;

INLINE void load_codes(global const uchar* q, global const uchar* s, int b, Codes* w, int lane) {
    unpack_codes(q, s, b, w->codes, lane);
}

INLINE void dot_block(const Codes* w, global const int4* x, int* dot_, int* last) {
    *last = 0;
    #pragma unroll
    for (int i = 0; i < PARTS; i++) dot_[i] = 0;
    #pragma unroll
    for (int k = 0; k < 4; k++) {
        const int4 word = x[k];
        const short2 v[4] = {as_short2(word.x), as_short2(word.y), as_short2(word.z),
                             as_short2(word.w)};
        #pragma unroll
        for (int p = 0; p < 4; p++) {
            const int part = k * PARTS / 4;
            dot_[part] = dot_pair(w->codes[4 * k + p], v[p], dot_[part]);
            if (k >= 2) *last = dot_pair((short2)(1), v[p], *last);
        }
    }
}

#endif
#endif

INLINE void dot_group(global const uchar* w, ulong scales_at, ulong g, X_ARGS, IN_ARG, int nt,
                      int n_blocks, int slice, int lane, local float* sums) {
    global const uchar* s = w + scales_at + g * (n_blocks / SUPER) * SBYTES;
    global const uchar* q = w + g * n_blocks * QBYTES;
#if NT == 1
    float sum_ = 0;
#else
    for (int t = 0; t < nt; t++) SUM(t) = 0;
#endif
    for (int b = slice; b < n_blocks; b += SLICES) {
        float d[PARTS], m[PARTS];
        unpack_scales(s, b, d, m, lane);
#ifdef ACT_INT
        Codes c;
        load_codes(q + (ulong)b * QBYTES, s, b, &c, lane);
#else
        short2 c[16];
        unpack_codes(q + (ulong)b * QBYTES, s, b, c, lane);
#endif
        for (int t = 0; t < nt; t++) {
            const size_t at = (size_t)ROW_IN(t) * n_blocks + b;
            float sum = SUM(t);
#ifdef ACT_INT
            int dot_[PARTS], last;
            dot_block(&c, (global const int4*)x + at * 4, dot_, &last);
            const float2 xs = xd[at];
            #pragma unroll
            for (int i = 0; i < PARTS; i++) sum = fma((float)dot_[i] * xs.x, d[i], sum);
#ifdef WITH_M
            sum = fma(m[0], xs.y, sum);
#if PARTS == 2
            sum = fma(m[1] - m[0], (float)last * xs.x, sum);
#endif
#endif
#else
            #pragma unroll
            for (int p = 0; p < 16; p++) {
                const int i = p * PARTS / 16;
                sum = fma(fma(EVEN(c[p]), d[i], m[i]), x[at * 32 + 2 * p], sum);
                sum = fma(fma(ODD(c[p]), d[i], m[i]), x[at * 32 + 2 * p + 1], sum);
            }
#endif
            SUM(t) = sum;
        }
    }
#if NT == 1
    *sums = sum_;
#endif
}
#else
INLINE void dot_group(global const uchar* w, ulong scales_at, ulong g, X_ARGS, IN_ARG, int nt,
                      int n_cols, int slice, int lane, local float* sums) {
    float acc[NT];
    UNROLLED(t, NT, NT) acc[t] = 0;
    w += g * n_cols * (QBYTES / 32);
    for (int k = slice; k < n_cols; k += SLICES) {
        const float wk = LOAD_WEIGHT(w, k);
        UNROLLED(t, nt, NT) acc[t] = fma(wk, x[(size_t)ROW_IN(t) * n_cols + k], acc[t]);
    }
    UNROLLED(t, NT, NT) sums[t * SUM_STRIDE] = acc[t];
}
#endif

INLINE float sum_slices(local const float* sums, int t, int lane) {
    float total = 0;
    for (int slice = 0; slice < SLICES; slice++)
        total += sums[t * SUM_STRIDE + slice * ROWS + lane];
    return total;
}

kernel __attribute__((reqd_work_group_size(ROWS * SLICES, 1, 1)))
void matmul(global const uchar* w, ulong scales_at,
#ifdef ACT_INT
            global const short2* x, global const float2* xd,
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
#ifdef BIAS
            global const float* bias,
#endif
#ifdef SCALE
            float scale,
#endif
            global float* out, int out_stride, int out_offset) {
#ifdef GLU
    local float ups[NT * SUM_STRIDE];
#endif
    local float sums[NT * SUM_STRIDE];
    const int lane = get_local_id(0) % ROWS, slice = get_local_id(0) / ROWS;
    const int g = get_group_id(0);
    BEGIN_TILE(get_group_id(1), n_rows / ROWS);
    const int own = slice * ROWS + lane;
#ifdef GLU
    dot_group(w, scales_at, first_group + 2 * g, X, IN, nt, n_blocks, slice, lane, sums + own);
    dot_group(w, scales_at, first_group + 2 * g + 1, X, IN, nt, n_blocks, slice, lane, ups + own);
    n_rows /= 2;
#else
    dot_group(w, scales_at, first_group + g, X, IN, nt, n_blocks, slice, lane, sums + own);
#endif
    barrier(CLK_LOCAL_MEM_FENCE);
    const int row = g * ROWS + lane;
    if (row >= n_rows) return;
    for (int t = slice; t < nt; t += SLICES) {
        float v = sum_slices(sums, t, lane);
#ifdef GLU
        float u = sum_slices(ups, t, lane);
#ifdef BIAS
        v += bias[(first_group + 2 * g) * ROWS + lane];
        u += bias[(first_group + 2 * g + 1) * ROWS + lane];
#endif
        v = GLU(v * WEIGHT_OF(t), u * WEIGHT_OF(t));
#endif
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
