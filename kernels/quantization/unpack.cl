// Packed weights to numbers: the one place, with quads.cl, that knows the layout pack.cl writes.
//
// A matrix of M rows and K columns is cut into groups of 16 rows and blocks of 32 columns.
// Region 1, the codes: for each group, for each block, QBYTES bytes. Columns 2p and 2p + 1 are
// pair p; a plane is 1 x 16 ints and its two halves hold the codes of even and odd columns.
//   LOW_BITS 1 2 4  so many planes; pair p is in plane p / n at bit LOW_BITS * (p % n), n being
//                16 / LOW_BITS: (v >> 4j) & 0x000F000F is a pair of shorts.
//   LOW_BITS 3   3 planes: pairs 0..14 like that with n = 5; bit i of pair 15 at bit 15 of plane i.
//   LOW_BITS 16  16 x 16 ints, each a pair of shorts.
//   LOW_BITS 8   8 x 16 ints of signed bytes: of every 8 columns 0 4 1 5, then 2 6 3 7.
//   HIGH_BITS 1  1 plane more: bit 4 of pair p at bit p.
//   HIGH_BITS 2  2 planes more: bits 4 and 5 of pair p in plane p / 8 at bit HIGH_AT(p), which
//                is where they are wanted above the low ones, or two bits higher, for 3 of 4.
// Region 2, from byte `scales_at`: for each group, for each SUPER blocks, SBYTES bytes, again 16
// rows side by side: what SCALES_x below says.
//
// Weight = code * d + m, where the code may come from a table (TABLE) or be multiplied by an
// integer scale of 16 columns. Where a float scale covers 16 columns PARTS is 2: d[0], m[0] are
// those of pairs 0..7, d[1], m[1] of the others.
//
// Who defines X_SPAN has activations of which so many blocks share a scale. SPAN blocks can then be
// summed as integers. Where that is more than 1, and for activations of 8 bits (X_BYTES, bytes.cl)
// d is that of the super-block, and codes or sums are to be multiplied by sum_scale().
//
// Who defines IN_PLACE may get codes of 4 to 6 bits as they lie in their plane: then it stays
// defined, and pair p is 2^IN_PLACE_BIT(p) times too large. With SUM_SCALES too (Q6_K) they are
// OFFSET_CODE too large; the sums of 16 columns are to be multiplied by their integer scales.

// STEP and OFFSET: weight = scale * (code * STEP - OFFSET). CODE_AT: the bit of a short where its
// code is placed; what is then a multiple of a power of two is put right by the scale.
#if defined(TYPE_Q1_0)
#define LOW_BITS 1
#define SUPER 4
#define STEP 2.0f
#define OFFSET 1.0f
#elif defined(TYPE_Q2_0)
#define LOW_BITS 2
#define SUPER 2
#define OFFSET 1.0f
#elif defined(TYPE_TQ1_0) || defined(TYPE_TQ2_0)
#define LOW_BITS 2
#define SUPER 8
#define OFFSET 1.0f
#elif defined(TYPE_Q4_0)
#define LOW_BITS 4
#define OFFSET 8.0f
#elif defined(TYPE_Q4_1)
#define LOW_BITS 4
#define SCALES_HALVES
#elif defined(TYPE_Q5_0)
#define LOW_BITS 4
#define HIGH_BITS 1
#define OFFSET 16.0f
#elif defined(TYPE_Q5_1)
#define LOW_BITS 4
#define HIGH_BITS 1
#define SCALES_HALVES
#elif defined(TYPE_Q8_0)
#define LOW_BITS 8
#elif defined(TYPE_INT13)
#define LOW_BITS 16
#define SCALES_FLOAT
#elif defined(TYPE_Q2_K)
#define LOW_BITS 2
#define SCALES_2K
#elif defined(TYPE_Q3_K)
#define LOW_BITS 3
#define CODE_AT 13
#define SCALES_CHARS
#elif defined(TYPE_Q4_K)
#define LOW_BITS 4
#define SCALES_K
#elif defined(TYPE_Q5_K)
#define LOW_BITS 4
#define HIGH_BITS 1
#define SCALES_K
#elif defined(TYPE_Q6_K)
#define LOW_BITS 4
#define HIGH_BITS 2
#define CODE_AT 10
#define SCALES_CHARS
#elif defined(TYPE_IQ1_S)
#define LOW_BITS 2
#define SCALES_1S
#elif defined(TYPE_IQ1_M)
#define LOW_BITS 2
#define SCALES_1M
#define STEP 0.125f
#elif defined(TYPE_IQ2_XXS)
#define LOW_BITS 3
#define SCALES_CHAR
#define STEP 0.125f
#define OFFSET 5.375f
#elif defined(TYPE_IQ2_XS) || defined(TYPE_IQ2_S)
#define LOW_BITS 3
#define CODE_AT 8
#define SCALES_NIBBLES
#define STEP 0.125f
#elif defined(TYPE_IQ3_XXS)
#define LOW_BITS 4
#define SCALES_CHAR
#define STEP 0.25f
#define OFFSET 15.5f
#elif defined(TYPE_IQ3_S)
#define LOW_BITS 4
#define SCALES_CHAR
#define STEP 2.0f
#define OFFSET 15.0f
#elif defined(TYPE_IQ4_NL)
#define LOW_BITS 4
#define OFFSET 127.0f
#elif defined(TYPE_IQ4_XS)
#define LOW_BITS 4
#define SCALES_CHAR
#define OFFSET 127.0f
#elif defined(TYPE_MXFP4)
#define LOW_BITS 4
#define CODE_AT 8
#define SCALES_E8M0
#elif defined(TYPE_NVFP4)
#define LOW_BITS 4
#define CODE_AT 8
#define SCALES_UE4M3
#endif

