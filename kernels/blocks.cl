// Blocks of GGUF tensor types, read where they lie: for pack.cl only.
//
// For each type: BLOCK_BYTES, and code(p, k), the code to pack of column k of the block at p.
// The layouts are those of ggml's block_* structures. Types whose values come from a table or a
// codebook get codes of their own here, in the order that unpack.cl says.

INLINE ushort u16(global const uchar* p) { return (ushort)(p[0] | (p[1] << 8)); }
INLINE uint u32(global const uchar* p) { return u16(p) | (uint)u16(p + 2) << 16; }

// A nibble: the first half of n columns has the low ones.
INLINE int nibble(global const uchar* p, int k, int n) {
    return k < n / 2 ? p[k] & 15 : p[k - n / 2] >> 4;
}
// Two bits: of 128 columns, the k-th group of 32 has the k-th pair of each of 32 bytes.
INLINE int crumb(global const uchar* p, int k) {
    return (p[k / 128 * 32 + k % 32] >> (2 * (k % 128 / 32))) & 3;
}

#if defined(TYPE_Q1_0)
#define BLOCK_BYTES 18
INLINE int code(global const uchar* p, int k) { return (p[2 + k / 8] >> (k % 8)) & 1; }
#elif defined(TYPE_Q2_0)
#define BLOCK_BYTES 18
INLINE int code(global const uchar* p, int k) { return (p[2 + k / 4] >> (2 * (k % 4))) & 3; }
#elif defined(TYPE_Q4_0) || defined(TYPE_IQ4_NL)
#define BLOCK_BYTES 18
INLINE int code(global const uchar* p, int k) { return nibble(p + 2, k, 32); }
#elif defined(TYPE_Q4_1)
#define BLOCK_BYTES 20
INLINE int code(global const uchar* p, int k) { return nibble(p + 4, k, 32); }
#elif defined(TYPE_Q5_0)
#define BLOCK_BYTES 22
INLINE int code(global const uchar* p, int k) {
    return nibble(p + 6, k, 32) | ((p[2 + k / 8] >> (k % 8)) & 1) << 4;
}
#elif defined(TYPE_Q5_1)
#define BLOCK_BYTES 24
INLINE int code(global const uchar* p, int k) {
    return nibble(p + 8, k, 32) | ((p[4 + k / 8] >> (k % 8)) & 1) << 4;
}
#elif defined(TYPE_Q8_0)
#define BLOCK_BYTES 34
INLINE int code(global const uchar* p, int k) { return p[2 + k]; }
#elif defined(TYPE_INT13)  // no type of ggml's: kernels/quants.py
#define BLOCK_BYTES 68
INLINE int code(global const uchar* p, int k) { return u16(p + 4 + 2 * k); }
#elif defined(TYPE_Q2_K)
#define BLOCK_BYTES 84
INLINE int code(global const uchar* p, int k) { return crumb(p + 16, k); }
#elif defined(TYPE_Q3_K)
#define BLOCK_BYTES 110
INLINE int code(global const uchar* p, int k) {
    return (crumb(p + 32, k) | ((p[k % 32] >> (k / 32)) & 1) << 2) ^ 4;
}
#elif defined(TYPE_Q4_K)
#define BLOCK_BYTES 144
INLINE int code(global const uchar* p, int k) {
    return nibble(p + 16 + k / 64 * 32, k % 64, 64);
}
#elif defined(TYPE_Q5_K)
#define BLOCK_BYTES 176
INLINE int code(global const uchar* p, int k) {
    return nibble(p + 48 + k / 64 * 32, k % 64, 64) | ((p[16 + k % 32] >> (k / 32)) & 1) << 4;
}
#elif defined(TYPE_Q6_K)
#define BLOCK_BYTES 210
INLINE int code(global const uchar* p, int k) {
    return (nibble(p + k / 128 * 64, k % 128, 128) | crumb(p + 128, k) << 4) ^ 32;
}
#elif defined(TYPE_TQ1_0)
#define BLOCK_BYTES 54
// Five base-3 digits to a byte, as a fraction of 256: the n-th is that of byte * 3^n mod 256.
INLINE int code(global const uchar* p, int k) {
    const int width = k < 160 ? 32 : k < 240 ? 16 : 4;  // bytes side by side
    const int byte = k < 160 ? 0 : k < 240 ? 32 : 48, first = 5 * byte;
    uint v = p[byte + (k - first) % width];
    for (int n = (k - first) / width; n > 0; n--) v *= 3;
    return ((v & 255) * 3) >> 8;
}
#elif defined(TYPE_TQ2_0)
#define BLOCK_BYTES 66
INLINE int code(global const uchar* p, int k) { return crumb(p, k); }
#elif defined(TYPE_IQ4_XS)
#define BLOCK_BYTES 136
INLINE int code(global const uchar* p, int k) { return nibble(p + 8 + k / 32 * 16, k % 32, 32); }
#elif defined(TYPE_MXFP4)
#define BLOCK_BYTES 17
INLINE int code(global const uchar* p, int k) { return nibble(p + 1, k, 32); }
#elif defined(TYPE_NVFP4)
#define BLOCK_BYTES 36
INLINE int code(global const uchar* p, int k) {
    return nibble(p + 4 + k / 16 * 8, k % 16, 16);
}
#elif defined(TYPE_IQ1_S) || defined(TYPE_IQ1_M) || defined(TYPE_IQ2_XXS) || \
    defined(TYPE_IQ2_XS) || defined(TYPE_IQ2_S) || defined(TYPE_IQ3_XXS) || defined(TYPE_IQ3_S)
