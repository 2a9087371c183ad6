// Attention over keys that are their own values (DeepSeek-V4): tokens in a window, and compressed
// keys, each of which stands for RATIO tokens; one KV head.
//
// Keys lie as V does (kv.cl), in the page of their last token; PAGE of them in a page of
// PAGE_TOKENS tokens. A query at `pos` sees the keys that end at or before it: with `window` > 0
// the last `window` of them, with CHOSEN those whose bit is set (indexer.cl). TOGETHER: it sees
// those after it, too, up to tile.w (keys of single tokens).
//
// attend  Work-group of WG items (1 on CPUs): G heads of the queries of a tile. Keys are taken 32
//         at a time: an item scores some of them for all heads, and then adds up some columns of
//         their values. One softmax may go over several caches, in as many launches: `out` has the
//         sums of weighted values and `partial` (maximum, sum) of each head in between. BEGINS:
//         nothing was before. ENDS: the sink counts, and the output's last N_ROT values are rotated
//         back by the query's position.
// scores  work-item (key, tile): sum_h weights[t][h] * max(0, q[t][h] . k), for tiles that see
//         more than TOP_K keys.

#ifndef RATIO
#define RATIO 1
#endif
#include "attention/attention.cl"
#include "include/group.cl"

#define CHUNKS (HD / 16)

// A key's place, page * PAGE + row.
INLINE int place_of(global const int* table, int key) {
    const int end = (key + 1) * RATIO - 1;
    return table[end / PAGE_TOKENS] * PAGE + end % PAGE_TOKENS / RATIO;
}
#define ROW_AT(place) V_PAGE(cache, (place) / PAGE, 1, 0), (place) % PAGE

#ifdef G
#if WG > 1
#define KEYS 1   // that an item scores together
#define WIDE 1   // vectors of 16 columns whose values it adds up together
#else
#define KEYS 2
#define WIDE (CHUNKS % 2 ? 1 : 2)
#endif
#define OWN ((CHUNKS + WG - 1) / WG)  // vectors of an item

// The places of the next 32 keys from `key` on; returns the key that follows them. At the end there
// are `count`, and the last of them again, or the first place of all.
// Intel's compiler for CPUs loads keys before it knows whether there are any, and makes wrong
// places in the loop that finds the keys.
INLINE int list_keys(SHARED int* places, SHARED int* count, global const int* table, int key,
                     int n_keys, global const uint* selected) {
    int keys[32], n = 0;
#ifdef CHOSEN
    for (; key < n_keys && n < 32; key++) {
        const uint word = selected[key / 32] >> (key % 32);
        if (!word) {
            key |= 31;
            continue;
        }
        key += popcount((word & -word) - 1);
        keys[n++] = key;
    }
#else
    n = min(32, n_keys - key);
    for (int i = 0; i < n; i++) keys[i] = key + i;
    key += n;
#endif
    for (int i = 0; i < 32; i++) places[i] = n > 0 ? place_of(table, keys[min(i, n - 1)]) : 0;
    *count = n;
    return key;
}

// scores[h][i] of the listed keys for all heads. q: [G][HD].
INLINE void score_keys(SHARED float* scores, SHARED const float* q, SHARED const int* places,
                       int count, PAGES_ARG(global const uchar*, cache)) {
    for (int i = LID * KEYS; i < 32; i += WG * KEYS) {
        float16 sum[KEYS][G];
        for (int k = 0; k < KEYS; k++)
            for (int h = 0; h < G; h++) sum[k][h] = 0;
        for (int c = 0; i < count && c < CHUNKS; c++) {
            float16 key[KEYS];
            #pragma unroll
            for (int k = 0; k < KEYS; k++) key[k] = v_value16(ROW_AT(places[i + k]), 16 * c);
            #pragma unroll
            for (int h = 0; h < G; h++) {
                const float16 query = vload16(h * CHUNKS + c, q);
                #pragma unroll
                for (int k = 0; k < KEYS; k++) sum[k][h] = fma(key[k], query, sum[k][h]);
            }
        }
        for (int k = 0; k < KEYS; k++)
            for (int h = 0; h < G; h++)
                scores[h * 32 + i + k] = i + k < count ? sum16(sum[k][h]) : S_MASKED;
    }
}

// Scores to weights; what is there already is to be multiplied by factor[h].
INLINE void weigh_keys(SHARED float* scores, SHARED float* m, SHARED float* l,
                       SHARED float* factor) {
    for (int h = LID; h < G; h += WG) {
        float16 a = vload16(2 * h, scores), b = vload16(2 * h + 1, scores);
        const float top = fmax(m[h], max16(fmax(a, b)));
        a = exp(a - top);
        b = exp(b - top);
        vstore16(a, 2 * h, scores);
        vstore16(b, 2 * h + 1, scores);
        factor[h] = exp(m[h] - top);
        l[h] = fma(l[h], factor[h], sum16(a + b));
        m[h] = top;
    }
}

