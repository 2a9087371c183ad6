// Lanes: one source of arithmetic for both kernel families.
//
// simd  A CPU work-item holds 16 rows of a weight matrix in one vector: vint is int16,
//       vfloat float16, vpair 16 pairs of shorts. Needs clang's ext_vector_type, which every
//       OpenCL compiler for CPUs has.
// simt  A GPU work-item holds one of the 16 rows, `lane`: vint is int, vpair short2.
//
// Memory is the same for both: what belongs together is stored for 16 rows side by side, so a
// vector load of the one is a coalesced load of the other. `i` counts such rows of 16.

#define ROWS 16

// Asks for the cache line at p, which may lie beyond the buffer; hardware prefetchers alone
// reach two thirds of the memory's bandwidth. PREFETCH_NEAR: into the first cache.
#ifdef __clang__
#define PREFETCH(p) __builtin_prefetch((const global void*)(p), 0, 2)
#define PREFETCH_NEAR(p) __builtin_prefetch((const global void*)(p), 0, 3)
#else
#define PREFETCH(p)
#define PREFETCH_NEAR(p)
#endif
#define INLINE static inline __attribute__((always_inline))
#include "include/halves.cl"

// Before a kernel whose work-items hold vectors already. Intel's compiler for CPUs would make a
// second version of it, whose lanes are 16 work-items: nothing runs that, since groups have one
// item, and of a product's unrolled loops it is so large that LLVM takes seconds to minutes.
#define VECTOR_ITEMS
#if !defined(SIMT) && defined(__has_attribute)
#if __has_attribute(intel_vec_len_hint)
#undef VECTOR_ITEMS
#define VECTOR_ITEMS __attribute__((intel_vec_len_hint(1)))
#endif
#endif

#if defined(__has_builtin) && defined(__AVX2__)
#if __has_builtin(__builtin_ia32_pmaddwd256)
#define X86_BUILTINS
#endif
#endif

// For i from 0 to n - 1, at most `most`. Unrolled on GPUs, whose registers have no index: private
// arrays that are indexed by i are in them only then.
#ifdef SIMT
#define UNROLLED(i, n, most)                                                                       \
    _Pragma("unroll")                                                                          \
    for (int i = 0; i < (most); i++)                                                           \
        if (i < (n))
#else
#define UNROLLED(i, n, most) for (int i = 0; i < (n); i++)
#endif

#ifdef SIMT

typedef int vint;
typedef float vfloat;
typedef short2 vpair;
#define LANE , const int lane
#define LANE_ARG , lane
#define as_vpair as_short2
#define as_vfloat as_float
#define to_vfloat convert_float
#define LOAD_INT(p, i) ((global const int*)(p))[(i) * ROWS + lane]
#define LOAD_UCHAR(p, i) ((int)((global const uchar*)(p))[(i) * ROWS + lane])
#define LOAD_CHAR(p, i) ((int)((global const char*)(p))[(i) * ROWS + lane])
#define LOAD_USHORT(p, i) ((int)((global const ushort*)(p))[(i) * ROWS + lane])
#define LOAD_HALF(p, i) load_half((i) * ROWS + lane, (global const half*)(p))
#define LOAD_FLOAT(p, i) ((global const float*)(p))[(i) * ROWS + lane]
#define LOAD_BF16(p, i) as_float((uint)((global const ushort*)(p))[(i) * ROWS + lane] << 16)
#define EVEN(pair) ((float)(pair).x)
#define ODD(pair) ((float)(pair).y)

INLINE vpair mul_high(vpair a, vpair b) { return mul_hi(a, b); }

INLINE short lookup_one(ushort v, int at, ulong low, ulong high) {
    const int code = v >> at;
    return (short)((((code < 8 ? low : high) >> (8 * (code & 7))) & 255) << at);
}
// The codes of 4 bits that begin at bit `at`, 0 or 8, replaced by the bytes of a table, given as
// two words whose lowest byte is 0. All other bits are 0.
INLINE vpair lookup(vpair codes, int at, ulong low, ulong high) {
    return (short2)(lookup_one(codes.x, at, low, high), lookup_one(codes.y, at, low, high));
}

#else

typedef int16 vint;
typedef float16 vfloat;
typedef short vpair __attribute__((ext_vector_type(32)));
typedef ushort upair __attribute__((ext_vector_type(32)));
typedef int int32w __attribute__((ext_vector_type(32)));
typedef char char32 __attribute__((ext_vector_type(32)));
typedef char char64 __attribute__((ext_vector_type(64)));
#define LANE
#define LANE_ARG
#define as_vpair(v) __builtin_astype(v, vpair)
#define as_vfloat as_float16
#define SHIFTED_DOWN(v, n) as_vpair(__builtin_astype(v, upair) >> (upair)(n))  // zeros move in
#define to_vfloat convert_float16
#define LOAD_INT(p, i) vload16(i, (global const int*)(p))
#define LOAD_UCHAR(p, i) convert_int16(vload16(i, (global const uchar*)(p)))
#define LOAD_CHAR(p, i) convert_int16(vload16(i, (global const char*)(p)))
#define LOAD_USHORT(p, i) convert_int16(vload16(i, (global const ushort*)(p)))
#define LOAD_HALF(p, i) load_half16(i, (global const half*)(p))
#define LOAD_FLOAT(p, i) vload16(i, (global const float*)(p))
#define LOAD_BF16(p, i) as_float16(convert_uint16(vload16(i, (global const ushort*)(p))) << 16)

