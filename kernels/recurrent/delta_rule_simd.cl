// The gated delta rule: a matrix of state per head, over the tokens of a sequence.
//
// On a CPU: work-item (16 columns of values, head, sequence of the step) goes through its tokens
// with N_KEY values s for each of its columns:
//   s = s * exp(g),  s += k * beta * (v - s k),  out = s q
// g is one number per head, with GATE_PER_KEY one per key. Q and K come with norm 1 times
// sqrt(N_KEY) (as an RMS norm leaves them). V heads h use the Q and K of head h / REPEAT, with
// TILED of h % (heads / REPEAT). sequences as in conv.cl; state is [slot][head][column][N_KEY].
// SIGMOID_GATE  g = lower * sigmoid(a * (g + bias)), else g = a * softplus(g + bias)

#include "include/lanes.cl"
#include "include/activation.cl"
#include "recurrent/columns.cl"

#define VECTORS (N_KEY / 16)

VECTOR_ITEMS
kernel void delta_rule(global const float* q, int q_stride, int q_at, global const float* k,
                       int k_stride, int k_at, global const float* v, int v_stride, int v_at,
                       global const float* beta, int beta_stride, int beta_at,
                       global const float* gate, int gate_stride, int gate_at,
                       global const float* gate_bias, global const float* a, float lower,
                       int n_value, global const int4* sequences, global float* state,
                       global float* out) {
    const int first = get_global_id(0) * COLUMNS, n = min(COLUMNS, n_value - first);
    const int head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
#ifdef TILED
    const int key_head = head % (n_heads / REPEAT);
#else
    const int key_head = head / REPEAT;
#endif
    state += (((size_t)sequence.z * n_heads + head) * n_value + first) * N_KEY;
    if (sequence.w == 0) clear_columns(state, n * VECTORS);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* qt = q + t * q_stride + q_at + key_head * N_KEY;
        global const float* kt = k + t * k_stride + k_at + key_head * N_KEY;
        const float b = SIGMOID(beta[t * beta_stride + beta_at + head]);
        float16 decay[VECTORS], key[VECTORS], kept[VECTORS], dot[COLUMNS], y[COLUMNS];
#ifdef GATE_PER_KEY
        global const float* gt = gate + t * gate_stride + gate_at + head * N_KEY;
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const float16 raw = vload16(j, gt) + vload16(j, gate_bias + head * N_KEY);
#ifdef SIGMOID_GATE
            decay[j] = exp(lower * SIGMOID(a[head] * raw));
#else
            decay[j] = exp(a[head] * SOFTPLUS(raw));
#endif
        }
#else
        const float raw = gate[t * gate_stride + gate_at + head] + gate_bias[head];
        UNROLL for (int j = 0; j < VECTORS; j++) decay[j] = exp(a[head] * SOFTPLUS(raw));
#endif
        UNROLL for (int j = 0; j < VECTORS; j++) {
            key[j] = vload16(j, kt);
            kept[j] = key[j] * decay[j];
        }
        const float root = rsqrt((float)N_KEY);
        for (int c = 0; c < n; c++) {
            dot[c] = 0;
            UNROLL for (int j = 0; j < VECTORS; j++)
                dot[c] = fma(vload16(c * VECTORS + j, state), kept[j], dot[c]);
        }
        const float16 value = load_columns(v + t * v_stride + v_at + head * n_value + first, n);
        const float16 d = (value - sum_columns(dot) * root) * (b * root);
        for (int c = 0; c < n; c++) {
            y[c] = 0;
            UNROLL for (int j = 0; j < VECTORS; j++) {
                float16 s = vload16(c * VECTORS + j, state);
                s = fma(s, decay[j], key[j] * COLUMN(d, c));
                y[c] = fma(s, vload16(j, qt), y[c]);
                vstore16(s, c * VECTORS + j, state);
            }
        }
        const size_t row = t * n_heads + head;
        store_columns(sum_columns(y) / N_KEY, out + row * n_value + first, n);
    }
}
