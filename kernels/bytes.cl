// Products of weights with activations of 8 bits, for matmul_simd.cl with X_BYTES.
//
// A quad is an int of four bytes, of every 8 columns 0 4 1 5 or 2 6 3 7: so nibbles lie in their
// planes (unpack.cl). A block of 32 columns has 8 quads, and 16 rows of one are a vector.
// Activations: a quad is an int; (d, d * sum, two sums of 16 as shorts, -) per block.
//
// Instructions that multiply bytes take one unsigned and one signed operand. Codes of weights are
// unsigned, activations signed; with SIGNED_CODES the weights' magnitudes are multiplied with
// activations that have got their signs.
//   MADD_BYTES_256 AVX2: sums of two products in 16 bits, of which DEPTH quads can be added
//                  before they must become 32 bits, times an integer scale at no cost
//   DOT_BYTES_x    VNNI: sums of four products in 32 bits
//   neither        bytes made shorts, for tests
// Sums of a block are integers, and exact, in all of them.

#define QUADS 8
#if NT == 1
#define TILE 1
#define BLOCKS 1
#define UNROLL_PARTS _Pragma("unroll")
#define UNROLL_QUADS _Pragma("unroll")
#else
#define TILE 4  // tokens that meet a weight that is loaded
#define BLOCKS 8  // unpacked into the first cache at a time
// With more LLVM takes one half of the rows after the other, and keeps what is broadcast in memory.
#define UNROLL_PARTS _Pragma("unroll 1")
#define UNROLL_QUADS _Pragma("unroll 2")
#endif

#if defined(TYPE_Q8_0)
#define SIGNED_CODES
#define DEPTH 1
#elif defined(TYPE_IQ4_NL) || defined(TYPE_IQ4_XS)
#define SIGNED_CODES
#define BYTE_TABLE 0xF6EADDCFBFAD9881, 0x7159453526190D01  // -127 -104 -83 .. 69 89 113
#define DEPTH 1
#elif defined(TYPE_MXFP4)
#define SIGNED_CODES
#define BYTE_TABLE TABLE
#define DEPTH 8
#define UNSHIFTED 0x1p8f  // CODE_AT is for shorts
#elif HIGH_BITS == 2
#define DEPTH 2
#elif HIGH_BITS == 1
#define DEPTH 4
#else
#define DEPTH 8
#endif
#ifndef UNSHIFTED
#define UNSHIFTED 1.0f
#endif
#if defined(SCALES_CHARS)
#define HALF_SCALES  // sums of 16 columns have integer scales
#define OFFSET_CODE 32  // more than the weight
#endif
#if defined(WITH_M) && !defined(SIGNED_CODES)
#define ADD_M
#endif

typedef struct {
    vint codes[QUADS];
    float16 d;
#ifdef ADD_M
    float16 m;
#endif
#if defined(BLOCK_SCALES)
    vint scale;  // twice, as shorts
#elif defined(HALF_SCALES)
    vint scales[2], offsets;
#endif
} Unpacked;

INLINE void unpack_quads(global const uchar* q, vint* codes) {
#if LOW_BITS == 8
    #pragma unroll
    for (int i = 0; i < QUADS; i++) codes[i] = LOAD_INT(q, i);
#else
#if HIGH_BITS > 0
    vint h[HIGH_BITS];
    #pragma unroll
    for (int i = 0; i < HIGH_BITS; i++) h[i] = LOAD_INT(q, LOW_BITS + i);
#ifdef HALF_SCALES
    for (int i = 0; i < HIGH_BITS; i++) h[i] ^= (vint)(0xAAAAAAAA);  // not signed any more
#endif
#endif
    #pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const vint v = LOAD_INT(q, i / 2);
        codes[i] = (i % 2 == 0 ? v : v >> 4) & (vint)(0x0F0F0F0F);
        const int p = 4 * (i / 2) + i % 2;  // and p + 2 are the quad's pairs
#if HIGH_BITS == 1
        codes[i] |= BITS(h[0], p, 4, 1) | BITS(h[0], p + 2, 12, 1);
#elif HIGH_BITS == 2
        codes[i] |= BITS(h[p / 8], HIGH_AT(p), 4, 3) | BITS(h[p / 8], HIGH_AT(p + 2), 12, 3);
#endif
#ifdef BYTE_TABLE
        codes[i] = __builtin_astype(lookup(as_vpair(codes[i]), 0, BYTE_TABLE), vint);
#endif
    }
