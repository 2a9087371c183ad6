// The KV cache's layout: pages of PAGE tokens, for each page each KV head.
//
// K: [page][kv head][HD][PAGE], tokens side by side, so that scores of PAGE keys are sums of
//    vectors. V: [page][kv head][PAGE][HDV padded to 16], values side by side.
// KV_F16: stored as half, else float. Includes lanes.cl's INLINE.

#define HDV_PADDED ((HDV + 15) / 16 * 16)
#ifdef KV_F16
typedef half kv_t;
#define LOAD_KV16(p) vload_half16(0, p)
#define LOAD_KV(p) vload_half(0, p)
#define STORE_KV(v, p) vstore_half(v, 0, p)
#else
typedef float kv_t;
#define LOAD_KV16(p) vload16(0, p)
#define LOAD_KV(p) (*(p))
#define STORE_KV(v, p) (*(p) = (v))
#endif

#define K_PAGE(k, page, n_kv, h) ((k) + ((size_t)(page) * (n_kv) + (h)) * HD * PAGE)
#define V_PAGE(v, page, n_kv, h) ((v) + ((size_t)(page) * (n_kv) + (h)) * PAGE * HDV_PADDED)
