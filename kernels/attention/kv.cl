// The KV cache's layout: pages of PAGE tokens, for each page each KV head.
//
// K of a head: [HD][PAGE], tokens side by side, so that scores of PAGE keys are sums of vectors;
// [HD][K_ROWS], where K_TOKENS have one key (an indexer's, of a block of tokens).
// V of a head: [PAGE][HDV_PADDED], values side by side.
// K_TYPE, V_TYPE: the types below. Floats lie as said. The others are ggml's blocks of 32 values
// of a token, the last filled up with zeros, but their parts lie apart: codes and the fifth bits
// in the order of K or V (byte j of a block of 4 or 5 bits has values j and j + 16, bit j of a
// uint the fifth of value j), then the scales d and minima m (half), tokens side by side.
// A token's bytes are its own, so that tokens can be written at the same time.

#include "include/group.cl"

#define KV_F32 0
#define KV_F16 1
#define KV_BF16 2
#define KV_Q8_0 3
#define KV_Q4_0 4
#define KV_Q4_1 5
#define KV_IQ4_NL 6
#define KV_Q5_0 7
#define KV_Q5_1 8
#ifndef K_TYPE  // a kernel that reads no page
#define K_TYPE KV_F32
#define V_TYPE KV_F32
#endif

#ifndef K_TOKENS
#define K_TOKENS 1
#endif
#define K_ROWS (PAGE / K_TOKENS)
#define HDV_PADDED ((HDV + 15) / 16 * 16)
#define K_BLOCKS ((HD + 31) / 32)
#define V_BLOCKS ((HDV + 31) / 32)
#define IS_FLOAT(type) ((type) <= KV_BF16)
#define HAS_HIGH(type) ((type) >= KV_Q5_0)
#define STORES_MINIMUM(type) ((type) == KV_Q4_1 || (type) == KV_Q5_1)
// Codes of 4 or 5 bits count from 0: with these, -8 or -16 times the scale is the minimum.
#define HAS_MINIMUM(type) ((type) >= KV_Q4_0 && (type) != KV_IQ4_NL)
#define FLOAT_BYTES(type) ((type) == KV_F32 ? 4 : 2)
#define CODE_BYTES(type) ((type) == KV_Q8_0 ? 32 : 16)
#define BLOCK_BYTES(type) (CODE_BYTES(type) + 4 * HAS_HIGH(type) + 2 + 2 * STORES_MINIMUM(type))
// The bytes of a token's K and V.
#define K_BYTES (IS_FLOAT(K_TYPE) ? HD * FLOAT_BYTES(K_TYPE) : K_BLOCKS * BLOCK_BYTES(K_TYPE))
#define V_BYTES \
    (IS_FLOAT(V_TYPE) ? HDV_PADDED * FLOAT_BYTES(V_TYPE) : V_BLOCKS * BLOCK_BYTES(V_TYPE))

// A kernel gets all pages of K or V as PAGES_ARG(type, name) and hands them on as PAGES(name): one
// pointer, or four where they are more than the device allocates at once: slabs of SLAB_PAGES.
#ifdef SLAB_PAGES
#define PAGES_ARG(type, x) type x##_0, type x##_1, type x##_2, type x##_3
#define PAGES(x) x##_0, x##_1, x##_2, x##_3
#define PICK(x, slab) ((slab) == 0 ? x##_0 : (slab) == 1 ? x##_1 : (slab) == 2 ? x##_2 : x##_3)
#define SLAB_OF(x, page) PICK(x, (page) / SLAB_PAGES)
#define PAGE_IN_SLAB(page) ((page) % SLAB_PAGES)
#else
#define PAGES_ARG(type, x) type x
#define PAGES(x) x
#define SLAB_OF(x, page) (x)
#define PAGE_IN_SLAB(page) (page)
#endif
#define HEAD_IN_SLAB(page, n_kv, h) ((size_t)PAGE_IN_SLAB(page) * (n_kv) + (h))
#define K_PAGE(k, page, n_kv, h) (SLAB_OF(k, page) + HEAD_IN_SLAB(page, n_kv, h) * K_ROWS * K_BYTES)
#define V_PAGE(v, page, n_kv, h) (SLAB_OF(v, page) + HEAD_IN_SLAB(page, n_kv, h) * PAGE * V_BYTES)