// What a code of 3 or 4 bits stands for, as 16 bytes from the lowest one on. Code 0 is 0: lookup()
// wants that. So a whole table is moved up (OFFSET moves it down again) or begins with a 0; then
// it has signed bytes, which CODE_AT 8 makes signed shorts of.
#if defined(TYPE_IQ2_XXS)
#define TABLE 0x0000564433231200, 0  // -43 -25 -8 8 25 43
#elif defined(TYPE_IQ2_XS) || defined(TYPE_IQ2_S)
#define TABLE 0x002B1908F8E7D500, 0  // 0, -43 -25 -8 8 25 43
#elif defined(TYPE_IQ3_XXS)
#define TABLE 0x3A322A221A120A00, 0x7C726A625A524A42  // -62 -52 -44 .. -4 4 .. 44 52 62
#elif defined(TYPE_IQ4_NL) || defined(TYPE_IQ4_XS)
#define TABLE 0x75695C4E3E2C1700, 0xF0D8C4B4A5988C80  // -127 -104 -83 .. 69 89 113
#elif defined(TYPE_MXFP4) || defined(TYPE_NVFP4)
#define TABLE 0x0C08060403020100, 0xF4F8FAFCFDFEFF00  // 0 1 2 3 4 6 8 12, the same below zero
#endif

#ifdef LOW_BITS

// In the order of memory, a half, uchar or char each for 16 rows:
#if defined(SCALES_HALVES)  // half d, m of a block
#define SBYTES 64
#elif defined(SCALES_K)  // half d, dmin; 8 uchar scales, 8 uchar mins of blocks
#define SUPER 8
#define SBYTES 320
#elif defined(SCALES_2K)  // half d, dmin; 16 uchar: scale and min (high half) of 16 columns
#define SUPER 8
#define SBYTES 320
#define PARTS 2
#elif defined(SCALES_CHAR)  // half d; 8 char scales of blocks
#define SUPER 8
#define SBYTES 160
#elif defined(SCALES_CHARS)  // half d; 16 char scales of 16 columns
#define SUPER 8
#define SBYTES 288
#elif defined(SCALES_NIBBLES)  // half d; 8 uchar: n, n' of 16 columns (high half), scale 2n + 1
#define SUPER 8
#define SBYTES 160
#elif defined(SCALES_1S)  // half d; 8 uchar: scale of a block, 16 if codes move down by 1/8, not up
#define SUPER 8
#define SBYTES 160
#elif defined(SCALES_1M)  // half d; 8 ushort: n, n' of 16 columns (3 bits), 4 bits like 1S's of 8
#define SUPER 8
#define SBYTES 288
#elif defined(SCALES_E8M0)  // uchar exponent of a block
#define SBYTES 16
#elif defined(SCALES_UE4M3)  // 4 uchar scales of 16 columns; float scale of all, 12 bytes nothing
#define SUPER 2
#define SBYTES 80
#define PARTS 2
#elif defined(SCALES_FLOAT)  // float d
#define SBYTES 64
#else  // half d
#define SBYTES 32
#endif

#ifndef HIGH_BITS
#define HIGH_BITS 0
#endif
#ifndef CODE_AT
#define CODE_AT 0
#endif
#ifndef SUPER
#define SUPER 1
#endif
#if defined(X_SPAN) && defined(SCALES_K)  // 256 codes of 4 bits or 128 of 5, times 6 bits
#define SPAN (8 >> HIGH_BITS)
#else
#define SPAN 1
#endif
#if SPAN > 1 || (defined(X_BYTES) && defined(SCALES_K))
#define BLOCK_SCALES
#endif
#ifndef PARTS
#define PARTS 1
#endif
#ifndef STEP
#define STEP 1.0f
#endif
#define QBYTES (64 * (LOW_BITS + HIGH_BITS))
#if defined(OFFSET) || defined(SCALES_HALVES) || defined(SCALES_K) || defined(SCALES_2K) || \
    defined(SCALES_1S)
