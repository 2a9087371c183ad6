// Attention over depth (https://arxiv.org/abs/2603.15031): a token's stream is mixed with what it
// was at earlier layers.
//
// Work-group of WG items (1 on CPUs): a token. Sources are BANKED checkpoints, [checkpoint]
// [tokens][n_cols] of n_rows tokens each, and the current stream x. A source's score is its RMS
// norm times `weight`, summed; out = sum_i softmax(scores)_i source_i.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

VECTOR_ITEMS
kernel void mix_depth(global const float* bank, int n_rows, global const float* x, int n_cols,
                      global const float* weight, float eps, global float* out) {
    PARTIAL(partial);
    const size_t t = get_group_id(0);
    float scores[BANKED + 1], top = -INFINITY, total = 0;
    for (int i = 0; i <= BANKED; i++) {
        global const float* source = i < BANKED ? bank + (size_t)i * n_rows * n_cols : x;
        source += t * n_cols;
        float squares = 0, dot_ = 0;
        for (int c = 16 * LID; c < n_cols; c += 16 * WG) {
            const float16 v = vload16(0, source + c);
            squares += sum16(v * v);
            dot_ += sum16(v * vload16(0, weight + c));
        }
        squares = sum_group(squares, partial);
        scores[i] = sum_group(dot_, partial) / sqrt(squares / n_cols + eps);
        top = fmax(top, scores[i]);
    }
    for (int i = 0; i <= BANKED; i++) total += scores[i] = exp(scores[i] - top);
    for (int c = 16 * LID; c < n_cols; c += 16 * WG) {
        float16 sum = vload16(0, x + t * n_cols + c) * scores[BANKED];
        for (int i = 0; i < BANKED; i++)
            sum = fma((float16)(scores[i]),
                      vload16(0, bank + ((size_t)i * n_rows + t) * n_cols + c), sum);
        vstore16(sum / total, 0, out + t * n_cols + c);
    }
}
