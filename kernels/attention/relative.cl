// Attention with a term for the distance of query and key, from a table: a query i sees the keys
// from first to before last, with the scores
//
//   scale * (q_i . k_j + p_i . table[zero + i - j]),
//
// p being q (Shaw et al., https://arxiv.org/abs/1803.02155) or q with another bias
// (Transformer-XL, https://arxiv.org/abs/1901.02860). Encoders of sounds use it.
//
// All rows are float [rows][heads * HD], HD a multiple of 16; ranges: (first, last) of each query.
// Work-item (head, query) goes through the keys once, with the maximum so far.
// SOFTCAP  scores are kept within softcap: softcap * tanh(score / softcap)

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (HD / 16)

VECTOR_ITEMS
kernel void relative_attention(global const float* q, global const float* p,
                               global const float* k, global const float* v,
                               global const float* table, int zero, float scale,
#ifdef SOFTCAP
                               float softcap,
#endif
                               global const int2* ranges, global float* out) {
    const int head = get_global_id(0), i = get_global_id(1);
    const size_t stride = (size_t)get_global_size(0) * HD, column = (size_t)head * HD;
    float16 query[VECTORS], place[VECTORS], sum[VECTORS];
    for (int d = 0; d < VECTORS; d++) {
        query[d] = vload16(d, q + i * stride + column);
        place[d] = vload16(d, p + i * stride + column);
        sum[d] = 0;
    }
    float most = -INFINITY, total = 0;
    for (int j = ranges[i].x; j < ranges[i].y; j++) {
        const size_t key = j * stride + column, distance = (zero + i - j) * stride + column;
        float16 products = 0;
        for (int d = 0; d < VECTORS; d++) {
            products = fma(query[d], vload16(d, k + key), products);
            products = fma(place[d], vload16(d, table + distance), products);
        }
        float score = scale * sum16(products);
#ifdef SOFTCAP
        score = softcap * tanh(score / softcap);
#endif
        const float now = fmax(most, score), kept = exp(most - now), weight = exp(score - now);
        total = fma(total, kept, weight);
        for (int d = 0; d < VECTORS; d++)
            sum[d] = fma(vload16(d, v + key), (float16)(weight), sum[d] * kept);
        most = now;
    }
    for (int d = 0; d < VECTORS; d++) vstore16(sum[d] / total, d, out + i * stride + column);
}
