// Lightning attention (https://arxiv.org/abs/2501.08313): linear attention whose state decays by a
// constant for each head.
//
// On a GPU: work-item (value column, head, sequence of the step) goes through its tokens with the
// column s of HD values: s = s * decay[head] + k * v, out = s q. Rows have Q, K and V of a head
// side by side, before their activation (SiLU). sequences as in conv.cl; state is
// [slot][head][HD][HD].

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (HD / 16)

VECTOR_ITEMS
kernel void lightning(global const float* qkv, int stride, global const float* decay,
                      global const int4* sequences, global float* state, global float* out) {
    const int column = get_global_id(0), head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
    state += (((size_t)sequence.z * n_heads + head) * HD + column) * HD;
    float16 s[VECTORS];
    for (int i = 0; i < VECTORS; i++) s[i] = sequence.w == 0 ? (float16)(0) : vload16(i, state);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* q = qkv + t * stride + head * 3 * HD;
        const float v = SILU(q[2 * HD + column]);
        float16 y = 0;
        for (int j = 0; j < VECTORS; j++) {
            s[j] = fma(s[j], (float16)(decay[head]), SILU(vload16(j, q + HD)) * v);
            y = fma(s[j], SILU(vload16(j, q)), y);
        }
        out[(t * n_heads + head) * HD + column] = sum16(y);
    }
    for (int j = 0; j < VECTORS; j++) vstore16(s[j], j, state);
}
