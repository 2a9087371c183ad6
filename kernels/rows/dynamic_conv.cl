// Causal convolution over the tokens of a step, with weights of each token's own: those of all
// tokens, and for every GROUP channels a share that is added (dynamic convolution, as of DFlash 2).
//
// out[t, c] = sum_j (weights[j, c] + shares[t, j * (n_cols / GROUP) + c / GROUP]) x[t - j, c], of
// the TAPS tokens t, t - 1, ... that a sequence has in the step; it is as if zero before.
// Work-item (32 channels, sequence of the step) goes through its tokens; sequences as in
// recurrent/conv.cl. shares: rows of shares_stride values, from column shares_at on.

#include "include/lanes.cl"

VECTOR_ITEMS
kernel void dynamic_conv(global const float* x, int n_cols, global const float* weights,
                         global const float* shares, int shares_stride, int shares_at,
                         global const int4* sequences, global float* out) {
    const int first = 32 * get_global_id(0), width = min(32, n_cols - first);
    const int4 sequence = sequences[get_global_id(1)];
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* share = shares + t * shares_stride + shares_at;
        float sum[32];
        UNROLLED(c, width, 32) sum[c] = 0;
        for (int j = 0; j < min(TAPS, i + 1); j++) {
            global const float* v = x + (t - j) * n_cols + first;
            global const float* w = weights + j * n_cols + first;
            global const float* own = share + j * (n_cols / GROUP);
            UNROLLED(c, width, 32) sum[c] = fma(w[c] + own[(first + c) / GROUP], v[c], sum[c]);
        }
        UNROLLED(c, width, 32) out[t * n_cols + first + c] = sum[c];
    }
}
