// Products of a group of 16 rows with tokens one after the other, by pairs of columns, for
// matmul_simd.cl: unpacked once for all of them.

// Sums of products side by side. Where it believes that a chain of them is what takes the time,
// LLVM makes a multiplication and an addition of each vpdpwssd, a quarter slower for many tokens;
// with these numbers it does not.
#if defined(SUM_SCALES)
#define CHAINS 8
#define CHAIN(p) ((p) / 8 * 4 + (p) % 4)
#elif defined(IN_PLACE)
#define CHAINS 4
#define CHAIN(p) ((p) % 4)
#else
#if PARTS == 2 || defined(WITH_M)
#define CHAINS 2
#else
#define CHAINS 4
#endif
#define CHAIN(p) ((p) * CHAINS / 16)
#endif

// The sum of 8 pairs of activations, made of whole words so that it leaves the vector units
// to the products: 32768 more each, they are positive, and the sums of even and of odd ones do
// not meet.
INLINE float sum_pairs(global const int* x) {
    global const ulong* v = (global const ulong*)x;
    const ulong sign = 0x8000800080008000, even = 0x0000FFFF0000FFFF;
    ulong sum = 0;
    #pragma unroll
    for (int i = 0; i < 4; i++) sum += ((v[i] ^ sign) & even) + (((v[i] ^ sign) >> 16) & even);
    return (float)((int)sum + (int)(sum >> 32) - 16 * 32768);
}

// factor times the sum of the first 8 of 16 pairs of activations in lanes 0..7, of the others in
// lanes 8..15. With whole words instead the compiler would read the activations once for both,
// and products of registers take twice as long as those of memory.
INLINE int16 sum_halves(global const int* x, short factor) {
    int16 v = madd(as_vpair(vload16(0, x)), (vpair)(factor), (int16)(0));
    v += v.s1032547698badcfe;
    v += v.s23016745ab89efcd;
    return v + v.s45670123cdef89ab;
}

#ifdef ACT_INT
// Adds to *acc the products of a token's block, xb with the scales xs, and the one that is `sub` of
// its super-block; *total are those of a span, which `ends` with it.
INLINE void dot_token(const vpair* w, const float16* d, const float16* m, global const uchar* s,
                      int sub, global const int* xb, global const x_scale_t* xs, bool ends,
                      int16* total, float16* acc) {
    int16 sum[CHAINS];
#ifdef PAIRS_APART
    pair_sums apart[CHAINS];
    for (int i = 0; i < CHAINS; i++) apart[i] = NO_SUMS;
    #pragma unroll
    for (int p = 0; p < 16; p++)
        apart[CHAIN(p)] = madd_apart(w[p], as_vpair((int16)(xb[p])), apart[CHAIN(p)]);
    for (int i = 0; i < CHAINS; i++) sum[i] = joined(apart[i]);
#else
    for (int i = 0; i < CHAINS; i++) sum[i] = 0;
#endif
#ifdef SUM_SCALES
    const int16 offsets = sum_halves(xb, -OFFSET_CODE);
    sum[0] += offsets.s0000000000000000;
    sum[4] += offsets.s8888888888888888;
#endif
#ifndef PAIRS_APART
    #pragma unroll
    for (int p = 0; p < 16; p++)
        sum[CHAIN(p)] = madd(w[p], as_vpair((int16)(xb[p])), sum[CHAIN(p)]);
#endif
#if defined(SUM_SCALES)
    for (int i = 0; i < 2; i++)
        sum[i] = (sum[4 * i] + (sum[4 * i + 1] >> 4) + (sum[4 * i + 2] >> 8) + sum[4 * i + 3]) *
                 sum_scale(s, sub, i);
#elif defined(IN_PLACE)
    sum[0] += sum[1] >> 4;
    sum[1] = (sum[2] >> 8) + sum[3];
#elif CHAINS == 4
    sum[0] += sum[1];
    sum[1] = sum[2] + sum[3];
#endif
#if PARTS == 1
    sum[0] += sum[1];
#endif
#if SPAN > 1
    *acc = fma(m[0], (float16)(xs->y), *acc);
    *total += sum[0] * sum_scale(s, sub);
    if (ends) {
        *acc = fma(convert_float16(*total) * xs->x, d[0], *acc);
        *total = 0;
    }
#else
#if PARTS == 2
    const float16 first = convert_float16(sum[0]) * d[0];
    *acc = fma(fma(convert_float16(sum[1]), d[1], first), (float16)(xs->x), *acc);
#else
    *acc = fma(convert_float16(sum[0]) * xs->x, d[0], *acc);
#endif
#ifdef WITH_M
    *acc = fma(m[0], (float16)(xs->y), *acc);
#if PARTS == 2
    *acc = fma(m[1] - m[0], (float16)(sum_pairs(xb + 8) * xs->x), *acc);
#endif
#endif
#endif
}
#endif

