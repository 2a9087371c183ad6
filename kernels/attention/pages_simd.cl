// What fused attention on a CPU (attention_simd.cl) does with a page or two of K or V: scores, what
// a mask makes of them, weights, and sums of values. RB rows, QB queries of G heads each, are
// computed together.

#include "attention/attention.cl"

#define RB (QB * G)
#define HALVES (PAGE / 16)
#define VECTORS (HDV_PADDED / 16)
// Vectors of keys, and of values, whose sums for all rows fit the 32 registers. Two pages of keys
// at a time save loads of q, but small ones from main memory are fetched better one by one.
#if RB <= 6 && (IS_FLOAT(K_TYPE) || RB <= 3) && !(defined(SPLIT) && HD <= 64)
#define SIDE 4
#elif RB <= 12
#define SIDE 2
#else
#define SIDE 1
#endif
#define KEY_PAGES (SIDE > HALVES ? SIDE / HALVES : 1)
#if VECTORS % 4 == 0 && RB <= 6
#define CHUNK 4
#elif VECTORS % 2 == 0
#define CHUNK 2
#else
#define CHUNK 1
#endif
#define BLOCKS ((CHUNK + 1) / 2)

typedef global const uchar* Bytes;

// Scores of the keys of KEY_PAGES pages for all rows: s[r][i] for key i. q: [HD][RB], then
// with minima the sums of each 32 of them. Codes of 32 values are summed before their scales
// count. Meanwhile other pages are fetched, which no hardware prefetcher can guess.
INLINE void page_scores(const float* q, const Bytes* pages, const Bytes* next,
                        float s[RB][PART]) {
    for (int at = 0; at < KEY_PAGES * HALVES; at += SIDE) {
        float16 total[RB][SIDE];
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < SIDE; i++) total[r][i] = 0;
        for (int b = 0; b < K_BLOCKS; b++) {
            float16 x[RB][SIDE];
            #pragma unroll
            for (int r = 0; r < RB; r++)
                for (int i = 0; i < SIDE; i++) x[r][i] = IS_FLOAT(K_TYPE) ? total[r][i] : 0;
            for (int j = 0; j < 16; j++) {
                #pragma unroll
                for (int half_block = 0; half_block < 2; half_block++) {
                    const int d = 32 * b + 16 * half_block + j;
                    if (HD % 32 != 0 && d >= HD) break;
                    #pragma unroll
                    for (int i = 0; i < KEY_PAGES; i++)
                        if (at == 0) PREFETCH(next[i] + d * (PAGE * K_BYTES / HD));
                    #pragma unroll
                    for (int i = 0; i < SIDE; i++) {
                        const int v = at + i;
                        const float16 codes = k_codes16(pages[v / HALVES], d, v % HALVES * 16);
                        #pragma unroll
                        for (int r = 0; r < RB; r++)
                            x[r][i] = fma(codes, (float16)(q[d * RB + r]), x[r][i]);
                    }
                }
            }
            #pragma unroll
            for (int i = 0; i < SIDE; i++) {
                const Bytes k = pages[(at + i) / HALVES];
                const int t = (at + i) % HALVES * 16;
                float16 scale = 1, minimum = 0;
                if (!IS_FLOAT(K_TYPE)) scale = k_scales16(k, b, t);
                if (HAS_MINIMUM(K_TYPE)) minimum = k_minima16(k, b, t, scale);
                #pragma unroll
                for (int r = 0; r < RB; r++) {
                    total[r][i] = IS_FLOAT(K_TYPE) ? x[r][i] : fma(x[r][i], scale, total[r][i]);
                    if (HAS_MINIMUM(K_TYPE))
                        total[r][i] = fma(minimum, (float16)(q[(HD + b) * RB + r]), total[r][i]);
                }
            }
        }
        #pragma unroll
        for (int r = 0; r < RB; r++)
            for (int i = 0; i < SIDE; i++) vstore16(total[r][i], at + i, s[r]);
    }
}

#define ZERO_TO_15 (float16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

// What the mask, and whatever else there is, makes of the scores of keys key to key + PAGE.
// words: the bits of its keys that each query has selected.
INLINE void mask_scores(float s[RB][PART], const uint* words, bool whole, int key, int pos,
                        int window, int n_keys, float softcap, int first_head BIAS_ARG) {
    for (int r = 0; r < RB; r++) {
        const int at = pos + r / G;
        for (int i = 0; i < HALVES; i++) {
            const int16 keys = key + 16 * i + as_int16(FROM_ZERO16);
            float16 x = CAPPED(vload16(i, s[r]));
#ifdef ALIBI
            x += slopes[first_head + r % G] * NEARNESS(ZERO_TO_15 + (float)(key + 16 * i - at));
#endif
#ifdef RELATIVE
            float bias[16];
            for (int j = 0; j < 16; j++)
                bias[j] = relative_bias(biases, reach, first_head + r % G, key + 16 * i + j - at);
            x += vload16(0, bias);
#endif
            if (!whole) {
                const int16 seen = (keys < end_key(at, window, n_keys)) &
                                   (keys >= first_key(at, window, n_keys));
                x = select((float16)(S_MASKED), x, seen);
            }
#ifdef SELECTED
            const uint16 bits = (uint16)(words[r / G] >> (16 * i)) >> FROM_ZERO16 & 1;
            x = select((float16)(S_MASKED), x, as_int16(bits) != 0);
#endif
            vstore16(x, i, s[r]);
        }
    }
}

// Scores of n vectors of keys become weights: e^(score - m), the largest 1. Returns (m, sum).
INLINE float2 softmax_row(float* s, int n) {
    float16 top = M_NONE, sum = 0;
    for (int i = 0; i < n; i++) top = max(top, vload16(i, s));
    const float m = max16(top);
    for (int i = 0; i < n; i++) {
        const float16 e = exp_negative16(vload16(i, s) - m);
        vstore16(e, i, s);
        sum += e;
    }
    return (float2)(m, sum16(sum));
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

// a[r] += sum over n keys of p[r][key] * V[key], of CHUNK vectors of V from c on.
INLINE void add_values(float16 a[RB][CHUNK], float p[RB][PART], global const uchar* v,
                       global const uchar* next, int c, int n) {
    float scaled[BLOCKS][RB][PAGE];
    if (!IS_FLOAT(V_TYPE)) {
        #pragma unroll
        for (int r = 0; r < RB; r++) {
            for (int b = 0; b < BLOCKS; b++) {
                const float low = scaled_weights(p[r], v, c / 2 + b, n, scaled[b][r]);
                for (int i = 2 * b; i < min(2 * b + 2, CHUNK); i++)
                    if (HAS_MINIMUM(V_TYPE)) a[r][i] += low;
            }
        }
    }
    for (int t = 0; t < n; t++) {
        #pragma unroll
        for (int i = 0; i < CHUNK; i += 2)
            PREFETCH(next + t * V_BYTES + (c + i) * (V_BYTES / VECTORS));
        #pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            const float16 codes = v_codes16(v, t, 16 * (c + i));
            #pragma unroll
            for (int r = 0; r < RB; r++) {
                const float w = IS_FLOAT(V_TYPE) ? p[r][t] : scaled[i / 2][r][t];
                a[r][i] = fma(codes, (float16)(w), a[r][i]);
            }
        }
    }
}
