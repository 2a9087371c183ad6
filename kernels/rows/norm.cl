// Normalization of rows, and what is done with its result, in one pass.
//
// Work-group of WG items (1 on CPUs), group: n_cols values of a row (token); rows of x are
// `stride` apart and begin at `offset`.
// NORM_x, QUANTIZE, OUT_SPAN   see norm_row.cl
// FLOATS   the result is floats; with QUANTIZE it is codes and scales; or both
// POST     x += rms_norm(y) * post_weight first (the norm after a sublayer, Gemma's way)
// GATHER   row t of the output is row rows[t] of x

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"
#include "rows/norm_row.cl"

VECTOR_ITEMS
kernel void norm(global float* x, int n_cols, int stride, int offset,
#ifdef NORM_WEIGHT
                 global const float* weight,
#endif
#ifdef NORM_BIAS
                 global const float* bias,
#endif
#ifdef POST
                 global const float* y, global const float* post_weight, float post_eps,
#endif
#ifdef GATHER
                 global const int* rows,
#endif
#ifdef FLOATS
                 global float* out, int out_stride, int out_offset,
#endif
#ifdef QUANTIZE
                 global code_t* out_q, global scale_t* out_d,
#endif
                 float eps) {
    PARTIAL(partial);
    const size_t t = get_group_id(0);
    const int group = get_group_id(1);
#ifdef GATHER
    const size_t row = rows[t];
#else
    const size_t row = t;
#endif
    x += row * stride + offset + group * n_cols;
#ifdef NORM_WEIGHT
    weight += group * n_cols;
#endif
#ifdef NORM_BIAS
    bias += group * n_cols;
#endif
#ifdef POST
    add_normed(x, y + row * n_cols, n_cols, post_weight, post_eps, partial);
#endif
    const float2 s = statistics(x, n_cols, eps, partial);
#ifdef QUANTIZE
    const size_t at = t * get_num_groups(1) + group;
    write_codes(x, n_cols, s, NORM_WEIGHT_OF NORM_BIAS_OF out_q + at * n_cols,
                out_d + at * (n_cols / 32));
#endif
#ifdef FLOATS
    write_normed(x, n_cols, s, NORM_WEIGHT_OF NORM_BIAS_OF
                 out + t * out_stride + out_offset + group * n_cols);
#endif
}
