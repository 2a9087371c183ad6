// What is around a token in its sequence: TAPS tokens of which it is the middle one, zeros beyond
// the sequence's ends. Convolutions whose tokens see those after them read it.
//
// around: out[t, c * TAPS + j] = x[t + j - TAPS / 2, c], a row for a matrix whose columns are in
//   the order of a convolution's weights in files.
// depthwise: out[t, c] = sum_j weights[j, c] x[t + j - TAPS / 2, c], a convolution of each channel;
//   BIAS adds bias[c]. With one tap it scales columns.
// Work-item (32 channels, sequence of the step) goes through its tokens; sequences as in
// recurrent/conv.cl.

#include "include/lanes.cl"

// The first and the last tap of token i, of n, that are within the sequence
#define FIRST(i) max(0, TAPS / 2 - (i))
#define END(i, n) min(TAPS, (n) - (i) + TAPS / 2)

VECTOR_ITEMS
kernel void around(global const float* x, int n_cols, global const int4* sequences,
                   global float* out) {
    const int first = 32 * get_global_id(0), width = min(32, n_cols - first);
    const int4 sequence = sequences[get_global_id(1)];
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global float* row = out + (t * n_cols + first) * TAPS;
        for (int j = 0; j < TAPS; j++) {
            const bool within = j >= FIRST(i) && j < END(i, sequence.y);
            global const float* v = x + (t + (within ? j - TAPS / 2 : 0)) * n_cols + first;
            for (int c = 0; c < width; c++) row[c * TAPS + j] = within ? v[c] : 0.0f;
        }
    }
}

VECTOR_ITEMS
kernel void depthwise(global const float* x, int n_cols, global const float* weights,
#ifdef BIAS
                      global const float* bias,
#endif
                      global const int4* sequences, global float* out) {
    const int first = 32 * get_global_id(0), width = min(32, n_cols - first);
    const int4 sequence = sequences[get_global_id(1)];
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        float sum[32];
        UNROLLED(c, width, 32) {
#ifdef BIAS
            sum[c] = bias[first + c];
#else
            sum[c] = 0;
#endif
        }
        for (int j = FIRST(i); j < END(i, sequence.y); j++) {
            global const float* v = x + (t + j - TAPS / 2) * n_cols + first;
            global const float* w = weights + j * n_cols + first;
            UNROLLED(c, width, 32) sum[c] = fma(w[c], v[c], sum[c]);
        }
        UNROLLED(c, width, 32) out[t * n_cols + first + c] = sum[c];
    }
}
