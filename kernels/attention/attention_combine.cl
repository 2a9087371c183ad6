// Merges the parts that attention with SPLIT left: work-item (32 columns, head, tile).
//
// Tiles of one query. partial: [tile][head][max_parts][HDV_PADDED + 2], values, then m and l.
// The merge is attention.cl's, part by part from the first.

#include "attention/attention.cl"

VECTOR_ITEMS
kernel void combine(global const float* partial, int max_parts, global const int4* tiles,
                    global const int* positions, int window,
#ifdef SINKS
                    global const float* sinks,
#endif
#ifdef QUANTIZE_OUT
                    global code_t* out_q, global scale_t* out_d
#else
                    global float* out
#endif
) {
    const int c = get_global_id(0), head = get_global_id(1), tile = get_global_id(2);
    const int n_heads = get_global_size(1);
    const int t = tiles[tile].x, pos = positions[t];
    const size_t at = (size_t)t * n_heads + head;
    const size_t row = (size_t)tile * n_heads + head;
    int part = first_key(pos, window, tiles[tile].w) / PART;
    const int end = (end_key(pos, window, tiles[tile].w) - 1) / PART + 1;
    const int n = min(32, HDV_PADDED - 32 * c);
    global const float* p = partial + (row * max_parts + part) * (HDV_PADDED + 2);
    float16 lo = 0, hi = 0;
    float m = M_NONE, l = 0;
    for (; part < end; part += 16) {
        const int n_parts = min(16, end - part);
        float from[16], own[16], to[16], a[16], b[16];
        UNROLLED(i, 16, 16) {
            own[i] = i < n_parts ? p[i * (HDV_PADDED + 2) + HDV_PADDED] : M_NONE;
            from[i] = m;
            to[i] = m = max(m, own[i]);
        }
        vstore16(exp_negative16(vload16(0, from) - vload16(0, to)), 0, a);
        vstore16(exp_negative16(vload16(0, own) - vload16(0, to)), 0, b);
        UNROLLED(i, n_parts, 16) {
            l = fma(l, a[i], p[HDV_PADDED + 1] * b[i]);
            lo = fma(lo, (float16)(a[i]), vload16(0, p + 32 * c) * b[i]);
            if (n > 16) hi = fma(hi, (float16)(a[i]), vload16(1, p + 32 * c) * b[i]);
            p += HDV_PADDED + 2;
        }
    }
    const float inverse = OUTPUT_FACTOR(m, l, head);
#ifdef QUANTIZE_OUT
    out_d[at * (HDV / 32) + c] = quantize32(lo * inverse, hi * inverse, out_q + at * HDV + c * 32);
#else
    float v[32];
    vstore16(lo * inverse, 0, v);
    vstore16(hi * inverse, 1, v);
    UNROLLED(i, min(32, HDV - 32 * c), 32) out[at * HDV + 32 * c + i] = v[i];
#endif
}
