// Attention without fusion (--flash-attn off): scores of a whole row, softmax, then values.
//
// A fixed number of work-items takes (query, head) pairs in turn; each owns a row of
// `scratch` [work-items][scratch_stride], so that memory does not grow with the prompt.
// counts[count_at]: the number of tiles. Arguments as in attention_simd.cl, floats only.

#define QUERY global
#include "attention/attention.cl"

VECTOR_ITEMS
kernel void attention(global const float* qkv, int q_stride, int n_kv, global const int4* tiles,
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
                      global float* out, global float* scratch, int scratch_stride,
                      global const int* counts, int count_at) {
    const int n_heads = n_kv * G;
    global float* s = scratch + (size_t)get_global_id(0) * scratch_stride;
    for (int i = get_global_id(0); i < counts[count_at] * QB * n_heads; i += get_global_size(0)) {
        const int4 tile = tiles[i / (QB * n_heads)];
        const int head = i % n_heads, query = i / n_heads % QB, h = head / G;
        if (query >= tile.y) continue;
        const int t = tile.x + query, pos = positions[t];
        global const int* table = tables + (size_t)tile.z * table_stride;
        global const float* q = qkv + (size_t)t * q_stride + head * HD;
        const int first = first_key(pos, window, tile.w), end = end_key(pos, window, tile.w);
        float m = M_NONE, l = 0, acc[HDV_PADDED];
        for (int key = first; key < end; key++) {
            global const uchar* k = K_PAGE(k_cache, table[key / PAGE], n_kv, h);
            float sum = CAPPED(key_score(q, k, key % PAGE));
#ifdef ALIBI
            sum += slopes[head] * NEARNESS((float)(key - pos));
#endif
#ifdef RELATIVE
            sum += relative_bias(biases, reach, head, key - pos);
#endif
#ifdef SELECTED
            if (!(SELECTED_AT(t, h)[key / PAGE] >> (key % PAGE) & 1)) sum = S_MASKED;
#endif
            s[key - first] = sum;
            m = fmax(m, s[key - first]);
        }
        for (int d = 0; d < HDV; d++) acc[d] = 0;
        for (int key = first; key < end; key++) {
            const float p = exp(s[key - first] - m);
            global const uchar* v = V_PAGE(v_cache, table[key / PAGE], n_kv, h);
            l += p;
            for (int d = 0; d < HDV; d++) acc[d] = fma(p, v_value(v, key % PAGE, d), acc[d]);
        }
        const float factor = OUTPUT_FACTOR(m, l, head);
        for (int d = 0; d < HDV; d++)
            out[((size_t)t * n_heads + head) * HDV + d] = acc[d] * factor;
    }
}
