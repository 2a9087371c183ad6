// The largest logits of each row and the row's log-sum-exp, without sorting the row.
//
// SEGMENTS  work-item (EACH segments of SEGMENT logits, row) finds their maxima and sums of exps.
// SELECT    work-group of WG items (1 on CPUs): a row; the k-th largest of the segments' maxima is
//           a threshold that at least k logits reach (found by bisection over the floats' order);
//           log-sum-exp.
// COLLECT   work-item (segment, row): every logit that reaches the threshold goes to the row's
//           list, in any order; segments whose maximum does not are skipped.
//
// A GPU has a program for each of these kernels, CPUs one for all: there COLLECT is the end of
// SELECT, and the list is sorted.
//
// wanted[row] = (k, token whose logit is asked for, mask or -1, whether the log-sum-exp is asked
// for: its exps take most of the time, and where it is not, it is NaN). A mask has a bit for each
// token, padded to whole segments; where it is 0, the token is not among the largest, but it
// still counts in the log-sum-exp. So `tops` are maxima over the allowed tokens, and `maxima`
// are (maximum, sum of exps below it) over all. found[row]: 4 + 2 * CAPACITY words: how many
// reached the threshold (may exceed CAPACITY: then the caller must read the row), the
// log-sum-exp and the asked-for logit as floats, MASKED if there is a mask, SORTED if the list
// is, and BROKEN if a logit is NaN, the largest is infinite or all are -infinity; then pairs
// (token, logit). Fewer than k are found if fewer are allowed. A broken row's list means nothing.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

#define SEGMENT 256
#define MASKED 1
#define SORTED 2
#define BROKEN 4
#define INFINITE (0x7F800000u << 1)  // bits of infinity without the sign: NaNs have more
#define RECORD (4 + 2 * CAPACITY)

// Floats as integers of the same order.
INLINE int ordered(float v) {
    const int i = as_int(v);
    return i < 0 ? i ^ 0x7FFFFFFF : i;
}

INLINE bool allowed(global const uint* mask, int i) { return mask[i >> 5] >> (i & 31) & 1; }

#ifdef SEGMENTS
// The largest of the n allowed logits from token `begin` on; x points to the first of them.
INLINE float allowed_top(global const float* x, global const uint* mask, int begin, int n) {
    const int16 lanes = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float16 top16 = -INFINITY;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const int at = begin + i, bits = mask[at >> 5] >> (at & 31);
        const int16 chosen = ((int16)(bits) >> lanes) << 31;  // select() looks at the sign
        top16 = fmax(top16, select((float16)(-INFINITY), vload16(0, x + i), chosen));
    }
    float top = max16(top16);
    for (; i < n; i++)
        if (allowed(mask, begin + i)) top = fmax(top, x[i]);
    return top;
}

// (the largest, the sum of exps below it) of n logits, the first NaN if one of them is: fmax
// passes those over, but without its sign a NaN is the largest of all integers. Returns the
// largest in any case.
INLINE float scan_segment(global const float* x, int n, bool scored, global float2* maximum) {
    float16 top16 = -INFINITY;
    uint16 bits16 = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const float16 v = vload16(0, x + i);
        top16 = fmax(top16, v);
        bits16 = max(bits16, as_uint16(v) << 1);
    }
    float top = max16(top16);
    bool broken = any(bits16 > INFINITE);
    for (; i < n; i++) {
        top = fmax(top, x[i]);
        broken = broken || isnan(x[i]);
    }
    float16 sum16_ = 0;
    float sum = 0;
    if (scored && top > -INFINITY) {  // else every difference is NaN
        for (i = 0; i + 16 <= n; i += 16) sum16_ += exp(vload16(0, x + i) - top);
        for (; i < n; i++) sum += exp(x[i] - top);
    }
    *maximum = (float2)(broken ? NAN : top, sum + sum16(sum16_));
    return top;
}

VECTOR_ITEMS
kernel void segments(global const float* logits, int n_vocab, global const int4* wanted,
                     global const uint* masks, global float2* maxima, global float* tops) {
    const int row = get_global_id(1), n_segments = (n_vocab + SEGMENT - 1) / SEGMENT;
    const int first = get_global_id(0) * EACH, mask = wanted[row].z;
    logits += (size_t)row * n_vocab;
    maxima += (size_t)row * n_segments;
    tops += (size_t)row * n_segments;
    masks += (size_t)max(mask, 0) * n_segments * (SEGMENT / 32);
    for (int i = first; i < min(first + EACH, n_segments); i++) {
        const int begin = i * SEGMENT, n = min(SEGMENT, n_vocab - begin);
        const float top = scan_segment(logits + begin, n, wanted[row].w, maxima + i);
        tops[i] = mask < 0 ? top : allowed_top(logits + begin, masks, begin, n);
    }
}
#endif

