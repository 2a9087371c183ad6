// What the attention kernels share: masks, the merge of partial softmaxes, the output.
//
// A query sees the keys of its sequence up to its own position, and with `window` > 0 only the
// last `window` of them. BIDIRECTIONAL: it sees the keys after it too, up to tile.w, and with a
// window those at most window / 2 away. TOGETHER: it sees the keys up to tile.w in any case.
// AFTER: of those before it, it sees the keys from tile.w on, PAST: those before tile.w.
// Keys are taken in parts of PART tokens, each with its own maximum m, sum l and weighted values
// acc; parts are then merged from the first to the last. Single tokens (one work-item per part)
// and prompts (a loop over parts) so do the same arithmetic.
//
// tiles[i] = (first token, number of queries, page table row, keys of the sequence,
// with TOGETHER those that all queries of the tile see, with AFTER those that none sees).

#include "include/lanes.cl"
#include "include/activation.cl"
#include "attention/kv.cl"

#define PART 256
#define PART_PAGES (PART / PAGE)
#define M_NONE -1e30f   // the maximum over no key
#define S_MASKED -3e38f // the score of a masked key: exp(S_MASKED - m) is 0 for any m

#ifdef SOFTCAP
#define CAPPED(s) (softcap * tanh((s) / softcap))
#else
#define CAPPED(s) (s)
#endif

// First key that any query from position `pos` on may see: of the last `window` ones, with
// CHUNKED of those in its own stretch of so many.
INLINE int first_key(int pos, int window, int n_keys) {
#if defined(AFTER)
    return n_keys;
#elif defined(BIDIRECTIONAL)
    return window > 0 ? max(0, pos - window / 2) : 0;
#elif defined(CHUNKED)
    return window > 0 ? pos / window * window : 0;
#else
    return window > 0 ? max(0, pos - window + 1) : 0;
#endif
}

// The end of the keys that the query at `pos` sees, of a sequence of n_keys.
INLINE int end_key(int pos, int window, int n_keys) {
#ifdef BIDIRECTIONAL
    return window > 0 ? min(n_keys, pos + window / 2 + 1) : n_keys;
#elif defined(TOGETHER)
    return max(pos + 1, n_keys);
#elif defined(PAST)
    return min(pos + 1, n_keys);
#else
    return pos + 1;
#endif
}

// ALIBI: slopes[head] times the distance to a key is subtracted from its score. RELATIVE: to it
// biases[head][reach + d] is added, d the distance or, if it is longer, the reach.
#ifdef BIDIRECTIONAL
#define NEARNESS(d) (-fabs(d))
#else
#define NEARNESS(d) (d)
#endif
// SINKS: sinks[head] is the score of one more key, whose value is zero.
#if defined(ALIBI)
#define BIAS_ARG , global const float* slopes
#define BIAS , slopes
#elif defined(RELATIVE)
#define BIAS_ARG , global const float* biases, int reach
#define BIAS , biases, reach
#else
#define BIAS_ARG
#define BIAS
#endif
INLINE float relative_bias(global const float* biases, int reach, int head, int d) {
    return biases[head * (2 * reach + 1) + reach + clamp(d, -reach, reach)];
}
#ifdef SINKS
#define OUTPUT_FACTOR(m, l, head) output_factor(m, l, sinks[head])
#else
#define OUTPUT_FACTOR(m, l, head) (1.0f / (l))
#endif

// SELECTED: of the keys, a query sees those whose bits are set (indexer.cl): a word for each page,
// of n_words of a token; SELECTIONS: 1, or each KV head has its own words.
#ifdef SELECTED
#if PAGE != 32
#error "a page has a word of selected keys"
#endif
#define SELECTED_ARG , global const uint* selected, int n_words
#define SELECTED_AT(t, h) \
    (selected + (size_t)(t) * n_words + (SELECTIONS > 1 ? (h) * (n_words / SELECTIONS) : 0))
#define SELECTED_PASS(t, h) , SELECTED_AT(t, h), n_words
#else
#define SELECTED_ARG
#define SELECTED_PASS(t, h)
#endif

// e^x for x <= 0, 0 below -87: 2^n times a polynomial in the rest, |rest| <= ln 2 / 2, within
// 3 * 2^-24 of it. Drivers' own are calls, which empty the vector registers.
#define DEFINE_EXP(N)                                                                \
    INLINE float##N exp_negative##N(const float##N x) {                              \
        const float##N shifted = fma(x, (float##N)(1.44269504f), (float##N)(12582912)); \
        const float##N n = shifted - 12582912;  /* the nearest integer */            \
        float##N rest = fma(n, (float##N)(-0.693145752f), x);                        \
        rest = fma(n, (float##N)(-1.42860677e-6f), rest);                            \
        float##N p = (float##N)(8.29027221e-3f);                                      \
        p = fma(p, rest, (float##N)(4.18981612e-2f));                                 \
        p = fma(p, rest, (float##N)(1.66676387e-1f));                                 \
        p = fma(p, rest, (float##N)(4.99991477e-1f));                                 \
        p = fma(p, rest, (float##N)(0.999999702f));                                  \
        p = fma(p, rest, (float##N)(1.0f));                                          \
        const float##N scaled = as_float##N(as_int##N(p) + (as_int##N(shifted) << 23)); \
        return x < -87 ? (float##N)(0) : scaled;                                     \
    }
DEFINE_EXP()
DEFINE_EXP(16)

// What turns the sum of weighted values into their mean.
INLINE float output_factor(float m, float l, float sink) {
    const float top = fmax(m, sink), f = exp(m - top);
    return f / fma(l, f, exp(sink - top));
}
