// A head's HD values: their norm, and the rotation of their pairs, by a work-group (group.cl) whose
// items have values LID, LID + WG, ... of the norm, and meet before others are read.
//
// NEOX        pair i is (i, i + N_ROT/2), else (2i, 2i + 1), of the values from ROT_AT on
// QK_NORM     there is a norm: RMS, or with NORM_LAYER layer norm. Value i of head h is then
//             multiplied with weight[h * W_HEAD + i * W_ITEM], if there is a weight.

#define HALF_ROT (N_ROT / 2)

// c, s: cosine and sine of the angle.
INLINE void turn(SHARED float* v, int i, float c, float s) {
#ifdef NEOX
    const int a = ROT_AT + i, b = a + HALF_ROT;
#else
    const int a = ROT_AT + 2 * i, b = a + 1;
#endif
    const float x = v[a], y = v[b];
    v[a] = x * c - y * s;
    v[b] = x * s + y * c;
}

INLINE void normalize(SHARED float* v, global const float* weight, int head, float eps,
                      local float* partial) {
#ifdef QK_NORM
    float mean = 0, squares = 0;
#ifdef NORM_LAYER
    for (int i = LID; i < HD; i += WG) mean += v[i];
    mean = sum_group(mean, partial) / HD;
#endif
    for (int i = LID; i < HD; i += WG) squares = fma(v[i] - mean, v[i] - mean, squares);
    const float factor = 1.0f / sqrt(sum_group(squares, partial) / HD + eps);
    for (int i = LID; i < HD; i += WG) {
        v[i] = (v[i] - mean) * factor;
        if (weight) v[i] *= weight[head * W_HEAD + i * W_ITEM];
    }
#endif
}
