// Products of activations of 16 bits with codes of weights on GPUs: sums in 32 bits, exact, by the
// instruction that opencl/compiling/features.py has found to work.
//
//   SHORTS_DP2A    NVIDIA's dp2a, from sm_61: two shorts times two bytes
//   SHORTS_SDOT2   AMD's v_dot2_i32_i16, of CDNA and RDNA 2: two shorts times two shorts
//   SHORTS_SUDOT4  AMD's v_dot4_i32_iu8, from RDNA 3: four bytes times four, so that the upper and
//                  the lower bytes of shorts are multiplied apart
//   SHORTS_PACKED  the same by cl_khr_integer_dot_product
//   SHORTS_DP2A_BY_HAND, SHORTS_PACKED_BY_HAND  the same sums without it, for tests
//   none of them   pairs of shorts in plain C
//
// All but SHORTS_SDOT2 take quads of bytes (quantization/byte_codes.cl), and define SHORTS_QUADS.

#if defined(SHORTS_DP2A) || defined(SHORTS_DP2A_BY_HAND) || defined(SHORTS_SUDOT4) || \
    defined(SHORTS_PACKED) || defined(SHORTS_PACKED_BY_HAND)
#define SHORTS_QUADS
#endif

#ifndef SHORTS_QUADS

INLINE int dot_pair(short2 w, short2 x, int c) {
#ifdef SHORTS_SDOT2
    return __builtin_amdgcn_sdot2(w, x, c, false);
#else
    return c + ((int)w.x * x.x + (int)w.y * x.y);
#endif
}

#else

// dot_quad_s and dot_quad_u: c + the products of a quad, signed or unsigned, with the two pairs of
// shorts x0 and x1, columns 0 1 and 4 5 of a quad 0 4 1 5. dot_total(c) is the sum.
#if defined(SHORTS_DP2A) || defined(SHORTS_DP2A_BY_HAND)

typedef int dot_sum;
#define dot_total(c) (c)

#ifdef SHORTS_DP2A
INLINE int permuted(int low, int high, int selector) {
    int found;
    __asm__("prmt.b32 %0, %1, %2, %3;" : "=r"(found) : "r"(low), "r"(high), "r"(selector));
    return found;
}
#define DP2A(part, type)                                                                       \
    INLINE int dp2a_##part##_##type(int x, int w, int c) {                                     \
        int sum;                                                                               \
        __asm__("dp2a." #part ".s32." #type "32 %0, %1, %2, %3;"                               \
                : "=r"(sum) : "r"(x), "r"(w), "r"(c));                                         \
        return sum;                                                                            \
    }
#else
INLINE int permuted(int low, int high, int selector) {
    int found = 0;
    for (int i = 0; i < 4; i++) {
        const int at = selector >> (4 * i) & 7;
        found |= (((at < 4 ? low : high) >> (8 * (at & 3))) & 255) << (8 * i);
    }
    return found;
}
#define BYTE_s(w, i) ((int)as_char4(w)[i])
#define BYTE_u(w, i) ((int)as_uchar4(w)[i])
#define FIRST_lo 0
#define FIRST_hi 2
#define DP2A(part, type)                                                                       \
    INLINE int dp2a_##part##_##type(int x, int w, int c) {                                     \
        const short2 v = as_short2(x);                                                         \
        return c + v.x * BYTE_##type(w, FIRST_##part) + v.y * BYTE_##type(w, FIRST_##part + 1); \
    }
#endif

DP2A(lo, s)
DP2A(hi, s)
DP2A(lo, u)
DP2A(hi, u)

#define DOT_QUAD(type)                                                                         \
    INLINE int dot_quad_##type(int w, int x0, int x1, int c) {                                 \
        const int v = permuted(w, 0, 0x3120);                                                  \
        return dp2a_hi_##type(x1, v, dp2a_lo_##type(x0, v, c));                                \
    }
DOT_QUAD(s)
DOT_QUAD(u)

#else

typedef int2 dot_sum;  // of lower bytes, of upper ones
#define dot_total(c) ((c).x + ((c).y << 8))

