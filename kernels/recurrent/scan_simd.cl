// State space models: Mamba's selective scan and Mamba 2's, over the tokens of a sequence.
//
// On a CPU: work-item (16 channels, sequence of the step) goes through its tokens with N values
// of state for each of its channels:
//   state = state * exp(dt A) + B x dt,  y = sum(state C) + D x,  out = y silu(z)
// where dt = softplus(dt[head] + bias[head]). Channels are in heads of HEAD_SIZE, heads in
// groups of HEADS that share B and C. A is one number per head, with A_PER_STATE one per value
// of the state. x, dt, B, C and z are in rows of their own tensors. sequences as in conv.cl;
// state is [slot][channels][N].

#include "include/lanes.cl"
#include "include/activation.cl"
#include "recurrent/columns.cl"

#define VECTORS (N / 16)
#define SHARING (2 - HEAD_SIZE * HEADS % 2)  // channels that read B and C once for all of them
#define AT_ONCE 8                            // tokens that they go through before the next ones

// SHARING channels go through nt tokens, and leave in y what sums to C state.
INLINE void advance(int nt, global float* state, const float16* fresh, const float16* step,
                    const float16* decay, global const float* a, global const float* b,
                    global const float* c, size_t stride, int at, float16 y[][COLUMNS]) {
    float16 s[SHARING * VECTORS];
    UNROLL for (int i = 0; i < SHARING * VECTORS; i++) s[i] = vload16(i, state + at * N);
    for (int t = 0; t < nt; t++) {
        float16 sum[SHARING];
        UNROLL for (int i = 0; i < SHARING; i++) sum[i] = 0;
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const float16 bj = vload16(j, b + t * stride), cj = vload16(j, c + t * stride);
            UNROLL for (int i = 0; i < SHARING; i++) {
#ifdef A_PER_STATE
                const float16 kept = exp(COLUMN(step[t], at + i) * vload16(j, a + (at + i) * N));
#else
                const float16 kept = COLUMN(decay[t], at + i);
#endif
                float16* each = s + i * VECTORS + j;
                *each = fma(*each, kept, bj * COLUMN(fresh[t], at + i));
                sum[i] = fma(*each, cj, sum[i]);
            }
        }
        UNROLL for (int i = 0; i < SHARING; i++) y[t][at + i] = sum[i];
    }
    UNROLL for (int i = 0; i < SHARING * VECTORS; i++) vstore16(s[i], i, state + at * N);
}

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
    const int first = get_global_id(0) * COLUMNS, n = min(COLUMNS, n_channels - first);
    const int4 sequence = sequences[get_global_id(1)];
    state += ((size_t)sequence.z * n_channels + first) * N;
    if (sequence.w == 0) clear_columns(state, n * VECTORS);
#ifdef A_PER_STATE
    a += first * N;
#else
    const float16 rate = load_repeated(a, first, n, HEAD_SIZE);
#endif
    const float16 skip = load_repeated(d, first, n, HEAD_SIZE);
#ifdef DT_BIAS
    const float16 bias = load_repeated(dt_bias, first, n, HEAD_SIZE);
#endif
    for (int begin = 0; begin < sequence.y; begin += AT_ONCE) {
        const size_t t0 = sequence.x + begin;
        const int nt = min(AT_ONCE, sequence.y - begin);
        float16 own[AT_ONCE], fresh[AT_ONCE], step[AT_ONCE], decay[AT_ONCE];
        float16 y[AT_ONCE][COLUMNS];
        for (int t = 0; t < nt; t++) {
            own[t] = load_columns(x + (t0 + t) * x_stride + x_at + first, n);
            step[t] = load_repeated(dt + (t0 + t) * dt_stride + dt_at, first, n, HEAD_SIZE);
#ifdef DT_BIAS
            step[t] += bias;
#endif
            step[t] = SOFTPLUS(step[t]);
            fresh[t] = own[t] * step[t];
#ifndef A_PER_STATE
            decay[t] = exp(step[t] * rate);
#endif
        }
        for (int i = 0; i < n; i += SHARING) {
            const int group = (first + i) / HEAD_SIZE / HEADS;
            global const float* row = bc + t0 * bc_stride + group * N;
            advance(nt, state, fresh, step, decay, a, row + b_at, row + c_at, bc_stride, i, y);
        }
        for (int t = 0; t < nt; t++) {
            const float16 gate = load_columns(z + (t0 + t) * z_stride + z_at + first, n);
            const float16 result = fma(skip, own[t], sum_columns(y[t])) * SILU(gate);
            store_columns(result, out + (t0 + t) * n_channels + first, n);
        }
    }
}
