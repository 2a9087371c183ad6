// Rows of a packed matrix as floats: out[t] = scale * W[ids[t]]. Work-item (block of 32, token).
// ADD: out[t] is increased instead.
// SLAB: w has the rows from first_row on, n_rows of them; other ids are left alone.

#ifndef SIMT
#define SIMT  // one row at a time, whatever the family
#endif
#include "lanes.cl"
#include "unpack.cl"

#ifdef ADD
#define PUT(i, v) out[i] += v
#else
#define PUT(i, v) out[i] = v
#endif

kernel void embed(global const uchar* w, ulong scales_at, int n_blocks, int n_cols,
                  global const int* ids, float scale, global float* out
#ifdef SLAB
                  , int first_row, int n_rows
#endif
) {
    const int b = get_global_id(0), t = get_global_id(1);
#ifdef SLAB
    const int id = ids[t] - first_row;
    if (id < 0 || id >= n_rows) return;
#else
    const int id = ids[t];
#endif
    const int g = id / ROWS, lane = id % ROWS;
    out += (size_t)t * n_cols + 32 * b;
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