#endif
}

INLINE void unpack_block(global const uchar* q, global const uchar* s, int b, Unpacked* w) {
    vfloat m;
    unpack_quads(q, w->codes);
    unpack_scales(s, b, &w->d, &m);
    w->d *= UNSHIFTED;
#ifdef ADD_M
    w->m = m;
#endif
#if defined(BLOCK_SCALES)
    const vint scale = sum_scale(s, b);
    w->scale = __builtin_astype(BOTH(scale), vint);
#elif defined(HALF_SCALES)
    const vint first = sum_scale(s, b, 0), last = sum_scale(s, b, 1);
    w->scales[0] = __builtin_astype(BOTH(first), vint);
    w->scales[1] = __builtin_astype(BOTH(last), vint);
    w->offsets = ((first * -OFFSET_CODE) & 0xFFFF) | (last * -OFFSET_CODE) << 16;
#endif
}

#if defined(BLOCK_SCALES)
#define PAIR_SCALE(w, quad) as_vpair((w)->scale)
#elif defined(HALF_SCALES)
#define PAIR_SCALE(w, quad) as_vpair((w)->scales[(quad) / 4])
#else
#define PAIR_SCALE(w, quad) (vpair)(1)
#endif

#ifdef MADD_BYTES_256

#if defined(X86_BUILTINS)
#define vpmaddubsw(a, b) __builtin_ia32_pmaddubsw256(a, b)
#define vpsignb(a, b) __builtin_ia32_psignb256(a, b)
#define vpmaddwd(a, b) __builtin_ia32_pmaddwd256(a, b)
#else
short16 vpmaddubsw(char32, char32) __asm__("llvm.x86.avx2.pmadd.ub.sw");
char32 vpsignb(char32, char32) __asm__("llvm.x86.avx2.psign.b");
int8 vpmaddwd(short16, short16) __asm__("llvm.x86.avx2.pmadd.wd");
#endif
#define BYTES(v) __builtin_astype(v, char32)

// Adds the sums of two products of 8 rows.
INLINE short16 madd_quad(int8 w, int8 x, short16 sum) {
#ifdef SIGNED_CODES
    return sum + vpmaddubsw(vpsignb(BYTES(w), BYTES(w)), vpsignb(BYTES(x), BYTES(w)));
#else
    return sum + vpmaddubsw(BYTES(w), BYTES(x));
#endif
}

// sum[t]: a block's products with n tokens, times integer scales if there are any.
INLINE void dot_block(const int n, const Unpacked* w, global const int* const* x, int at,
                      int16* sum) {
    #pragma unroll
    for (int t = 0; t < n; t++) sum[t] = 0;
    UNROLL_PARTS
    for (int first = 0; first < QUADS; first += DEPTH) {
        short16 low[TILE], high[TILE];
        #pragma unroll
        for (int t = 0; t < n; t++) low[t] = high[t] = 0;
        UNROLL_QUADS
        for (int i = first; i < first + DEPTH; i++) {
            #pragma unroll
            for (int t = 0; t < n; t++) {
                const int8 xq = (int8)(x[t][at + i]);
                low[t] = madd_quad(w->codes[i].lo, xq, low[t]);
                high[t] = madd_quad(w->codes[i].hi, xq, high[t]);
            }
        }
        const vpair scale = PAIR_SCALE(w, first);
        #pragma unroll
        for (int t = 0; t < n; t++)
            sum[t] += (int16)(vpmaddwd(low[t], scale.lo), vpmaddwd(high[t], scale.hi));
    }
}

#else

#if defined(DOT_BYTES_512)
int16 vpdpbusd(int16, char64, char64) __asm__("llvm.x86.avx512.vpdpbusd.512");
#define BYTES(v) __builtin_astype(v, char64)
#elif defined(DOT_BYTE_INTS_512)
int16 vpdpbusd(int16, int16, int16) __asm__("llvm.x86.avx512.vpdpbusd.512");
#define BYTES(v) (v)
#elif defined(DOT_BYTES_256)
int8 vpdpbusd(int8, char32, char32) __asm__("llvm.x86.avx512.vpdpbusd.256");
#define BYTES(v) __builtin_astype(v, char32)
#elif defined(DOT_BYTE_INTS_256)
int8 vpdpbusd(int8, int8, int8) __asm__("llvm.x86.avx512.vpdpbusd.256");
#define BYTES(v) (v)
#endif

