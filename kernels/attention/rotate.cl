// A head of Q or K on its way to attention: bounded, normalized, rotated, spread where K is kept in
// few bits. For rope.cl, and for attention that does this itself (attention_simd.cl with ROTATE).
// After kv.cl.
//
// CLAMP        values are first bounded by +-clamp_to
// NO_ROPE      no rotation; else that of head.cl
// NORM_AFTER   the norm comes after it
// BIASED       before the rotation biases are added, which lie as the weights do
// JOINT        K is V, and kept in its place
// TEMPERATURE  Q grows with its position (attn_temperature in the GGUF format)

#include "attention/head.cl"

#ifdef CLAMP
#define CLAMPED(v) clamp(v, -clamp_to, clamp_to)
#else
#define CLAMPED(v) (v)
#endif

INLINE void rotate(SHARED float* v, global const float* table) {
#ifndef NO_ROPE
    MEET;
    for (int i = LID; i < HALF_ROT; i += WG) turn(v, i, table[i], table[HALF_ROT + i]);
    MEET;
#endif
}

// A head of Q or K, normalized and rotated.
INLINE void load_head(global const float* x, global const float* table,
                      global const float* weight, global const float* bias, int head, float eps,
                      float clamp_to, SHARED float* v, local float* partial) {
    for (int i = LID; i < HD; i += WG) v[i] = CLAMPED(x[i]);
#ifdef NORM_AFTER
    rotate(v, table);
    normalize(v, weight, head, eps, partial);
#else
    normalize(v, weight, head, eps, partial);
#ifdef BIASED
    for (int i = LID; i < HD; i += WG) v[i] += bias[head * W_HEAD + i * W_ITEM];
#endif
    rotate(v, table);
#endif
}

// Blocks of few bits cannot hold a dimension that is far larger than the others, as some models'
// K have. A Hadamard transform spreads it; done to Q too, it leaves their products as they are.
INLINE void spread_outliers(SHARED float* x) {
    const int n = HD & -HD;  // the largest power of two that divides HD
    for (int step = 1; step < n; step *= 2) {
        MEET;
#if WG > 1
        for (int i = LID; i < HD / 2; i += WG) {
            const int j = i / step * 2 * step + i % step;
            const float a = x[j], b = x[j + step];
            x[j] = a + b;
            x[j + step] = a - b;
        }
#else
        for (int i = 0; i < HD; i += 2 * step)
            for (int j = i; j < i + step; j++) {
                const float a = x[j], b = x[j + step];
                x[j] = a + b;
                x[j + step] = a - b;
            }
#endif
    }
    MEET;
    for (int i = LID; i < HD; i += WG) x[i] *= 1.0f / sqrt((float)n);
}

#ifdef JOINT  // values that are keys, too, stay as they are
#define SPREAD_OUTLIERS(x)
#else
#define SPREAD_OUTLIERS(x) if (!IS_FLOAT(K_TYPE)) spread_outliers(x)
#endif

#ifdef TEMPERATURE
#define TEMPERATURE_AT(pos) (log(floor(((pos) + shift) / step) + 1.0f) * growth + 1.0f)
#else
#define TEMPERATURE_AT(pos) 1.0f
#endif
