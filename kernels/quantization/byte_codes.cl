// Packed weights to quads: ints of four bytes, the codes of columns 0 4 1 5 or 2 6 3 7 of every 8.
// These are the pairs p and p + 2 of unpack.cl, since that is how nibbles lie in their planes. A
// block of 32 columns has 8 quads. For quads.cl and, on GPUs, matvec_simt.cl.
//
// On CPUs, whose instructions want them so, codes are unsigned where no table or 8 bits make them
// signed: those of SCALES_CHARS are moved up, and what a table holds is not (BYTE_TABLE). On GPUs
// codes are what unpack.cl says, but those of SCALES_CHARS, which have their sign at the top of a
// byte: they are 2^BYTE_AT times too large.

#define QUADS 8

#if defined(SIMT) && defined(SCALES_CHARS)
#define BYTE_AT (8 - LOW_BITS - HIGH_BITS)
#else
#define BYTE_AT 0
#if defined(SCALES_CHARS)
#define CODES_MOVED_UP
#endif
#endif

#ifdef SIMT
#define LOOKED_UP(v) lookup_quad(v, TABLE_LOW, TABLE_HIGH)
#else
#define LOOKED_UP(v) \
    __builtin_astype(lookup(as_vpair(v), 0, BYTE_TABLE_LOW, BYTE_TABLE_HIGH), vint)
#endif

// The low bits of pair p from bit `to` on.
#define LOW(p, to)                                                                           \
    BITS(planes[(p) * LOW_BITS / 16], LOW_BITS * ((p) % (16 / LOW_BITS)), to, (1 << LOW_BITS) - 1)
#if LOW_BITS == 3  // five pairs to a plane, the last one's bits at their ends
#undef LOW
#define LOW(p, to)                                                                            \
    ((p) == 15 ? BITS(planes[0], 15, to, 1) | BITS(planes[1], 15, (to) + 1, 1) |              \
                     BITS(planes[2], 15, (to) + 2, 1)                                         \
               : BITS(planes[(p) / 5 % 3], 3 * ((p) % 5), to, 7))
#endif

INLINE void unpack_quads(global const uchar* q, vint* codes LANE) {
#if LOW_BITS == 8
    #pragma unroll
    for (int i = 0; i < QUADS; i++) codes[i] = LOAD_INT(q, i);
#else
    vint planes[LOW_BITS + HIGH_BITS];
    #pragma unroll
    for (int i = 0; i < LOW_BITS + HIGH_BITS; i++) planes[i] = LOAD_INT(q, i);
#if defined(CODES_MOVED_UP) && HIGH_BITS == 2
    planes[LOW_BITS] ^= (vint)(0xAAAAAAAA);
    planes[LOW_BITS + 1] ^= (vint)(0xAAAAAAAA);
#endif
    #pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const int p = 4 * (i / 2) + i % 2;
        vint v = LOW(p, BYTE_AT) | LOW(p + 2, 8 + BYTE_AT);
#if HIGH_BITS == 1
        v |= BITS(planes[LOW_BITS], p, 4, 1) | BITS(planes[LOW_BITS], p + 2, 12, 1);
#elif HIGH_BITS == 2
        const vint high = planes[LOW_BITS + p / 8];
        v |= BITS(high, HIGH_AT(p), 4 + BYTE_AT, 3);
        v |= BITS(high, HIGH_AT(p + 2), 12 + BYTE_AT, 3);
#endif
#if defined(CODES_MOVED_UP) && HIGH_BITS != 2
        v ^= (vint)(OFFSET_CODE * 0x01010101);
#endif
#ifdef BYTE_TABLE_LOW
        v = LOOKED_UP(v);
#endif
        codes[i] = v;
    }
#endif
}

// Integer scales of the halves, i, of block `sub` of a super-block.
#if defined(SCALES_CHARS)
INLINE vint half_scale(global const uchar* s, int sub, int i LANE) {
    return LOAD_CHAR(s + 32, 2 * sub + i);
}
INLINE vint half_offset(global const uchar* s, int sub, int i LANE) {
    return half_scale(s, sub, i LANE_ARG) * -OFFSET_CODE;
}
#elif defined(SCALES_2K)
INLINE vint half_scale(global const uchar* s, int sub, int i LANE) {
    return LOAD_UCHAR(s + 64, 2 * sub + i) & 15;
}
INLINE vint half_offset(global const uchar* s, int sub, int i LANE) {
    return LOAD_UCHAR(s + 64, 2 * sub + i) >> 4;
}
#elif defined(SCALES_NIBBLES)
INLINE vint half_scale(global const uchar* s, int sub, int i LANE) {
    return 2 * ((LOAD_UCHAR(s + 32, sub) >> (4 * i)) & 15) + 1;
}
#endif
