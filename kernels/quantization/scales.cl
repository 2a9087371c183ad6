// The scales of packed weights: what a type's form, SCALES_x, means. For unpack.cl.
//
// From byte `scales_at` of a matrix on there are for each group of 16 rows, for each SUPER blocks,
// SBYTES bytes. In the order of memory, a half, uchar or char each for 16 rows:
//   SCALES_HALF     half d
//   SCALES_HALVES   half d, m
//   SCALES_K        half d, dmin; 8 uchar scales, 8 uchar mins of blocks
//   SCALES_2K       half d, dmin; 16 uchar: scale and min (high half) of 16 columns
//   SCALES_CHAR     half d; 8 char scales of blocks
//   SCALES_CHARS    half d; 16 char scales of 16 columns
//   SCALES_NIBBLES  half d; 8 uchar: n, n' of 16 columns (high half), scale 2n + 1
//   SCALES_1S       half d; 8 uchar: scale of a block, 16 if codes move down by 1/8, not up
//   SCALES_1M       half d; 8 ushort: n, n' of 16 columns (3 bits), 4 bits like 1S's of 8
//   SCALES_E8M0     uchar exponent of a block
//   SCALES_UE4M3    4 uchar scales of 16 columns; float scale of all, 12 bytes nothing
//   SCALES_FLOAT    float d
// Their sizes, and what else follows from a form, are in kernels/quantization/packing.py.

#if defined(X_SPAN) && defined(MOST_SPAN)
#define SPAN MOST_SPAN
#else
#define SPAN 1
#endif
#if SPAN > 1 || (defined(X_BYTES) && defined(SCALES_K) && defined(MADD_BYTES_256))
#define BLOCK_SCALES
#endif
#define BOTH(v) as_vpair(((v) & (vint)(0xFFFF)) | ((v) << 16))

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
