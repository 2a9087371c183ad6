// Blocks of GGUF tensor types, read where they lie: for pack.cl only.
//
// For each type code4(p, k): the codes to pack of columns k to k + 3 of a block as four bytes, k a
// multiple of 4. On a CPU those of 16 rows at once (``words``): all but loads are vector
// instructions then. ONE_BY_ONE types have code(p, k) instead, for a column of one row. Halves that
// become integers have codes_of_32(p, codes), of a block of one row, and scale_of_32(p).
// sub_scale(p, sub), where scales are integers but for SCALES_K: that of 32 columns of one row or,
// where scales cover fewer, the sub-th one. scale_of(p): the block's half-precision scale, where
// its row in quants.py does not say where that is.
// The layouts are those of ggml's block_* structures. Types whose values come from a table or a
// codebook get codes of their own here, in the order of the values in their row.

INLINE ushort u16(global const uchar* p) { return (ushort)(p[0] | (p[1] << 8)); }
INLINE uint u32(global const uchar* p) { return as_uint(vload4(0, p)); }

// Where a block of each of 16 rows begins: n rows, `stride` bytes apart. On a GPU one row.
typedef struct {
    global const uchar* first;
    ulong stride;
    int n;
} rows;

#ifdef SIMT
typedef uint words;
INLINE words word(rows p, int i) { return u32(p.first + i); }
#define OF_GROUP 1
#define ROW_OF(p, r) p.first
#define OF_ROWS(f) f(p.first)
#else
typedef uint16 words;
// The others than n are as the last.
INLINE global const uchar* row_of(rows p, int r) { return p.first + min(r, p.n - 1) * p.stride; }
#define OF_GROUP 16
#define ROW_OF(p, r) row_of(p, r)
#define OF_ROWS(f)                                                                              \
    (words)(f(row_of(p, 0)), f(row_of(p, 1)), f(row_of(p, 2)), f(row_of(p, 3)),                 \
            f(row_of(p, 4)), f(row_of(p, 5)), f(row_of(p, 6)), f(row_of(p, 7)),                 \
            f(row_of(p, 8)), f(row_of(p, 9)), f(row_of(p, 10)), f(row_of(p, 11)),               \
            f(row_of(p, 12)), f(row_of(p, 13)), f(row_of(p, 14)), f(row_of(p, 15)))
#define WORD_AT(row) u32(row + i)
INLINE words word(rows p, int i) { return OF_ROWS(WORD_AT); }
#endif

// Nibbles: the first half of n columns, from byte `at` on, has the low ones.
INLINE words nibbles(rows p, int at, int k, int n) {
    return (word(p, at + k % (n / 2)) >> (k < n / 2 ? 0 : 4)) & 0x0f0f0f0f;
}
// Two bits: of 128 columns, the k-th group of 32 has the k-th pair of each of 32 bytes.
INLINE words crumbs(rows p, int at, int k) {
    return (word(p, at + k / 128 * 32 + k % 32) >> (2 * (k % 128 / 32))) & 0x03030303;
}
// One bit: of 256 columns, the k-th group of 32 has the k-th of each of 32 bytes.
INLINE words bits(rows p, int at, int k) { return (word(p, at + k % 32) >> (k / 32)) & 0x01010101; }
// One bit: of 32 columns, in their order.
INLINE words bits_of_32(rows p, int at, int k) {
    return (((word(p, at) >> k) & 15) * 0x00204081) & 0x01010101;
}

