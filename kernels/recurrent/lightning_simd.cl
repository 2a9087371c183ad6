// Lightning attention (https://arxiv.org/abs/2501.08313): linear attention whose state decays by a
// constant for each head.
//
// On a CPU: work-item (16 columns of values, head, sequence of the step) goes through its tokens
// with HD values s for each of its columns: s = s * decay[head] + k * v, out = s q. Rows have Q, K
// and V of a head side by side, before their activation (SiLU). sequences as in conv.cl; state is
// [slot][head][HD][HD].

#include "include/lanes.cl"
#include "include/activation.cl"
#include "recurrent/columns.cl"

#define VECTORS (HD / 16)

VECTOR_ITEMS
kernel void lightning(global const float* qkv, int stride, global const float* decay,
                      global const int4* sequences, global float* state, global float* out) {
    const int first = get_global_id(0) * COLUMNS, n = min(COLUMNS, HD - first);
    const int head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
    state += (((size_t)sequence.z * n_heads + head) * HD + first) * HD;
    if (sequence.w == 0) clear_columns(state, n * VECTORS);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* row = qkv + t * stride + head * 3 * HD;
        const float16 value = SILU(load_columns(row + 2 * HD + first, n));
        float16 q[VECTORS], k[VECTORS], y[COLUMNS];
        for (int j = 0; j < VECTORS; j++) {
            q[j] = SILU(vload16(j, row));
            k[j] = SILU(vload16(j, row + HD));
        }
        for (int c = 0; c < n; c++) {
            y[c] = 0;
            UNROLL for (int j = 0; j < VECTORS; j++) {
                float16 s = vload16(c * VECTORS + j, state);
                s = fma(s, (float16)(decay[head]), k[j] * COLUMN(value, c));
                y[c] = fma(s, q[j], y[c]);
                vstore16(s, c * VECTORS + j, state);
            }
        }
        store_columns(sum_columns(y), out + (t * n_heads + head) * HD + first, n);
    }
}
