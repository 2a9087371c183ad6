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
// Region 2: the scales, again of 16 rows side by side (scales.cl).
//
// Weight = code * d + m, where the code may come from a table (TABLE_LOW, TABLE_HIGH) or be
// multiplied by an integer scale of 16 columns. Where a float scale covers 16 columns PARTS is 2:
// d[0], m[0] are those of pairs 0..7, d[1], m[1] of the others.
//
// All that differs between types is defined by their rows in kernels/quantization/quants.py, by
// way of packing.py:
//   LOW_BITS, HIGH_BITS, QBYTES    bits of a code, and bytes of a block's codes
//   SCALES_x, SUPER, SBYTES, PARTS where scales are and what they cover
//   STEP, OFFSET, WITH_M           weight = scale * (code * STEP - OFFSET), but for forms whose
//                                  offsets are stored; WITH_M if there are any
//   CODE_AT                        the bit of a short where its code is placed; what is then a
//                                  multiple of a power of two is put right by the scale
//   TABLE_x                        what a code stands for, as 16 bytes from the lowest one on. Code
//                                  0 is 0: lookup() wants that. So a whole table is moved up
//                                  (OFFSET moves it down again) or begins with a 0; then it has
//                                  signed bytes, which CODE_AT 8 makes signed shorts of
//   MOST_SPAN                      see X_SPAN
//   BLOCK_BYTES, D_AT, M_AT        of the file's blocks, for pack.cl
//   DEPTH, SIGNED_CODES, BYTE_TABLE_x  for quads.cl
//   WEIGHT_BYTES, LOAD_WEIGHT      in place of all others, of floating-point weights
//
// Who defines X_SPAN has activations of which so many blocks share a scale. SPAN blocks can then be
// summed as integers. Where that is more than 1, and for activations of 8 bits where MADD_BYTES_256
// multiplies by scales at no cost (bytes.cl), d is that of the super-block, and codes or sums are
// to be multiplied by sum_scale().
//
// Who defines IN_PLACE may get codes of 4 to 6 bits as they lie in their plane: then it stays
// defined, and pair p is 2^IN_PLACE_BIT(p) times too large. With SUM_SCALES too (Q6_K) they are
// OFFSET_CODE too large; the sums of 16 columns are to be multiplied by their integer scales.

#ifdef LOW_BITS

#if LOW_BITS != 4 || defined(TABLE_LOW) || (defined(SCALES_CHARS) && HIGH_BITS != 2)
#undef IN_PLACE
#endif
#ifdef IN_PLACE  // a short has no room for the fourth
#define IN_PLACE_BIT(p) ((p) % 4 < 3 ? 4 * ((p) % 4) : 0)
#define CODE_BIT(p) IN_PLACE_BIT(p)
#ifdef SCALES_CHARS
#define SUM_SCALES
#endif
#else
#define CODE_BIT(p) CODE_AT
#endif
#define OFFSET_CODE (1 << (LOW_BITS + HIGH_BITS - 1))  // makes signed codes unsigned ones
#define HIGH_AT(p) (((p) % 4 < 3 ? 4 * ((p) % 4) + 4 : 0) + 2 * ((p) / 4 % 2))
// The bits of both halves of v from bit `from` on that bits_ has, moved to bit `to`.
#define BITS(v, from, to, bits_)                                                              \
    ((vint)((to) >= (from) ? (v) << ((to) - (from)) : (v) >> ((from) - (to))) &               \
     (vint)((int)((bits_) * 0x00010001u << (to))))

#include "quantization/scales.cl"

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
#ifdef SUM_SCALES
    for (int i = 0; i < 2; i++) h[i] ^= (vint)(0xAAAAAAAA);
#endif
    #pragma unroll
    for (int p = 0; p < 16; p++)
        w[p] |= as_vpair(BITS(h[p / 8], HIGH_AT(p), CODE_BIT(p) + LOW_BITS, 3));
#endif
#ifdef TABLE_LOW
    #pragma unroll
    for (int p = 0; p < 16; p++) w[p] = lookup(w[p], CODE_AT, TABLE_LOW, TABLE_HIGH);
#endif
#if !defined(SUM_SCALES) && \
    (defined(SCALES_CHARS) || defined(SCALES_NIBBLES) || defined(SCALES_1M))
    scale_codes(s, b, w LANE_ARG);
#endif
}

#elif defined(LOAD_WEIGHT)  // float weights: for each group, K x 16 values; no scales

#define QBYTES (WEIGHT_BYTES * 32 * ROWS)

#else
#error "no tensor type is defined"
#endif