#include "grids.cl"
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
#define BLOCK_BYTES 50
INLINE int code(global const uchar* p, int k) {
    const int high = (u16(p + 34 + k / 32 * 2) >> (k % 32 / 8 * 3)) & 7;
    return of_8(p[2 + k / 8] | high << 8, k);
}
#elif defined(TYPE_IQ1_M)
#define BLOCK_BYTES 56
INLINE int high_bits(global const uchar* p, int k) { return p[32 + k / 16] >> (k % 16 / 8 * 4); }
INLINE int code(global const uchar* p, int k) {
    return of_8(p[k / 8] | (high_bits(p, k) & 7) << 8, k);
}
#elif defined(TYPE_IQ2_XXS)
#define BLOCK_BYTES 66
INLINE int code(global const uchar* p, int k) {
    const uint signs = u32(p + 6 + k / 32 * 8) >> (k % 32 / 8 * 7);
    return with_sign(of_8(p[2 + k / 32 * 8 + k % 32 / 8], k), sign_of(signs, k), 3);
}
#elif defined(TYPE_IQ2_XS)
#define BLOCK_BYTES 74
INLINE int code(global const uchar* p, int k) {
    const ushort v = u16(p + 2 + k / 8 * 2);
    return 1 + with_sign(of_8(v & 511, k), sign_of(v >> 9, k), 3);
}
#elif defined(TYPE_IQ2_S)
#define BLOCK_BYTES 82
INLINE int code(global const uchar* p, int k) {
    const int high = (p[66 + k / 32] >> (k % 32 / 8 * 2)) & 3;
    return 1 + with_sign(of_8(p[2 + k / 8] | high << 8, k), (p[34 + k / 8] >> (k % 8)) & 1, 3);
}
#elif defined(TYPE_IQ3_XXS)
#define BLOCK_BYTES 98
INLINE int code(global const uchar* p, int k) {
    const uint signs = u32(p + 66 + k / 32 * 4) >> (k % 32 / 8 * 7);
    return with_sign(of_4(p[2 + k / 4], k), sign_of(signs, k), 8);
}
#elif defined(TYPE_IQ3_S)
#define BLOCK_BYTES 110
INLINE int code(global const uchar* p, int k) {
    const int high = (p[66 + k / 32] >> (k % 32 / 4)) & 1;
    return with_sign(of_4(p[2 + k / 4] | high << 8, k), (p[74 + k / 8] >> (k % 8)) & 1, 8);
}
#endif
#endif
