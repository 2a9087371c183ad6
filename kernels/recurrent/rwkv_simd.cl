// RWKV's linear attention (https://arxiv.org/abs/2404.05892, https://arxiv.org/abs/2503.14456): a
// matrix of state per head, over the tokens of a sequence, that decays by a factor for each key.
//
// On a CPU: work-item (16 columns of values, head, sequence of the step) goes through its tokens
// with N_KEY values s for each of its columns; r is what the state is read with:
//   s = s * decay + k * v,  out = scale * s r
// REMOVES  after the decay, added * (removed s) is subtracted, with the s of before
// BONUS    out = scale * (s + bonus * k * v) r, with the s of before
// V head h / REPEAT belongs to head h. sequences as in conv.cl; state is
// [slot][head][column][N_KEY].

#include "include/lanes.cl"
#include "include/activation.cl"
#include "recurrent/columns.cl"

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
    const int first = get_global_id(0) * COLUMNS, n = min(COLUMNS, N_KEY - first);
    const int head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
    state += (((size_t)sequence.z * n_heads + head) * N_KEY + first) * N_KEY;
    if (sequence.w == 0) clear_columns(state, n * VECTORS);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* rt = r + t * r_stride + r_at + head * N_KEY;
        global const float* wt = decay + t * decay_stride + decay_at + head * N_KEY;
        global const float* kt = k + t * k_stride + k_at + head * N_KEY;
        const float16 value =
            load_columns(v + t * v_stride + v_at + head / REPEAT * N_KEY + first, n);
        float16 y[COLUMNS];
#ifdef REMOVES
        global const float* from = removed + t * removed_stride + removed_at + head * N_KEY;
        global const float* to = added + t * added_stride + added_at + head * N_KEY;
        float16 dot[COLUMNS];
        for (int c = 0; c < n; c++) {
            dot[c] = 0;
            UNROLL for (int j = 0; j < VECTORS; j++)
                dot[c] = fma(vload16(c * VECTORS + j, state), vload16(j, from), dot[c]);
        }
        const float16 old = sum_columns(dot);
#endif
        for (int c = 0; c < n; c++) {
            y[c] = 0;
            UNROLL for (int j = 0; j < VECTORS; j++) {
                const float16 fresh = vload16(j, kt) * COLUMN(value, c);
                float16 s = vload16(c * VECTORS + j, state);
#ifdef BONUS
                y[c] = fma(fma(vload16(j, bonus + head * N_KEY), fresh, s), vload16(j, rt), y[c]);
#endif
                s = fma(s, vload16(j, wt), fresh);
#ifdef REMOVES
                s = fma(vload16(j, to), (float16)(-COLUMN(old, c)), s);
#endif
#ifndef BONUS
                y[c] = fma(s, vload16(j, rt), y[c]);
#endif
                vstore16(s, c * VECTORS + j, state);
            }
        }
        store_columns(sum_columns(y) * scale, out + (t * n_heads + head) * N_KEY + first, n);
    }
}
