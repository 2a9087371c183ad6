// Attention over keys that are their own values (DeepSeek-V4): tokens in a window, and compressed
// keys, each of which stands for RATIO tokens; one KV head.
//
// Keys lie as V does (kv.cl), in the page of their last token; PAGE of them in a page of
// PAGE_TOKENS tokens. A query at `pos` sees the keys that end at or before it: with `window` > 0
// the last `window` of them, with CHOSEN those whose bit is set (indexer.cl).
//
// attend  Work-group of WG items (1 on CPUs): G heads of the queries of a tile. Keys are taken 32
//         at a time: item i scores key i for all heads, and then adds up 16 columns of values.
//         One softmax may go over several caches, in as many launches: `out` has the sums of
//         weighted values and `partial` (maximum, sum) of each head in between. BEGINS: nothing
//         was before. ENDS: the sink counts, and the output's last N_ROT values are rotated back
//         by the query's position.
// scores  work-item (key, tile): sum_h weights[t][h] * max(0, q[t][h] . k), for tiles that see
//         more than TOP_K keys.

#ifndef RATIO
#define RATIO 1
#endif
#include "attention.cl"
#include "group.cl"

#define CHUNKS (HD / 16)

// The page and the row of a key.
#define END_OF(key) (((key) + 1) * RATIO - 1)
#define PAGE_OF(key) V_PAGE(cache, table[END_OF(key) / PAGE_TOKENS], 1, 0)
#define ROW_OF(key) (END_OF(key) % PAGE_TOKENS / RATIO)

INLINE float16 values16(global const uchar* page, int row, int d) {
    const float16 codes = v_codes16(page, row, d);
    if (IS_FLOAT(V_TYPE)) return codes;
    const float scale = v_scales(page, d / 32, row);
    if (!HAS_MINIMUM(V_TYPE)) return codes * scale;
    return fma(codes, (float16)(scale), (float16)(v_minima(page, d / 32, row, scale)));
}

#ifdef G
#define OWN_CHUNKS ((CHUNKS + WG - 1) / WG)
#if WG > 1
#define SHARED local
#define MEET barrier(CLK_LOCAL_MEM_FENCE)
#else
#define SHARED
#define MEET
#endif

// Of the 32 keys from `base` on, those from `first` to `end`.
INLINE uint between(int base, int first, int end) {
    uint word = ~0u;
    if (first > base) word &= ~0u << (first - base);
    if (end - base < 32) word &= ~(~0u << (end - base));
    return word;
}

#ifdef ENDS
INLINE void rotate_back(float* v, int column, global const float* table) {
    for (int j = 0; j < 16; j += 2) {
        const int i = (column + j - (HD - N_ROT)) / 2;
        if (column + j < HD - N_ROT) continue;
        const float c = table[i], s = table[N_ROT / 2 + i], x = v[j], y = v[j + 1];
        v[j] = x * c + y * s;
        v[j + 1] = y * c - x * s;
    }
}
#endif

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
    SHARED float q[G * HD], s[G * 32], m[G], l[G], factor[G];
    float16 acc[OWN_CHUNKS][G];
    const int first_head = get_group_id(0) * G;
    const int4 tile = tiles[get_global_id(1)];
    global const int* table = tables + (size_t)tile.z * table_stride;
    for (int t = tile.x; t < tile.x + tile.y; t++) {
        const int n = (positions[t] + 1) / RATIO, first = window > 0 ? max(0, n - window) : 0;
        const size_t head = (size_t)t * n_heads + first_head;
        for (int i = LID; i < G * HD; i += WG) q[i] = queries[head * HD + i];
        for (int h = LID; h < G; h += WG) {
#ifdef BEGINS
            m[h] = M_NONE;
            l[h] = 0;
#else
            m[h] = partial[head + h].x;
            l[h] = partial[head + h].y;
#endif
        }
        for (int c = LID, own = 0; c < CHUNKS; c += WG, own++)
            for (int h = 0; h < G; h++) {
#ifdef BEGINS
                acc[own][h] = 0;
#else
                acc[own][h] = vload16(c, out + (head + h) * HD);
#endif
            }
        MEET;
        for (int base = first & ~31; base < n; base += 32) {
            uint word = between(base, first, n);
#ifdef CHOSEN
            word &= selected[(size_t)t * n_words + base / 32];
            if (!word) continue;
#endif
            for (int i = LID; i < 32; i += WG) {
                float16 sum[G];
                for (int h = 0; h < G; h++) sum[h] = 0;
                if (word >> i & 1) {
                    global const uchar* page = PAGE_OF(base + i);
                    for (int c = 0; c < CHUNKS; c++) {
                        const float16 k = values16(page, ROW_OF(base + i), 16 * c);
                        #pragma unroll
                        for (int h = 0; h < G; h++)
                            sum[h] = fma(k, vload16(c, q + h * HD), sum[h]);
                    }
                }
                for (int h = 0; h < G; h++)
                    s[h * 32 + i] = word >> i & 1 ? sum16(sum[h]) : S_MASKED;
            }
            MEET;
            for (int h = LID; h < G; h += WG) {
                float16 a = vload16(2 * h, s), b = vload16(2 * h + 1, s);
                const float top = fmax(m[h], max16(fmax(a, b)));
                a = exp(a - top);
                b = exp(b - top);
                vstore16(a, 2 * h, s);
                vstore16(b, 2 * h + 1, s);
                factor[h] = exp(m[h] - top);
                l[h] = fma(l[h], factor[h], sum16(a + b));
                m[h] = top;
            }
            MEET;
            for (int c = LID, own = 0; c < CHUNKS; c += WG, own++) {
                float16 sum[G];
                for (int h = 0; h < G; h++) sum[h] = acc[own][h] * factor[h];
                for (int i = 0; i < 32; i++) {
                    if (!(word >> i & 1)) continue;
                    const float16 v = values16(PAGE_OF(base + i), ROW_OF(base + i), 16 * c);
                    #pragma unroll
                    for (int h = 0; h < G; h++) sum[h] = fma(v, (float16)(s[h * 32 + i]), sum[h]);
                }
                for (int h = 0; h < G; h++) acc[own][h] = sum[h];
            }
            MEET;
        }
        for (int c = LID, own = 0; c < CHUNKS; c += WG, own++)
            for (int h = 0; h < G; h++) {
                float16 v = acc[own][h];
#ifdef ENDS
                float turned[16];
                vstore16(v * output_factor(m[h], l[h], sinks[first_head + h]), 0, turned);
                rotate_back(turned, 16 * c, rotation + (size_t)t * N_ROT);
                v = vload16(0, turned);
#endif
                vstore16(v, c, out + (head + h) * HD);
            }
#ifndef ENDS
        for (int h = LID; h < G; h += WG) partial[head + h] = (float2)(m[h], l[h]);
#endif
        MEET;
    }
}
#endif

#ifdef HEADS
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
    for (int c = 0; c < CHUNKS; c++) k[c] = values16(PAGE_OF(key), ROW_OF(key), 16 * c);
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