#if defined(TYPE_Q1_0)
INLINE words code4(rows p, int k) { return bits_of_32(p, 2 + k / 32 * 4, k % 32); }
#elif defined(TYPE_Q2_0)
#define ONE_BY_ONE
INLINE int code(global const uchar* p, int k) { return (p[2 + k / 4] >> (2 * (k % 4))) & 3; }
#elif defined(TYPE_Q4_0) || defined(TYPE_IQ4_NL)
INLINE words code4(rows p, int k) { return nibbles(p, 2, k, 32); }
#elif defined(TYPE_Q4_1)
INLINE words code4(rows p, int k) { return nibbles(p, 4, k, 32); }
#elif defined(TYPE_Q5_0)
INLINE words code4(rows p, int k) { return nibbles(p, 6, k, 32) | bits_of_32(p, 2, k) << 4; }
#elif defined(TYPE_Q5_1)
INLINE words code4(rows p, int k) { return nibbles(p, 8, k, 32) | bits_of_32(p, 4, k) << 4; }
#elif defined(TYPE_Q8_0)
INLINE words code4(rows p, int k) { return word(p, 2 + k); }
#elif defined(TYPE_F16_INT13) || defined(TYPE_BF16_INT13)  // of 32 halves, as quants.py says
#include "include/activation.cl"
#ifdef TYPE_F16_INT13
INLINE float16 sixteen(global const uchar* p, int i) {
    return vload_half16(i, (global const half*)p);
}
#else
INLINE float16 sixteen(global const uchar* p, int i) {
    return as_float16(convert_uint16(vload16(i, (global const ushort*)p)) << 16);
}
#endif
// The least power of two by which the codes are shorts, and the sum of 32 products with
// activations of 15 bits an int: rounded codes have magnitudes of at most 32 * 4096 together. Of
// what is no number the product is none, either.
INLINE float scale_of_32(global const uchar* p) {
    const float16 a = fabs(sixteen(p, 0)), b = fabs(sixteen(p, 1));
    const float sum = sum16(a + b), top = max16(fmax(a, b));
    const float unit = fmax(sum / (32 * 4096 - 16), top / 32767);
    return !(sum < INFINITY) ? sum : unit > 0 ? ldexp(1.0f, ilogb(unit) + 1) : 0;
}
INLINE void codes_of_32(global const uchar* p, short* codes) {
    const float scale = scale_of_32(p), by = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < 2; i++)
        vstore16(convert_short16_sat_rte(sixteen(p, i) * by), i, codes);
}
#elif defined(TYPE_Q2_K)
INLINE words code4(rows p, int k) { return crumbs(p, 16, k); }
INLINE int sub_scale(global const uchar* p, int sub) { return p[sub]; }
#elif defined(TYPE_Q3_K)
INLINE words code4(rows p, int k) { return (crumbs(p, 32, k) | bits(p, 0, k) << 2) ^ 0x04040404; }
INLINE int sub_scale(global const uchar* p, int sub) {
    const int low = p[96 + sub % 8] >> (sub / 8 * 4), high = p[104 + sub % 4] >> (sub / 4 * 2);
    return ((low & 15) | (high & 3) << 4) - 32;
}
#elif defined(TYPE_Q4_K)
INLINE words code4(rows p, int k) { return nibbles(p, 16 + k / 64 * 32, k % 64, 64); }
#elif defined(TYPE_Q5_K)
INLINE words code4(rows p, int k) {
    return nibbles(p, 48 + k / 64 * 32, k % 64, 64) | bits(p, 16, k) << 4;
}
#elif defined(TYPE_Q6_K)
INLINE words code4(rows p, int k) {
    return (nibbles(p, k / 128 * 64, k % 128, 128) | crumbs(p, 128, k) << 4) ^ 0x20202020;
}
INLINE int sub_scale(global const uchar* p, int sub) { return p[192 + sub]; }
#elif defined(TYPE_TQ1_0)
#define ONE_BY_ONE
// Five base-3 digits to a byte, as a fraction of 256: the n-th is that of byte * 3^n mod 256.
INLINE int code(global const uchar* p, int k) {
    const int width = k < 160 ? 32 : k < 240 ? 16 : 4;  // bytes side by side
    const int byte = k < 160 ? 0 : k < 240 ? 32 : 48, first = 5 * byte;
    uint v = p[byte + (k - first) % width];
    for (int n = (k - first) / width; n > 0; n--) v *= 3;
    return ((v & 255) * 3) >> 8;
}
#elif defined(TYPE_TQ2_0)
INLINE words code4(rows p, int k) { return crumbs(p, 0, k); }
#elif defined(TYPE_IQ4_XS)
INLINE words code4(rows p, int k) { return nibbles(p, 8 + k / 32 * 16, k % 32, 32); }
INLINE int sub_scale(global const uchar* p, int sub) {
    const int low = p[4 + sub / 2] >> (sub % 2 * 4), high = u16(p + 2) >> (2 * sub);
    return ((low & 15) | (high & 3) << 4) - 32;
}
#elif defined(TYPE_MXFP4)
INLINE words code4(rows p, int k) { return nibbles(p, 1, k, 32); }
#elif defined(TYPE_NVFP4)
INLINE words code4(rows p, int k) { return nibbles(p, 4 + k / 16 * 8, k % 16, 16); }
INLINE int sub_scale(global const uchar* p, int sub) { return p[sub] == 127 ? 0 : p[sub] & 127; }
#elif defined(TYPE_IQ1_S) || defined(TYPE_IQ1_M) || defined(TYPE_IQ2_XXS) || \
    defined(TYPE_IQ2_XS) || defined(TYPE_IQ2_S) || defined(TYPE_IQ3_XXS) || defined(TYPE_IQ3_S)
