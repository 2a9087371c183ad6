// Packed weights to bytes, for products with activations of 8 bits (bytes.cl).
//
// 16 rows of a quad (byte_codes.cl) are a vector. Codes are unsigned, or with SIGNED_CODES signed.
// DEPTH: so many quads, times activations, can be summed in 16 bits.
//
// Weight = code * d + m (with ADD_M). Where scales are integers d is that of the super-block and
// sums have yet to be multiplied:
//   BLOCK_SCALES  those of the block by sum_scale(), with MADD_BYTES_256
//   HALF_SCALES   those of 16 columns by half_scale(); with HALF_OFFSETS offsets * (sums of
//                 activations) are added, in the unit of d, or with HALF_MINS of m
// Without MADD_BYTES_256 sums begin at what MOVED_UP, that codes are too large, adds to them.
// Scales are twice in an int, as shorts; offsets have both halves in one.

#include "quantization/byte_codes.cl"

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
