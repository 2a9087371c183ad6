// Mixture of experts: which experts a token goes to, tiles of tokens per expert, the sum.
//
// N_EXPERTS experts of which USED are chosen; a token t and its k-th expert are slot t * USED + k.
//
// route: work-group of WG items (1 on CPUs, at most N_EXPERTS): a token.
//   GATE_SOFTMAX, GATE_SIGMOID, GATE_SQRT_SOFTPLUS   what the router's logits become
//   BIASED         bias[e] is added for the choice only
//   N_GROUPS       the experts are in groups, and only USED_GROUPS of those with the largest
//                  sums of their two best take part
//   NORMALIZE      the weights of a token's experts are divided by their sum
//   SOFTMAX_CHOSEN the weights are the softmax of the chosen experts' logits
//   TABLE          the experts of token id are table[id * USED ...], whatever the logits
//   DIVIDE         so many neighbours are one expert, though they are chosen one by one
//   SINGLE         one token: its slots are the tiles
// sort: one work-group of WG items makes tiles of up to TILE slots of one expert each, with TILE.
// combine: work-item (16 columns, token) adds up what the experts of a token yield; without
//   N_EXPERTS.

#include "include/lanes.cl"
#include "include/activation.cl"
#include "include/group.cl"

#ifndef DIVIDE
#define DIVIDE 1
#endif
#define NOT_CHOSEN -INFINITY

#if defined(TILE)

VECTOR_ITEMS
kernel void sort(global const int* counts, int count_at, global const int* experts,
                 global int4* tiles, int max_tiles, global int* rows, global int* slots) {
    local int count[N_EXPERTS], next[N_EXPERTS], first_tile[N_EXPERTS + 1];
    const int lid = get_local_id(0), n = counts[count_at] * USED;
    for (int e = lid; e < N_EXPERTS; e += WG) count[e] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = lid; i < n; i += WG) atomic_inc(count + experts[i]);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid == 0) {
        int at = 0, tile = 0;
        for (int e = 0; e < N_EXPERTS; e++) {
            next[e] = at;
            first_tile[e] = tile;
            at += count[e];
            tile += (count[e] + TILE - 1) / TILE;
        }
        first_tile[N_EXPERTS] = tile;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int e = lid; e < N_EXPERTS; e += WG)
        for (int i = 0; i * TILE < count[e]; i++)
            tiles[first_tile[e] + i] =
                (int4)(e, next[e] + i * TILE, min(TILE, count[e] - i * TILE), 0);
    for (int i = first_tile[N_EXPERTS] + lid; i < max_tiles; i += WG) tiles[i] = (int4)(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = lid; i < n; i += WG) {
        const int at = atomic_inc(next + experts[i]);
        rows[at] = i / USED;
        slots[at] = i;
    }
}

#elif defined(N_EXPERTS)

#if WG > 1
// The best of the choices of all items, for every item; of equal ones the first.
INLINE int best_of_group(int best, local const float* choice, local int* bests) {
    bests[LID] = best;
    MEET;
    for (int step = WG / 2; step > 0; step /= 2) {
        if (LID < step) {
            const int a = bests[LID], b = bests[LID + step];
            if (choice[b] > choice[a] || (choice[b] == choice[a] && b < a)) bests[LID] = b;
        }
        MEET;
    }
    best = bests[0];
    MEET;
    return best;
}
#else
#define best_of_group(best, choice, bests) (best)
#endif

#ifdef N_GROUPS
#define GROUP_SIZE (N_EXPERTS / N_GROUPS)

// Takes the experts of all groups but the best out of the choice.
INLINE void limit_groups(SHARED float* choice, SHARED float* sums) {
    for (int g = LID; g < N_GROUPS; g += WG) {
        float first = NOT_CHOSEN, second = NOT_CHOSEN;
        for (int i = 0; i < GROUP_SIZE; i++) {
            const float v = choice[g * GROUP_SIZE + i];
            second = fmax(second, fmin(first, v));
            first = fmax(first, v);
        }
        sums[g] = first + second;
    }
    MEET;
    for (int k = USED_GROUPS; k < N_GROUPS; k++) {
        int worst = 0;
        float least = INFINITY;
        for (int g = 0; g < N_GROUPS; g++)
            if (sums[g] < INFINITY && sums[g] <= least) least = sums[worst = g];
        MEET;
        if (LID == 0) sums[worst] = INFINITY;
        for (int i = LID; i < GROUP_SIZE; i += WG) choice[worst * GROUP_SIZE + i] = NOT_CHOSEN;
        MEET;
    }
}
#endif

// Logits of a choice between two experts: the first for tokens, the second for what an encoder
// gives, which has negative ids. The header of embed.cl says more of those.
VECTOR_ITEMS
kernel void kinds(global const int* ids, global float* logits) {
    const int t = get_global_id(0);
    logits[2 * t] = ids[t] >= 0;
    logits[2 * t + 1] = ids[t] < 0;
}

