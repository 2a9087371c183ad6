// Gates of n-gram embeddings: how far a token's n-gram value goes to each residual stream.
//
// Work-group of WG items (1 on CPUs): (token, stream). key and query: [tokens][streams][n_cols],
// value: [tokens][n_cols]. With s = key . query / sqrt(n_cols),
// out = value * sigmoid(sign(s) sqrt(max(|s|, 1e-6))).

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

VECTOR_ITEMS
kernel void gate_ngrams(global const float* key, global const float* query,
                        global const float* value, int n_cols, global float* out) {
    PARTIAL(partial);
    const size_t t = get_group_id(0), at = (t * get_num_groups(1) + get_group_id(1)) * n_cols;
    float sum = 0;
    for (int c = 16 * LID; c < n_cols; c += 16 * WG)
        sum += sum16(vload16(0, key + at + c) * vload16(0, query + at + c));
    const float s = sum_group(sum, partial) / sqrt((float)n_cols);
    const float gate = SIGMOID(copysign(sqrt(fmax(fabs(s), 1e-6f)), s));
    for (int c = 16 * LID; c < n_cols; c += 16 * WG)
        vstore16(vload16(0, value + t * n_cols + c) * gate, 0, out + at + c);
}
