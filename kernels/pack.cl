// GGUF blocks to the packed layout that unpack.cl describes; runs once, at load.
//
// One work-item packs the 32 columns of one block of one row (float types: the same, K may be
// odd). Block layouts: ggml's block_q* structures, as documented with GGUF. Rows beyond M (the
// last group's padding) are written as zeros. `group_stride` and `group_offset` place group g of
// this matrix at g * group_stride + group_offset, which is how gate and up interleave.

#include "lanes.cl"
#include "unpack.cl"

INLINE ushort u16(global const uchar* p) { return (ushort)(p[0] | (p[1] << 8)); }

#if defined(TYPE_Q4_0)
#define BLOCK_BYTES 18
INLINE int code(global const uchar* p, int k) { return k < 16 ? p[2 + k] & 15 : p[2 + k - 16] >> 4; }
#elif defined(TYPE_Q4_1)
#define BLOCK_BYTES 20
INLINE int code(global const uchar* p, int k) { return k < 16 ? p[4 + k] & 15 : p[4 + k - 16] >> 4; }
#elif defined(TYPE_Q5_0)
#define BLOCK_BYTES 22
INLINE int code(global const uchar* p, int k) {
    int low = k < 16 ? p[6 + k] & 15 : p[6 + k - 16] >> 4;
    return low | ((p[2 + k / 8] >> (k % 8)) & 1) << 4;
}
#elif defined(TYPE_Q5_1)
#define BLOCK_BYTES 24
INLINE int code(global const uchar* p, int k) {
    int low = k < 16 ? p[8 + k] & 15 : p[8 + k - 16] >> 4;
    return low | ((p[4 + k / 8] >> (k % 8)) & 1) << 4;
}
#elif defined(TYPE_Q8_0)
#define BLOCK_BYTES 34
INLINE int code(global const uchar* p, int k) { return p[2 + k]; }
#elif defined(TYPE_Q4_K)
#define BLOCK_BYTES 144
#define K_SCALES 4
INLINE int code(global const uchar* p, int k) {
    int v = p[16 + (k / 64) * 32 + k % 32];
    return k % 64 < 32 ? v & 15 : v >> 4;
}
#elif defined(TYPE_Q5_K)
#define BLOCK_BYTES 176
#define K_SCALES 4
INLINE int code(global const uchar* p, int k) {
    int v = p[48 + (k / 64) * 32 + k % 32];
    int low = k % 64 < 32 ? v & 15 : v >> 4;
    return low | ((p[16 + k % 32] >> (k / 32)) & 1) << 4;
}
#elif defined(TYPE_Q6_K)
#define BLOCK_BYTES 210
INLINE int code(global const uchar* p, int k) {
    int half_ = k / 128, r = k % 128;
    int v = p[half_ * 64 + r % 64];
    int low = r < 64 ? v & 15 : v >> 4;
    return low | ((p[128 + half_ * 32 + r % 32] >> (2 * (r / 32))) & 3) << 4;
}
#endif

#ifdef LOW_BITS

#ifdef K_SCALES
// The j-th six-bit scale (min) of a K block: 12 bytes, the upper two bits apart.
INLINE uchar k_scale(global const uchar* s, int j) {
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
}
INLINE uchar k_min(global const uchar* s, int j) {
    return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
}
#endif

INLINE void pack_scales(global const uchar* p, int sub, bool real, global uchar* s, int row) {
    global ushort* h = (global ushort*)s;
#if defined(K_SCALES)
    h[row] = real ? u16(p) : 0;
    h[16 + row] = real ? u16(p + 2) : 0;
    s[64 + sub * 16 + row] = real ? k_scale(p + 4, sub) : 0;
    s[192 + sub * 16 + row] = real ? k_min(p + 4, sub) : 0;
#elif defined(SCALES_6K)
    h[row] = real ? u16(p + 208) : 0;
    s[32 + (2 * sub) * 16 + row] = real ? p[192 + 2 * sub] : 0;
    s[32 + (2 * sub + 1) * 16 + row] = real ? p[192 + 2 * sub + 1] : 0;
#else
    h[row] = real ? u16(p) : 0;
#ifdef HAS_M
    h[16 + row] = real ? u16(p + 2) : 0;
#endif
#endif
}

kernel void pack(global const uchar* raw, global uchar* packed, ulong scales_at, int n_rows,
                 int n_blocks, int row_offset, int group_stride, int group_offset) {
    const int b = get_global_id(0), local_row = get_global_id(1);
    const int g = (local_row / ROWS + row_offset / ROWS) * group_stride + group_offset;
    const int row = local_row % ROWS;
    const bool real = local_row < n_rows;
    const int sub = b % SUPER;
    global const uchar* p =
        raw + ((ulong)(real ? local_row : 0) * (n_blocks / SUPER) + b / SUPER) * BLOCK_BYTES;
    global int* q = (global int*)(packed + ((ulong)g * n_blocks + b) * QBYTES);
    global uchar* s = packed + scales_at + ((ulong)g * (n_blocks / SUPER) + b / SUPER) * SBYTES;
    pack_scales(p, sub, real, s, row);
#if LOW_BITS == 8
    for (int c = 0; c < 8; c++) {
        uint v = code(p, sub * 32 + 4 * c) | code(p, sub * 32 + 4 * c + 2) << 8 |
                 code(p, sub * 32 + 4 * c + 1) << 16 | (uint)code(p, sub * 32 + 4 * c + 3) << 24;
        q[c * ROWS + row] = real ? v : 0;
    }
#else
    uint high[2] = {0, 0};
    for (int c = 0; c < 4; c++) {
        uint v = 0;
        for (int j = 0; j < 4; j++) {
            uint even = code(p, sub * 32 + 8 * c + 2 * j), odd = code(p, sub * 32 + 8 * c + 2 * j + 1);
            v |= (even & 15) << (4 * j) | (odd & 15) << (16 + 4 * j);
            const int pair = 4 * c + j;
#if HIGH_BITS == 1
            high[0] |= (even >> 4) << pair | (odd >> 4) << (16 + pair);
#elif HIGH_BITS == 2
            high[pair / 8] |= (even >> 4) << (2 * (pair % 8)) | (odd >> 4) << (16 + 2 * (pair % 8));
#endif
        }
        q[c * ROWS + row] = real ? v : 0;
    }
    for (int h = 0; h < HIGH_BITS; h++) q[(4 + h) * ROWS + row] = real ? high[h] : 0;
#endif
}

#else

#ifdef TYPE_F32
typedef uint word;
#else
typedef ushort word;
#endif

kernel void pack(global const word* raw, global word* packed, ulong scales_at, int n_rows,
                 int n_cols, int row_offset, int group_stride, int group_offset) {
    const int b = get_global_id(0), local_row = get_global_id(1);
    const int g = (local_row / ROWS + row_offset / ROWS) * group_stride + group_offset;
    const bool real = local_row < n_rows;
    const int end = min(n_cols, 32 * b + 32);
    for (int k = 32 * b; k < end; k++)
        packed[((ulong)g * n_cols + k) * ROWS + local_row % ROWS] =
            real ? raw[(ulong)local_row * n_cols + k] : (word)0;
}

#endif
