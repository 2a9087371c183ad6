// Activation functions, for floats and vectors alike, and the integer quantization of
// activations in vectors of 16. GLU(gate, up): the product in the middle of a gated FFN;
// GLU_LIMIT bounds its factors.

#define SIGMOID(x) (1.0f / (1.0f + exp(-(x))))
#define SILU(x) ((x) / (1.0f + exp(-(x))))
// The tanh approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), with
// 1 + tanh(y) = 2 - 2 / (exp(2y) + 1).
#define GELU(x) \
    ((x) - (x) / (exp(1.59576912160573071176f * (x) * (1.0f + 0.044715f * (x) * (x))) + 1.0f))
#define GELU_ERF(x) (0.5f * (x) * (1.0f + erf(0.70710678118654752440f * (x))))
#define GELU_QUICK(x) ((x) / (1.0f + exp(-1.702f * (x))))
#define RELU(x) fmax(x, 0.0f)
#define ELU(x) (fmax(x, 0.0f) + (exp(fmin(x, 0.0f)) - 1.0f))
#define TANH(x) tanh(x)
#define RELU2(x) (fmax(x, 0.0f) * fmax(x, 0.0f))
#define SOFTPLUS(x) (fmax(x, 0.0f) + log1p(exp(-fabs(x))))
#define HARDSIGMOID(x) clamp(((x) + 3.0f) / 6.0f, 0.0f, 1.0f)
#define HARDSWISH(x) ((x) * HARDSIGMOID(x))

#if defined(GLU_SILU) && defined(GLU_LIMIT)
#define GLU(g, u) (SILU(fmin(g, GLU_LIMIT)) * clamp(u, -GLU_LIMIT, GLU_LIMIT))
#elif defined(GLU_SILU_LATE)  // bounded after the activation
#define GLU(g, u) (fmin(SILU(g), GLU_LIMIT) * clamp(u, -GLU_LIMIT, GLU_LIMIT))
#elif defined(GLU_SILU)
#define GLU(g, u) (SILU(g) * (u))
#elif defined(GLU_GELU)
#define GLU(g, u) (GELU(g) * (u))
#elif defined(GLU_GELU_QUICK)
#define GLU(g, u) (GELU_QUICK(g) * (u))
#elif defined(GLU_RELU)
#define GLU(g, u) (RELU(g) * (u))
#elif defined(GLU_SWIGLU_OAI)  // gpt-oss
#define OAI_GATE(g) (fmin(g, 7.0f) * SIGMOID(1.702f * fmin(g, 7.0f)))
#define GLU(g, u) (OAI_GATE(g) * (clamp(u, -7.0f, 7.0f) + 1.0f))
#elif defined(GLU_SITU)  // Kimi K3: both factors are bounded softly
#define GLU(g, u) (4 * tanh((g) / 4) * SIGMOID(g) * (25 * tanh((u) / 25)))
#endif

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
//
// With CODE_BYTES they have 8 bits, for processors that multiply twice as many of those, in the
// order of bytes.cl: quads of columns 0 4 1 5, 2 6 3 7 of every 8. Returned are then also the
// sums of the first and of the last 16 codes, as the two shorts of an int, and a 0.
#define LEAST 1e-30f  // magnitude that is not 0: the inverse of a smaller one may be infinite
#ifdef CODE_BYTES
typedef char code_t;
typedef float4 scale_t;
#define CODE_MAX 127.0f
#else
typedef short code_t;
typedef float2 scale_t;
#define CODE_MAX 16383.0f
#endif

// A NaN among the values becomes the scale: as a code it would be any number, and lost.
INLINE scale_t codes32(float16 a, float16 b, float d, float inverse, global code_t* q) {
    const float16 qa = rint(a * inverse), qb = rint(b * inverse);
    const float sum = sum16(qa + qb);
    if (isnan(sum)) d = sum;
#ifdef CODE_BYTES
    vstore16(convert_char16(qa).s041526378c9daebf, 0, q);
    vstore16(convert_char16(qb).s041526378c9daebf, 1, q);
    const int first = (int)sum16(qa), last = (int)sum16(qb);
    return (float4)(d, d * (float)(first + last), as_float((first & 0xFFFF) | last << 16), 0.0f);
#else
    vstore16(convert_short16(qa), 0, q);
    vstore16(convert_short16(qb), 1, q);
    return (float2)(d, d * sum);
#endif
}

INLINE scale_t quantize32(float16 a, float16 b, global code_t* q) {
    const float amax = max16(fmax(fabs(a), fabs(b)));
    return codes32(a, b, amax / CODE_MAX, amax > LEAST ? CODE_MAX / amax : 0.0f, q);
}

// Where more blocks share a scale codes have up to 16 bits, and it is rather the sum of the
// magnitudes of 64 columns that has a limit, so that an int32 holds the products of 32 with
// weights of up to 4096 (as above), of 128 with up to 31 * 63 (Q5_K) and of 256 with up to 15 * 63.
#define SPAN_CODE_MAX 32767.0f
#define SPAN_SUM_MAX 524224.0f  // and 64 halves by rounding
