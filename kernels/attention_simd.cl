// Fused attention over KV pages on a CPU: one work-item, QB queries of one KV head.
//
// Grid: (KV heads, tiles of up to QB queries), or with SPLIT (parts, KV heads, tiles): then each
// work-item leaves (acc, m, l) of its part in `partial` for attention_combine.cl.
// G query heads of one item share a KV head (SHARE items have the same one); QB * G rows go through a page together, so that each K and V
// is loaded and converted once for all of them.
// QUANTIZE_OUT writes the next matrix's integer activations (HDV a multiple of 32), else floats.

#include "attention.cl"

#define RB (QB * G)
#ifndef SHARE
#define SHARE 1
#endif
#define N_HEADS (n_kv * SHARE * G)
#define HALVES (PAGE / 16)
#define VECTORS (HDV_PADDED / 16)
#if VECTORS % 2 == 0
#define CHUNK 2
#else
#define CHUNK 1
#endif

// Scores of one page's keys for all rows: s[r][i] for key i. q: [HD][RB], then the sums of each
// 32 of them. Codes of 32 values are summed
// before their scales count. Meanwhile the next page is fetched, which no hardware prefetcher
// can guess.
INLINE void page_scores(const float* q, global const uchar* k, global const uchar* next_k,
                        global const uchar* next_v, float16 s[RB][HALVES]) {
    #pragma unroll
    for (int r = 0; r < RB; r++)
        for (int i = 0; i < HALVES; i++) s[r][i] = 0;
    for (int b = 0; b < K_BLOCKS; b++) {
        float16 x[RB][HALVES];
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < HALVES; i++) x[r][i] = IS_FLOAT(K_TYPE) ? s[r][i] : 0;
        for (int j = 0; j < 16; j++) {
            #pragma unroll
            for (int half_block = 0; half_block < 2; half_block++) {
                const int d = 32 * b + 16 * half_block + j;
                if (HD % 32 != 0 && d >= HD) break;
                PREFETCH(next_k + d * (PAGE * K_BYTES / HD));
                PREFETCH(next_v + d * (PAGE * V_BYTES / HD));
                #pragma unroll
                for (int i = 0; i < HALVES; i++) {
                    const float16 codes = k_codes16(k, d, 16 * i);
                    #pragma unroll
                    for (int r = 0; r < RB; r++)
                        x[r][i] = fma(codes, (float16)(q[d * RB + r]), x[r][i]);
                }
            }
        }
        #pragma unroll
        for (int i = 0; i < HALVES; i++) {
            float16 scale = 1, minimum = 0;
            if (!IS_FLOAT(K_TYPE)) scale = k_scales16(k, b, 16 * i);
            if (HAS_MINIMUM(K_TYPE)) minimum = k_minima16(k, b, 16 * i, scale);
            #pragma unroll
            for (int r = 0; r < RB; r++) {
                s[r][i] = IS_FLOAT(K_TYPE) ? x[r][i] : fma(x[r][i], scale, s[r][i]);
                if (HAS_MINIMUM(K_TYPE))
                    s[r][i] = fma(minimum, (float16)(q[(HD + b) * RB + r]), s[r][i]);
            }
        }
    }
}

#define ZERO_TO_15 (float16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

