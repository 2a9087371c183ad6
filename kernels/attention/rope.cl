// RoPE, the norms of Q and K, and the write to the KV cache, in one pass.
//
// rope_table: cos and sin for every token of the step, [n][2][N_ROT / 2]; one launch a step.
// With COMPONENTS a position has four, and each pair is turned by one of them (M-RoPE).
// rope_kv: work-group of WG items (1 on CPUs): (head, token); heads are Q's, then K's, then V's, in
// rows that begin at 0, k_at and v_at. Q is rotated in place and multiplied by `scale`; K and V go
// to their page. The token's place is slot_mapping[t] = page * PAGE + row.
// NO_ROPE      no rotation; else that of head.cl
// QK_NORM      each head of Q and K is normalized (head.cl) before the rotation, with NORM_AFTER
//              after it, with the weights Q_WEIGHT and K_WEIGHT where there are any
// BIASED       before the rotation biases are added, which lie as the weights do
// NORM_V       so is each head of V, without weight
// CLAMP        values of Q, K and V are first bounded by +-clamp_to
// JOINT        K is V, and kept in its place
// TEMPERATURE  Q grows with its position (attn_temperature in the GGUF format)
// K_TOKENS     so many share a key, which pool_keys makes of what they have as values:
//              a key of HD values each, with GATED a gate for each of them behind it.
// pool_keys: work-item (token); the last of a block makes its key: the mean of theirs, or with
// GATED for each value their sum, weighted with the softmax of gate + ape[token of the block].
// Then norm and rotation as in rope_kv, by the `table` of the blocks' first tokens.

#include "include/lanes.cl"

VECTOR_ITEMS
kernel void rope_table(global const int* positions, global const float* frequencies,
                       float attention_factor, global float* table
#ifdef COMPONENTS
                       , global const int* components
#define POSITION positions[4 * t + components[i]]
#else
#define POSITION positions[t]
#endif
) {
    const int i = get_global_id(0), t = get_global_id(1), n = get_global_size(0);
    const float angle = POSITION * frequencies[i];
    float c;
    const float s = sincos(angle, &c);
    table[(size_t)t * 2 * n + i] = c * attention_factor;
    table[(size_t)t * 2 * n + n + i] = s * attention_factor;
}

#ifdef HD
#include "attention/kv.cl"

#include "attention/head.cl"

#ifdef CLAMP
#define CLAMPED(v) clamp(v, -clamp_to, clamp_to)
#else
#define CLAMPED(v) (v)
#endif

INLINE void rotate(SHARED float* v, global const float* table) {
#ifndef NO_ROPE
    MEET;
    for (int i = LID; i < HALF_ROT; i += WG) turn(v, i, table[i], table[HALF_ROT + i]);
    MEET;
#endif
}

// A head of Q or K, normalized and rotated.
INLINE void load_head(global const float* x, global const float* table,
                      global const float* weight, global const float* bias, int head, float eps,
                      float clamp_to, SHARED float* v, local float* partial) {
    for (int i = LID; i < HD; i += WG) v[i] = CLAMPED(x[i]);
#ifdef NORM_AFTER
    rotate(v, table);
    normalize(v, weight, head, eps, partial);
#else
    normalize(v, weight, head, eps, partial);
#ifdef BIASED
    for (int i = LID; i < HD; i += WG) v[i] += bias[head * W_HEAD + i * W_ITEM];
#endif
    rotate(v, table);
#endif
}

// Blocks of few bits cannot hold a dimension that is far larger than the others, as some models'
// K have. A Hadamard transform spreads it; done to Q too, it leaves their products as they are.
INLINE void spread_outliers(SHARED float* x) {
    const int n = HD & -HD;  // the largest power of two that divides HD
    for (int step = 1; step < n; step *= 2) {
        MEET;
#if WG > 1
        for (int i = LID; i < HD / 2; i += WG) {
            const int j = i / step * 2 * step + i % step;
            const float a = x[j], b = x[j + step];
            x[j] = a + b;
            x[j + step] = a - b;
        }
#else
        for (int i = 0; i < HD; i += 2 * step)
            for (int j = i; j < i + step; j++) {
                const float a = x[j], b = x[j + step];
                x[j] = a + b;
                x[j + step] = a - b;
            }
#endif
    }
    MEET;
    for (int i = LID; i < HD; i += WG) x[i] *= 1.0f / sqrt((float)n);
}

#ifdef JOINT  // values that are keys, too, stay as they are
#define SPREAD_OUTLIERS(x)
#else
#define SPREAD_OUTLIERS(x) if (!IS_FLOAT(K_TYPE)) spread_outliers(x)
#endif