INLINE void add_values(float16 acc[OWN][G], SHARED const float* weights,
                       SHARED const float* factor, SHARED const int* places, int count,
                       PAGES_ARG(global const uchar*, cache)) {
    for (int own = 0; own < OWN && own * WG + LID < CHUNKS; own += WIDE) {
        float16 sum[WIDE][G];
        #pragma unroll
        for (int w = 0; w < WIDE; w++)
            #pragma unroll
            for (int h = 0; h < G; h++) sum[w][h] = acc[own + w][h] * factor[h];
        for (int i = 0; i < count; i++) {
            #pragma unroll
            for (int w = 0; w < WIDE; w++) {
                const int column = 16 * ((own + w) * WG + LID);
                const float16 v = v_value16(ROW_AT(places[i]), column);
                #pragma unroll
                for (int h = 0; h < G; h++)
                    sum[w][h] = fma(v, (float16)(weights[h * 32 + i]), sum[w][h]);
            }
        }
        #pragma unroll
        for (int w = 0; w < WIDE; w++)
            #pragma unroll
            for (int h = 0; h < G; h++) acc[own + w][h] = sum[w][h];
    }
}

#ifdef ENDS
INLINE float16 rotated_back(float16 values, int column, global const float* table) {
    float v[16];
    vstore16(values, 0, v);
    for (int j = 0; j < 16; j += 2) {
        const int i = (column + j - (HD - N_ROT)) / 2;
        if (column + j < HD - N_ROT) continue;
        const float c = table[i], s = table[N_ROT / 2 + i], x = v[j], y = v[j + 1];
        v[j] = x * c + y * s;
        v[j + 1] = y * c - x * s;
    }
    return vload16(0, v);
}
#endif

VECTOR_ITEMS
kernel void attend(global const float* queries, int n_heads, global const int4* tiles,
                   global const int* positions, global const int* tables, int table_stride,
                   PAGES_ARG(global const uchar*, cache), int window,
#ifdef CHOSEN
                   global const uint* selected, int n_words,
#endif
#ifdef ENDS
                   global const float* sinks, global const float* rotation,
#endif
                   global float* out, global float2* partial) {
    SHARED float q[G * HD], scores[G * 32], m[G], l[G], factor[G];
    SHARED int places[32], count;
    float16 acc[OWN][G];
    const int first_head = get_group_id(0) * G;
    const int4 tile = tiles[get_global_id(1)];
    global const int* table = tables + (size_t)tile.z * table_stride;
    for (int t = tile.x; t < tile.x + tile.y; t++) {
        const size_t head = (size_t)t * n_heads + first_head;
        for (int i = LID; i < G * HD; i += WG) q[i] = queries[head * HD + i];
#ifdef BEGINS
        for (int h = LID; h < G; h += WG) m[h] = M_NONE, l[h] = 0;
#else
        for (int h = LID; h < G; h += WG) m[h] = partial[head + h].x, l[h] = partial[head + h].y;
#endif
        for (int own = 0; own < OWN && own * WG + LID < CHUNKS; own++)
            for (int h = 0; h < G; h++) {
#ifdef BEGINS
                acc[own][h] = 0;
#else
                acc[own][h] = vload16((head + h) * CHUNKS + own * WG + LID, out);
#endif
            }
        const int n_before = (positions[t] + 1) / RATIO;
#ifdef TOGETHER
        const int n_keys = max(n_before, tile.w);
#else
        const int n_keys = n_before;
#endif
        int key = window > 0 ? max(0, n_before - window) : 0;
        for (;;) {
#ifdef CHOSEN
            global const uint* words = selected + (size_t)t * n_words;
#else
            global const uint* words = 0;
#endif
            if (LID == 0) key = list_keys(places, &count, table, key, n_keys, words);
            MEET;
            if (count == 0) break;
            score_keys(scores, q, places, count, PAGES(cache));
            MEET;
            weigh_keys(scores, m, l, factor);
            MEET;
            add_values(acc, scores, factor, places, count, PAGES(cache));
            MEET;
        }
        for (int own = 0; own < OWN && own * WG + LID < CHUNKS; own++)
            for (int h = 0; h < G; h++) {
                const int c = own * WG + LID;
                float16 v = acc[own][h];
#ifdef ENDS
                v *= output_factor(m[h], l[h], sinks[first_head + h]);
                v = rotated_back(v, 16 * c, rotation + (size_t)t * N_ROT);
#endif
                vstore16(v, (head + h) * CHUNKS + c, out);
            }
#ifndef ENDS
        for (int h = LID; h < G; h += WG) partial[head + h] = (float2)(m[h], l[h]);
#endif
        MEET;
    }
}
#endif

#ifdef HEADS
VECTOR_ITEMS
kernel void scores(global const float* queries, global const float* weights,
                   global const int4* tiles, global const int* positions,
                   global const int* tables, int table_stride,
                   PAGES_ARG(global const uchar*, cache), global float* scores, int stride) {
    const int key = get_global_id(0);
    const int4 tile = tiles[get_global_id(1)];
    const int n_seen = (positions[tile.x] + tile.y) / RATIO;
    global const int* table = tables + (size_t)tile.z * table_stride;
    if (key >= n_seen || n_seen <= TOP_K) return;
    float16 k[CHUNKS];
    const int place = place_of(table, key);
    for (int c = 0; c < CHUNKS; c++) k[c] = v_value16(ROW_AT(place), 16 * c);
    for (int t = tile.x; t < tile.x + tile.y; t++) {
        global const float* q = queries + (size_t)t * HEADS * HD;
        float total = 0;
        for (int h = 0; h < HEADS; h++) {
            float16 sum = 0;
            for (int c = 0; c < CHUNKS; c++) sum = fma(vload16(h * CHUNKS + c, q), k[c], sum);
            total = fma(weights[(size_t)t * HEADS + h], fmax(sum16(sum), 0.0f), total);
        }
        scores[(size_t)t * stride + key] = total;
    }
}
#endif
