// Fused attention over KV pages on a CPU: one work-item, QB queries of one KV head.
//
// Grid: (KV heads, tiles of up to QB queries), or with SPLIT (parts, KV heads, tiles): then each
// work-item leaves (acc, m, l) of its part in `partial` for attention_combine.cl.
// G query heads of one item share a KV head (SHARE items have the same one); QB * G rows go through
// a page together, so that each K and V is loaded and converted once for all of them.
// QUANTIZE_OUT writes the next matrix's integer activations (HDV a multiple of 32), else floats.

#include "attention/pages_simd.cl"

#ifndef SHARE
#define SHARE 1
#endif
#define N_HEADS (n_kv * SHARE * G)
#define AHEAD 2  // pages from what is read to what is fetched: one is too late
#if defined(SOFTCAP) || defined(ALIBI) || defined(RELATIVE) || defined(SELECTED)
#define ALWAYS_MASKED 1
#else
#define ALWAYS_MASKED 0
#endif

typedef struct {
    float16 acc[RB][VECTORS];
    float m[RB], l[RB];
} State;

// A sequence's pages of one KV head; those from `end` on are not there.
typedef struct {
    Bytes PAGES(k), PAGES(v);
    global const int* table;
    int n_kv, h, end;
} Cache;

INLINE Bytes k_page(const Cache* c, int i) {
    const int page = c->table[min(i, c->end - 1)];
    return K_PAGE(c->k, page, c->n_kv, c->h);
}

INLINE Bytes v_page(const Cache* c, int i) {
    const int page = c->table[min(i, c->end - 1)];
    return V_PAGE(c->v, page, c->n_kv, c->h);
}

// A bit for each of n pages from `page` on of which no query has selected a key.
INLINE uint unselected(int page, int n, int nq SELECTED_ARG) {
    uint bits = 0;
#ifdef SELECTED
    for (int i = 0; i < n; i++) {
        uint any = 0;
        for (int j = 0; j < nq; j++) any |= selected[(size_t)j * n_words + page + i];
        if (!any) bits |= 1u << i;
    }
#endif
    return bits;
}

// s: the scores of the keys of n pages from `page` on, before they are masked; any for those that
// are skipped. An odd page's company does not matter.
INLINE void part_scores(float s[RB][PART], const float* q, const Cache* cache, int page, int n,
                        uint skipped) {
    const uint all = (1u << KEY_PAGES) - 1;
    for (int i = 0; i < n; i += KEY_PAGES) {
        if ((skipped >> i & all) == all) continue;
        Bytes here[KEY_PAGES], next[KEY_PAGES];
        #pragma unroll
        for (int j = 0; j < KEY_PAGES; j++) {
            const int ahead = i + j + AHEAD;
            here[j] = k_page(cache, page + i + j);
            next[j] = ahead < n ? k_page(cache, page + ahead) : v_page(cache, page + ahead - n);
        }
        page_scores(q, here, next, (float(*)[PART])(s[0] + i * PAGE));
    }
}

INLINE void mask_part(float s[RB][PART], int page, int n, int pos, int nq, int n_keys, int window,
                      float softcap, int first_head BIAS_ARG SELECTED_ARG) {
    for (int i = 0; i < n; i++) {
        const int key = (page + i) * PAGE;
        uint words[QB];
#ifdef SELECTED
        for (int j = 0; j < QB; j++)
            words[j] = selected[(size_t)min(j, nq - 1) * n_words + page + i];
#endif
        const bool whole = key + PAGE <= end_key(pos, window, n_keys) &&
                           key >= first_key(pos + QB - 1, window, n_keys);
        if (ALWAYS_MASKED || !whole)
            mask_scores((float(*)[PART])(s[0] + i * PAGE), words, whole, key, pos, window, n_keys,
                        softcap, first_head BIAS);
    }
}

