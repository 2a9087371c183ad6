// Gaussian top-k (https://arxiv.org/abs/2506.06644): of a row that is taken to be normally
// distributed, what is more than so many deviations above the mean; zeros for the rest.
//
// Work-group of WG items (1 on CPUs): a row of n_cols values, in rows of `stride`. x = max(x -
// mean - cutoff * deviation, 0). The deviation divides by n_cols - missing.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

VECTOR_ITEMS
kernel void sparsify(global float* x, int n_cols, int stride, int offset, float cutoff,
                     int missing) {
    PARTIAL(partial);
    x += (size_t)get_group_id(0) * stride + offset;
    float sum = 0, squares = 0;
    for (int c = 16 * LID; c < n_cols; c += 16 * WG) sum += sum16(vload16(0, x + c));
    const float mean = sum_group(sum, partial) / n_cols;
    for (int c = 16 * LID; c < n_cols; c += 16 * WG) {
        const float16 v = vload16(0, x + c) - mean;
        squares += sum16(v * v);
    }
    squares = sum_group(squares, partial);
    const float least = fma(cutoff, sqrt(squares / (n_cols - missing)), mean);
    for (int c = 16 * LID; c < n_cols; c += 16 * WG)
        vstore16(RELU(vload16(0, x + c) - least), 0, x + c);
}
