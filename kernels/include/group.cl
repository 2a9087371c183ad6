// A row's work-group of WG items, 1 on CPUs: its item's number, LID, what they share, where they
// meet, and sums and maxima over all of them, for every item.

#ifndef LID
#ifndef WG
#define WG 1
#endif
#if WG > 1
#define SHARED local
#define MEET barrier(CLK_LOCAL_MEM_FENCE)
#define DEFINE_OVER_GROUP(name, JOINED)                                                        \
    INLINE float name(float v, local float* partial) {                                         \
        const int lid = get_local_id(0);                                                       \
        partial[lid] = v;                                                                      \
        MEET;                                                                                  \
        for (int step = WG / 2; step > 0; step /= 2) {                                         \
            if (lid < step) partial[lid] = JOINED(partial[lid], partial[lid + step]);          \
            MEET;                                                                              \
        }                                                                                      \
        const float all_ = partial[0];                                                         \
        MEET;                                                                                  \
        return all_;                                                                           \
    }
#define PARTIAL(name) local float name[WG]  // of a kernel, for sums and maxima
#define ADDED(a, b) ((a) + (b))
DEFINE_OVER_GROUP(sum_group, ADDED)
DEFINE_OVER_GROUP(max_group, fmax)
#define LID get_local_id(0)
#else
#define SHARED
#define MEET
#define PARTIAL(name) local float* name = 0
#define sum_group(v, partial) (v)
#define max_group(v, partial) (v)
#define LID 0
#endif
#endif
