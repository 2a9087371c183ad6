// Softmax of rows. Work-group of WG items (1 on CPUs): a row of n_cols values; out may be x.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

VECTOR_ITEMS
kernel void softmax(global const float* x, int n_cols, global float* out) {
    PARTIAL(partial);
    x += (size_t)get_group_id(0) * n_cols;
    out += (size_t)get_group_id(0) * n_cols;
    float most = -INFINITY, sum = 0;
    for (int c = LID; c < n_cols; c += WG) most = fmax(most, x[c]);
    most = max_group(most, partial);
    for (int c = LID; c < n_cols; c += WG) sum += out[c] = exp(x[c] - most);
    sum = sum_group(sum, partial);
    for (int c = LID; c < n_cols; c += WG) out[c] /= sum;
}
