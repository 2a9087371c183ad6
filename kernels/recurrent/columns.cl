// Columns of a recurrence's state side by side, on CPUs: what is computed of a token once for all
// of them is a vector, or a lane of one for each; and each has a vector of its own of what its
// state is multiplied with. A column at a time, exponentials would take most of the time.

#define COLUMNS 16
#define COLUMN(v, i) ((const float*)&(v))[i]
#define UNROLL _Pragma("unroll")

INLINE float16 load_columns(global const float* p, int n) {
    if (n == COLUMNS) return vload16(0, p);
    float16 v = 0;
    for (int i = 0; i < n; i++) ((float*)&v)[i] = p[i];
    return v;
}

INLINE void store_columns(float16 v, global float* p, int n) {
    if (n == COLUMNS) vstore16(v, 0, p);
    else for (int i = 0; i < n; i++) p[i] = COLUMN(v, i);
}

// p[column / times] for n columns, from the first on.
INLINE float16 load_repeated(global const float* p, int first, int n, int times) {
    if (times % COLUMNS == 0) return p[first / times];
    float16 v = 0;
    for (int i = 0; i < n; i++) ((float*)&v)[i] = p[(first + i) / times];
    return v;
}

INLINE void clear_columns(global float* state, int n) {
    for (int i = 0; i < n; i++) vstore16((float16)(0), i, state);
}

// The sums of 16 vectors, each in the order of sum16().
#define OF_TWO(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
INLINE float16 sum_columns(const float16* v) {
    float16 a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = OF_TWO(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               OF_TWO(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 4; i++)
        b[i] = OF_TWO(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               OF_TWO(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 2; i++)
        c[i] = OF_TWO(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               OF_TWO(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return OF_TWO(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           OF_TWO(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
