// Rows of a packed matrix as floats: out[t] = scale * W[ids[t]]. Work-item (block of 32, token).
// ADD: out[t] is increased instead.
// TOKENS_ONLY: zeros where ids are negative. PADDED: there, row 0.
// SLAB: w has the rows from first_row on, n_rows of them; other ids are left alone.
// MEDIA: a negative id -1 - r stands for the first n_cols values of row r of `media`, which has
// media_cols; scale is for tokens alone. deepstack: out[t] += the values of that row from `at` on.

#ifndef SIMT
#define SIMT  // one row at a time, whatever the family
#endif
#include "include/lanes.cl"
#include "quantization/unpack.cl"

#ifdef ADD
#define PUT(i, v) out[i] += v
#else
#define PUT(i, v) out[i] = v
#endif

#ifdef MEDIA
kernel void deepstack(global const int* ids, global const float* media, int media_cols, int at,
                      int n_cols, global float* out) {
    const int c = get_global_id(0), t = get_global_id(1);
    if (ids[t] < 0) {
        out[(size_t)t * n_cols + c] += media[(size_t)(-1 - ids[t]) * media_cols + at + c];
    }
}
#endif

kernel void embed(global const uchar* w, ulong scales_at, int n_blocks, int n_cols,
                  global const int* ids, float scale,
#ifdef MEDIA
                  global const float* media, int media_cols,
#endif
                  global float* out
#ifdef SLAB
                  , int first_row, int n_rows
#endif
) {
    const int b = get_global_id(0), t = get_global_id(1);
    out += (size_t)t * n_cols + 32 * b;
#ifdef MEDIA
    if (ids[t] < 0) {
        media += (size_t)(-1 - ids[t]) * media_cols + 32 * b;
        for (int k = 0; k < min(32, n_cols - 32 * b); k++) out[k] = media[k];
        return;
    }
#endif
#ifdef TOKENS_ONLY
    if (ids[t] < 0) {
        for (int k = 0; k < min(32, n_cols - 32 * b); k++) out[k] = 0;
        return;
    }
#endif
#ifdef PADDED
    int id = max(ids[t], 0);
#else
    int id = ids[t];
#endif
#ifdef SLAB
    id -= first_row;
    if (id < 0 || id >= n_rows) return;
#endif
    const int g = id / ROWS, lane = id % ROWS;
#ifdef LOW_BITS
    global const uchar* s = w + scales_at + (ulong)g * (n_blocks / SUPER) * SBYTES;
    short2 c[16];
    float d[PARTS], m[PARTS];
    unpack_scales(s, b, d, m, lane);
    unpack_codes(w + ((ulong)g * n_blocks + b) * QBYTES, s, b, c, lane);
    for (int p = 0; p < 16; p++) {
        const int part = p * PARTS / 16;
        PUT(2 * p, scale * fma(EVEN(c[p]), d[part], m[part]));
        PUT(2 * p + 1, scale * fma(ODD(c[p]), d[part], m[part]));
    }
#else
    w += (ulong)g * n_cols * (QBYTES / 32);
    for (int k = 0; k < min(32, n_cols - 32 * b); k++) PUT(k, scale * LOAD_WEIGHT(w, 32 * b + k));
#endif
}
