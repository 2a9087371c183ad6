// RWKV's linear attention (https://arxiv.org/abs/2404.05892, https://arxiv.org/abs/2503.14456): a
// matrix of state per head, over the tokens of a sequence, that decays by a factor for each key.

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (N_KEY / 16)

// Work-item (value column, head, sequence of the step) goes through its tokens with the column
// s of N_KEY values; r is what the state is read with:
//   s = s * decay + k * v,  out = scale * s r
// REMOVES  after the decay, added * (removed s) is subtracted, with the s of before
// BONUS    out = scale * (s + bonus * k * v) r, with the s of before
// V head h / REPEAT belongs to head h. sequences as in conv.cl; state is
// [slot][head][column][N_KEY].
VECTOR_ITEMS
kernel void rwkv(global const float* r, int r_stride, int r_at, global const float* decay,
                 int decay_stride, int decay_at, global const float* k, int k_stride, int k_at,
                 global const float* v, int v_stride, int v_at,
#ifdef REMOVES
                 global const float* removed, int removed_stride, int removed_at,
                 global const float* added, int added_stride, int added_at,
#endif
#ifdef BONUS
                 global const float* bonus,
#endif
                 float scale, global const int4* sequences, global float* state,
                 global float* out) {
    const int column = get_global_id(0), head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
    state += (((size_t)sequence.z * n_heads + head) * N_KEY + column) * N_KEY;
    float16 s[VECTORS];
    for (int i = 0; i < VECTORS; i++) s[i] = sequence.w == 0 ? (float16)(0) : vload16(i, state);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* rt = r + t * r_stride + r_at + head * N_KEY;
        global const float* wt = decay + t * decay_stride + decay_at + head * N_KEY;
        global const float* kt = k + t * k_stride + k_at + head * N_KEY;
        const float value = v[t * v_stride + v_at + head / REPEAT * N_KEY + column];
#ifdef REMOVES
        global const float* from = removed + t * removed_stride + removed_at + head * N_KEY;
        global const float* to = added + t * added_stride + added_at + head * N_KEY;
        float16 dot = 0;
        for (int j = 0; j < VECTORS; j++) dot = fma(s[j], vload16(j, from), dot);
        const float old = sum16(dot);
#endif
        float16 y = 0;
        for (int j = 0; j < VECTORS; j++) {
            const float16 fresh = vload16(j, kt) * value;
#ifdef BONUS
            y = fma(fma(vload16(j, bonus + head * N_KEY), fresh, s[j]), vload16(j, rt), y);
#endif
            s[j] = fma(s[j], vload16(j, wt), fresh);
#ifdef REMOVES
            s[j] = fma(vload16(j, to), (float16)(-old), s[j]);
#endif
#ifndef BONUS
            y = fma(s[j], vload16(j, rt), y);
#endif
        }
        out[(t * n_heads + head) * N_KEY + column] = sum16(y) * scale;
    }
    for (int j = 0; j < VECTORS; j++) vstore16(s[j], j, state);
}

// RWKV-6: out = exp(-exp(decay)), and beside it, where keys are given, k * (1 - that); K head
// h / REPEAT belongs to head h. Work-item (head, token).
VECTOR_ITEMS
kernel void rwkv6_decay(global const float* decay, int decay_stride, int decay_at,
#ifdef KEYS
                        global const float* k, int k_stride, int k_at,
#endif
                        global float* out, int out_stride) {
    const int head = get_global_id(0), n = get_global_size(0) * N_KEY;
    const size_t t = get_global_id(1);
    decay += t * decay_stride + decay_at + head * N_KEY;
    out += t * out_stride + head * N_KEY;
    for (int j = 0; j < VECTORS; j++) {
        const float16 w = exp(-exp(vload16(j, decay)));
        vstore16(w, j, out);
#ifdef KEYS
        const float16 key = vload16(j, k + t * k_stride + k_at + head / REPEAT * N_KEY);
        vstore16(key * (1.0f - w), j, out + n);
#endif
    }
}

// RWKV-7: from what the matrices yield to what the recurrence reads. Side by side in out are, each
// as wide as all keys,
//   exp(-exp(-1/2) sigmoid(decay)),  k (1 + (rate - 1) k_rate),  a = normalized(k k_scale),  a rate
// for rate = sigmoid of what is given, a of norm 1 for each head; and for each head the sum of
// keys (the second) * r * bonus, with which its V counts beside what the state yields. Work-item
// (head, token).
#define LOG_DECAY -0.606531f  // -exp(-1/2), to as many digits as the models were trained with
VECTOR_ITEMS
kernel void rwkv7_keys(global const float* r, int r_stride, int r_at, global const float* decay,
                       int decay_stride, int decay_at, global const float* k, int k_stride,
                       int k_at, global const float* rate, int rate_stride, int rate_at,
                       global const float* k_scale, global const float* k_rate,
                       global const float* bonus, global float* out, int out_stride) {
    const int head = get_global_id(0), at = head * N_KEY, n = get_global_size(0) * N_KEY;
    const size_t t = get_global_id(1);
    r += t * r_stride + r_at + at;
    decay += t * decay_stride + decay_at + at;
    k += t * k_stride + k_at + at;
    rate += t * rate_stride + rate_at + at;
    out += t * out_stride;
    float16 sum = 0, own = 0;
    for (int j = 0; j < VECTORS; j++) {
        const float16 scaled = vload16(j, k) * vload16(j, k_scale + at);
        sum = fma(scaled, scaled, sum);
    }
    const float factor = 1.0f / fmax(sqrt(sum16(sum)), 1e-12f);
    for (int j = 0; j < VECTORS; j++) {
        const float16 key = vload16(j, k), a = SIGMOID(vload16(j, rate));
        const float16 kept = fma(key * vload16(j, k_rate + at), a - 1.0f, key);
        const float16 removed = key * vload16(j, k_scale + at) * factor;
        own = fma(kept * vload16(j, r), vload16(j, bonus + at), own);
        vstore16(exp(LOG_DECAY * SIGMOID(vload16(j, decay))), j, out + at);
        vstore16(kept, j, out + n + at);
        vstore16(removed, j, out + 2 * n + at);
        vstore16(removed * a, j, out + 3 * n + at);
    }
    out[4 * n + head] = sum16(own);
}
