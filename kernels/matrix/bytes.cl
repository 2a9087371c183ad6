// Products of weights with activations of 8 bits, for matmul_simd.cl with X_BYTES.
//
// Weights are quads (quads.cl). Activations: a quad is an int; (d, d * sum, two sums of 16 as
// shorts, -) per block.
//
// With MADD_BYTES_256 (byte_products.cl) DEPTH quads can be added in 16 bits before they must
// become 32 bits, times an integer scale at no cost. Sums of a block are integers, and exact, in
// all forms.
//
// On a Zen 4 multiplications, of bytes and of floats, take one pair of four pipes and are what
// limits this: with SUPER_SUMS blocks are added up in the unit of their super-block's scale, which
// is multiplied once, and offsets of codes are where sums begin.

#define TILE 4  // tokens that meet a weight that is loaded
#define BLOCKS 8  // unpacked into the first cache at a time
// Up to so many tokens have their sums, and a block its codes, in registers.
#if NT == 1
#define FEW 1
#elif defined(MADD_BYTES_256)
#define FEW 0
#else
#define FEW 8
#endif
#define MOST_TOKENS (FEW ? FEW : TILE)
#if NT >= 32 && !defined(MADD_BYTES_256)
#define GROUPS 2  // that meet the same activations, which are more than the second cache holds
#else
#define GROUPS 1
#endif
#if NT == 1
#define UNROLL_PARTS _Pragma("unroll")
#define UNROLL_QUADS _Pragma("unroll")
#else
// With more LLVM takes one half of the rows after the other, and keeps what is broadcast in memory.
#define UNROLL_PARTS _Pragma("unroll 1")
#define UNROLL_QUADS _Pragma("unroll 2")
#endif

#include "quantization/quads.cl"

#if defined(BLOCK_SCALES)
#define PAIR_SCALE(w, quad) as_vpair((w)->scale)
#elif defined(HALF_SCALES)
#define PAIR_SCALE(w, quad) as_vpair((w)->scales[(quad) / 4])
#else
#define PAIR_SCALE(w, quad) (vpair)(1)
#endif

#include "include/byte_products.cl"

#if defined(HALF_SCALES) && !defined(MADD_BYTES_256)
#define SUPER_SUMS
#if SUPER != BLOCKS
#error "tiles begin and end with super-blocks"
#endif
#endif

#ifdef MADD_BYTES_256

// sum[t]: a block's products with n tokens, times integer scales if there are any; x_sums: those of
// activations.
INLINE void dot_block(const int n, const Unpacked* w, global const int* const* x, int at,
                      const int* x_sums, int16* sum) {
    #pragma unroll
    for (int t = 0; t < n; t++) sum[t] = 0;
    UNROLL_PARTS
    for (int first = 0; first < QUADS; first += DEPTH) {
        short16 low[MOST_TOKENS], high[MOST_TOKENS];
        #pragma unroll
        for (int t = 0; t < n; t++) low[t] = high[t] = 0;
        UNROLL_QUADS
        for (int i = first; i < first + DEPTH; i++) {
            #pragma unroll
            for (int t = 0; t < n; t++) {
                const int8 xq = (int8)(x[t][at + i]);
                low[t] = madd_quad(w->codes[i].lo, xq, low[t]);
                high[t] = madd_quad(w->codes[i].hi, xq, high[t]);
            }
        }
        const vpair scale = PAIR_SCALE(w, first);
        #pragma unroll
        for (int t = 0; t < n; t++)
            sum[t] += (int16)(vpmaddwd(low[t], scale.lo), vpmaddwd(high[t], scale.hi));
    }
}

#else

INLINE void dot_block(const int n, const Unpacked* w, global const int* const* x, int at,
                      const int* x_sums, int16* sum) {
    #pragma unroll
    for (int t = 0; t < n; t++) {
        int16 part[2] = {-MOVED_UP * (x_sums[t] << 16 >> 16), -MOVED_UP * (x_sums[t] >> 16)};
        #pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const int16 xq = (int16)(x[t][at + i]);
#ifdef SIGNED_CODES
            part[i / 4] = dot_quad(w->codes[i] ^ (int16)(0x80808080), xq, part[i / 4]);
#else
            part[i / 4] = dot_quad(w->codes[i], xq, part[i / 4]);
#endif
        }
#ifdef HALF_SCALES
        part[0] *= w->scales[0] >> 16;
        part[1] *= w->scales[1] >> 16;
#endif
        sum[t] = part[0] + part[1];
#ifdef BLOCK_SCALES
        sum[t] *= w->scale >> 16;
#endif
    }
}

#endif

// Adds to a, or with SUPER_SUMS to sums of the super-block, the products of block i of n tokens, a
// constant, that begin at row and scales.
INLINE void dot_tokens(const int n, const Unpacked* w, global const int* const* row,
                       global const float4* const* scales, int i, float16* super, float16* a) {
    int x_sums[MOST_TOKENS];
    int16 sum[MOST_TOKENS];
    #pragma unroll
    for (int t = 0; t < n; t++) x_sums[t] = ((global const int*)(scales[t] + i))[2];
    dot_block(n, w, row, i * QUADS, x_sums, sum);
    #pragma unroll
    for (int t = 0; t < n; t++) {
        global const float* xs = (global const float*)(scales[t] + i);
#ifdef HALF_OFFSETS
        const vpair offsets = as_vpair(w->offsets), sums = as_vpair((int16)(x_sums[t]));
#ifndef HALF_MINS
        sum[t] = madd(offsets, sums, sum[t]);
#endif
#endif
#ifdef SUPER_SUMS
        super[t] = fma(convert_float16(sum[t]), (float16)(xs[0]), super[t]);
#else
        a[t] = fma(convert_float16(sum[t]) * xs[0], w->d, a[t]);
#endif
#if defined(ADD_M)
        a[t] = fma(w->m, (float16)(xs[1]), a[t]);
#elif defined(HALF_MINS)
        a[t] = fma(convert_float16(madd(offsets, sums, 0)) * xs[0], w->m, a[t]);
#endif
    }
}

