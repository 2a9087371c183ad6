// RWKV's linear attention (https://arxiv.org/abs/2404.05892, https://arxiv.org/abs/2503.14456): a
// matrix of state per head, over the tokens of a sequence, that decays by a factor for each key.
//
// On a GPU: work-item (value column, head, sequence of the step) goes through its tokens with the
// column s of N_KEY values; r is what the state is read with:
//   s = s * decay + k * v,  out = scale * s r
// REMOVES  after the decay, added * (removed s) is subtracted, with the s of before
// BONUS    out = scale * (s + bonus * k * v) r, with the s of before
// V head h / REPEAT belongs to head h. sequences as in conv.cl; state is
// [slot][head][column][N_KEY].

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (N_KEY / 16)

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
