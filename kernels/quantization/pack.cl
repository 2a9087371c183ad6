// GGUF blocks to the packed layout that unpack.cl describes; runs once, at load.
//
// One work-item packs the 32 columns of one block of 16 rows, on a GPU of one (float types: the
// same, K may be odd). blocks.cl reads the file's blocks. Rows beyond M (the last group's padding)
// are written as zeros. `group_stride` and `group_offset` place group g of this matrix at
// g * group_stride + group_offset, which is how gate and up interleave.

#include "include/lanes.cl"
#include "quantization/unpack.cl"

#ifdef LOW_BITS

#include "quantization/blocks.cl"

#ifdef SIMT
#define STORE(q, i, v) ((global uint*)(q))[(i) * ROWS + lane] = (v)
#else
#define STORE(q, i, v) vstore16(v, i, (global uint*)(q))
#endif

#if defined(SCALES_K)
// The j-th six-bit scale (min) of a K block: 12 bytes, the upper two bits apart.
INLINE uchar k_scale(global const uchar* s, int j) {
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
}
INLINE uchar k_min(global const uchar* s, int j) {
    return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
}
#endif

#ifdef D_AT
INLINE ushort scale_of(global const uchar* p) { return u16(p + D_AT); }
#endif

INLINE void pack_scales(global const uchar* p, int sub, bool real, float scale, global uchar* s,
                        int row) {
    global ushort* h = (global ushort*)s;
#if defined(SCALES_FLOAT)
    ((global float*)s)[row] = real ? scale_of_32(p) : 0;
#elif defined(SCALES_E8M0)
    s[row] = real ? p[0] : 0;
#elif defined(SCALES_UE4M3)
    for (int i = 2 * sub; i < 2 * sub + 2; i++) s[i * ROWS + row] = real ? sub_scale(p, i) : 0;
    if (row == 0) *(global float*)(s + 64) = scale;
#else
    if (sub == 0) h[row] = real ? scale_of(p) : 0;
#if defined(SCALES_HALVES)
    h[ROWS + row] = real ? u16(p + M_AT) : 0;
#elif defined(SCALES_K)
    if (sub == 0) h[ROWS + row] = real ? u16(p + M_AT) : 0;
    s[64 + sub * ROWS + row] = real ? k_scale(p + 4, sub) : 0;
    s[192 + sub * ROWS + row] = real ? k_min(p + 4, sub) : 0;
#elif defined(SCALES_2K)
    if (sub == 0) h[ROWS + row] = real ? u16(p + M_AT) : 0;
    for (int i = 2 * sub; i < 2 * sub + 2; i++)
        s[64 + i * ROWS + row] = real ? sub_scale(p, i) : 0;
#elif defined(SCALES_CHARS)
    for (int i = 2 * sub; i < 2 * sub + 2; i++)
        s[32 + i * ROWS + row] = real ? sub_scale(p, i) : 0;
#elif defined(SCALES_1M)
    h[(1 + sub) * ROWS + row] = real ? sub_scale(p, sub) : 0;
#elif defined(SCALES_CHAR) || defined(SCALES_NIBBLES) || defined(SCALES_1S)
    s[32 + sub * ROWS + row] = real ? sub_scale(p, sub) : 0;
#endif
#endif
}

#if LOW_BITS < 16
// Columns 4i and 4i + 1 of the block of 32 that begins at column k, or the two after them, as a
// pair of shorts.
INLINE words two_codes(words four, int second) {
    const words two = second ? four >> 16 : four;
    return (two & 0xff) | (two & 0xff00) << 8;
}
#endif