#ifdef SELECT
#ifdef COLLECT
// Adds the logits of x that reach t to a row's list: before those that are less, so that what
// ties stays in the order of the tokens. Token `begin` is x[0].
INLINE void collect_sorted(global const float* x, global const uint* mask, int begin, int n, int t,
                           global int* found) {
    const float least = as_float(t < 0 ? t ^ 0x7FFFFFFF : t);
    for (int i = 0; i < n; i++) {
        if (i % 16 == 0 && i + 16 <= n && !any(~(vload16(0, x + i) < least))) {
            i += 15;
            continue;
        }
        if (ordered(x[i]) < t || (mask && !allowed(mask, begin + i))) continue;
        int at = found[0]++;
        if (at >= CAPACITY) continue;
        for (; at > 0 && as_float(found[3 + 2 * at]) < x[i]; at--)
            vstore2(vload2(at + 1, found), at + 2, found);
        vstore2((int2)(begin + i, as_int(x[i])), at + 2, found);
    }
}
#endif

VECTOR_ITEMS
kernel void select_threshold(global const float2* maxima, global const float* tops,
                             int n_segments, int n_vocab, global const int4* wanted,
                             global const float* logits, global const uint* masks,
                             global int* found, global int* thresholds) {
    PARTIAL(partial);
    const int row = get_group_id(0);
    maxima += (size_t)row * n_segments;
    tops += (size_t)row * n_segments;
    found += (size_t)row * RECORD;
    float top = -INFINITY, top_allowed = -INFINITY;
    for (int i = LID; i < n_segments; i += WG)
        top = fmax(top, isnan(maxima[i].x) ? INFINITY : maxima[i].x);  // which is broken, too
    for (int i = LID; i < n_segments; i += WG) top_allowed = fmax(top_allowed, tops[i]);
    top = max_group(top, partial);
    top_allowed = max_group(top_allowed, partial);
    float sum = wanted[row].w ? 0 : NAN;
    if (wanted[row].w)
        for (int i = LID; i < n_segments; i += WG) sum += maxima[i].y * exp(maxima[i].x - top);
    sum = sum_group(sum, partial);
    const int k = min(wanted[row].x, n_segments);
    // The largest t such that at least k maxima are >= t. Fewer segments than k: everything.
    int low = ordered(-INFINITY), high = ordered(top_allowed);
    if (wanted[row].x <= n_segments)
        while (low < high) {
            const int middle = (int)(((long)low + high + 1) >> 1);
            int n = 0;
            for (int i = LID; i < n_segments; i += WG) n += ordered(tops[i]) >= middle;
            if (sum_group(n, partial) >= k) low = middle; else high = middle - 1;
        }
    if (LID > 0) return;
    thresholds[row] = low;
    found[0] = 0;
    found[1] = as_int(top + log(sum));
    logits += (size_t)row * n_vocab;
    found[2] = as_int(logits[wanted[row].y]);
    const int mask = wanted[row].z;
    found[3] = (mask >= 0 ? MASKED : 0) | (isinf(top) ? BROKEN : 0);
#ifdef COLLECT
    found[3] |= SORTED;
    masks = mask < 0 ? 0 : masks + (size_t)mask * n_segments * (SEGMENT / 32);
    for (int i = 0; i < n_segments; i++) {
        if (ordered(tops[i]) < low || (masks && tops[i] == -INFINITY)) continue;
        const int begin = i * SEGMENT;
        collect_sorted(logits + begin, masks, begin, min(SEGMENT, n_vocab - begin), low, found);
    }
#endif
}
#endif

#if defined(COLLECT) && !defined(SELECT)
VECTOR_ITEMS
kernel void collect(global const float* logits, int n_vocab, global const int4* wanted,
                    global const uint* masks, global const float* tops,
                    global const int* thresholds, global int* found) {
    const int segment = get_global_id(0), row = get_global_id(1), t = thresholds[row];
    const int n_segments = get_global_size(0), mask = wanted[row].z;
    const float top = tops[(size_t)row * n_segments + segment];
    if (ordered(top) < t || (mask >= 0 && top == -INFINITY)) return;
    if (mask >= 0) masks += (size_t)mask * n_segments * (SEGMENT / 32);
    const int begin = segment * SEGMENT, end = min(begin + SEGMENT, n_vocab);
    found += (size_t)row * RECORD;
    for (int i = begin; i < end; i++) {
        const float v = logits[(size_t)row * n_vocab + i];
        if (ordered(v) >= t && (mask < 0 || allowed(masks, i))) {
            const int at = atomic_inc(found);
            if (at < CAPACITY) {
                found[4 + 2 * at] = i;
                found[5 + 2 * at] = as_int(v);
            }
        }
    }
}
#endif
