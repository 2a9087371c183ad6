// AltUp (https://arxiv.org/abs/2301.13310), as Gemma 3n has it: N streams, of which layers read the
// first; the others are predicted before a layer, and corrected after it.
//
// streams: float [tokens][N][n_cols]. logits: [tokens][N], a router's; their tanh m_i makes the
// factors: c_r = sum_i factors[r][i] m_i.
//
// predict    predictions[j] = stream[j] + sum_i c_(j N + i) stream[i]; active: the first of them
// correct    stream[j] = prediction[j] + (1 + c_j) (activated - prediction[0]);
//            scaled = stream[0] * scale
// add_others stream[j] += y for j > 0
//            Work-item: (16 columns, token).
// match      stream[j] gets the magnitude of stream[0]. Work-group of WG items (1 on CPUs): (token,
//            j - 1).

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

#define AT(j) (((size_t)get_global_id(1) * N + (j)) * n_cols + 16 * get_global_id(0))
#define ROW ((size_t)get_global_id(1) * n_cols + 16 * get_global_id(0))
#define LEAST_SQUARES 1e-5f  // the mean square of a stream counts as this at least

#if WG == 1
INLINE float factor(global const float* factors, int row, global const float* logits) {
    float sum = 0;
    for (int i = 0; i < N; i++)
        sum = fma(factors[row * N + i], tanh(logits[get_global_id(1) * N + i]), sum);
    return sum;
}

VECTOR_ITEMS
kernel void predict(global const float* streams, global const float* logits,
                    global const float* factors, int n_cols, global float* predictions,
                    global float* active) {
    float16 x[N];
    for (int i = 0; i < N; i++) x[i] = vload16(0, streams + AT(i));
    for (int j = 0; j < N; j++) {
        float16 sum = x[j];
        for (int i = 0; i < N; i++)
            sum = fma((float16)(factor(factors, j * N + i, logits)), x[i], sum);
        vstore16(sum, 0, predictions + AT(j));
        if (j == 0) vstore16(sum, 0, active + ROW);
    }
}

VECTOR_ITEMS
kernel void correct(global const float* predictions, global const float* activated,
                    global const float* logits, global const float* factors,
                    global const float* scale, int n_cols, global float* streams,
                    global float* scaled) {
    const float16 change = vload16(0, activated + ROW) - vload16(0, predictions + AT(0));
    for (int j = 0; j < N; j++) {
        const float by = 1 + factor(factors, j, logits);
        const float16 x = fma((float16)(by), change, vload16(0, predictions + AT(j)));
        vstore16(x, 0, streams + AT(j));
        if (j == 0) vstore16(x * vload16(0, scale + 16 * get_global_id(0)), 0, scaled + ROW);
    }
}

VECTOR_ITEMS
kernel void add_others(global const float* y, int n_cols, global float* streams) {
    const float16 v = vload16(0, y + ROW);
    for (int j = 1; j < N; j++) vstore16(vload16(0, streams + AT(j)) + v, 0, streams + AT(j));
}
#endif

INLINE float mean_square(global const float* x, int n_cols, local float* partial) {
    float sum = 0;
    for (int c = 16 * LID; c < n_cols; c += 16 * WG) {
        const float16 v = vload16(0, x + c);
        sum += sum16(v * v);
    }
    return sum_group(sum, partial) / n_cols;
}

VECTOR_ITEMS
kernel void match(global float* streams, int n_cols) {
    PARTIAL(partial);
    streams += (size_t)get_group_id(0) * N * n_cols;
    global float* mine = streams + (get_group_id(1) + 1) * n_cols;
    const float wanted = mean_square(streams, n_cols, partial);
    const float factor_ = sqrt(wanted / fmax(mean_square(mine, n_cols, partial), LEAST_SQUARES));
    MEET;
    for (int c = 16 * LID; c < n_cols; c += 16 * WG)
        vstore16(vload16(0, mine + c) * factor_, 0, mine + c);
}
