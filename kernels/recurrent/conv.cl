// Causal convolution of each channel over the tokens of a sequence, with CONV taps.
//
// Work-item (16 channels, sequence of the step) goes through its tokens. sequences[i] = (first
// token, number of tokens, slot, position of the first). state is [slot][CONV - 1][channels],
// the inputs before the first token; it is as if zero at position 0.
// weights: [CONV][channels], the last tap is the token's own.
// GATE_IN   the input is x * x[gate_at ...]        GATE_OUT   so is the output, x[out_gate_at ...]
// SILU_OUT  silu of the output                     BIAS       bias[channel] is added

#include "include/lanes.cl"
#include "include/activation.cl"

VECTOR_ITEMS
kernel void conv(global const float* x, int x_stride, int x_at, int gate_at, int out_gate_at,
                 global const float* weights,
#ifdef BIAS
                 global const float* bias,
#endif
                 global const int4* sequences, int n_channels, global float* state,
                 global float* out, int out_stride, int out_at) {
    const int c = get_global_id(0) * 16;
    const int4 sequence = sequences[get_global_id(1)];
    float16 before[CONV], w[CONV];
    state += (size_t)sequence.z * (CONV - 1) * n_channels + c;
    for (int j = 0; j < CONV; j++) w[j] = vload16(0, weights + j * n_channels + c);
    for (int j = 0; j < CONV - 1; j++)
        before[j] = sequence.w == 0 ? (float16)(0) : vload16(0, state + j * n_channels);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* row = x + t * x_stride;
        float16 v = vload16(0, row + x_at + c);
#ifdef GATE_IN
        v *= vload16(0, row + gate_at + c);
#endif
        before[CONV - 1] = v;
#ifdef BIAS
        float16 sum = vload16(0, bias + c);
#else
        float16 sum = 0;
#endif
        for (int j = 0; j < CONV; j++) sum = fma(w[j], before[j], sum);
        for (int j = 0; j < CONV - 1; j++) before[j] = before[j + 1];
#ifdef SILU_OUT
        sum = SILU(sum);
#endif
#ifdef GATE_OUT
        sum *= vload16(0, row + out_gate_at + c);
#endif
        vstore16(sum, 0, out + t * out_stride + out_at + c);
    }
    for (int j = 0; j < CONV - 1; j++) vstore16(before[j], 0, state + j * n_channels);
}