#define EVENS(v) \
    __builtin_shufflevector(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODDS(v) \
    __builtin_shufflevector(v, v, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define EVEN(pair) convert_float16(EVENS(pair))
#define ODD(pair) convert_float16(ODDS(pair))

#ifdef __aarch64__
#include "include/neon.cl"
#endif

// c + a.even * b.even + a.odd * b.odd per row: VNNI's vpdpwssd where features.py found a way
// to say so, clang's builtin where there is one, else the form that LLVM makes vpmaddwd of.
#if defined(DOT_PAIRS_512)
int16 vpdpwssd(int16, vpair, vpair) __asm__("llvm.x86.avx512.vpdpwssd.512");
#elif defined(DOT_INTS_512)
int16 vpdpwssd(int16, int16, int16) __asm__("llvm.x86.avx512.vpdpwssd.512");
#elif defined(DOT_PAIRS_256)
int8 vpdpwssd(int8, short16, short16) __asm__("llvm.x86.avx512.vpdpwssd.256");
#elif defined(DOT_INTS_256)
int8 vpdpwssd(int8, int8, int8) __asm__("llvm.x86.avx512.vpdpwssd.256");
#endif

INLINE int16 madd(vpair a, vpair b, int16 c) {
#if defined(__aarch64__)
    return c + joined(madd_apart(a, b, NO_SUMS));
#elif defined(DOT_PAIRS_512)
    return vpdpwssd(c, a, b);
#elif defined(DOT_INTS_512)
    return vpdpwssd(c, __builtin_astype(a, int16), __builtin_astype(b, int16));
#elif defined(DOT_PAIRS_256)
    return (int16)(vpdpwssd(c.lo, a.lo, b.lo), vpdpwssd(c.hi, a.hi, b.hi));
#elif defined(DOT_INTS_256)
    const int16 x = __builtin_astype(a, int16), y = __builtin_astype(b, int16);
    return (int16)(vpdpwssd(c.lo, x.lo, y.lo), vpdpwssd(c.hi, x.hi, y.hi));
#elif defined(X86_BUILTINS) && defined(__AVX512BW__)
    return c + __builtin_astype(__builtin_ia32_pmaddwd512(a, b), int16);
#elif defined(X86_BUILTINS)
    const int8 low = __builtin_ia32_pmaddwd256(a.lo, b.lo);
    const int8 high = __builtin_ia32_pmaddwd256(a.hi, b.hi);
    return c + (int16)(low, high);
#else
    int32w m = __builtin_convertvector(a, int32w) * __builtin_convertvector(b, int32w);
    return c + (EVENS(m) + ODDS(m));
#endif
}

// The upper 16 bits of products; LLVM makes vpmulhw of it.
INLINE vpair mul_high(vpair a, vpair b) {
    const int32w m = __builtin_convertvector(a, int32w) * __builtin_convertvector(b, int32w);
    return __builtin_convertvector(m >> (int32w)(16), vpair);
}

// The codes of 4 bits that begin at bit `at`, 0 or 8, replaced by the bytes of a table, given as
// two words whose lowest byte is 0, so that a shuffle of bytes does for shorts: all other bits
// are 0. Intel's compiler makes one vpshufb of the four shuffles.
INLINE vpair lookup(vpair codes, int at, ulong low, ulong high) {
    const uchar16 t = as_uchar16((ulong2)(low, high));
    int16 v = __builtin_astype(codes, int16);
#if defined(X86_BUILTINS) && defined(__AVX512BW__)
    const int8 t2 = (int8)(as_int4(t), as_int4(t));
    const char64 t4 = __builtin_astype((int16)(t2, t2), char64);
    v = __builtin_astype(__builtin_ia32_pshufb512(t4, __builtin_astype(v, char64)), int16);
#elif defined(X86_BUILTINS)
    const char32 t2 = __builtin_astype((int8)(as_int4(t), as_int4(t)), char32);
    v.lo = __builtin_astype(__builtin_ia32_pshufb256(t2, __builtin_astype(v.lo, char32)), int8);
    v.hi = __builtin_astype(__builtin_ia32_pshufb256(t2, __builtin_astype(v.hi, char32)), int8);
#else
    v.lo.lo = as_int4(shuffle(t, as_uchar16(v.lo.lo)));
    v.lo.hi = as_int4(shuffle(t, as_uchar16(v.lo.hi)));
    v.hi.lo = as_int4(shuffle(t, as_uchar16(v.hi.lo)));
    v.hi.hi = as_int4(shuffle(t, as_uchar16(v.hi.hi)));
#endif
    return __builtin_astype(v, vpair);
}

#endif