// Adds the sums of a super-block to a; the next one's begin.
INLINE void add_super(const int n, float16 d, float16* super, float16* a) {
#ifdef SUPER_SUMS
    #pragma unroll
    for (int t = 0; t < n; t++) {
        a[t] = fma(super[t], d, a[t]);
        super[t] = 0;
    }
#endif
}

INLINE void unpack_at(global const uchar* q, global const uchar* s, int b, Unpacked* w) {
    #pragma unroll
    for (int k = 0; k < QBYTES; k += 64) PREFETCH(q + (size_t)b * QBYTES + PREFETCH_BYTES + k);
    unpack_block(q + (size_t)b * QBYTES, s, b, w);
}

// Adds to acc the products of a group with up to n tokens, a constant, at most FEW. Where there are
// fewer the last one is computed again, into sums that nobody reads.
INLINE void dot_few(const int n, global const uchar* q, global const uchar* s, X_ARGS, IN_ARG,
                    int nt, int n_blocks, float16* acc) {
    global const int* row[MOST_TOKENS];
    global const float4* scales[MOST_TOKENS];
    float16 super[MOST_TOKENS], a[MOST_TOKENS];
    #pragma unroll
    for (int t = 0; t < n; t++) {
        const size_t at = (size_t)ROW_IN(min(t, nt - 1)) * n_blocks;
        row[t] = x + at * QUADS;
        scales[t] = xd + at;
        super[t] = 0;
        a[t] = acc[t];
    }
    for (int b = 0; b < n_blocks; b++) {
        Unpacked w;
        unpack_at(q, s, b, &w);
        dot_tokens(n, &w, row, scales, b, super, a);
        if (b % SUPER == SUPER - 1) add_super(n, w.d, super, a);
    }
    #pragma unroll
    for (int t = 0; t < n; t++) acc[t] = a[t];
}

INLINE void dot_group(global const uchar* q, global const uchar* s, X_ARGS, IN_ARG, int nt,
                      int n_blocks, float16* acc) {
#if FEW == 1
    dot_few(1, q, s, X, IN, nt, n_blocks, acc);
#elif FEW
    if (nt <= 2) dot_few(2, q, s, X, IN, nt, n_blocks, acc);
    else if (nt <= 4) dot_few(4, q, s, X, IN, nt, n_blocks, acc);
    else dot_few(8, q, s, X, IN, nt, n_blocks, acc);
#endif
}

// Asks for the activations of a token from block `at` on, which lie far from another token's.
INLINE void prefetch_blocks(X_ARGS, size_t at) {
    for (int i = 0; i < BLOCKS; i += 2) PREFETCH_NEAR(x + (at + i) * QUADS);
    for (int i = 0; i < BLOCKS; i += 4) PREFETCH_NEAR(xd + at + i);
}

// Adds to acc[..][from ..] the products of the next blocks, from block b on, with n tokens; n is a
// constant. Where there are fewer tokens the last one is computed again, into sums that nobody
// reads.
INLINE void dot_tile(const int n, const Unpacked w[GROUPS][BLOCKS], int blocks, X_ARGS, IN_ARG,
                     int from, int nt, int n_blocks, int b, float16 acc[GROUPS][NT]) {
    global const int* row[TILE];
    global const float4* scales[TILE];
    #pragma unroll
    for (int t = 0; t < n; t++) {
        const size_t at = (size_t)ROW_IN(min(from + t, nt - 1)) * n_blocks + b;
        row[t] = x + at * QUADS;
        scales[t] = xd + at;
        prefetch_blocks(X, (size_t)ROW_IN(min(from + TILE + t, nt - 1)) * n_blocks + b);
    }
    #pragma unroll 1  // both together need more registers than there are
    for (int g = 0; g < GROUPS; g++) {
        float16 super[TILE], a[TILE];
        #pragma unroll
        for (int t = 0; t < n; t++) {
            super[t] = 0;
            a[t] = acc[g][from + t];
        }
        #pragma unroll 1
        for (int i = 0; i < blocks; i++) dot_tokens(n, w[g] + i, row, scales, i, super, a);
        add_super(n, w[g][0].d, super, a);
        #pragma unroll
        for (int t = 0; t < n; t++) acc[g][from + t] = a[t];
    }
}

// Adds to acc the products of a group, and of the next one if there are GROUPS of them and `both`,
// with nt tokens. Many tokens meet some blocks together, unpacked in the first cache.
INLINE void dot_groups(global const uchar* q, global const uchar* s, bool both, X_ARGS, IN_ARG,
                       int nt, int n_blocks, float16 acc[GROUPS][NT]) {
    if (nt <= FEW) {
        for (int g = 0; g < (both ? GROUPS : 1); g++)
            dot_group(q + g * GROUP_BYTES, s + g * GROUP_SCALES, X, IN, nt, n_blocks, acc[g]);
        return;
    }
#if NT > FEW
    for (int b = 0; b < n_blocks; b += BLOCKS) {
        Unpacked w[GROUPS][BLOCKS];
        const int n = min(BLOCKS, n_blocks - b);
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int at = both ? g : 0;
            for (int i = 0; i < n; i++)
                unpack_at(q + at * GROUP_BYTES, s + at * GROUP_SCALES, b + i, &w[g][i]);
        }
        for (int t = 0; t < nt; t += TILE) dot_tile(TILE, w, n, X, IN, t, nt, n_blocks, b, acc);
    }
#endif
}
