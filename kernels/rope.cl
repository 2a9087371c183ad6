// RoPE, the norms of Q and K, and the write to the KV cache, in one pass.
//
// rope_table: cos and sin for every token of the step, [n][2][N_ROT / 2]; one launch a step.
// rope_kv: work-item (head, token); heads are Q's, then K's, then V's, side by side in a row of
// qkv. Q is rotated in place and multiplied by `scale`; K and V go to their page. The token's
// place is slots[t] = page * PAGE + row.
// NEOX: pairs (i, i + N_ROT/2), else (2i, 2i + 1).   QK_NORM: RMS norm per head before.
// NO_ROPE: no rotation.

#include "lanes.cl"
#include "kv.cl"

kernel void rope_table(global const int* positions, global const float* frequencies,
                       float attention_factor, global float* table) {
    const int i = get_global_id(0), t = get_global_id(1), n = get_global_size(0);
    const float angle = positions[t] * frequencies[i];
    float c;
    const float s = sincos(angle, &c);
    table[(size_t)t * 2 * n + i] = c * attention_factor;
    table[(size_t)t * 2 * n + n + i] = s * attention_factor;
}

#ifdef HD
#define HALF_ROT (N_ROT / 2)

INLINE void rotate(float* v, global const float* table) {
#ifndef NO_ROPE
    for (int i = 0; i < HALF_ROT; i++) {
        const float c = table[i], s = table[HALF_ROT + i];
#ifdef NEOX
        const int a = i, b = i + HALF_ROT;
#else
        const int a = 2 * i, b = 2 * i + 1;
#endif
        const float x = v[a], y = v[b];
        v[a] = x * c - y * s;
        v[b] = x * s + y * c;
    }
#endif
}

INLINE void load_head(global const float* x, global const float* weight, float eps, float* v) {
    float squares = 0;
    for (int i = 0; i < HD; i++) v[i] = x[i];
#ifdef QK_NORM
    for (int i = 0; i < HD; i++) squares = fma(v[i], v[i], squares);
    const float factor = 1.0f / sqrt(squares / HD + eps);
    for (int i = 0; i < HD; i++) v[i] *= factor * weight[i];
#endif
}

kernel void rope_kv(global float* qkv, int n_heads, int n_kv, global const float* table,
                    global const int* slots, global k_t* k_cache, global v_t* v_cache,
                    float scale
#ifdef QK_NORM
                    , global const float* q_norm, global const float* k_norm, float eps
#endif
) {
#ifndef QK_NORM
    global const float *q_norm = 0, *k_norm = 0;
    const float eps = 0;
#endif
    const int head = get_global_id(0), t = get_global_id(1);
    const int slot = slots[t], page = slot / PAGE, row = slot % PAGE;
    qkv += (size_t)t * ((n_heads + n_kv) * HD + n_kv * HDV);
    table += (size_t)t * N_ROT;
    float v[HD];
    if (head < n_heads) {
        global float* q = qkv + head * HD;
        load_head(q, q_norm, eps, v);
        rotate(v, table);
        for (int i = 0; i < HD; i++) q[i] = v[i] * scale;
    } else if (head < n_heads + n_kv) {
        const int h = head - n_heads;
        global k_t* k = K_PAGE(k_cache, page, n_kv, h) + row;
        load_head(qkv + head * HD, k_norm, eps, v);
        rotate(v, table);
        for (int i = 0; i < HD; i++) STORE_K(v[i], k + i * PAGE);
    } else {
        const int h = head - n_heads - n_kv;
        global const float* x = qkv + (n_heads + n_kv) * HD + h * HDV;
        global v_t* o = V_PAGE(v_cache, page, n_kv, h) + row * HDV_PADDED;
        for (int i = 0; i < HDV; i++) STORE_V(x[i], o + i);
        for (int i = HDV; i < HDV_PADDED; i++) STORE_V(0.0f, o + i);
    }
}
#endif
