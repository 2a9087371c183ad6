// The indexer of sparse attention: which keys each query attends to.
//
// A query chooses CHOSEN of the blocks of BLOCK keys that compete (N_COMPETE, from the first on)
// and sees all keys after these: where TAIL, the whole blocks compete (DeepSeek-V3.2, BLOCK 1;
// GLM-5.3, Qwen3.8); else those before the last LOCAL, the query's own among these (MiniMax-M3).
//
// index_scores   score of key b for query t: sum_h weights[t][h] * max(0, q[t][h] . k[b]), without
//                WEIGHTS the sum alone. A block has one key: pages as in kv.cl with one KV head
//                and K_TOKENS = BLOCK. simd: work-item (PAGE keys, tile); simt: work-item
//                (key, tile). scores: [tokens][stride].
// block_maxima   score of block b for head h: the largest q[t][h] . k[s] of its keys s up to the
//                query. simd: work-item (KEYS = max(BLOCK, PAGE) keys, tile); simt: work-group of
//                PAGE items. scores: [tokens][HEADS][stride].
// select_keys    work-group of WG items (1 on CPUs): a token and a row of scores (head). Bit i of
//                word w of the row of selected is key 32 w + i: of the blocks that compete those
//                whose score is among the CHOSEN best, and any that tie with the last of them; all,
//                if there are no more than CHOSEN. BY_BLOCK: bits are of blocks, of those alone.
// Tiles whose queries have no more than CHOSEN blocks to choose from have no scores.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

#ifdef TAIL
#define N_COMPETE(pos) (((pos) + 1) / BLOCK)
#else
#define N_COMPETE(pos) max((pos) / BLOCK + 1 - LOCAL, 0)
#endif

#ifdef HD
#include "attention/kv.cl"
#define HALVES (PAGE / 16)
#define KEYS (BLOCK > PAGE ? BLOCK : PAGE)

#ifdef SIMT
// Key b of those of all pages; beyond the last of them, zeros.
INLINE void load_key(PAGES_ARG(global const uchar*, k_cache), global const int* table, int b, int n,
                     float* key) {
    if (b >= n) {
        for (int d = 0; d < HD; d++) key[d] = 0;
        return;
    }
    global const uchar* k = K_PAGE(k_cache, table[b / K_ROWS], 1, 0);
    for (int d = 0; d < HD; d++) key[d] = k_value(k, d, b % K_ROWS);
}

INLINE float product(global const float* query, const float* key) {
    float sum = 0;
    for (int d = 0; d < HD; d++) sum = fma(query[d], key[d], sum);
    return sum;
}
#else
// Keys b to b + PAGE - 1 of those of all pages; beyond the last of them, zeros.
INLINE void load_keys(PAGES_ARG(global const uchar*, k_cache), global const int* table, int b,
                      int n, float16 keys[HD][HALVES]) {
#if K_TOKENS == 1
    global const uchar* k = K_PAGE(k_cache, table[b / PAGE], 1, 0);
    for (int d = 0; d < HD; d++)
        for (int i = 0; i < HALVES; i++) keys[d][i] = k_value16(k, d, 16 * i);
#else
    for (int i = 0; i < PAGE; i++) {
        global const uchar* k = K_PAGE(k_cache, table[min(b + i, n - 1) / K_ROWS], 1, 0);
        for (int d = 0; d < HD; d++)
            ((float*)keys[d])[i] = b + i < n ? k_value(k, d, (b + i) % K_ROWS) : 0;
    }
#endif
}

INLINE void products(global const float* query, float16 keys[HD][HALVES], float16 sum[HALVES]) {
    for (int i = 0; i < HALVES; i++) sum[i] = 0;
    for (int d = 0; d < HD; d++)
        for (int i = 0; i < HALVES; i++) sum[i] = fma((float16)(query[d]), keys[d][i], sum[i]);
}
#endif

#ifdef WEIGHTS
#define WEIGHT(t, h) weights[(size_t)(t) * HEADS + (h)]
#else
#define WEIGHT(t, h) 1.0f
#endif