#if defined(SHORTS_SUDOT4)
#define dot_bytes_su(w, x, c) __builtin_amdgcn_sudot4(true, w, false, x, c, false)
#define dot_bytes_ss(w, x, c) __builtin_amdgcn_sudot4(true, w, true, x, c, false)
#define dot_bytes_uu(w, x, c) __builtin_amdgcn_sudot4(false, w, false, x, c, false)
#define dot_bytes_us(w, x, c) __builtin_amdgcn_sudot4(false, w, true, x, c, false)
#elif defined(SHORTS_PACKED)  // headers have these from OpenCL C 3.0 on
#define OVERLOADED __attribute__((overloadable))
int OVERLOADED dot(char4, uchar4);
int OVERLOADED dot(char4, char4);
uint OVERLOADED dot(uchar4, uchar4);
int OVERLOADED dot(uchar4, char4);
#define dot_bytes_su(w, x, c) ((c) + dot(as_char4(w), as_uchar4(x)))
#define dot_bytes_ss(w, x, c) ((c) + dot(as_char4(w), as_char4(x)))
#define dot_bytes_uu(w, x, c) ((c) + (int)dot(as_uchar4(w), as_uchar4(x)))
#define dot_bytes_us(w, x, c) ((c) + dot(as_uchar4(w), as_char4(x)))
#else
INLINE int dot_bytes(int4 w, int4 x, int c) {
    const int4 products = w * x;
    return c + products.x + products.y + products.z + products.w;
}
#define SIGNED_BYTES(v) convert_int4(as_char4(v))
#define UNSIGNED_BYTES(v) convert_int4(as_uchar4(v))
#define dot_bytes_su(w, x, c) dot_bytes(SIGNED_BYTES(w), UNSIGNED_BYTES(x), c)
#define dot_bytes_ss(w, x, c) dot_bytes(SIGNED_BYTES(w), SIGNED_BYTES(x), c)
#define dot_bytes_uu(w, x, c) dot_bytes(UNSIGNED_BYTES(w), UNSIGNED_BYTES(x), c)
#define dot_bytes_us(w, x, c) dot_bytes(UNSIGNED_BYTES(w), SIGNED_BYTES(x), c)
#endif

#ifdef SHORTS_SUDOT4
#define LOWER(x0, x1) (int)__builtin_amdgcn_perm(x1, x0, 0x06020400)
#define UPPER(x0, x1) (int)__builtin_amdgcn_perm(x1, x0, 0x07030501)
#else
#define LOWER(x0, x1) ((x0 & 0x00FF00FF) | (x1 & 0x00FF00FF) << 8)
#define UPPER(x0, x1) (((x0 >> 8) & 0x00FF00FF) | (x1 & (int)0xFF00FF00))
#endif

#define DOT_QUAD(type)                                                                         \
    INLINE int2 dot_quad_##type(int w, int x0, int x1, int2 c) {                               \
        const int lower = LOWER(x0, x1), upper = UPPER(x0, x1);                                \
        return (int2)(dot_bytes_##type##u(w, lower, c.x), dot_bytes_##type##s(w, upper, c.y)); \
    }
DOT_QUAD(s)
DOT_QUAD(u)

#endif

#endif

// The codes of a quad, of 4 bits, replaced by the bytes of a table of two words.
INLINE int lookup_quad(int v, ulong low, ulong high) {
#if defined(SHORTS_DP2A) || defined(SHORTS_DP2A_BY_HAND)
    int at = (v | v >> 4) & 0x00FF00FF;
    at |= at >> 8;  // a selector, of which bit 3 would mean the sign
    const int first = permuted((int)low, (int)(low >> 32), at & 0x7777);
    const int last = permuted((int)high, (int)(high >> 32), at & 0x7777);
    return permuted(first, last, ((at & 0x8888) >> 1) | 0x3210);
#elif defined(SHORTS_SUDOT4) || defined(SHORTS_SDOT2)
    const uint at = v & 0x07070707;
    const uint first = __builtin_amdgcn_perm((uint)(low >> 32), (uint)low, at);
    const uint last = __builtin_amdgcn_perm((uint)(high >> 32), (uint)high, at);
    return (int)__builtin_amdgcn_perm(last, first, ((v & 0x08080808) >> 1) | 0x03020100);
#else
    int found = 0;
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        const int code = v >> (8 * i);
        found |= ((int)((code & 8 ? high : low) >> (8 * (code & 7))) & 255) << (8 * i);
    }
    return found;
#endif
}

#ifdef SHORTS_SDOT2  // a pair is a quad of which the other two are 0, as their byte of the table is
#define lookup(codes, at, low, high) as_short2(lookup_quad(as_int(codes), low, high))
#endif