VECTOR_ITEMS
kernel void route(global const float* logits,
#ifdef BIASED
                  global const float* bias,
#endif
#ifdef TABLE
                  global const int* table, global const int* ids,
#endif
#ifdef SCALED
                  global const float* scales,
#endif
                  float scale, global int* experts, global float* weights
#ifdef SINGLE
                  , global int4* tiles, global int* rows, global int* slots
#endif
) {
    SHARED float p[N_EXPERTS], choice[N_EXPERTS], chosen[USED];
#ifdef N_GROUPS
    SHARED float sums[N_GROUPS];
#endif
#if WG > 1
    local float partial[WG];
    local int bests[WG];
#endif
    const int t = get_group_id(0);
    float top = -INFINITY, sum = 0;
    for (int e = LID; e < N_EXPERTS; e += WG) {
        p[e] = logits[(size_t)t * N_EXPERTS + e];
        top = fmax(top, p[e]);
    }
    top = max_group(top, partial);
#ifdef GATE_SOFTMAX
    for (int e = LID; e < N_EXPERTS; e += WG) sum += p[e] = exp(p[e] - top);
    sum = sum_group(sum, partial);
    for (int e = LID; e < N_EXPERTS; e += WG) p[e] /= sum;
#elif defined(GATE_SIGMOID)
    for (int e = LID; e < N_EXPERTS; e += WG) p[e] = SIGMOID(p[e]);
#elif defined(GATE_SQRT_SOFTPLUS)
    for (int e = LID; e < N_EXPERTS; e += WG) p[e] = sqrt(SOFTPLUS(p[e]));
#endif
    for (int e = LID; e < N_EXPERTS; e += WG) {
#ifdef BIASED
        choice[e] = p[e] + bias[e];
#else
        choice[e] = p[e];
#endif
    }
    MEET;
#ifdef N_GROUPS
    limit_groups(choice, sums);
#endif
    sum = 0;
    for (int k = 0; k < USED; k++) {
#ifdef TABLE
        const int best = table[max(ids[t], 0) * USED + k];
#else
        int best = LID;
        for (int e = LID + WG; e < N_EXPERTS; e += WG)
            if (choice[e] > choice[best]) best = e;
        best = best_of_group(best, choice, bests);
        if (LID == 0) choice[best] = NOT_CHOSEN;
#endif
#ifdef SOFTMAX_CHOSEN
        const float weight = exp(p[best] - top);
#else
        const float weight = p[best];
#endif
        sum += weight;
        if (LID == 0) {
#ifdef SCALED
            chosen[k] = weight * scales[best / DIVIDE];
#else
            chosen[k] = weight;
#endif
            experts[t * USED + k] = best / DIVIDE;
#ifdef SINGLE
            tiles[k] = (int4)(best / DIVIDE, k, 1, 0);
            rows[k] = t;
            slots[k] = k;
#endif
        }
        MEET;
    }
#if defined(SOFTMAX_CHOSEN)
    scale /= sum;
#elif defined(NORMALIZE)
    scale /= fmax(sum, 6.103515625e-5f);  // the least half, as llama.cpp bounds it
#endif
    for (int k = LID; k < USED; k += WG) weights[t * USED + k] = chosen[k] * scale;
}

#else

// out[t] (+)= scale * (sum_k weights[slot] y[slot] (+ extra[t] (* sigmoid(gate[t])))).
// y is [slots][n_cols]; without WEIGHTS every slot counts as it is. EXTRA, GATED, ADD as above.
VECTOR_ITEMS
kernel void combine(global const float* y,
#ifdef WEIGHTS
                    global const float* weights,
#endif
#ifdef EXTRA
                    global const float* extra,
#endif
#ifdef GATED
                    global const float* gate,
#endif
                    int used, int n_cols, float scale, global float* out) {
    const int i = get_global_id(0) * 16, t = get_global_id(1);
    const int n = min(16, n_cols - i);
    for (int j = 0; j < n; j++) {
        float sum = 0;
        for (int k = 0; k < used; k++) {
            const size_t slot = (size_t)t * used + k;
#ifdef WEIGHTS
            sum = fma(weights[slot], y[slot * n_cols + i + j], sum);
#else
            sum += y[slot * n_cols + i + j];
#endif
        }
#ifdef GATED
        sum = fma(extra[(size_t)t * n_cols + i + j], SIGMOID(gate[t]), sum);
#elif defined(EXTRA)
        sum += extra[(size_t)t * n_cols + i + j];
#endif
        sum *= scale;
#ifdef ADD
        sum += out[(size_t)t * n_cols + i + j];
#endif
        out[(size_t)t * n_cols + i + j] = sum;
    }
}

#endif