// c + the sum of four products, of unsigned and of signed bytes.
INLINE int16 dot_quad(int16 w, int16 x, int16 c) {
#if defined(DOT_BYTES_512) || defined(DOT_BYTE_INTS_512)
    return vpdpbusd(c, BYTES(w), BYTES(x));
#elif defined(DOT_BYTES_256) || defined(DOT_BYTE_INTS_256)
    return (int16)(vpdpbusd(c.lo, BYTES(w.lo), BYTES(x.lo)),
                   vpdpbusd(c.hi, BYTES(w.hi), BYTES(x.hi)));
#else
    const vpair w0 = as_vpair(w & 0x00FF00FF), w1 = SHIFTED_DOWN(as_vpair(w), 8);
    const vpair x0 = (vpair)(as_vpair(x) << (vpair)(8)) >> (vpair)(8);
    return madd(w1, as_vpair(x) >> (vpair)(8), madd(w0, x0, c));
#endif
}

INLINE void dot_block(const int n, const Unpacked* w, global const int* const* x, int at,
                      int16* sum) {
    #pragma unroll
    for (int t = 0; t < n; t++) {
        int16 half[2] = {0, 0};
        #pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const int16 xq = (int16)(x[t][at + i]);
#ifdef SIGNED_CODES
            half[i / 4] = dot_quad(w->codes[i] ^ (int16)(0x80808080), xq, half[i / 4]);
#else
            half[i / 4] = dot_quad(w->codes[i], xq, half[i / 4]);
#endif
        }
#ifdef HALF_SCALES
        half[0] *= w->scales[0] >> 16;
        half[1] *= w->scales[1] >> 16;
#endif
        sum[t] = half[0] + half[1];
#ifdef BLOCK_SCALES
        sum[t] *= w->scale >> 16;
#endif
    }
}

#endif

// Adds to acc[from ..] the products of the next blocks, from block b on, with n tokens; n is a
// constant. Where there are fewer tokens the last one is computed again, into sums that nobody
// reads.
INLINE void dot_tile(const int n, const Unpacked* w, int blocks, X_ARGS, IN_ARG, int from, int nt,
                     int n_blocks, int b, float16* acc) {
    global const int* row[TILE];
    global const float4* scales[TILE];
    #pragma unroll
    for (int t = 0; t < n; t++) {
        const size_t at = (size_t)ROW_IN(min(from + t, nt - 1)) * n_blocks + b;
        row[t] = x + at * QUADS;
        scales[t] = xd + at;
    }
    #pragma unroll 1
    for (int i = 0; i < blocks; i++) {
        int16 sum[TILE];
        dot_block(n, w + i, row, i * QUADS, sum);
        #pragma unroll
        for (int t = 0; t < n; t++) {
            const float4 xs = scales[t][i];
#ifdef HALF_SCALES
            sum[t] = madd(as_vpair(w[i].offsets), as_vpair((int16)(as_int(xs.z))), sum[t]);
#elif defined(SIGNED_CODES) && !defined(MADD_BYTES_256)
            sum[t] -= 128 * ((as_int(xs.z) << 16 >> 16) + (as_int(xs.z) >> 16));
#endif
            float16 a = fma(convert_float16(sum[t]) * xs.x, w[i].d, acc[from + t]);
#ifdef ADD_M
            a = fma(w[i].m, (float16)(xs.y), a);
#endif
            acc[from + t] = a;
        }
    }
}

// Adds to acc the products of one group with nt tokens. Many tokens meet some blocks together,
// unpacked in the first cache.
INLINE void dot_group(global const uchar* q, global const uchar* s, X_ARGS, IN_ARG, int nt,
                      int n_blocks, float16* acc) {
    for (int b = 0; b < n_blocks; b += BLOCKS) {
        Unpacked w[BLOCKS];
        const int n = min(BLOCKS, n_blocks - b);
        for (int i = 0; i < n; i++) {
            #pragma unroll
            for (int k = 0; k < QBYTES; k += 64)
                PREFETCH(q + (size_t)(b + i) * QBYTES + PREFETCH_BYTES + k);
            unpack_block(q + (size_t)(b + i) * QBYTES, s, b + i, w + i);
        }
        for (int t = 0; t < nt; t += TILE) dot_tile(TILE, w, n, X, IN, t, nt, n_blocks, b, acc);
    }
}
