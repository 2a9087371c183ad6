// SnakeBeta, an activation of sounds with numbers of its own for each channel:
// out[t, c] = x[t, c] + beta[c] sin(alpha[c] x[t, c])^2. out may be x. Work-item (32 channels, t).

#include "include/lanes.cl"

VECTOR_ITEMS
kernel void snake(global const float* x, int n_cols, global const float* alpha,
                  global const float* beta, global float* out) {
    const int first = 32 * get_global_id(0), n = min(32, n_cols - first);
    const size_t at = (size_t)get_global_id(1) * n_cols + first;
    for (int i = 0; i < n; i++) {
        const float s = sin(alpha[first + i] * x[at + i]);
        out[at + i] = fma(beta[first + i], s * s, x[at + i]);
    }
}
