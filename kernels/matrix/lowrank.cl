// Scales between the two products of low-rank updates (LoRA): work-item (column, token).
//
// x[t][c] *= scales[token][owner[c]]; rows of `n_cols` and of `n_adapters` floats. There are
// TIMES rows t for each token, which is t / TIMES.

kernel void scale_columns(global float* x, global const float* scales, global const int* owner,
                          int n_cols, int n_adapters) {
    const int c = get_global_id(0), t = get_global_id(1), token = t / TIMES;
    x[(size_t)t * n_cols + c] *= scales[(size_t)token * n_adapters + owner[c]];
}