#include "quantization/grids.cl"
#define ONE_BY_ONE
// A magnitude's index from a codebook entry; a seven-bit sign index, whose eighth bit is parity.
INLINE int of_8(int entry, int k) { return (GRID[entry] >> (2 * (k % 8))) & 3; }
INLINE int of_4(int entry, int k) { return (GRID[entry] >> (3 * (k % 4))) & 7; }
INLINE bool sign_of(uint bits, int k) {
    return k % 8 < 7 ? (bits >> (k % 8)) & 1 : popcount(bits & 127) & 1;
}
// Codes in the order of the signed values: n magnitudes, negative ones first.
INLINE int with_sign(int magnitude, bool negative, int n) {
    return negative ? n - 1 - magnitude : n + magnitude;
}
#if defined(TYPE_IQ1_S)
INLINE int code(global const uchar* p, int k) {
    const int high = (u16(p + 34 + k / 32 * 2) >> (k % 32 / 8 * 3)) & 7;
    return of_8(p[2 + k / 8] | high << 8, k);
}
INLINE int sub_scale(global const uchar* p, int sub) {
    const int v = u16(p + 34 + 2 * sub);
    return (2 * ((v >> 12) & 7) + 1) | (v >> 15) << 4;
}
#elif defined(TYPE_IQ1_M)
INLINE int high_bits(global const uchar* p, int k) { return p[32 + k / 16] >> (k % 16 / 8 * 4); }
INLINE int code(global const uchar* p, int k) {
    return of_8(p[k / 8] | (high_bits(p, k) & 7) << 8, k);
}
INLINE int sub_scale(global const uchar* p, int sub) {
    const int v = (u16(p + 48 + sub / 2 * 2) >> (sub % 2 * 6)) & 63;
    const int h = p[32 + 2 * sub], i = p[33 + 2 * sub];
    return v | ((h >> 3 & 1) | (h >> 7) << 1 | (i >> 3 & 1) << 2 | (i >> 7) << 3) << 6;
}
// Four bits at the top of each of the four words of scales.
INLINE ushort scale_of(global const uchar* p) {
    return u16(p + 48) >> 12 | (u16(p + 50) >> 12) << 4 | (u16(p + 52) >> 12) << 8 |
           (u16(p + 54) >> 12) << 12;
}
#elif defined(TYPE_IQ2_XXS)
INLINE int code(global const uchar* p, int k) {
    const uint signs = u32(p + 6 + k / 32 * 8) >> (k % 32 / 8 * 7);
    return with_sign(of_8(p[2 + k / 32 * 8 + k % 32 / 8], k), sign_of(signs, k), 3);
}
INLINE int sub_scale(global const uchar* p, int sub) { return 2 * (p[9 + 8 * sub] >> 4) + 1; }
#elif defined(TYPE_IQ2_XS)
INLINE int code(global const uchar* p, int k) {
    const ushort v = u16(p + 2 + k / 8 * 2);
    return 1 + with_sign(of_8(v & 511, k), sign_of(v >> 9, k), 3);
}
INLINE int sub_scale(global const uchar* p, int sub) { return p[66 + sub]; }
#elif defined(TYPE_IQ2_S)
INLINE int code(global const uchar* p, int k) {
    const int high = (p[66 + k / 32] >> (k % 32 / 8 * 2)) & 3;
    return 1 + with_sign(of_8(p[2 + k / 8] | high << 8, k), (p[34 + k / 8] >> (k % 8)) & 1, 3);
}
INLINE int sub_scale(global const uchar* p, int sub) { return p[74 + sub]; }
#elif defined(TYPE_IQ3_XXS)
INLINE int code(global const uchar* p, int k) {
    const uint signs = u32(p + 66 + k / 32 * 4) >> (k % 32 / 8 * 7);
    return with_sign(of_4(p[2 + k / 4], k), sign_of(signs, k), 8);
}
INLINE int sub_scale(global const uchar* p, int sub) { return 2 * (p[69 + 4 * sub] >> 4) + 1; }
#elif defined(TYPE_IQ3_S)
INLINE int code(global const uchar* p, int k) {
    const int high = (p[66 + k / 32] >> (k % 32 / 4)) & 1;
    return with_sign(of_4(p[2 + k / 4] | high << 8, k), (p[74 + k / 8] >> (k % 8)) & 1, 8);
}
INLINE int sub_scale(global const uchar* p, int sub) {
    return 2 * ((p[106 + sub / 2] >> (sub % 2 * 4)) & 15) + 1;
}
#endif
#endif

#ifdef ONE_BY_ONE
INLINE uint code4_of(global const uchar* p, int k) {
    return code(p, k) | code(p, k + 1) << 8 | code(p, k + 2) << 16 | (uint)code(p, k + 3) << 24;
}
#define CODES_OF(row) code4_of(row, k)
INLINE words code4(rows p, int k) { return OF_ROWS(CODES_OF); }
#endif