VECTOR_ITEMS
kernel void rope_kv(global float* q, int q_stride, global const float* k, int k_stride, int k_at,
                    global const float* v, int v_stride, int v_at,
                    int n_heads, int n_kv,
#ifndef NO_ROPE
                    global const float* table,
#endif
                    global const int* slot_mapping, PAGES_ARG(global uchar*, k_cache),
                    PAGES_ARG(global uchar*, v_cache),
                    float scale
#ifdef CLAMP
                    , float clamp_to
#endif
#ifdef QK_NORM
                    , float eps
#endif
#ifdef Q_WEIGHT
                    , global const float* q_weight
#endif
#ifdef K_WEIGHT
                    , global const float* k_weight
#endif
#ifdef BIASED
                    , global const float* q_bias, global const float* k_bias
#endif
#ifdef TEMPERATURE
                    , global const int* positions, float growth, float step, float shift
#endif
) {
#ifndef CLAMP
    const float clamp_to = 0;
#endif
#ifndef QK_NORM
    const float eps = 0;
#endif
#ifndef Q_WEIGHT
    global const float* q_weight = 0;
#endif
#ifndef K_WEIGHT
    global const float* k_weight = 0;
#endif
#ifndef BIASED
    global const float *q_bias = 0, *k_bias = 0;
#endif
    const int head = get_group_id(0), t = get_group_id(1);
    const int slot = slot_mapping[t], page = slot / PAGE, row = slot % PAGE;
#ifdef NO_ROPE
    global const float* table = 0;
#else
    table += (size_t)t * N_ROT;
#endif
    SHARED float x[HD];
#if HDV > 0
    SHARED float y[HDV];
#endif
    PARTIAL(partial);
    if (head < n_heads) {
        q += (size_t)t * q_stride + head * HD;
        load_head(q, table, q_weight, q_bias, head, eps, clamp_to, x, partial);
        SPREAD_OUTLIERS(x);
#ifdef TEMPERATURE
        scale *= log(floor((positions[t] + shift) / step) + 1.0f) * growth + 1.0f;
#endif
        for (int i = LID; i < HD; i += WG) q[i] = x[i] * scale;
    } else if (head < n_heads + n_kv) {
#if K_TOKENS == 1
        const int h = head - n_heads;
        k += (size_t)t * k_stride + k_at + h * HD;
        load_head(k, table, k_weight, k_bias, h, eps, clamp_to, x, partial);
        SPREAD_OUTLIERS(x);
        MEET;
#ifdef JOINT
        store_v(x, V_PAGE(v_cache, page, n_kv, h), row);
#else
        store_k(x, K_PAGE(k_cache, page, n_kv, h), row);
#endif
#endif
    }
#if HDV > 0  // an indexer's keys come without values
    else {
        const int h = head - n_heads - n_kv;
        v += (size_t)t * v_stride + v_at + h * HDV;
        for (int i = LID; i < HDV; i += WG) y[i] = CLAMPED(v[i]);
#ifdef NORM_V  // HDV is HD
        normalize(y, 0, 0, eps, partial);
#endif
        MEET;
        store_v(y, V_PAGE(v_cache, page, n_kv, h), row);
    }
#endif
}

#if K_TOKENS > 1 && WG == 1
VECTOR_ITEMS
kernel void pool_keys(
#ifndef NO_ROPE
                      global const float* table,
#endif
                      global const int* slot_mapping,
                      PAGES_ARG(global uchar*, k_cache), PAGES_ARG(global const uchar*, v_cache)
#ifdef GATED
                      , global const float* ape
#endif
#ifdef QK_NORM
                      , float eps
#endif
#ifdef K_WEIGHT
                      , global const float* k_weight
#endif
) {
#ifndef QK_NORM
    const float eps = 0;
#endif
#ifndef K_WEIGHT
    global const float* k_weight = 0;
#endif
    const int t = get_global_id(0), page = slot_mapping[t] / PAGE, row = slot_mapping[t] % PAGE;
    if (row % K_TOKENS != K_TOKENS - 1) return;  // blocks do not cross pages
#ifdef NO_ROPE
    global const float* table = 0;
#else
    table += (size_t)t * N_ROT;
#endif
    global const uchar* v = V_PAGE(v_cache, page, 1, 0);
    float x[HD];
    for (int d = 0; d < HD; d++) {
        float weights[K_TOKENS], top = -INFINITY, total = 0, sum = 0;
        for (int i = 0; i < K_TOKENS; i++) {
            weights[i] = 0;
#ifdef GATED
            weights[i] = v_value(v, row - K_TOKENS + 1 + i, HD + d) + ape[i * HD + d];
#endif
            top = fmax(top, weights[i]);
        }
        for (int i = 0; i < K_TOKENS; i++) {
            const float weight = exp(weights[i] - top);
            total += weight;
            sum = fma(weight, v_value(v, row - K_TOKENS + 1 + i, d), sum);
        }
        x[d] = sum / total;
    }
    normalize(x, k_weight, 0, eps, 0);
    rotate(x, table);
    if (!IS_FLOAT(K_TYPE)) spread_outliers(x);
    store_k(x, K_PAGE(k_cache, page, 1, 0), row / K_TOKENS);
}
#endif
#endif
