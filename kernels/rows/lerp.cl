// Rows between two others: out[t, c] = x[t, c] + (y[t, c] - x[t, c]) * share, for a share of
// every column, by[c], of every value, rows[t, rows_at + c], or the sum of both.
//
// Work-item (32 columns, token).
// QUANTIZE  out is integer activations, else float

#include "include/lanes.cl"
#include "include/activation.cl"

VECTOR_ITEMS
kernel void lerp(global const float* x, int x_stride, int x_at, global const float* y, int y_stride,
                 int y_at,
#ifdef BY_COLUMN
                 global const float* by,
#endif
#ifdef BY_VALUE
                 global const float* rows, int rows_stride, int rows_at,
#endif
                 int n_cols,
#ifdef QUANTIZE
                 global code_t* out_q, global scale_t* out_d
#else
                 global float* out
#endif
) {
    const int b = get_global_id(0);
    const size_t t = get_global_id(1);
    x += t * x_stride + x_at;
    y += t * y_stride + y_at;
    float16 v[2];
    for (int i = 0; i < 2; i++) {
        const int j = 2 * b + i;
        float16 share = 0;
#ifdef BY_COLUMN
        share += vload16(j, by);
#endif
#ifdef BY_VALUE
        share += vload16(j, rows + t * rows_stride + rows_at);
#endif
        const float16 from = vload16(j, x);
        v[i] = fma(vload16(j, y) - from, share, from);
    }
#ifdef QUANTIZE
    const size_t at = t * (n_cols / 32) + b;
    out_d[at] = quantize32(v[0], v[1], out_q + at * 32);
#else
    for (int i = 0; i < 2; i++) vstore16(v[i], 2 * b + i, out + t * n_cols);
#endif
}
