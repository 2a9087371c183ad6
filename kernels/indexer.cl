// The indexer of sparse attention (DeepSeek-V3.2): which keys each query attends to.
//
// index_scores  score of key s for query t: sum_h weights[t][h] * max(0, q[t][h] . k[s]), keys in
//               pages as in kv.cl with one KV head. simd: work-item (page, tile); simt: work-item
//               (key, tile), WG = PAGE. scores: [tokens][stride].
// select_keys   work-group of WG items (1 on CPUs): a token. Bit i of word w of selected[t] is key
//               32 w + i: those whose score is among the TOP_K best of the keys up to the query,
//               and any that tie with the last of them; all, if there are no more than TOP_K.
// RATIO: every so many tokens are one key (joint.cl).
// Tiles whose queries see no more than TOP_K keys have no scores.

#include "lanes.cl"
#include "activation.cl"
#include "group.cl"

#ifndef RATIO
#define RATIO 1
#endif

#ifdef HD
#include "kv.cl"
#define HALVES (PAGE / 16)

// Value d of a key, or of 16 keys.
#define DEFINE_VALUE(N)                                                                        \
    INLINE float##N key_value##N(global const uchar* k, int d, int t) {                        \
        const float##N code = k_codes##N(k, d, t);                                             \
        if (IS_FLOAT(K_TYPE)) return code;                                                     \
        const float##N scale = k_scales##N(k, d / 32, t);                                      \
        if (!HAS_MINIMUM(K_TYPE)) return code * scale;                                         \
        return fma(code, scale, k_minima##N(k, d / 32, t, scale));                             \
    }
DEFINE_VALUE()
DEFINE_VALUE(16)

kernel void index_scores(global const float* q, global const float* weights,
                         global const int4* tiles, global const int* positions,
                         global const int* tables, int table_stride,
                         PAGES_ARG(global const uchar*, k_cache), global float* scores, int stride) {
#ifdef SIMT
    const int page = get_group_id(0), row = get_local_id(0);
#else
    const int page = get_global_id(0);
#endif
    const int4 tile = tiles[get_global_id(1)];
    const int last = positions[tile.x] + tile.y - 1;
    if (last < TOP_K || page * PAGE > last) return;
    global const uchar* k = K_PAGE(k_cache, tables[(size_t)tile.z * table_stride + page], 1, 0);
#ifdef SIMT
    float keys[HD];
    for (int d = 0; d < HD; d++) keys[d] = key_value(k, d, row);
#else
    float16 keys[HD][HALVES];
    for (int d = 0; d < HD; d++)
        for (int i = 0; i < HALVES; i++) keys[d][i] = key_value16(k, d, 16 * i);
#endif
    for (int t = tile.x; t < tile.x + tile.y; t++) {
        global const float* query = q + (size_t)t * HEADS * HD;
        global const float* weight = weights + (size_t)t * HEADS;
        global float* out = scores + (size_t)t * stride + page * PAGE;
#ifdef SIMT
        float total = 0;
        for (int h = 0; h < HEADS; h++) {
            float sum = 0;
            for (int d = 0; d < HD; d++) sum = fma(query[h * HD + d], keys[d], sum);
            total = fma(weight[h], fmax(sum, 0.0f), total);
        }
        out[row] = total;
#else
        float16 total[HALVES];
        for (int i = 0; i < HALVES; i++) total[i] = 0;
        for (int h = 0; h < HEADS; h++) {
            float16 sum[HALVES];
            for (int i = 0; i < HALVES; i++) sum[i] = 0;
            for (int d = 0; d < HD; d++)
                for (int i = 0; i < HALVES; i++)
                    sum[i] = fma((float16)(query[h * HD + d]), keys[d][i], sum[i]);
            for (int i = 0; i < HALVES; i++)
                total[i] = fma((float16)(weight[h]), fmax(sum[i], (float16)(0)), total[i]);
        }
        for (int i = 0; i < HALVES; i++) vstore16(total[i], i, out);
#endif
    }
}
#endif

// Floats as integers of the same order; its own inverse.
INLINE int ordered(int bits) { return bits < 0 ? bits ^ 0x7FFFFFFF : bits; }

// How many of n scores reach x, for every item of the group.
INLINE int count_from(global const float* scores, int n, float x, local float* partial) {
    int16 sum = 0;
    for (int i = 16 * LID; i + 16 <= n; i += 16 * WG) sum -= vload16(0, scores + i) >= x;
    int total = 0;
    int parts[16];
    vstore16(sum, 0, parts);
    for (int i = 0; i < 16; i++) total += parts[i];
    if (LID == 0)
        for (int i = n & ~15; i < n; i++) total += scores[i] >= x;
    return (int)sum_group((float)total, partial);
}

kernel void select_keys(global const float* scores, int stride, global const int* positions,
                        global uint* selected, int n_words) {
#if WG > 1
    local float partial[WG];
#else
    local float* partial = 0;
#endif
    const int t = get_group_id(0), n = (positions[t] + 1) / RATIO;
    scores += (size_t)t * stride;
    selected += (size_t)t * n_words;
    float x = -INFINITY;
    if (n > TOP_K) {  // the largest x that TOP_K scores reach
        int low = ordered(as_int(-INFINITY)), high = ordered(as_int(INFINITY));
        while (low < high) {
            const int middle = (int)(((long)low + high + 1) >> 1);
            if (count_from(scores, n, as_float(ordered(middle)), partial) >= TOP_K) low = middle;
            else high = middle - 1;
        }
        x = as_float(ordered(low));
    }
    for (int w = LID; 32 * w < n; w += WG) {
        uint word = 0;
        for (int i = 0; i < min(32, n - 32 * w); i++)
            word |= (uint)(n <= TOP_K || scores[32 * w + i] >= x) << i;
        selected[w] = word;
    }
}