// begin: the first byte to read. scale: of the whole matrix, for types that keep one (NVFP4).
VECTOR_ITEMS
kernel void pack(global const uchar* raw, ulong begin, global uchar* packed, ulong scales_at,
                 int n_rows, int n_blocks, int row_offset, int group_stride, int group_offset,
                 float scale) {
    const int b = get_global_id(0);
#ifdef SIMT
    const int local_row = get_global_id(1), n = 1, lane = local_row % ROWS;
    const bool inside = local_row < n_rows;
    const int first_row = inside ? local_row : 0, local_group = local_row / ROWS;
    const words real = inside ? ~0u : 0;
#else
    const int local_group = get_global_id(1), first_row = local_group * ROWS;
    const int n = min(n_rows - first_row, ROWS);
    const words real = as_uint16((int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) < n);
#endif
    const int g = (local_group + row_offset / ROWS) * group_stride + group_offset;
    const int sub = b % SUPER;
    const ulong row_bytes = (ulong)(n_blocks / SUPER) * BLOCK_BYTES;
    global const uchar* first = raw + begin + first_row * row_bytes;
    const rows p = {first + (ulong)(b / SUPER) * BLOCK_BYTES, row_bytes, n};
    global uchar* q = packed + ((ulong)g * n_blocks + b) * QBYTES;
    global uchar* s = packed + scales_at + ((ulong)g * (n_blocks / SUPER) + b / SUPER) * SBYTES;
#ifdef SIMT
    pack_scales(p.first, sub, inside, scale, s, lane);
#else
#pragma unroll 1
    for (int row = 0; row < ROWS; row++)
        pack_scales(row_of(p, row), sub, row < n, scale, s, row);
#endif
#if LOW_BITS == 8
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
        const words left = code4(p, sub * 32 + 8 * i), right = code4(p, sub * 32 + 8 * i + 4);
        for (int j = 0; j < 2; j++)
            STORE(q, 2 * i + j, (two_codes(left, j) | two_codes(right, j) << 8) & real);
    }
#elif LOW_BITS == 16
    short codes[OF_GROUP * 32];
#pragma unroll 1
    for (int row = 0; row < OF_GROUP; row++) codes_of_32(ROW_OF(p, row), codes + 32 * row);
#pragma unroll 1
    for (int c = 0; c < 16; c++) {
        uint two[OF_GROUP];
        for (int row = 0; row < OF_GROUP; row++)
            two[row] = as_uint(vload2(16 * row + c, codes));
        STORE(q, c, *(words*)two & real);
    }
#else
    const int per_plane = 16 / LOW_BITS;
    words plane[LOW_BITS + HIGH_BITS];
    for (int i = 0; i < LOW_BITS + HIGH_BITS; i++) plane[i] = 0;
#pragma unroll 1
    for (int four = 0; four < 8; four++) {
        const words codes = code4(p, sub * 32 + 4 * four);
        for (int j = 0; j < 2; j++) {
            const int pair = 2 * four + j;
            const words both = two_codes(codes, j);
            const words low = both & ((1 << LOW_BITS) - 1) * 0x00010001;
            if (pair < per_plane * LOW_BITS)
                plane[pair / per_plane] |= low << (LOW_BITS * (pair % per_plane));
            else
                for (int i = 0; i < LOW_BITS; i++) plane[i] |= ((low >> i) & 0x00010001) << 15;
#if HIGH_BITS == 1
            plane[LOW_BITS] |= ((both >> LOW_BITS) & 0x00010001) << pair;
#elif HIGH_BITS == 2
            plane[LOW_BITS + pair / 8] |= ((both >> LOW_BITS) & 0x00030003) << HIGH_AT(pair);
#endif
        }
    }
    for (int i = 0; i < LOW_BITS + HIGH_BITS; i++) STORE(q, i, plane[i] & real);
#endif
}

#else

#if WEIGHT_BYTES == 4
typedef uint word;
#else
typedef ushort word;
#endif

VECTOR_ITEMS
kernel void pack(global const uchar* raw, ulong begin, global word* packed, ulong scales_at,
                 int n_rows, int n_cols, int row_offset, int group_stride, int group_offset,
                 float scale) {
    global const word* values = (global const word*)(raw + begin);
    const int b = get_global_id(0);
#ifdef SIMT
    const int local_group = get_global_id(1) / ROWS, first = get_global_id(1) % ROWS;
    const int last = first;
#else
    const int local_group = get_global_id(1), first = 0, last = ROWS - 1;
#endif
    const int g = (local_group + row_offset / ROWS) * group_stride + group_offset;
    const int end = min(n_cols, 32 * b + 32);
    global word* out = packed + (ulong)g * n_cols * ROWS;
    for (int lane = first; lane <= last; lane++) {
        const int row = local_group * ROWS + lane;
        for (int k = 32 * b; k < end; k++)
            out[(ulong)k * ROWS + lane] = row < n_rows ? values[(ulong)row * n_cols + k] : (word)0;
    }
}

#endif
