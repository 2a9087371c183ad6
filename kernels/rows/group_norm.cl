// Group norm (https://arxiv.org/abs/1803.08494) of a sequence: its tokens' values of `size`
// channels that lie side by side have one mean and one deviation.
//
// Work-group of WG items (1 on CPUs): (group of channels, sequence of the step). out = (x - mean) /
// sqrt(variance + eps) * weight[channel] + bias[channel]. sequences as in recurrent/conv.cl.
// SILU_OUT  silu of the output

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

VECTOR_ITEMS
kernel void group_norm(global const float* x, int n_cols, int size, float eps,
                       global const float* weight, global const float* bias,
                       global const int4* sequences, global float* out) {
    PARTIAL(partial);
    const int first = get_group_id(0) * size;
    const int4 sequence = sequences[get_group_id(1)];
    const size_t at = (size_t)sequence.x * n_cols + first;
    x += at;
    out += at;
    weight += first;
    bias += first;
    const float n = (float)size * sequence.y;
    float sum = 0, squares = 0;
    for (int i = LID; i < sequence.y; i += WG) {
        float of_token = 0;
        for (int c = 0; c < size; c++) of_token += x[(size_t)i * n_cols + c];
        sum += of_token;
    }
    const float mean = sum_group(sum, partial) / n;
    for (int i = LID; i < sequence.y; i += WG) {
        float of_token = 0;
        for (int c = 0; c < size; c++) {
            const float v = x[(size_t)i * n_cols + c] - mean;
            of_token = fma(v, v, of_token);
        }
        squares += of_token;
    }
    const float factor = 1.0f / sqrt(sum_group(squares, partial) / n + eps);
    for (int i = LID; i < sequence.y; i += WG) {
        for (int c = 0; c < size; c++) {
            const size_t place = (size_t)i * n_cols + c;
            const float v = fma((x[place] - mean) * factor, weight[c], bias[c]);
#ifdef SILU_OUT
            out[place] = SILU(v);
#else
            out[place] = v;
#endif
        }
    }
}
