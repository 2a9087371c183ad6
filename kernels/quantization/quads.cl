// Packed weights to bytes, for products with activations of 8 bits (bytes.cl).
//
// A quad is an int of four bytes, of every 8 columns 0 4 1 5 or 2 6 3 7: the pairs p and p + 2 of
// unpack.cl, since that is how nibbles lie in their planes. A block of 32 columns has 8 quads, and
// 16 rows of one are a vector. Codes are unsigned, or with SIGNED_CODES signed (what a table holds
// is not moved up here). DEPTH: so many quads, times activations, can be summed in 16 bits.
//
// Weight = code * d + m (with ADD_M). Where scales are integers d is that of the super-block and
// sums have yet to be multiplied:
//   BLOCK_SCALES  those of the block by sum_scale(), with MADD_BYTES_256
//   HALF_SCALES   those of 16 columns by half_scale(); with HALF_OFFSETS offsets * (sums of
//                 activations) are added, in the unit of d, or with HALF_MINS of m
// Without MADD_BYTES_256 sums begin at what MOVED_UP, that codes are too large, adds to them.
// Scales are twice in an int, as shorts; offsets have both halves in one.

#define QUADS 8

#if defined(SCALES_CHARS)
#define HALF_SCALES
#ifdef MADD_BYTES_256
#define HALF_OFFSETS
#endif
#elif defined(SCALES_2K)
#define HALF_SCALES
#define HALF_OFFSETS
#define HALF_MINS
#elif defined(SCALES_NIBBLES)
#define HALF_SCALES
#endif
#if defined(WITH_M) && !defined(SIGNED_CODES) && !defined(HALF_MINS)
#define ADD_M
#endif

#if defined(SIGNED_CODES)
#define MOVED_UP 128
#elif defined(SCALES_CHARS)
#define MOVED_UP OFFSET_CODE
#else
#define MOVED_UP 0
#endif

typedef struct {
    vint codes[QUADS];
    float16 d;
#if defined(ADD_M) || defined(HALF_MINS)
    float16 m;
#endif
#if defined(BLOCK_SCALES)
    vint scale;
#elif defined(HALF_SCALES)
    vint scales[2];
#endif
#ifdef HALF_OFFSETS
    vint offsets;
#endif
} Unpacked;

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

INLINE void unpack_quads(global const uchar* q, vint* codes) {
#if LOW_BITS == 8
    #pragma unroll
    for (int i = 0; i < QUADS; i++) codes[i] = LOAD_INT(q, i);
#else
    vint planes[LOW_BITS + HIGH_BITS];
    #pragma unroll
    for (int i = 0; i < LOW_BITS + HIGH_BITS; i++) planes[i] = LOAD_INT(q, i);
#if defined(SCALES_CHARS) && HIGH_BITS == 2  // not signed any more
    planes[LOW_BITS] ^= (vint)(0xAAAAAAAA);
    planes[LOW_BITS + 1] ^= (vint)(0xAAAAAAAA);
#endif
    #pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const int p = 4 * (i / 2) + i % 2;
        vint v = LOW(p, 0) | LOW(p + 2, 8);
#if HIGH_BITS == 1
        v |= BITS(planes[LOW_BITS], p, 4, 1) | BITS(planes[LOW_BITS], p + 2, 12, 1);
#elif HIGH_BITS == 2
        const vint high = planes[LOW_BITS + p / 8];
        v |= BITS(high, HIGH_AT(p), 4, 3) | BITS(high, HIGH_AT(p + 2), 12, 3);
#endif
#if defined(SCALES_CHARS) && HIGH_BITS != 2
        v ^= (vint)(OFFSET_CODE * 0x01010101);
#endif
#ifdef BYTE_TABLE_LOW
        v = __builtin_astype(lookup(as_vpair(v), 0, BYTE_TABLE_LOW, BYTE_TABLE_HIGH), vint);
#endif
        codes[i] = v;
    }
#endif
}

#if defined(SCALES_CHARS)
INLINE vint half_scale(global const uchar* s, int sub, int i) {
    return LOAD_CHAR(s + 32, 2 * sub + i);
}
INLINE vint half_offset(global const uchar* s, int sub, int i) {
    return half_scale(s, sub, i) * -OFFSET_CODE;
}
#elif defined(SCALES_2K)
INLINE vint half_scale(global const uchar* s, int sub, int i) {
    return LOAD_UCHAR(s + 64, 2 * sub + i) & 15;
}
INLINE vint half_offset(global const uchar* s, int sub, int i) {
    return LOAD_UCHAR(s + 64, 2 * sub + i) >> 4;
}
#elif defined(SCALES_NIBBLES)
INLINE vint half_scale(global const uchar* s, int sub, int i) {
    return 2 * ((LOAD_UCHAR(s + 32, sub) >> (4 * i)) & 15) + 1;
}
#endif

INLINE void unpack_block(global const uchar* q, global const uchar* s, int b, Unpacked* w) {
    global const uchar* super = s + (b / SUPER) * SBYTES;
    unpack_quads(q, w->codes);
#ifdef HALF_MINS
    w->d = LOAD_HALF(super, 0);
    w->m = -LOAD_HALF(super, 1);
#else
    vfloat m;
    unpack_scales(s, b, &w->d, &m);
#ifdef SCALES_E8M0
    w->d *= (float)(1 << CODE_AT);  // which is for shorts
#endif
#ifdef ADD_M
    w->m = m;
#endif
#endif
#if defined(BLOCK_SCALES)
    const vint scale = sum_scale(s, b);
    w->scale = __builtin_astype(BOTH(scale), vint);
#elif defined(HALF_SCALES)
    for (int i = 0; i < 2; i++) {
        const vint scale = half_scale(super, b % SUPER, i);
        w->scales[i] = __builtin_astype(BOTH(scale), vint);
    }
#endif
#ifdef HALF_OFFSETS
    w->offsets =
        (half_offset(super, b % SUPER, 0) & 0xFFFF) | half_offset(super, b % SUPER, 1) << 16;
#endif
}
