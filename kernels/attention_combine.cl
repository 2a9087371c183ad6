// Merges the parts that attention with SPLIT left: work-item (32 columns, head, tile).
//
// Tiles of one query. partial: [tile][head][max_parts][HDV_PADDED + 2], values, then m and l.
// The merge is attention.cl's, part by part from the first.

#include "attention.cl"

kernel void combine(global const float* partial, int max_parts, global const int4* tiles,
                    global const int* positions, int window SINKS_ARG,
#ifdef QUANTIZE_OUT
                    global short* out_q, global float2* out_d
#else
                    global float* out
#endif
) {
    const int c = get_global_id(0), head = get_global_id(1), tile = get_global_id(2);
    const int n_heads = get_global_size(1);
    const int t = tiles[tile].x, pos = positions[t];
    const size_t at = (size_t)t * n_heads + head;
    const size_t row = (size_t)tile * n_heads + head;
    int part = first_key(pos, window) / PART;
    const int end = (end_key(pos, window, tiles[tile].w) - 1) / PART + 1;
    const int n = min(32, HDV_PADDED - 32 * c);
    global const float* p = partial + (row * max_parts + part) * (HDV_PADDED + 2);
    float16 lo = vload16(0, p + 32 * c), hi = n > 16 ? vload16(1, p + 32 * c) : (float16)(0);
    float m = p[HDV_PADDED], l = p[HDV_PADDED + 1];
    for (part++; part < end; part++) {
        p += HDV_PADDED + 2;
        const float top = fmax(m, p[HDV_PADDED]);
        const float a = exp(m - top), b = exp(p[HDV_PADDED] - top);
        l = fma(l, a, p[HDV_PADDED + 1] * b);
        lo = fma(lo, (float16)(a), vload16(0, p + 32 * c) * b);
        if (n > 16) hi = fma(hi, (float16)(a), vload16(1, p + 32 * c) * b);
        m = top;
    }
    const float inverse = OUTPUT_FACTOR(m, l, head);
#ifdef QUANTIZE_OUT
    out_d[at * (HDV / 32) + c] = quantize32(lo * inverse, hi * inverse, out_q + at * HDV + c * 32);
#else
    float v[32];
    vstore16(lo * inverse, 0, v);
    vstore16(hi * inverse, 1, v);
    for (int i = 0; i < min(32, HDV - 32 * c); i++) out[at * HDV + 32 * c + i] = v[i];
#endif
}
