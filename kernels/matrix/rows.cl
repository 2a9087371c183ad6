// Which rows of the activations a tile of a matmul reads and writes, and of which expert.
//
// Without EXPERTS a tile is NT consecutive tokens. With EXPERTS tile i is tiles[i] = (expert,
// first entry, number of entries, -) of the lists in_rows and out_rows (moe.cl); the weights are
// those of all experts one after another, n_rows for each.
// WEIGHTED: what the weights yield is multiplied with weights_of[row of the output].

#ifdef EXPERTS
#define IN_ARG global const int* in_rows
#define IN in_rows
#define ROW_IN(t) in_rows[t]
#define ROW_OUT(t) out_rows[t]
// Declares nt and first_group, the expert's first group of 16 rows.
#define BEGIN_TILE(index, groups)                                                              \
    const int4 tile = tiles[index];                                                            \
    const int nt = tile.z;                                                                     \
    const size_t first_group = (size_t)tile.x * (groups);                                      \
    in_rows += tile.y;                                                                         \
    out_rows += tile.y;                                                                        \
    if (nt == 0) return
#else
#define IN_ARG int t0
#define IN t0
#define ROW_IN(t) (t0 + (t))
#define ROW_OUT(t) (t0 + (t))
#if NT == 1
#define BEGIN_TILE(index, groups)                                                              \
    const int t0 = (index), nt = 1;                                                            \
    const size_t first_group = 0
#else
#define BEGIN_TILE(index, groups)                                                              \
    const int t0 = (index) * NT, nt = min(NT, counts[count_at] - t0);                          \
    const size_t first_group = 0
#endif
#endif

#ifdef WEIGHTED
#define WEIGHT_OF(t) weights_of[ROW_OUT(t)]
#else
#define WEIGHT_OF(t) 1.0f
#endif