INLINE float16 masked(float16 s, int key, int pos, int window, int n_keys) {
    const int16 keys = key + (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int16 seen = (keys < end_key(pos, window, n_keys)) & (keys >= first_key(pos, window));
    return select((float16)(S_MASKED), s, seen);
}

// The weights of a page's first n keys times the scales of block b of V: w. Returns what the
// minima add to each value.
INLINE float scaled_weights(const float* p, global const uchar* v, int b, int n, float* w) {
    float16 sum = 0;
    for (int i = 0; i < HALVES; i++) {
        const float16 weights = vload16(i, p), scale = v_scales16(v, b, 16 * i);
        vstore16(weights * scale, i, w);
        if (HAS_MINIMUM(V_TYPE)) {
            const int16 written = 16 * i + as_int16(FROM_ZERO16) < n;
            const float16 minimum = v_minima16(v, b, 16 * i, scale);
            sum = fma(weights, select((float16)(0), minimum, written), sum);
        }
    }
    return HAS_MINIMUM(V_TYPE) ? sum16(sum) : 0;
}

// acc[r] = acc[r] * factor[r] + sum over n keys of p[r][key] * V[key].
INLINE void add_values(float16 acc[RB][VECTORS], const float* factor, float p[RB][PAGE],
                       global const uchar* v, int n) {
    for (int c = 0; c < VECTORS; c += CHUNK) {
        float16 a[RB][CHUNK];
        float scaled[RB][PAGE];
        const float(*w)[PAGE] = IS_FLOAT(V_TYPE) ? p : scaled;
        #pragma unroll
        for (int r = 0; r < RB; r++) {
            float low = 0;
            if (!IS_FLOAT(V_TYPE)) low = scaled_weights(p[r], v, c / 2, n, scaled[r]);
            for (int i = 0; i < CHUNK; i++) {
                a[r][i] = acc[r][c + i] * factor[r];
                if (HAS_MINIMUM(V_TYPE)) a[r][i] += low;
            }
        }
        for (int t = 0; t < n; t++) {
            #pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                const float16 codes = v_codes16(v, t, 16 * (c + i));
                #pragma unroll
                for (int r = 0; r < RB; r++) a[r][i] = fma(codes, (float16)(w[r][t]), a[r][i]);
            }
        }
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < CHUNK; i++) acc[r][c + i] = a[r][i];
    }
}

typedef struct {
    float16 acc[RB][VECTORS];
    float m[RB], l[RB];
} State;

// One part: keys of pages [page, end) for queries from position pos on.
INLINE void attend_part(State* state, const float* q, PAGES_ARG(global const uchar*, k_cache),
                        PAGES_ARG(global const uchar*, v_cache), global const int* table, int n_kv, int h, int first_head,
                        int page, int end, int pos, int nq, int kv_end, int n_keys, int window,
                        float softcap SLOPES_ARG SELECTED_ARG) {
    for (int r = 0; r < RB; r++) {
        state->m[r] = M_NONE;
        state->l[r] = 0;
        for (int c = 0; c < VECTORS; c++) state->acc[r][c] = 0;
    }
    for (; page < end; page++) {
        const int key = page * PAGE;
#ifdef SELECTED
        uint words[QB], any = 0;
        for (int i = 0; i < QB; i++)
            any |= words[i] = selected[(size_t)min(i, nq - 1) * n_words + page];
        if (!any) continue;
#endif
        float16 s[RB][HALVES];
        float p[RB][PAGE], factor[RB];
        const int next = table[min(page + 1, end - 1)];
        page_scores(q, K_PAGE(k_cache, table[page], n_kv, h), K_PAGE(k_cache, next, n_kv, h),
                    V_PAGE(v_cache, next, n_kv, h), s);
        const bool whole = key + PAGE <= end_key(pos, window, n_keys) &&
                           (window <= 0 || key >= first_key(pos + QB - 1, window));
        #pragma unroll
        for (int r = 0; r < RB; r++) {
            float16 top = M_NONE;
            for (int i = 0; i < HALVES; i++) {
                s[r][i] = CAPPED(s[r][i]);
#ifdef ALIBI
                s[r][i] += slopes[first_head + r % G] *
                           NEARNESS(ZERO_TO_15 + (float)(key + 16 * i - pos - r / G));
#endif
                if (!whole) s[r][i] = masked(s[r][i], key + 16 * i, pos + r / G, window, n_keys);
#ifdef SELECTED
                const uint16 word = words[r / G] >> (16 * i);
                const int16 bits = convert_int16(word >> convert_uint16(ZERO_TO_15) & 1);
                s[r][i] = select((float16)(S_MASKED), s[r][i], bits != 0);
#endif
                top = fmax(top, s[r][i]);
            }
            const float m = fmax(state->m[r], max16(top));
            factor[r] = exp(state->m[r] - m);
            float16 sum = 0;
            for (int i = 0; i < HALVES; i++) {
                const float16 e = exp(s[r][i] - m);
                vstore16(e, i, p[r]);
                sum += e;
            }
            state->l[r] = fma(state->l[r], factor[r], sum16(sum));
            state->m[r] = m;
        }
        add_values(state->acc, factor, p, V_PAGE(v_cache, table[page], n_kv, h),
                   min(PAGE, kv_end - key));
    }
}

