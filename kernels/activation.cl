// Activation functions and the integer quantization of activations, for vectors of 16.

#if defined(GLU_SILU)
#define GLU silu
#elif defined(GLU_GELU)
#define GLU gelu
#endif

INLINE float16 silu(float16 x) { return x / (1.0f + exp(-x)); }

// The tanh approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), with
// 1 + tanh(y) = 2 - 2 / (exp(2y) + 1).
INLINE float16 gelu(float16 x) {
    const float16 y = 0.79788456080286535588f * x * (1.0f + 0.044715f * x * x);
    return x - x / (exp(2.0f * y) + 1.0f);
}

INLINE float max16(float16 v) {
    float8 a = fmax(v.lo, v.hi);
    float4 b = fmax(a.lo, a.hi);
    float2 c = fmax(b.lo, b.hi);
    return fmax(c.x, c.y);
}

INLINE float sum16(float16 v) {
    float8 a = v.lo + v.hi;
    float4 b = a.lo + a.hi;
    float2 c = b.lo + b.hi;
    return c.x + c.y;
}

// 32 values as codes of 15 bits, stored as shorts; returns (d, d * sum of the codes) where
// value = code * d and the largest magnitude is CODE_MAX: what the int32 sum of 32 products
// with the widest weights (Q6_K: a code of -32 times a scale of -128) can hold. vpmaddwd
// multiplies shorts anyway, so 15 bits cost no more than 8 and lose next to nothing.
#define CODE_MAX 16383.0f

INLINE float2 quantize32(float16 a, float16 b, global short* q) {
    const float amax = max16(fmax(fabs(a), fabs(b)));
    const float d = amax / CODE_MAX;
    const float inverse = amax > 0 ? CODE_MAX / amax : 0.0f;
    const float16 qa = rint(a * inverse), qb = rint(b * inverse);
    vstore16(convert_short16(qa), 0, q);
    vstore16(convert_short16(qb), 1, q);
    return (float2)(d, d * sum16(qa + qb));
}