// Where the parts of a page with n blocks are.
#define HIGH_OF(type, p, n) ((global uint*)((p) + (n) * CODE_BYTES(type)))
#define D_OF(type, p, n) ((global half*)(HIGH_OF(type, p, n) + (n) * HAS_HIGH(type)))
#define M_OF(type, p, n) (D_OF(type, p, n) + (n))

constant char NL_VALUES[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

INLINE char nonlinear(uchar code) { return NL_VALUES[code]; }
INLINE char16 nonlinear16(uchar16 code) {
    return shuffle(
        (char16)(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), code);
}

#define LOAD_ONE(i, p) (*(p))
#define FROM_ZERO (0)
#define FROM_ZERO16 (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define CODE_AT(type, j) ((j) % CODE_BYTES(type))

// What is stored is code * scale + minimum, for one value and for 16 side by side:
// codes of a block's byte that has value j, with fifth bits; the minimum that goes with a scale;
// floats in memory, which are codes that need neither.
#define DEFINE_CODES(N, LOAD)                                                                  \
    INLINE float##N block_codes##N(const int type, const uchar##N byte, const uint##N high,    \
                                   int j) {                                                    \
        if (type == KV_Q8_0) return convert_float##N(as_char##N(byte));                        \
        const uint##N code = convert_uint##N(byte) >> (uint)(j / 16 * 4) & 15;                 \
        if (type == KV_IQ4_NL) return convert_float##N(nonlinear##N(convert_uchar##N(code)));  \
        return convert_float##N(as_int##N(HAS_HIGH(type) ? code | high << 4 : code));          \
    }                                                                                          \
    INLINE float##N minima##N(const int type, const float##N d, global const half* m) {        \
        if (STORES_MINIMUM(type)) return load_half##N(0, m);                                   \
        return d * (type == KV_Q4_0 ? -8 : -16);                                               \
    }                                                                                          \
    INLINE float##N float_values##N(const int type, global const uchar* p, int at) {           \
        if (type == KV_F32) return LOAD(0, (global const float*)p + at);                       \
        if (type == KV_F16) return load_half##N(0, (global const half*)p + at);                \
        return as_float##N(convert_uint##N(LOAD(0, (global const ushort*)p + at)) << 16);      \
    }
DEFINE_CODES(, LOAD_ONE)
DEFINE_CODES(16, vload16)

// Of a head's K of token t, or of the tokens from t on: the code of value d, the scale and the
// minimum of block b, and value d.
#define DEFINE_K(N, LOAD)                                                                      \
    INLINE float##N k_codes##N(global const uchar* k, int d, int t) {                          \
        if (IS_FLOAT(K_TYPE)) return float_values##N(K_TYPE, k, d * K_ROWS + t);                 \
        const int b = d / 32, j = d % 32;                                                      \
        const int row = b * CODE_BYTES(K_TYPE) + CODE_AT(K_TYPE, j);                           \
        uint##N high = 0;                                                                      \
        if (HAS_HIGH(K_TYPE))                                                                  \
            high = LOAD(0, HIGH_OF(K_TYPE, k, K_BLOCKS * K_ROWS) + b * K_ROWS + t) >> (uint)j & 1; \
        return block_codes##N(K_TYPE, LOAD(0, k + row * K_ROWS + t), high, j);                   \
    }                                                                                          \
    INLINE float##N k_scales##N(global const uchar* k, int b, int t) {                         \
        return load_half##N(0, D_OF(K_TYPE, k, K_BLOCKS * K_ROWS) + b * K_ROWS + t);              \
    }                                                                                          \
    INLINE float##N k_minima##N(global const uchar* k, int b, int t, float##N d) {             \
        return minima##N(K_TYPE, d, M_OF(K_TYPE, k, K_BLOCKS * K_ROWS) + b * K_ROWS + t);          \
    }                                                                                          \
    INLINE float##N k_value##N(global const uchar* k, int d, int t) {                          \
        const float##N code = k_codes##N(k, d, t);                                             \
        if (IS_FLOAT(K_TYPE)) return code;                                                     \
        const float##N scale = k_scales##N(k, d / 32, t);                                      \
        if (!HAS_MINIMUM(K_TYPE)) return code * scale;                                         \
        return fma(code, scale, k_minima##N(k, d / 32, t, scale));                             \
    }
