// What RWKV's recurrence reads (rwkv_simd.cl, rwkv_simt.cl), from what matrices yield.

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (N_KEY / 16)

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
