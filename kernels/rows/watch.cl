// Which launch of a step first leaves values that are NaN or infinite.
//
// Work-group of WG items (1 on CPUs): a row of x, n_cols values. Where one of them is not finite,
// *first becomes the least of itself and `mark`.

#include "include/lanes.cl"
#include "include/group.cl"

kernel void watch(global const float* x, int n_cols, int mark, global int* first) {
    PARTIAL(partial);
    x += (size_t)get_group_id(0) * n_cols;
    float broken = 0;
    for (int i = LID; i < n_cols; i += WG) broken = fmax(broken, (float)!isfinite(x[i]));
    if (max_group(broken, partial) > 0 && LID == 0) atomic_min(first, mark);
}