DEFINE_K(, LOAD_ONE)
DEFINE_K(16, vload16)

// The same of V, but the code and the value of token t's value d, or of 16 from there on.
#define DEFINE_V(N, LOAD)                                                                      \
    INLINE float##N v_codes##N(global const uchar* v, int t, int d) {                          \
        if (IS_FLOAT(V_TYPE)) return float_values##N(V_TYPE, v, t * HDV_PADDED + d);           \
        const int block = t * V_BLOCKS + d / 32, j = d % 32;                                   \
        uint##N high = 0;                                                                      \
        if (HAS_HIGH(V_TYPE)) high = HIGH_OF(V_TYPE, v, V_BLOCKS * PAGE)[block];               \
        high = high >> (FROM_ZERO##N + (uint)j) & 1;                                           \
        return block_codes##N(                                                                 \
            V_TYPE, LOAD(0, v + block * CODE_BYTES(V_TYPE) + CODE_AT(V_TYPE, j)), high, j);    \
    }                                                                                          \
    INLINE float##N v_scales##N(global const uchar* v, int b, int t) {                         \
        return load_half##N(0, D_OF(V_TYPE, v, V_BLOCKS * PAGE) + b * PAGE + t);              \
    }                                                                                          \
    INLINE float##N v_minima##N(global const uchar* v, int b, int t, float##N d) {             \
        return minima##N(V_TYPE, d, M_OF(V_TYPE, v, V_BLOCKS * PAGE) + b * PAGE + t);          \
    }                                                                                          \
    INLINE float##N v_value##N(global const uchar* v, int t, int d) {                          \
        const float##N code = v_codes##N(v, t, d);                                             \
        if (IS_FLOAT(V_TYPE)) return code;                                                     \
        const float scale = v_scales(v, d / 32, t);                                            \
        if (!HAS_MINIMUM(V_TYPE)) return code * scale;                                         \
        return fma(code, (float##N)(scale), (float##N)(v_minima(v, d / 32, t, scale)));        \
    }
DEFINE_V(, LOAD_ONE)
DEFINE_V(16, vload16)

#ifdef QUERY
// The score of the head's key t for a query, which is in the address space QUERY.
INLINE float key_score(const QUERY float* q, global const uchar* k, int t) {
    float s = 0;
#ifdef SIMT
    #pragma unroll 1  // all of a head's loads at once take more registers than a GPU has
#endif
    for (int b = 0; b < K_BLOCKS; b++) {
        float x = 0, sum = 0;
        for (int d = 32 * b; d < min(32 * b + 32, HD); d++) {
            x = fma(q[d], k_codes(k, d, t), x);
            sum += q[d];
        }
        const float scale = IS_FLOAT(K_TYPE) ? 1 : k_scales(k, b, t);
        s = fma(x, scale, s);
        if (HAS_MINIMUM(K_TYPE)) s = fma(sum, k_minima(k, b, t, scale), s);
    }
    return s;
}
#endif

// The nearest of the 16 values, by halving the table.
INLINE uchar nearest(float v) {
    int code = 0;
    for (int step = 8; step > 0; step /= 2)
        if (2 * v > NL_VALUES[code + step - 1] + NL_VALUES[code + step]) code += step;
    return code;
}

// Codes of 32 values; returns their scale and minimum, as ggml finds them, or NaNs if one is.
INLINE float2 quantize_block(const int type, const float* x, uchar* codes) {
    float low = x[0], high = x[0], sum = x[0];
    for (int i = 1; i < 32; i++) {
        low = fmin(low, x[i]);
        high = fmax(high, x[i]);
        sum += x[i];
    }
    if (isnan(sum)) low = high = sum;
    const float largest = high > -low ? high : low;
    const int levels = HAS_HIGH(type) ? 32 : 16;
    const float d = type == KV_Q8_0         ? fabs(largest) / 127
                    : type == KV_IQ4_NL     ? largest / -127
                    : STORES_MINIMUM(type)     ? (high - low) / (levels - 1)
                                            : largest / -(levels / 2);
    const float inverse = d != 0 ? 1 / d : 0, origin = STORES_MINIMUM(type) ? low : 0;
    const float centre = STORES_MINIMUM(type) ? 0.5f : levels / 2 + 0.5f;
    float product = 0, square = 0;
    for (int i = 0; i < 32; i++) {
        const float v = (x[i] - origin) * inverse;
        if (type == KV_Q8_0) codes[i] = as_uchar((char)round(v));
        else if (type == KV_IQ4_NL) {
            codes[i] = nearest(v);
            const float code = NL_VALUES[codes[i]], weight = x[i] * x[i] * code;
            product += weight * x[i];
            square += weight * code;
        } else codes[i] = min((int)(v + centre), levels - 1);
    }
    return (float2)(type == KV_IQ4_NL && square > 0 ? product / square : d, origin);
}

// n <= 32 values as one of n_blocks: fifth bits and scales at these places of their parts, code
// bytes from code_at on, `stride` apart.
INLINE void store_block(const int type, SHARED const float* x, int n, global uchar* p, int n_blocks,
                        int code_at, int stride, int high_at, int scale_at) {
    float padded[32];
    uchar codes[32];
    for (int i = 0; i < 32; i++) padded[i] = i < n ? x[i] : 0;
    const float2 scales = quantize_block(type, padded, codes);
    uint high = 0;
    for (int i = 0; i < 32; i++) high |= (uint)(codes[i] >> 4 & 1) << i;
    for (int i = 0; i < CODE_BYTES(type); i++)
        p[code_at + i * stride] =
            type == KV_Q8_0 ? codes[i] : (codes[i] & 15) | (codes[(i + 16) % 32] & 15) << 4;
    if (HAS_HIGH(type)) HIGH_OF(type, p, n_blocks)[high_at] = high;
    vstore_half(scales.x, scale_at, D_OF(type, p, n_blocks));
    if (STORES_MINIMUM(type)) vstore_half(scales.y, scale_at, M_OF(type, p, n_blocks));
}

INLINE void store_float(const int type, float x, global uchar* p, int at) {
    if (type == KV_F32) ((global float*)p)[at] = x;
    else if (type == KV_F16) vstore_half(x, at, (global half*)p);
    else {  // to the nearest, ties to even
        const uint bits = as_uint(x);
        ((global ushort*)p)[at] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    }
}

// A head's K and V of token t of a page; all items of a work-group (group.cl) have a share in it.
INLINE void store_k(SHARED const float* x, global uchar* k, int t) {
    if (IS_FLOAT(K_TYPE))
        for (int d = LID; d < HD; d += WG) store_float(K_TYPE, x[d], k, d * K_ROWS + t);
    else
        for (int b = LID; b < K_BLOCKS; b += WG)
            store_block(K_TYPE, x + 32 * b, HD - 32 * b, k, K_BLOCKS * K_ROWS,
                        b * CODE_BYTES(K_TYPE) * K_ROWS + t, K_ROWS, b * K_ROWS + t,
                        b * K_ROWS + t);
}

INLINE void store_v(SHARED const float* x, global uchar* v, int t) {
    if (IS_FLOAT(V_TYPE))
        for (int d = LID; d < HDV_PADDED; d += WG)
            store_float(V_TYPE, d < HDV ? x[d] : 0, v, t * HDV_PADDED + d);
    else
        for (int b = LID; b < V_BLOCKS; b += WG)
            store_block(V_TYPE, x + 32 * b, HDV - 32 * b, v, V_BLOCKS * PAGE,
                        (t * V_BLOCKS + b) * CODE_BYTES(V_TYPE), 1, t * V_BLOCKS + b, b * PAGE + t);
}
