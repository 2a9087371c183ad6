// State space models: Mamba's selective scan and Mamba 2's, over the tokens of a sequence.
//
// On a GPU: work-item (channel, sequence of the step) goes through its tokens with N values of
// state:
//   state = state * exp(dt A) + B x dt,  y = sum(state C) + D x,  out = y silu(z)
// where dt = softplus(dt[head] + bias[head]). Channels are in heads of HEAD_SIZE, heads in
// groups of HEADS that share B and C. A is one number per head, with A_PER_STATE one per value
// of the state. x, dt, B, C and z are in rows of their own tensors. sequences as in conv.cl;
// state is [slot][channels][N].

#include "include/lanes.cl"
#include "include/activation.cl"

VECTOR_ITEMS
kernel void scan(global const float* x, int x_stride, int x_at, global const float* dt,
                 int dt_stride, int dt_at,
#ifdef DT_BIAS
                 global const float* dt_bias,
#endif
                 global const float* bc, int bc_stride, int b_at, int c_at,
                 global const float* z, int z_stride, int z_at, global const float* a,
                 global const float* d, int n_channels, global const int4* sequences,
                 global float* state, global float* out) {
    const int channel = get_global_id(0);
    const int head = channel / HEAD_SIZE, group = head / HEADS;
    const int4 sequence = sequences[get_global_id(1)];
    state += ((size_t)sequence.z * n_channels + channel) * N;
    float16 s[N / 16];
    for (int i = 0; i < N / 16; i++) s[i] = sequence.w == 0 ? (float16)(0) : vload16(i, state);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        const float xt = x[t * x_stride + x_at + channel];
        float step = dt[t * dt_stride + dt_at + head];
#ifdef DT_BIAS
        step += dt_bias[head];
#endif
        step = SOFTPLUS(step);
        global const float* b = bc + t * bc_stride + b_at + group * N;
        global const float* c = bc + t * bc_stride + c_at + group * N;
        float16 y = 0;
        for (int j = 0; j < N / 16; j++) {
#ifdef A_PER_STATE
            const float16 decay = exp(step * vload16(j, a + channel * N));
#else
            const float16 decay = exp(step * a[head]);
#endif
            s[j] = fma(s[j], decay, vload16(j, b) * (xt * step));
            y = fma(s[j], vload16(j, c), y);
        }
        const float zt = z[t * z_stride + z_at + channel];
        out[t * n_channels + channel] = fma(d[head], xt, sum16(y)) * SILU(zt);
    }
    for (int j = 0; j < N / 16; j++) vstore16(s[j], j, state);
}