VECTOR_ITEMS
kernel void index_scores(global const float* q,
#ifdef WEIGHTS
                         global const float* weights,
#endif
                         global const int4* tiles, global const int* positions,
                         global const int* tables, int table_stride,
                         PAGES_ARG(global const uchar*, k_cache), global float* scores,
                         int stride) {
    const int4 tile = tiles[get_global_id(1)];
    const int n = N_COMPETE(positions[tile.x] + tile.y - 1);
    global const int* table = tables + (size_t)tile.z * table_stride;
#ifdef SIMT
    const int first = get_group_id(0) * PAGE, row = get_local_id(0);
#else
    const int first = get_global_id(0) * PAGE;
#endif
    if (n <= CHOSEN || first >= n) return;
#ifdef SIMT
    float key[HD];
    load_key(PAGES(k_cache), table, first + row, n, key);
#else
    float16 keys[HD][HALVES];
    load_keys(PAGES(k_cache), table, first, n, keys);
#endif
    for (int t = tile.x; t < tile.x + tile.y; t++) {
        global const float* query = q + (size_t)t * HEADS * HD;
        global float* out = scores + (size_t)t * stride + first;
#ifdef SIMT
        float total = 0;
        for (int h = 0; h < HEADS; h++)
            total = fma(WEIGHT(t, h), fmax(product(query + h * HD, key), 0.0f), total);
        out[row] = total;
#else
        float16 total[HALVES], sum[HALVES];
        for (int i = 0; i < HALVES; i++) total[i] = 0;
        for (int h = 0; h < HEADS; h++) {
            products(query + h * HD, keys, sum);
            for (int i = 0; i < HALVES; i++)
                total[i] = fma((float16)(WEIGHT(t, h)), fmax(sum[i], (float16)(0)), total[i]);
        }
        for (int i = 0; i < HALVES; i++) vstore16(total[i], i, out);
#endif
    }
}

#ifdef SIMT
#define OF_PAGE local
#else
#define OF_PAGE
#endif

// The largest of the values of a block, or of a page's part of it, which begins with key s: into
// its score, from which the block's earlier pages are not to be lost.
INLINE void store_maximum(const OF_PAGE float* values, int s, int pos, global float* scores) {
    float top = s % BLOCK == 0 ? -INFINITY : scores[s / BLOCK];
    for (int i = 0; i < min(BLOCK, PAGE) && s + i <= pos; i++) top = fmax(top, values[i]);
    scores[s / BLOCK] = top;
}

VECTOR_ITEMS
kernel void block_maxima(global const float* q, global const int4* tiles,
                         global const int* positions, global const int* tables, int table_stride,
                         PAGES_ARG(global const uchar*, k_cache), global float* scores,
                         int stride) {
    const int4 tile = tiles[get_global_id(1)];
    const int last = positions[tile.x] + tile.y - 1;
    global const int* table = tables + (size_t)tile.z * table_stride;
#ifdef SIMT
    const int first = get_group_id(0) * KEYS, row = get_local_id(0);
    local float values[PAGE];
#else
    const int first = get_global_id(0) * KEYS;
    float values[PAGE];
#endif
    if (N_COMPETE(last) <= CHOSEN) return;
    for (int s = first; s < first + KEYS && s <= last; s += PAGE) {
#ifdef SIMT
        float key[HD];
        load_key(PAGES(k_cache), table, s + row, last + 1, key);
#else
        float16 keys[HD][HALVES], sum[HALVES];
        load_keys(PAGES(k_cache), table, s, last + 1, keys);
#endif
        for (int i = 0; i < tile.y * HEADS; i++) {
            const int t = tile.x + i / HEADS, pos = positions[t];
            global const float* query = q + ((size_t)tile.x * HEADS + i) * HD;
            global float* out = scores + ((size_t)tile.x * HEADS + i) * stride;
#ifdef SIMT
            values[row] = product(query, key);
            barrier(CLK_LOCAL_MEM_FENCE);
            if (row % BLOCK == 0) store_maximum(values + row, s + row, pos, out);
            barrier(CLK_LOCAL_MEM_FENCE);
#else
            products(query, keys, sum);
            for (int j = 0; j < HALVES; j++) vstore16(sum[j], j, values);
            for (int j = 0; j < PAGE; j += min(BLOCK, PAGE))
                store_maximum(values + j, s + j, pos, out);
#endif
        }
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

VECTOR_ITEMS
kernel void select_keys(global const float* scores, int stride, global const int* positions,
                        global uint* selected, int n_words) {
    PARTIAL(partial);
    const int t = get_group_id(0), n = N_COMPETE(positions[t]);
    const size_t row = (size_t)t * get_num_groups(1) + get_group_id(1);
    scores += row * stride;
    selected += row * n_words;
    float x = -INFINITY;
    if (n > CHOSEN) {  // the largest x that CHOSEN scores reach
        int low = ordered(as_int(-INFINITY)), high = ordered(as_int(INFINITY));
        while (low < high) {
            const int middle = (int)(((long)low + high + 1) >> 1);
            if (count_from(scores, n, as_float(ordered(middle)), partial) >= CHOSEN) low = middle;
            else high = middle - 1;
        }
        x = as_float(ordered(low));
    }
#ifdef BY_BLOCK
    const int n_bits = n, span = 1;
#else
    const int n_bits = positions[t] + 1, span = BLOCK;
#endif
    for (int w = LID; 32 * w < n_bits; w += WG) {
        uint word = 0;
        for (int i = 0; i < min(32, n_bits - 32 * w); i++) {
            const int b = (32 * w + i) / span;
            word |= (uint)(n <= CHOSEN || b >= n || scores[b] >= x) << i;
        }
        selected[w] = word;
    }
}
