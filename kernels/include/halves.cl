// Halves as floats. What PoCL's vload_half makes of one on ARM are twenty operations on integers;
// every processor of 64 bits has an instruction for it, which clang's own type leads to.

#if defined(__clang__) && defined(__aarch64__)
typedef __fp16 fp16x2 __attribute__((ext_vector_type(2)));
typedef __fp16 fp16x16 __attribute__((ext_vector_type(16)));
INLINE float16 load_half16(size_t i, global const half* p) {
    const ushort16 bits = vload16(i, (global const ushort*)p);
    return __builtin_convertvector(__builtin_astype(bits, fp16x16), float16);
}
INLINE float load_half(size_t i, global const half* p) {
    const ushort2 bits = ((global const ushort*)p)[i];
    return __builtin_convertvector(__builtin_astype(bits, fp16x2), float2).x;
}
#else
#define load_half16 vload_half16
#define load_half vload_half
#endif
