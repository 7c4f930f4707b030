/* What the threads of a kernel do together: barriers, SIMD operations, atomics, 8x8 matrices. After the rest of metal_stdlib. */
#ifndef FM_METAL_THREADS_H
#define FM_METAL_THREADS_H

namespace metal
{
enum class mem_flags { mem_none = emu::NONE, mem_device = emu::DEVICE, mem_threadgroup = emu::THREADGROUP };
inline mem_flags operator|(mem_flags a, mem_flags b)
{
    return mem_flags(int(a) | int(b));
}

#define EMU_SITE emu::Site site = emu::Site::here()

EMU_UNWATCHED inline void threadgroup_barrier(mem_flags memory, EMU_SITE)
{
    emu::barrier(emu::IN_THREADGROUP, int(memory), "threadgroup_barrier", site);
}

EMU_UNWATCHED inline void simdgroup_barrier(mem_flags memory, EMU_SITE)
{
    emu::barrier(emu::IN_SIMDGROUP, int(memory), "simdgroup_barrier", site);
}

/* The values of all lanes; the same for all, or to pick from. */
template <class T> EMU_UNWATCHED inline const T *lanes_values(const T &x, const char *what, emu::Site site)
{
    static_assert(sizeof(T) <= EMU_SLOT);
    return static_cast<const T *>(emu::meet(&x, sizeof x, what, site));
}

/* Pairs 16 apart, then 8, 4, 2, 1: the order of a butterfly. */
template <class T, class F> EMU_UNWATCHED inline T reduce(const T *x, F f)
{
    T v[EMU_LANES];
    uint n = emu::lanes();
    for (uint i = 0; i < n; i++) v[i] = x[i];
    for (uint by = EMU_LANES / 2; by; by /= 2)
        for (uint i = 0; i < by && i + by < n; i++) v[i] = f(v[i], v[i + by]);
    return v[0];
}

#define EMU_REDUCTION(NAME, EXPRESSION)                           \
    template <class T> EMU_UNWATCHED inline T NAME(T x, EMU_SITE) \
    {                                                             \
        struct {                                                  \
            EMU_UNWATCHED T operator()(T a, T b) const            \
            {                                                     \
                return EXPRESSION;                                \
            }                                                     \
        } f;                                                      \
        return reduce(lanes_values(x, #NAME, site), f);           \
    }
EMU_REDUCTION(simd_sum, a + b)
EMU_REDUCTION(simd_product, a *b)
EMU_REDUCTION(simd_max, metal::max(a, b))
EMU_REDUCTION(simd_min, metal::min(a, b))
EMU_REDUCTION(simd_and, a &b)
EMU_REDUCTION(simd_or, a | b)
EMU_REDUCTION(simd_xor, a ^ b)

EMU_UNWATCHED inline bool simd_any(bool x, EMU_SITE)
{
    return simd_or(int(x), site) != 0;
}

EMU_UNWATCHED inline bool simd_all(bool x, EMU_SITE)
{
    return simd_and(int(x), site) != 0;
}

template <class T> EMU_UNWATCHED inline T simd_prefix_inclusive_sum(T x, EMU_SITE)
{
    const T *v = lanes_values(x, "simd_prefix_inclusive_sum", site);
    T sum = T(0);
    for (uint i = 0; i <= emu::lane(); i++) sum += v[i];
    return sum;
}

template <class T> EMU_UNWATCHED inline T simd_prefix_exclusive_sum(T x, EMU_SITE)
{
    const T *v = lanes_values(x, "simd_prefix_exclusive_sum", site);
    T sum = T(0);
    for (uint i = 0; i < emu::lane(); i++) sum += v[i];
    return sum;
}

template <class T> EMU_UNWATCHED inline T of_lane(const T *v, uint from, const char *what, emu::Site site)
{
    if (from >= emu::lanes()) emu::fail("%s reads lane %u of %u at line %d", what, from, emu::lanes(), site.line);
    return v[from];
}

template <class T> EMU_UNWATCHED inline T simd_shuffle(T x, ushort from, EMU_SITE)
{
    return of_lane(lanes_values(x, "simd_shuffle", site), from, "simd_shuffle", site);
}

template <class T> EMU_UNWATCHED inline T simd_shuffle_xor(T x, ushort mask, EMU_SITE)
{
    return of_lane(lanes_values(x, "simd_shuffle_xor", site), emu::lane() ^ mask, "simd_shuffle_xor", site);
}

/* Lanes past the end keep their own. */
template <class T> EMU_UNWATCHED inline T simd_shuffle_down(T x, ushort by, EMU_SITE)
{
    const T *v = lanes_values(x, "simd_shuffle_down", site);
    return emu::lane() + by < EMU_LANES ? of_lane(v, emu::lane() + by, "simd_shuffle_down", site) : x;
}

template <class T> EMU_UNWATCHED inline T simd_shuffle_up(T x, ushort by, EMU_SITE)
{
    const T *v = lanes_values(x, "simd_shuffle_up", site);
    return emu::lane() >= by ? v[emu::lane() - by] : x;
}

template <class T> EMU_UNWATCHED inline T simd_broadcast(T x, ushort from, EMU_SITE)
{
    return of_lane(lanes_values(x, "simd_broadcast", site), from, "simd_broadcast", site);
}

template <class T> EMU_UNWATCHED inline T simd_broadcast_first(T x, EMU_SITE)
{
    return *lanes_values(x, "simd_broadcast_first", site);
}

EMU_UNWATCHED inline bool simd_is_first()
{
    return emu::lane() == 0;
}

/* ---- atomics: relaxed, and threads change only where they meet ---- */

enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
    T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;

#define EMU_ATOMIC(NAME, EXPRESSION)                                                                     \
    template <class T> EMU_UNWATCHED inline T atomic_##NAME##_explicit(atomic<T> *at, T b, memory_order) \
    {                                                                                                    \
        emu::atomic(at, sizeof *at);                                                                     \
        T a = at->value;                                                                                 \
        at->value = EXPRESSION;                                                                          \
        return a;                                                                                        \
    }
EMU_ATOMIC(fetch_add, a + b)
EMU_ATOMIC(fetch_sub, a - b)
EMU_ATOMIC(fetch_max, metal::max(a, b))
EMU_ATOMIC(fetch_min, metal::min(a, b))
EMU_ATOMIC(fetch_or, a | b)
EMU_ATOMIC(fetch_and, a &b)
EMU_ATOMIC(exchange, b)

template <class T> EMU_UNWATCHED inline T atomic_load_explicit(const atomic<T> *at, memory_order)
{
    emu::atomic(at, sizeof *at);
    return at->value;
}

template <class T> EMU_UNWATCHED inline void atomic_store_explicit(atomic<T> *at, T value, memory_order)
{
    emu::atomic(at, sizeof *at);
    at->value = value;
}

/* ---- 8x8 matrices: two elements a lane; which ones is not for kernels to know ---- */

template <class T, int R, int C> struct simdgroup_matrix {
    static_assert(__is_same(T, float) && R == 8 && C == 8, "only simdgroup_matrix<float, 8, 8>");
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal)
    {
        for (int i = 0; i < 2; i++) part[i] = row() == column(i) ? diagonal : T(0);
    }
    EMU_UNWATCHED static uint row() { return (emu::lane() >> 4 & 1) * 4 + (emu::lane() >> 1 & 3); }
    EMU_UNWATCHED static uint column(int i) { return (emu::lane() >> 3 & 1) * 4 + (emu::lane() & 1) * 2 + uint(i); }
    EMU_UNWATCHED static uint place(uint row, uint column) /* 2 * lane + element */
    {
        return 2 * ((row >> 2) << 4 | (row & 3) << 1 | (column >> 2) << 3 | (column >> 1 & 1)) + (column & 1);
    }
    float2 part;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;

template <class T, int R, int C> EMU_UNWATCHED inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T x)
{
    simdgroup_matrix<T, R, C> m;
    m.part = x;
    return m;
}

EMU_UNWATCHED inline void whole_simdgroup(const char *what, emu::Site site)
{
    emu::barrier(emu::IN_SIMDGROUP, emu::NONE, what, site);
    if (emu::lanes() != EMU_LANES) emu::fail("%s at line %d in a simdgroup of %u lanes", what, site.line, emu::lanes());
}

/* These two are watched: their lanes touch what a kernel gives them. */
inline void simdgroup_load(simdgroup_float8x8 &m, const float *from, ulong stride = 8, ulong2 origin = 0, bool transpose = false,
                           EMU_SITE)
{
    whole_simdgroup("simdgroup_load", site);
    for (int i = 0; i < 2; i++) {
        ulong row = transpose ? m.column(i) : m.row(), column = transpose ? m.row() : m.column(i);
        m.part[i] = from[(origin[1] + row) * stride + origin[0] + column];
    }
}

inline void simdgroup_store(const simdgroup_float8x8 &m, float *to, ulong stride = 8, ulong2 origin = 0, bool transpose = false,
                            EMU_SITE)
{
    whole_simdgroup("simdgroup_store", site);
    for (int i = 0; i < 2; i++) {
        ulong row = transpose ? m.column(i) : m.row(), column = transpose ? m.row() : m.column(i);
        to[(origin[1] + row) * stride + origin[0] + column] = m.part[i];
    }
}

EMU_UNWATCHED inline void simdgroup_multiply_accumulate(simdgroup_float8x8 &d, const simdgroup_float8x8 &a,
                                                        const simdgroup_float8x8 &b, const simdgroup_float8x8 &c, EMU_SITE)
{
    struct alignas(16) Pair {
        float2 a, b;
    } mine = {a.part, b.part};
    whole_simdgroup("simdgroup_multiply_accumulate", site);
    const Pair *v = lanes_values(mine, "simdgroup_multiply_accumulate", site);
    for (int i = 0; i < 2; i++) {
        float sum = c.part[i];
        for (uint k = 0; k < 8; k++) {
            uint left = d.place(d.row(), k), right = d.place(k, d.column(i));
            sum = fma(v[left / 2].a[left % 2], v[right / 2].b[right % 2], sum);
        }
        d.part[i] = sum;
    }
}

EMU_UNWATCHED inline void simdgroup_multiply(simdgroup_float8x8 &d, const simdgroup_float8x8 &a, const simdgroup_float8x8 &b,
                                             EMU_SITE)
{
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f), site);
}
} // namespace metal

#endif
