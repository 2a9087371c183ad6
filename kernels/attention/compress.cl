// Compressed keys (DeepSeek-V4): every RATIO tokens of a sequence become one key, which is its
// own value.
//
// A token's row is [2][COLUMNS], values and the logits of their weights. Key g is the mean of its
// tokens' values, each column with the softmax of its logits over the tokens from g * RATIO on.
// With OVERLAP the RATIO tokens before them count too: those give the first half of their
// columns, the key's own tokens the second. biases: [RATIO][COLUMNS], for a token's place.
// state: [slot][SPAN][2 * COLUMNS], the rows of the last SPAN tokens: that of the token at
// position p is row p % SPAN. sequences[i] = (first token, tokens, slot, position of the first).
//
// pool   work-item (16 columns, share of the keys, sequence): the keys that end in this step, each
//        in the row of its last token
// keep   work-item (16 columns, sequence): the rows that the next step needs go to the state
// store  work-item: a token. If it ends a key: the norm of that (head.cl), its rotation at the
//        position of its first token, and the write to the page of its last token, whose rows are
//        keys (PAGE of them).

#include "include/lanes.cl"
#include "include/activation.cl"

#ifdef COLUMNS
#ifdef OVERLAP
#define WIDTH (COLUMNS / 2)
#define SPAN (2 * RATIO)
#else
#define WIDTH COLUMNS
#define SPAN RATIO
#endif

VECTOR_ITEMS
kernel void pool(global const float* rows, global const float* biases,
                 global const int4* sequences, global const float* state, global float* keys) {
    const int c = get_global_id(0) * 16;
    const int4 sequence = sequences[get_global_id(2)];
    const int first = sequence.w, end = first + sequence.y;
    state += (size_t)sequence.z * SPAN * 2 * COLUMNS;
    for (int g = first / RATIO + get_global_id(1); (g + 1) * RATIO <= end;
         g += get_global_size(1)) {
        const int key_end = (g + 1) * RATIO;
        float16 top = -INFINITY, sum = 0, total = 0;
        for (int p = max(0, key_end - SPAN); p < key_end; p++) {
            const int column = c + (p < g * RATIO ? 0 : COLUMNS - WIDTH);
            const float16 bias = vload16(0, biases + p % RATIO * COLUMNS + column);
            global const float* row = p < first
                                          ? state + p % SPAN * 2 * COLUMNS
                                          : rows + (size_t)(sequence.x + p - first) * 2 * COLUMNS;
            const float16 logit = vload16(0, row + COLUMNS + column) + bias;
            const float16 above = fmax(top, logit);
            const float16 factor = exp(top - above), weight = exp(logit - above);
            sum = fma(sum, factor, weight);
            total = fma(total, factor, weight * vload16(0, row + column));
            top = above;
        }
        const size_t t = sequence.x + key_end - 1 - first;
        vstore16(total / sum, 0, keys + t * WIDTH + c);
    }
}

VECTOR_ITEMS
kernel void keep(global const float* rows, global const int4* sequences, global float* state) {
    const int c = get_global_id(0) * 16;
    const int4 sequence = sequences[get_global_id(1)];
    state += (size_t)sequence.z * SPAN * 2 * COLUMNS + c;
    for (int i = max(0, sequence.y - SPAN); i < sequence.y; i++) {
        const float16 row = vload16(0, rows + (size_t)(sequence.x + i) * 2 * COLUMNS + c);
        vstore16(row, 0, state + (sequence.w + i) % SPAN * 2 * COLUMNS);
    }
}
#endif

#ifdef HD
#include "attention/kv.cl"
#include "attention/head.cl"

VECTOR_ITEMS
kernel void store(global const float* keys, global const float* weight, float eps,
                  global const float* frequencies, float magnitude, global const int* positions,
                  global const int* slot_mapping, PAGES_ARG(global uchar*, cache)) {
    const int t = get_global_id(0), pos = positions[t];
    if ((pos + 1) % RATIO) return;
    float x[HD];
    for (int i = 0; i < HD; i++) x[i] = keys[(size_t)t * HD + i];
    normalize(x, weight, 0, eps, 0);
    for (int i = 0; i < HALF_ROT; i++) {
        float c;
        const float s = sincos((pos + 1 - RATIO) * frequencies[i], &c);
        turn(x, i, c * magnitude, s * magnitude);
    }
    const int slot = slot_mapping[t];
    store_v(x, V_PAGE(cache, slot / PAGE_TOKENS, 1, 0), slot % PAGE_TOKENS / RATIO);
}
#endif