#define WITH_M
#endif
#ifndef OFFSET
#define OFFSET 0.0f
#endif
#if LOW_BITS != 4 || defined(TABLE)
#undef IN_PLACE
#endif
#ifdef IN_PLACE  // a short has no room for the fourth
#define IN_PLACE_BIT(p) ((p) % 4 < 3 ? 4 * ((p) % 4) : 0)
#define CODE_BIT(p) IN_PLACE_BIT(p)
#if HIGH_BITS == 2
#define SUM_SCALES
#define OFFSET_CODE 32
#endif
#else
#define CODE_BIT(p) CODE_AT
#endif
#define HIGH_AT(p) (((p) % 4 < 3 ? 4 * ((p) % 4) + 4 : 0) + 2 * ((p) / 4 % 2))
#define BOTH(v) as_vpair(((v) & (vint)(0xFFFF)) | ((v) << 16))
// The bits of both halves of v from bit `from` on that bits_ has, moved to bit `to`.
#define BITS(v, from, to, bits_)                                                              \
    ((vint)((to) >= (from) ? (v) << ((to) - (from)) : (v) >> ((from) - (to))) &               \
     (vint)((int)((bits_) * 0x00010001u << (to))))

// The scales d and offsets m of block b of a group, whose scales begin at s. All products of a
// half and small integers are exact in a float.
INLINE void unpack_scales(global const uchar* s, int b, vfloat* d, vfloat* m LANE) {
    s += (b / SUPER) * SBYTES;
    const int sub = b % SUPER;
#if defined(SCALES_HALVES)
    d[0] = LOAD_HALF(s, 0);
    m[0] = LOAD_HALF(s, 1);
#elif defined(SCALES_K)
#ifdef BLOCK_SCALES
    d[0] = LOAD_HALF(s, 0);
#else
    d[0] = LOAD_HALF(s, 0) * to_vfloat(LOAD_UCHAR(s + 64, sub));
#endif
    m[0] = -LOAD_HALF(s, 1) * to_vfloat(LOAD_UCHAR(s + 192, sub));
#elif defined(SCALES_2K)
    for (int i = 0; i < 2; i++) {
        const vint v = LOAD_UCHAR(s + 64, 2 * sub + i);
        d[i] = LOAD_HALF(s, 0) * to_vfloat(v & 15);
        m[i] = -LOAD_HALF(s, 1) * to_vfloat(v >> 4);
    }
#elif defined(SCALES_1S)
    const vint v = LOAD_UCHAR(s + 32, sub);
    d[0] = LOAD_HALF(s, 0) * to_vfloat(v & 15);
    m[0] = d[0] * (-0.875f - 0.25f * to_vfloat(v >> 4));
#elif defined(SCALES_FLOAT)
    d[0] = LOAD_FLOAT(s, 0);
    m[0] = (vfloat)(0);
#elif defined(SCALES_E8M0)
    const vint e = LOAD_UCHAR(s, 0);  // half of 2^(e - 127), so that the table holds integers
    d[0] = as_vfloat(e < 2 ? (vint)(0x00200000) << e : (e - 1) << 23) * 0x1p-8f;
    m[0] = (vfloat)(0);
#elif defined(SCALES_UE4M3)
    const float scale = *(global const float*)(s + 64) * 0x1p-18f;
    for (int i = 0; i < 2; i++) {
        const vint v = LOAD_UCHAR(s, 2 * sub + i), e = v >> 3, f = v & 7;
        d[i] = scale * to_vfloat(e > 0 ? (f | 8) << (e - 1) : f);
        m[i] = (vfloat)(0);
    }
#else
#ifdef SCALES_CHAR
    const vfloat scale = LOAD_HALF(s, 0) * to_vfloat(LOAD_CHAR(s + 32, sub));
#else
    const vfloat scale = LOAD_HALF(s, 0);
#endif
    d[0] = scale * STEP;
    m[0] = scale * -OFFSET;
#endif
}