// acc: the values of n pages from `page` on, `p` times each.
INLINE void part_values(float16 acc[RB][VECTORS], float p[RB][PART], const Cache* cache, int page,
                        int n, uint skipped, int kv_end) {
    for (int c = 0; c < VECTORS; c += CHUNK) {
        float16 a[RB][CHUNK];
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < CHUNK; i++) a[r][i] = 0;
        for (int i = 0; i < n; i++) {
            if (skipped >> i & 1) continue;
            const int ahead = page + i + AHEAD;
            add_values(a, (float(*)[PART])(p[0] + i * PAGE), v_page(cache, page + i),
                       i + AHEAD < n ? v_page(cache, ahead) : k_page(cache, ahead), c,
                       min(PAGE, kv_end - (page + i) * PAGE));
        }
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < CHUNK; i++) acc[r][c + i] = a[r][i];
    }
}

// One part: keys of pages [page, end) for queries from position pos on. First the scores of all
// its keys, then their weights, then the values, so that a row has one maximum and the sums of
// values stay in registers.
INLINE void attend_part(State* state, const float* q, const Cache* cache, int page, int end,
                        int pos, int nq, int kv_end, int n_keys, int window, float softcap,
                        int first_head BIAS_ARG SELECTED_ARG) {
    float s[RB][PART];
    const int n = max(end - page, 0);
    const uint skipped = unselected(page, n, nq SELECTED_PASS(0, 0));
    part_scores(s, q, cache, page, n, skipped);
    mask_part(s, page, n, pos, nq, n_keys, window, softcap, first_head BIAS SELECTED_PASS(0, 0));
    for (int r = 0; r < RB; r++) {
        const float2 found = softmax_row(s[r], n * HALVES);
        state->m[r] = found.x;
        state->l[r] = found.y;
    }
    part_values(state->acc, s, cache, page, n, skipped, kv_end);
}

INLINE void merge(State* total, const State* part) {
    for (int r = 0; r < RB; r++) {
        const float m = fmax(total->m[r], part->m[r]);
        const float a = exp_negative(total->m[r] - m), b = exp_negative(part->m[r] - m);
        total->l[r] = fma(total->l[r], a, part->l[r] * b);
        for (int c = 0; c < VECTORS; c++)
            total->acc[r][c] = fma(total->acc[r][c], (float16)(a), part->acc[r][c] * b);
        total->m[r] = m;
    }
}

VECTOR_ITEMS
kernel void attention(global const float* qkv, int q_stride, int n_kv, global const int4* tiles,
                      global const int* positions, global const int* tables, int table_stride,
                      PAGES_ARG(global const uchar*, k_cache),
                      PAGES_ARG(global const uchar*, v_cache), int window, float softcap,
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
#if defined(SPLIT)
                      global float* partial, int max_parts
#elif defined(QUANTIZE_OUT)
                      global code_t* out_q, global scale_t* out_d
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
    const int first_page = first_key(pos, window, tile.w) / PAGE;
    const int last_page = (kv_end + PAGE - 1) / PAGE;
    const Cache cache = {PAGES(k_cache), PAGES(v_cache), tables + (size_t)tile.z * table_stride,
                         n_kv, h, last_page};
    float q[(HD + K_BLOCKS) * RB];
    for (int r = 0; r < RB; r++) {
        // Rows beyond the tile's queries repeat the last one; their result is not stored.
        global const float* x =
            qkv + (size_t)(t0 + min(r / G, nq - 1)) * q_stride + (first_head + r % G) * HD;
        for (int d = 0; d < HD; d++) q[d * RB + r] = x[d];
        for (int b = 0; HAS_MINIMUM(K_TYPE) && b < K_BLOCKS; b++) {
            float sum = 0;
            for (int d = 32 * b; d < min(32 * b + 32, HD); d++) sum += x[d];
            q[(HD + b) * RB + r] = sum;
        }
    }
#define ATTEND(state, begin)                                                                  \
    attend_part(state, q, &cache, max(first_page, begin), min(last_page, (begin) + PART_PAGES), \
                pos, nq, kv_end, tile.w, window, softcap, first_head BIAS SELECTED_PASS(t0, h))
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
    // The first part is in the loop too, since a second copy of attend_part doubles compile time.
    for (int page = begin; page == begin || page < last_page; page += PART_PAGES) {
        State state;
        ATTEND(&state, page);
        if (page == begin)
            total = state;
        else
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
