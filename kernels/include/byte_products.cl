// Products of bytes for CPUs, in the form that opencl/compiling/features.py has found to work.
//
// Instructions that multiply bytes take one unsigned and one signed operand. Codes of weights are
// unsigned, activations signed; with SIGNED_CODES the weights' magnitudes are multiplied with
// activations that have got their signs.
//   MADD_BYTES_256 AVX2: sums of two products in 16 bits
//   DOT_BYTES_x    VNNI: sums of four products in 32 bits
//   neither        bytes made shorts, for tests

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

#endif
