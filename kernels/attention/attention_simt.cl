// Fused attention over KV pages on a GPU: one work-group, one query of one head.
//
// Work-group: WG items, a multiple of PAGE. WG / PAGE pages are taken at a time: item i scores
// key i % PAGE of page i / PAGE (neighbours read neighbouring keys of the transposed K), then
// all items share out the columns of V. Grid: (heads, tiles of one query), or with SPLIT
// (parts, heads, tiles). Arguments and results as in attention_simd.cl, floats only.

#define QUERY local
#include "attention/attention.cl"
#include "include/group.cl"

#define PAGES_AT_ONCE (WG / PAGE)
#define COLUMNS ((HDV_PADDED + WG - 1) / WG)

kernel __attribute__((reqd_work_group_size(WG, 1, 1)))
void attention(global const float* qkv, int q_stride, int n_kv, global const int4* tiles,
               global const int* positions, global const int* tables, int table_stride,
               PAGES_ARG(global const uchar*, k_cache),
               PAGES_ARG(global const uchar*, v_cache), int window,
               float softcap,
#ifdef ALIBI
               global const float* slopes,
#endif
#ifdef RELATIVE
               global const float* biases, int reach,
#endif
#ifdef SINKS
               global const float* sinks,
#endif
#ifdef SELECTED
               global const uint* selected, int n_words,
#endif
#ifdef SPLIT
               global float* partial, int max_parts
#else
               global float* out
#endif
) {
    local float q[HD], p[WG], shared[WG];
    const int lid = get_local_id(0);
#ifdef SPLIT
    const int part = get_group_id(0), head = get_group_id(1), tile_index = get_group_id(2);
#else
    const int head = get_group_id(0), tile_index = get_group_id(1);
#endif
    const int4 tile = tiles[tile_index];
    const int t = tile.x, pos = positions[t], h = head / G, n_heads = n_kv * G;
    global const int* table = tables + (size_t)tile.z * table_stride;
    const int n_seen = end_key(pos, window, tile.w);
    int page = first_key(pos, window, tile.w) / PAGE, end = (n_seen + PAGE - 1) / PAGE;
#ifdef SPLIT
    if (part * PART >= n_seen) return;
    page = max(page, part * PART_PAGES);
    end = min(end, (part + 1) * PART_PAGES);
#endif
    for (int d = lid; d < HD; d += WG) q[d] = qkv[(size_t)t * q_stride + head * HD + d];
    float m = M_NONE, l = 0, acc[COLUMNS];  // in registers: all loops over it are unrolled
    #pragma unroll
    for (int c = 0; c < COLUMNS; c++) acc[c] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);

    for (; page < end; page += PAGES_AT_ONCE) {
        const int mine = page + lid / PAGE, key = mine * PAGE + lid % PAGE;
        float s = S_MASKED;
        bool seen = mine < end && key < n_seen && key >= first_key(pos, window, tile.w);
#ifdef SELECTED
        seen = seen && SELECTED_AT(t, h)[mine] >> (lid % PAGE) & 1;
#endif
        if (seen) {
            global const uchar* k = K_PAGE(k_cache, table[mine], n_kv, h);
            s = CAPPED(key_score(q, k, lid % PAGE));
#ifdef ALIBI
            s += slopes[head] * NEARNESS((float)(key - pos));
#endif
#ifdef RELATIVE
            s += relative_bias(biases, reach, head, key - pos);
#endif
        }
        const float top = fmax(m, max_group(s, shared));
        const float factor = exp(m - top), e = exp(s - top);
        p[lid] = e;
        l = fma(l, factor, sum_group(e, shared));
        m = top;
        #pragma unroll
        for (int c = 0; c < COLUMNS; c++) acc[c] *= factor;
        for (int i = 0; i < PAGES_AT_ONCE && page + i < end; i++) {
            global const uchar* v = V_PAGE(v_cache, table[page + i], n_kv, h);
            const int n = min(PAGE, n_seen - (page + i) * PAGE);
            #pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const int d = c * WG + lid;
                if (d < HDV_PADDED)
                    for (int j = 0; j < n; j++)
                        acc[c] = fma(p[i * PAGE + j], v_value(v, j, d), acc[c]);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }

#ifdef SPLIT
    global float* o =
        partial + (((size_t)tile_index * n_heads + head) * max_parts + part) * (HDV_PADDED + 2);
    #pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int d = c * WG + lid;
        if (d < HDV_PADDED) o[d] = acc[c];
    }
    if (lid == 0) {
        o[HDV_PADDED] = m;
        o[HDV_PADDED + 1] = l;
    }
#else
    const float factor = OUTPUT_FACTOR(m, l, head);
    #pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int d = c * WG + lid;
        if (d < HDV) out[((size_t)t * n_heads + head) * HDV + d] = acc[c] * factor;
    }
#endif
}