#ifdef BLOCK_SCALES
// The integer scale of block b.
INLINE vint sum_scale(global const uchar* s, int b LANE) {
    return LOAD_UCHAR(s + (b / SUPER) * SBYTES + 64, b % SUPER);
}
#elif defined(SUM_SCALES)
// The integer scale of a half, 0 or 1, of the columns of block b.
INLINE vint sum_scale(global const uchar* s, int b, int part LANE) {
    return LOAD_CHAR(s + (b / SUPER) * SBYTES + 32, 2 * (b % SUPER) + part);
}
#elif defined(SCALES_CHARS)
// The codes of the pairs of block b, signed and times 2^CODE_AT, times their integer scales.
INLINE void scale_codes(global const uchar* s, int b, vpair* w LANE) {
    s += (b / SUPER) * SBYTES + 32;
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const vint scale = LOAD_CHAR(s, 2 * (b % SUPER) + i) << (16 - CODE_AT);
        const vpair factor = BOTH(scale);
        #pragma unroll
        for (int p = 8 * i; p < 8 * i + 8; p++) w[p] = mul_high(w[p], factor);
    }
}
#elif defined(SCALES_NIBBLES)
// The same; what comes of a table is better shifted than multiplied that way.
INLINE void scale_codes(global const uchar* s, int b, vpair* w LANE) {
    const vint v = LOAD_UCHAR(s + (b / SUPER) * SBYTES + 32, b % SUPER);
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const vint scale = 2 * ((v >> (4 * i)) & 15) + 1;
        const vpair factor = BOTH(scale);
        #pragma unroll
        for (int p = 8 * i; p < 8 * i + 8; p++) w[p] = (w[p] >> (vpair)(CODE_AT)) * factor;
    }
}
#elif defined(SCALES_1M)
// Codes 0 1 2 stand for -1 0 1, plus or minus 1/8: in eighths, times their integer scales.
INLINE void scale_codes(global const uchar* s, int b, vpair* w LANE) {
    const vint n = LOAD_USHORT(s + (b / SUPER) * SBYTES + 32, b % SUPER);
    const vpair v = BOTH(n);
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        const vpair scale = ((v >> (vpair)(3 * (i / 2))) << (vpair)(1) & (vpair)(14)) + (vpair)(1);
        const vpair down = (vpair)(v << (vpair)(9 - i)) >> (vpair)(15);  // -1 or 0
        const vpair slope = scale << (vpair)(3);
        const vpair start = scale - slope - ((scale << (vpair)(1)) & down);
        #pragma unroll
        for (int p = 4 * i; p < 4 * i + 4; p++) w[p] = w[p] * slope + start;
    }
}
#endif

// The codes of the 32 columns of block b as 16 pairs; q is where the block's codes begin.
INLINE void unpack_codes(global const uchar* q, global const uchar* s, int b, vpair* w LANE) {
#if LOW_BITS == 8
    #pragma unroll
    for (int c = 0; c < 8; c++) {
        vpair v = as_vpair(LOAD_INT(q, c));
        w[4 * (c / 2) + c % 2] = (vpair)(v << (vpair)(8)) >> (vpair)(8);
        w[4 * (c / 2) + c % 2 + 2] = v >> (vpair)(8);
    }
#elif LOW_BITS == 16
    #pragma unroll
    for (int p = 0; p < 16; p++) w[p] = as_vpair(LOAD_INT(q, p));
#else
    const int n = 16 / LOW_BITS;
    #pragma unroll
    for (int c = 0; c < LOW_BITS; c++) {
        vint v = LOAD_INT(q, c);
        #pragma unroll
        for (int j = 0; j < n; j++)
            w[n * c + j] =
                as_vpair(BITS(v, LOW_BITS * j, CODE_BIT(n * c + j), (1 << LOW_BITS) - 1));
#ifdef IN_PLACE
        w[4 * c + 3] = SHIFTED_DOWN(as_vpair(v), 12);
#endif
#if LOW_BITS == 3
        const vint last = BITS(v, 15, CODE_AT + c, 1);
        w[15] = c == 0 ? as_vpair(last) : w[15] | as_vpair(last);
#endif
    }
#endif
#if HIGH_BITS == 1
    vint h = LOAD_INT(q, LOW_BITS);
    #pragma unroll
    for (int p = 0; p < 16; p++) w[p] |= as_vpair(BITS(h, p, CODE_BIT(p) + LOW_BITS, 1));
#elif HIGH_BITS == 2
    vint h[2] = {LOAD_INT(q, LOW_BITS), LOAD_INT(q, LOW_BITS + 1)};
#ifdef OFFSET_CODE
    for (int i = 0; i < 2; i++) h[i] ^= (vint)(0xAAAAAAAA);
#endif
    #pragma unroll
    for (int p = 0; p < 16; p++)
        w[p] |= as_vpair(BITS(h[p / 8], HIGH_AT(p), CODE_BIT(p) + LOW_BITS, 3));
#endif
#ifdef TABLE
    #pragma unroll
    for (int p = 0; p < 16; p++) w[p] = lookup(w[p], CODE_AT, TABLE);
#endif
#if !defined(SUM_SCALES) && \
    (defined(SCALES_CHARS) || defined(SCALES_NIBBLES) || defined(SCALES_1M))
    scale_codes(s, b, w LANE_ARG);
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
