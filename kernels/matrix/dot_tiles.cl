// Products of two groups of 16 rows with many tokens whose activations share scales (SPAN > 1),
// for matmul_simd.cl.
//
// The codes of SPAN blocks are unpacked once, as short integers into the first cache, times their
// integer scales, and multiplied with tile after tile of tokens. A tile's sums stay in registers:
// a weight that is read meets 4 tokens, an activation two groups, so that there is less to read
// than to multiply. They are integers until the span ends, so that the order of operations is
// the same as in dot_blocks().

#define TILE 4  // 8 sums of two groups hide an instruction's latency
#define GROUPS 2

typedef struct {
    vpair codes[16 * SPAN];
    float16 d, m[SPAN];
} Unpacked;

INLINE void unpack_span(global const uchar* q, global const uchar* s, int b, Unpacked* w) {
    for (int i = 0; i < SPAN; i++) {
        vpair* codes = w->codes + 16 * i;
        unpack_scales(s, b + i, &w->d, w->m + i);
        unpack_codes(q + (size_t)(b + i) * QBYTES, s, b + i, codes);
        const vint scale = sum_scale(s, b + i);
        #pragma unroll
        for (int p = 0; p < 16; p++) codes[p] *= BOTH(scale);
        #pragma unroll
        for (int k = 0; k < QBYTES; k += 64)  // of the next span
            PREFETCH(q + (size_t)(b + SPAN + i) * QBYTES + k);
    }
}

// Adds to acc[..][from ..] the products of the span that begins with block b. n is a constant;
// where there are fewer tokens, the last one is computed again, into sums that nobody reads.
INLINE void dot_tile(const int n, const Unpacked* w, X_ARGS, IN_ARG, int from, int nt,
                     int n_blocks, int b, float16 acc[GROUPS][NT]) {
    size_t at[TILE];
    int16 sum[GROUPS][TILE];
    #pragma unroll
    for (int t = 0; t < n; t++) {
        at[t] = (size_t)ROW_IN(min(from + t, nt - 1)) * n_blocks + b;
        sum[0][t] = sum[1][t] = 0;
    }
    #pragma unroll 1
    for (int p = 0; p < 16 * SPAN; p++) {
        #pragma unroll
        for (int t = 0; t < n; t++) {
            const vpair xp = as_vpair((int16)(x[at[t] * 16 + p]));
            sum[0][t] = madd(w[0].codes[p], xp, sum[0][t]);
            sum[1][t] = madd(w[1].codes[p], xp, sum[1][t]);
        }
    }
    #pragma unroll
    for (int t = 0; t < n; t++) {
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            float16 a = acc[g][from + t];
            #pragma unroll
            for (int i = 0; i < SPAN; i++) a = fma(w[g].m[i], (float16)(xd[at[t] + i].y), a);
            acc[g][from + t] = fma(convert_float16(sum[g][t]) * xd[at[t]].x, w[g].d, a);
        }
    }
}

// Adds to acc the products of a group and of the next one, if `both`, with nt tokens.
INLINE void dot_groups(global const uchar* q, global const uchar* s, bool both, X_ARGS, IN_ARG,
                       int nt, int n_blocks, float16 acc[GROUPS][NT]) {
    global const uchar* q2 = both ? q + GROUP_BYTES : q;
    global const uchar* s2 = both ? s + GROUP_SCALES : s;
    for (int b = 0; b < n_blocks; b += SPAN) {
        Unpacked w[GROUPS];
        unpack_span(q, s, b, &w[0]);
        unpack_span(q2, s2, b, &w[1]);
        int t = 0;
        for (; nt - t > TILE / 2; t += TILE) dot_tile(TILE, w, X, IN, t, nt, n_blocks, b, acc);
        if (t < nt) dot_tile(TILE / 2, w, X, IN, t, nt, n_blocks, b, acc);
    }
}
