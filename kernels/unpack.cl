// Packed weights to numbers: the one place that knows the layout pack.cl writes.
//
// A matrix of M rows and K columns is cut into groups of 16 rows and blocks of 32 columns.
// Region 1, the codes: for each group, for each block, QBYTES bytes:
//   LOW_BITS 4   4 x 16 ints. Bits 4j of int c of a row hold the codes of columns 8c+2j (low
//                half) and 8c+2j+1 (high half), so (v >> 4j) & 0x000F000F is a pair of shorts.
//   LOW_BITS 8   8 x 16 ints. Bytes 0..3 of int c are columns 4c, 4c+2, 4c+1, 4c+3 (signed).
//   HIGH_BITS 1  1 x 16 ints: bit p and bit 16+p are bit 4 of columns 2p and 2p+1.
//   HIGH_BITS 2  2 x 16 ints: bits 2(p%8) and 16+2(p%8) of int p/8 are bits 4 and 5 of them.
// Region 2, from byte `scales_at`: for each group, for each block (super-block of 256 columns
// for the K types), SBYTES bytes, again 16 rows side by side:
//   Q4_0 Q5_0 Q8_0   16 half d
//   Q4_1 Q5_1        16 half d, 16 half m
//   Q4_K Q5_K        16 half d, 16 half dmin, 8 x 16 uchar scales, 8 x 16 uchar mins
//   Q6_K             16 half d, 16 x 16 char scales (of 16 columns each)
// Weight = code * d + m; codes of Q6_K come out already multiplied by their integer scale.

#if defined(TYPE_Q4_0)
#define LOW_BITS 4
#define HIGH_BITS 0
#define ZERO_POINT 8
#elif defined(TYPE_Q4_1)
#define LOW_BITS 4
#define HIGH_BITS 0
#define HAS_M
#elif defined(TYPE_Q5_0)
#define LOW_BITS 4
#define HIGH_BITS 1
#define ZERO_POINT 16
#elif defined(TYPE_Q5_1)
#define LOW_BITS 4
#define HIGH_BITS 1
#define HAS_M
#elif defined(TYPE_Q8_0)
#define LOW_BITS 8
#define HIGH_BITS 0
#elif defined(TYPE_Q4_K)
#define LOW_BITS 4
#define HIGH_BITS 0
#define SCALES_K
#elif defined(TYPE_Q5_K)
#define LOW_BITS 4
#define HIGH_BITS 1
#define SCALES_K
#elif defined(TYPE_Q6_K)
#define LOW_BITS 4
#define HIGH_BITS 2
#define SCALES_6K
#endif

#ifdef LOW_BITS

#define QBYTES (64 * (LOW_BITS + HIGH_BITS))
#if defined(SCALES_K)
#define SUPER 8
#define SBYTES 320
#elif defined(SCALES_6K)
#define SUPER 8
#define SBYTES 288
#elif defined(HAS_M)
#define SUPER 1
#define SBYTES 64
#else
#define SUPER 1
#define SBYTES 32
#endif
#if defined(HAS_M) || defined(SCALES_K) || defined(ZERO_POINT)
#define WITH_M
#endif

// The scale d and offset m of block b of a group, whose scales begin at s.
INLINE void unpack_scales(global const uchar* s, int b, vfloat* d, vfloat* m LANE) {
    s += (b / SUPER) * SBYTES;
#if defined(SCALES_K)
    const int sub = b % SUPER;
    *d = LOAD_HALF(s, 0) * to_vfloat(LOAD_UCHAR(s + 64, sub));
    *m = -LOAD_HALF(s, 1) * to_vfloat(LOAD_UCHAR(s + 192, sub));
#elif defined(HAS_M)
    *d = LOAD_HALF(s, 0);
    *m = LOAD_HALF(s, 1);
#elif defined(ZERO_POINT)
    *d = LOAD_HALF(s, 0);
    *m = *d * (vfloat)(-ZERO_POINT);
#else
    *d = LOAD_HALF(s, 0);
    *m = (vfloat)(0);
#endif
}

// The codes of the 32 columns of block b as 16 pairs; q is where the block's codes begin.
INLINE void unpack_codes(global const uchar* q, global const uchar* s, int b, vpair* w LANE) {
#if LOW_BITS == 8
    #pragma unroll
    for (int c = 0; c < 8; c++) {
        vpair v = as_vpair(LOAD_INT(q, c));
        w[2 * c] = (vpair)(v << (vpair)(8)) >> (vpair)(8);
        w[2 * c + 1] = v >> (vpair)(8);
    }
#else
    #pragma unroll
    for (int c = 0; c < 4; c++) {
        vint v = LOAD_INT(q, c);
        #pragma unroll
        for (int j = 0; j < 4; j++)
            w[4 * c + j] = as_vpair((v >> (4 * j)) & (vint)(0x000F000F));
    }
#if HIGH_BITS == 1
    vint h = LOAD_INT(q, 4);
    #pragma unroll
    for (int p = 0; p < 16; p++) {
        vint bit = p < 4 ? h << (4 - p) : h >> (p - 4);
        w[p] |= as_vpair(bit & (vint)(0x00100010));
    }
#elif HIGH_BITS == 2
    s += (b / SUPER) * SBYTES + 32;
    vint h[2] = {LOAD_INT(q, 4), LOAD_INT(q, 5)};
    vint scale[2] = {LOAD_CHAR(s, 2 * (b % SUPER)), LOAD_CHAR(s, 2 * (b % SUPER) + 1)};
    #pragma unroll
    for (int p = 0; p < 16; p++) {
        vint v = h[p / 8];
        vint bits = p % 8 < 2 ? v << (4 - 2 * (p % 8)) : v >> (2 * (p % 8) - 4);
        vpair code = (w[p] | as_vpair(bits & (vint)(0x00300030))) - (vpair)(32);
        vint sc = scale[p / 8];
        w[p] = code * as_vpair((sc & (vint)(0xFFFF)) | (sc << 16));
    }
#endif
#endif
}

#else  // float weights: for each group, K x 16 values; no scales

#if defined(TYPE_F32)
#define LOAD_WEIGHT LOAD_FLOAT
#define QBYTES (4 * 32 * ROWS)
#elif defined(TYPE_F16)
#define LOAD_WEIGHT LOAD_HALF
#define QBYTES (2 * 32 * ROWS)
#elif defined(TYPE_BF16)
#define LOAD_WEIGHT LOAD_BF16
#define QBYTES (2 * 32 * ROWS)
#else
#error "no TYPE_ defined"
#endif

#endif