INLINE void merge(State* total, const State* part) {
    for (int r = 0; r < RB; r++) {
        const float m = fmax(total->m[r], part->m[r]);
        const float a = exp(total->m[r] - m), b = exp(part->m[r] - m);
        total->l[r] = fma(total->l[r], a, part->l[r] * b);
        for (int c = 0; c < VECTORS; c++)
            total->acc[r][c] = fma(total->acc[r][c], (float16)(a), part->acc[r][c] * b);
        total->m[r] = m;
    }
}

kernel void attention(global const float* qkv, int q_stride, int n_kv, global const int4* tiles,
                      global const int* positions, global const int* tables, int table_stride,
                      PAGES_ARG(global const uchar*, k_cache),
                      PAGES_ARG(global const uchar*, v_cache), int window, float softcap SLOPES_ARG SINKS_ARG SELECTED_ARG,
#if defined(SPLIT)
                      global float* partial, int max_parts
#elif defined(QUANTIZE_OUT)
                      global short* out_q, global float2* out_d
#else
                      global float* out
#endif
) {
#ifdef SPLIT
    const int part = get_global_id(0), item = get_global_id(1), tile_index = get_global_id(2);
#else
    const int item = get_global_id(0), tile_index = get_global_id(1);
#endif
    const int h = item / SHARE, first_head = item * G;
    const int4 tile = tiles[tile_index];
    const int t0 = tile.x, nq = tile.y, pos = positions[t0];
    const int kv_end = end_key(pos + nq - 1, window, tile.w);
    const int first_page = first_key(pos, window) / PAGE;
    const int last_page = (kv_end + PAGE - 1) / PAGE;
    global const int* table = tables + (size_t)tile.z * table_stride;
    float q[(HD + K_BLOCKS) * RB];
    for (int r = 0; r < RB; r++) {
        // Rows beyond the tile's queries repeat the last one; their result is not stored.
        global const float* x = qkv + (size_t)(t0 + min(r / G, nq - 1)) * q_stride + (first_head + r % G) * HD;
        for (int b = 0; b < K_BLOCKS; b++) q[(HD + b) * RB + r] = 0;
        for (int d = 0; d < HD; d++) {
            q[d * RB + r] = x[d];
            q[(HD + d / 32) * RB + r] += x[d];
        }
    }
#define ATTEND(state, begin)                                                               \
    attend_part(state, q, PAGES(k_cache), PAGES(v_cache), table, n_kv, h, first_head,      \
                max(first_page, begin), min(last_page, (begin) + PART_PAGES), pos, nq, \
                kv_end, tile.w, window, softcap SLOPES SELECTED_PASS(t0))
    State total;
#ifdef SPLIT
    if (part * PART_PAGES >= last_page) return;
    ATTEND(&total, part * PART_PAGES);
    for (int r = 0; r < G; r++) {
        const int head = first_head + r;
        global float* o =
            partial + (((size_t)tile_index * N_HEADS + head) * max_parts + part) * (HDV_PADDED + 2);
        for (int c = 0; c < VECTORS; c++) vstore16(total.acc[r][c], c, o);
        o[HDV_PADDED] = total.m[r];
        o[HDV_PADDED + 1] = total.l[r];
    }
#else
    const int begin = first_page / PART_PAGES * PART_PAGES;
    ATTEND(&total, begin);
    for (int page = begin + PART_PAGES; page < last_page; page += PART_PAGES) {
        State state;
        ATTEND(&state, page);
        merge(&total, &state);
    }
    for (int r = 0; r < nq * G; r++) {
        const int head = first_head + r % G;
        const size_t at = (size_t)(t0 + r / G) * N_HEADS + head;
        const float inverse = OUTPUT_FACTOR(total.m[r], total.l[r], head);
#ifdef QUANTIZE_OUT
        for (int c = 0; c < VECTORS; c += 2)
            out_d[at * (HDV / 32) + c / 2] =
                quantize32(total.acc[r][c] * inverse, total.acc[r][c + 1] * inverse,
                           out_q + at * HDV + c * 16);
#else
        for (int i = 0; i < HDV; i++) out[at * HDV + i] = ((float*)total.acc[r])[i] * inverse;
#endif
    }
#endif
}