// Up to so many tokens have their sums in registers, of which AVX-512 has enough: from memory two
// take a fifth longer. Where blocks have offsets, too, only two are worth it. Steps of few tokens
// have tiles of 8, and an expert may get few in any tile; others would only take longer to compile.
#if NT < 8 || (NT > 8 && !defined(EXPERTS)) || !defined(ACT_INT) || \
    !(defined(DOT_PAIRS_512) || defined(DOT_INTS_512))
#define FEW 0
#elif defined(WITH_M)
#define FEW 2
#else
#define FEW 8
#endif

#define DOT_TOKEN(t, row)                                                                   \
    do {                                                                                    \
        const size_t at = (size_t)ROW_IN(row) * n_blocks + b;                               \
        dot_token(w, d, m, s, sub, x + at * 16, xd + at, b % SPAN == SPAN - 1, total + (t), \
                  acc + (t));                                                               \
    } while (0)
// The tokens t and t + 1, or t again if it is the last. Never more than two in a row, never one, or
// LLVM believes in chains.
#define DOT_TWO(t)                                \
    do {                                          \
        DOT_TOKEN(t, t);                          \
        DOT_TOKEN((t) + 1, min((t) + 1, nt - 1)); \
    } while (0)

// Adds to acc the products of SUPER blocks, from block first on, with nt tokens, of which there are
// at most FEW if they are `few`, a constant.
INLINE void dot_blocks(const bool few, global const uchar* q, global const uchar* s, X_ARGS, IN_ARG,
                       int nt, int n_blocks, int first, float16* acc) {
#if SPAN > 1
    int16 total[NT];
    for (int t = 0; t < (few ? FEW : nt); t++) total[t] = 0;
#else
    int16* total = 0;
#endif
    for (int sub = 0; sub < SUPER; sub++, q += QBYTES) {
        const int b = first + sub;
        vpair w[16];
        float16 d[PARTS], m[PARTS];
        #pragma unroll
        for (int i = 0; i < QBYTES; i += 64) PREFETCH(q + PREFETCH_BYTES + i);
        unpack_scales(s, sub, d, m);
        unpack_codes(q, s, sub, w);
#ifdef ACT_INT
#if FEW > 1
        if (few) {
            DOT_TWO(0);
#if FEW > 2
            if (nt > 2) DOT_TWO(2);
            if (nt > 4) DOT_TWO(4);
            if (nt > 6) DOT_TWO(6);
#endif
            continue;
        }
#endif
        for (int t = 0; t < nt; t++) DOT_TOKEN(t, t);
#else
        #pragma unroll
        for (int p = 0; p < 16; p++) {
            const int part = p * PARTS / 16;
            const float16 w0 = fma(EVEN(w[p]), d[part], m[part]);
            const float16 w1 = fma(ODD(w[p]), d[part], m[part]);
            for (int t = 0; t < nt; t++) {
                global const float* xb = x + ((size_t)ROW_IN(t) * n_blocks + b) * 32 + 2 * p;
                acc[t] = fma(w1, (float16)(xb[1]), fma(w0, (float16)(xb[0]), acc[t]));
            }
        }
#endif
    }
}

// Adds to acc the products of one group with nt tokens.
INLINE void dot_group(global const uchar* q, global const uchar* s, X_ARGS, IN_ARG, int nt,
                      int n_blocks, float16* acc) {
#if FEW > 1
    if (nt <= FEW) {
        float16 a[FEW];
        #pragma unroll
        for (int t = 0; t < FEW; t++) a[t] = acc[t];
        for (int b = 0; b < n_blocks; b += SUPER, q += SUPER * QBYTES, s += SBYTES)
            dot_blocks(true, q, s, X, IN, nt, n_blocks, b, a);
        #pragma unroll
        for (int t = 0; t < FEW; t++) acc[t] = a[t];
        return;
    }
#endif
    for (int b = 0; b < n_blocks; b += SUPER, q += SUPER * QBYTES, s += SBYTES)
        dot_blocks(false, q, s, X, IN, nt, n_blocks, b, acc);
}
