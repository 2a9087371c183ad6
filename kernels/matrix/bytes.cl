// Products of weights with activations of 8 bits, for matmul_simd.cl with X_BYTES.
//
// Weights are quads (quads.cl). Activations: a quad is an int; (d, d * sum, two sums of 16 as
// shorts, -) per block.
//
// Instructions that multiply bytes take one unsigned and one signed operand. Codes of weights are
// unsigned, activations signed; with SIGNED_CODES the weights' magnitudes are multiplied with
// activations that have got their signs.
//   MADD_BYTES_256 AVX2: sums of two products in 16 bits, of which DEPTH quads can be added
//                  before they must become 32 bits, times an integer scale at no cost
//   DOT_BYTES_x    VNNI: sums of four products in 32 bits
//   neither        bytes made shorts, for tests
// Sums of a block are integers, and exact, in all of them.

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

#include "quantization/quads.cl"

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

// sum[t]: a block's products with n tokens, times integer scales if there are any; x_sums: those of
// activations.
INLINE void dot_block(const int n, const Unpacked* w, global const int* const* x, int at,
                      const int* x_sums, int16* sum) {
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
                      const int* x_sums, int16* sum) {
    #pragma unroll
    for (int t = 0; t < n; t++) {
#ifdef SIGNED_CODES  // 128 larger than they are
        int16 part[2] = {-128 * (x_sums[t] << 16 >> 16), -128 * (x_sums[t] >> 16)};
#else
        int16 part[2] = {0, 0};
#endif
        #pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const int16 xq = (int16)(x[t][at + i]);
#ifdef SIGNED_CODES
            part[i / 4] = dot_quad(w->codes[i] ^ (int16)(0x80808080), xq, part[i / 4]);
#else
            part[i / 4] = dot_quad(w->codes[i], xq, part[i / 4]);
#endif
        }
#ifdef HALF_SCALES
        part[0] *= w->scales[0] >> 16;
        part[1] *= w->scales[1] >> 16;
#endif
        sum[t] = part[0] + part[1];
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
        int x_sums[TILE];
        int16 sum[TILE];
        #pragma unroll
        for (int t = 0; t < n; t++) x_sums[t] = as_int(scales[t][i].z);
        dot_block(n, w + i, row, i * QUADS, x_sums, sum);
        #pragma unroll
        for (int t = 0; t < n; t++) {
            const float4 xs = scales[t][i];
#ifdef HALF_OFFSETS
            const vpair offsets = as_vpair(w[i].offsets), sums = as_vpair((int16)(x_sums[t]));
#ifndef HALF_MINS
            sum[t] = madd(offsets, sums, sum[t]);
#endif
#endif
            float16 a = fma(convert_float16(sum[t]) * xs.x, w[i].d, acc[from + t]);
#if defined(ADD_M)
            a = fma(w[i].m, (float16)(xs.y), a);
#elif defined(HALF_MINS)
            a = fma(convert_float16(madd(offsets, sums, 0)) * xs.x, w[i].m, a);
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
        const int n = BLOCKS == 1 ? 1 : min(BLOCKS, n_blocks - b);
        for (int i = 0; i < n; i++) {
            #pragma unroll
            for (int k = 0; k < QBYTES; k += 64)
                PREFETCH(q + (size_t)(b + i) * QBYTES + PREFETCH_BYTES + k);
            unpack_block(q + (size_t)(b + i) * QBYTES, s, b + i, w + i);
        }
        for (int t = 0; t < nt; t += TILE) dot_tile(TILE, w, n, X, IN, t, nt, n_blocks, b, acc);
    }
}
