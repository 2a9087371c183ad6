// Logits within a bound: cap * tanh(logits / cap). Work-item: 16 logits of a row.

#include "include/lanes.cl"

VECTOR_ITEMS
kernel void softcap(global float* logits, int n_vocab, float cap) {
    const int i = get_global_id(0) * 16;
    global float* x = logits + (size_t)get_global_id(1) * n_vocab + i;
    for (int j = 0; j < min(16, n_vocab - i); j++) x[j] = cap * tanh(x[j] / cap);
}
