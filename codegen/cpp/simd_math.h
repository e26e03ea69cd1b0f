#pragma once
namespace rw {

// ---- f32, by chunks -----------------------------------------------------------------------------
// c0 + c1 x + c2 x^2 + ...: Horner by pairs in x^2, for half the latency.
template <class C> RW_INLINE C by_pairs(C, C, C c0) { return c0; }
template <class C> RW_INLINE C by_pairs(C x, C, C c0, C c1) { return fma(c1, x, c0); }
template <class C, class... More> RW_INLINE C by_pairs(C x, C xx, C c0, C c1, More... more) {
    return fma(by_pairs(x, xx, more...), xx, fma(c1, x, c0));
}
template <class... Cs> RW_INLINE F polynomial(F x, Cs... c) { return by_pairs(x, x * x, all(f32(c))...); }
template <class... Cs> RW_INLINE D polynomial(D x, Cs... c) { return by_pairs(x, x * x, all(f64(c))...); }

// x + ROUND rounds x to an integer, which the low bits of the sum hold.
constexpr f32 ROUND = 0x1.8p23f;

// p 2^n for t = n + ROUND, |n| <= 252: rounded once, when the result is subnormal. NaN if p is.
RW_INLINE F times_power(F p, F t) {
#if defined RW_SCALE
    return scale(p, t - ROUND);
#else
    I n = (I)t - (I)all(ROUND), h = n >> 1;
    return p * (F)((h + 127) << 23) * (F)((n - h + 127) << 23);
#endif
}

// fma, rounded once on every machine: where a reduction hangs on it.
RW_INLINE F fma_exact(F a, F b, F c) {
#if defined RW_FMA
    return fma(a, b, c);
#else
    D low = widen(lower(a)) * widen(lower(b)) + widen(lower(c));
    D high = widen(upper(a)) * widen(upper(b)) + widen(upper(c));
    return narrow(low, high);
#endif
}

struct reduced { F r, t; };
RW_INLINE reduced exp_reduced(F x) {
    F t = fma(x, all(0x1.715476p0f), all(ROUND)), n = t - ROUND;
    F r = fma(n, all(-0x1.62e4p-1f), x);
    return {fma(n, all(-0x1.7f7d1cp-20f), r), t};
}
RW_INLINE F exp_of_reduced(F r) {
    F q = polynomial(r, 0.49999994f, 0.166665211f, 0.0416682884f, 0.00836870354f, 0.00138189388f);
    return fma(fma(q, r, all(1.0f)), r, all(1.0f));
}
RW_INLINE F exp(F x) {
    x = greatest(all(-104.0f), least(all(89.0f), x));  // in this order NaN stays
    reduced a = exp_reduced(x);
    return times_power(exp_of_reduced(a.r), a.t);
}
RW_INLINE F exp2(F x) {
    x = greatest(all(-151.0f), least(all(129.0f), x));
    F t = x + ROUND;
    F r = x - (t - ROUND);
    F q = polynomial(r, 0.240226477f, 0.0555035956f, 0.0096185049f, 0.00133910251f, 0.000153271962f);
    F p = fma(fma(q, r, all(0.693147182f)), r, all(1.0f));
    return times_power(p, t);
}
RW_INLINE F expm1_of_reduced(F r) {
    F q = polynomial(r, 0.5f, 0.166666657f, 0.0416664928f, 0.00833354332f, 0.00139323645f, 0.000197643312f);
    return fma(r * r, q, r);
}
RW_INLINE F expm1(F x) {
    reduced v = exp_reduced(greatest(all(-18.0f), least(all(89.0f), x)));
    F h = (F)(((I)v.t << 23) + (126 << 23));  // 2^(n - 1): 2^n may overflow
    return with_sign(2 * fma(h, expm1_of_reduced(v.r), h - 0.5f), x);
}

// log x = log(1 + f) + e log 2 with |f| <= 1/3; e comes in units of 2^-23.
struct logarithm { F f, e; };
RW_INLINE logarithm log_reduced(F x) {
    auto tiny = x < 0x1p-126f;
    I bits = (I)(tiny ? x * 0x1p23f : x);
    I e = (bits - (I)all(0x1.555556p-1f)) & ~0x7fffff;
    return {(F)(bits - e) - 1, convert<F>(tiny ? e - (23 << 23) : e)};
}
RW_INLINE F log1p_of_reduced(F f) {
    F p = polynomial(f, -0.5f, 0.333332151f, -0.249998048f, 0.200104386f, -0.166802064f, 0.140054747f,
                     -0.121877834f, 0.139859751f, -0.12877509f);
    return fma(f * f, p, f);
}
RW_INLINE F log_or_special(F y, F x) {
#if defined RW_FIX
    return fix(y, x, 0x03530422);
#else
    y = x < __builtin_inff() ? y : x;
    return x > 0 ? y : x == 0 ? all(-__builtin_inff()) : all(__builtin_nanf(""));
#endif
}
RW_INLINE F log(F x) {
    logarithm a = log_reduced(x);
    return log_or_special(fma(a.e, all(0x1.62e43p-24f), log1p_of_reduced(a.f)), x);
}
RW_INLINE F log2(F x) {
    logarithm a = log_reduced(x);
    F y = log1p_of_reduced(a.f);
    y = fma(y, all(0x1.715476p0f), fma(y, all(0x1.4ae0cp-26f), a.e * 0x1p-23f));
    return log_or_special(y, x);
}
RW_INLINE F log10(F x) {
    logarithm a = log_reduced(x);
    F y = log1p_of_reduced(a.f);
    y = fma(y, all(0x1.bcb7b2p-2f), fma(y, all(-0x1.5b235ep-27f), a.e * -0x1.ec10cp-50f));
    return log_or_special(fma(a.e, all(0x1.344136p-25f), y), x);
}
RW_INLINE F log1p(F x) {
    F u = x + 1;
    I e = ((I)u - (I)all(0x1.555556p-1f)) & ~0x7fffff;
    F s = (F)((I)all(4.0f) - e);  // 4 2^-e: 2^-e may be subnormal
    F f = (F)((I)x - e) + fma(s, all(0.25f), all(-1.0f));
    F y = fma(convert<F>(e), all(0x1.62e43p-24f), log1p_of_reduced(f));
    y = x < __builtin_inff() ? y : x;
    y = x > -1 ? y : x == -1 ? all(-__builtin_inff()) : all(__builtin_nanf(""));
    return with_sign(y, x);
}

RW_INLINE F tanh(F x) {  // (e^2x - 1) / (e^2x + 1)
    F a = magnitude(x);
    reduced v = exp_reduced(least(all(18.04f), a + a));
    F p = expm1_of_reduced(v.r), two_n = (F)(((I)v.t << 23) + (127 << 23));
    F less_one = fma(two_n, p, two_n - 1);
    return with_sign(less_one / (less_one + 2), x);
}
RW_INLINE F sigmoid(F x) {
    F e = exp(-magnitude(x));
    return (x < 0 ? e : all(1.0f)) / (1 + e);
}
// erf(x) / x = sum of ERF[k][i] t^k, where t = |x| - i STEP is at most STEP / 2.
alignas(64) constexpr f32 ERF[6][16] = {
    {1.12837911f, 1.10239339f, 1.03064179f, 0.928924859f, 0.816054821f, 0.707503676f,
     0.612265229f, 0.533216953f, 0.469339281f, 0.417998374f, 0.376405716f, 0.342233688f,
     0.313723445f, 0.289592445f, 0.268907517f, 0.250980377f},
    {0, -0.191567406f, -0.338311285f, -0.415325522f, -0.424613595f, -0.387110084f, -0.328330994f,
     -0.26764667f, -0.215058103f, -0.173293337f, -0.141339287f, -0.117052414f, -0.0984093472f,
     -0.0838617086f, -0.0723109692f, -0.0629911199f},
    {-0.376095146f, -0.330315083f, -0.214099586f, -0.0767789036f, 0.0347401761f, 0.0981081352f,
     0.117027275f, 0.108387426f, 0.0888631493f, 0.0687756687f, 0.0522393286f, 0.0398405045f,
     0.0308254827f, 0.0242842901f, 0.0194469523f, 0.0158141442f},
    {0, 0.110196754f, 0.170454741f, 0.163881108f, 0.111299679f, 0.0488156602f, 0.00251149968f,
     -0.0205835477f, -0.0262701921f, -0.0233609453f, -0.0180650614f, -0.0132294055f,
     -0.00958275329f, -0.00701617869f, -0.0052261902f, -0.00396824023f},
    {0.110606752f, 0.085953474f, 0.0249794535f, -0.0324291326f, -0.0597166307f, -0.0542125627f,
     -0.0326338038f, -0.0124559356f, -0.000114731956f, 0.00417682622f, 0.00484724715f,
     0.00395433139f, 0.00313054374f, 0.00166794565f, 0.00122764113f, 0.000728269399f},
    {0, -0.0374053083f, -0.0496060029f, -0.0336218923f, -0.00610866072f, 0.0129259778f,
     0.0171769056f, 0.0124833081f, 0.00588941574f, 0.0016510014f, -0.000392055983f,
     -0.000874549674f, -0.000839906512f, -0.000447332801f, -0.000345630804f, -0.000197335321f},
};
RW_INLINE F erf(F x) {
    constexpr f32 STEP = 17.0f / 64;
    F a = least(all(3.95f), magnitude(x));
    F i = fma(a, all(1 / STEP), all(ROUND));
    F t = fma(i - ROUND, all(-STEP), a), y = lookup(ERF[5], (I)i);
    RW_UNROLL for (int k = 4; k >= 0; --k) y = fma(y, t, lookup(ERF[k], (I)i));
    return with_sign(a * y, x);
}
RW_INLINE F erfc(F x) {
    F a = least(all(10.06f), magnitude(x)), s = a * a;
    F low = fma_exact(a, a, -s);
    reduced e = exp_reduced(-s);
    F p = polynomial(a, 1.000000006, 1.238092671, 0.7312710984, 0.2290599569, 0.03276314028);
    F q = polynomial(a, 1, 2.366472412, 2.401539984, 1.324746854, 0.4060247659, 0.05807044968);
    F y = times_power(exp_of_reduced(e.r - low) * (p / q), e.t);
    return x < 0 ? 2 - y : y;
}

// x less the nearest multiple of pi / 2, of which t holds the count; |x| <= 2^17.
RW_INLINE reduced quarter_turns(F x) {
    F t = fma(x, all(0x1.45f306p-1f), all(ROUND)), n = t - ROUND;
    F r = fma_exact(n, all(-0x1.921fb6p0f), x);
    r = fma_exact(n, all(0x1.777a5cp-25f), r);
    return {fma_exact(n, all(0x1.ee59dap-50f), r), t};
}
RW_INLINE F sine(reduced a, int turn) {
    F z = a.r * a.r;
    F s = fma(a.r * z, polynomial(z, -0.166666552f, 0.00833218731f, -0.000195179076f), a.r);
    F c = fma(z * z, polynomial(z, 0.0416666456f, -0.00138873095f, 2.4432331e-05f), fma(z, all(-0.5f), all(1.0f)));
    I quarter = (I)a.t + turn;
    F y = (quarter & 1) != 0 ? c : s;
    return (F)((I)y ^ ((quarter & 2) << 30));
}

// (1 + f)^y 2^(e y) as p 2^n, by log2 and exp2 in f64; |f| <= 1/3.
struct scaled { D p, n; };
RW_INLINE scaled power(D f, D e, D y) {
    D log2 = fma(f, polynomial(f, 1.4426950408, -0.72134752, 0.480898438, -0.360673969, 0.28852959, -0.240434142, 0.206454238, -0.180796167, 0.154326175, -0.137550039, 0.1760797, -0.165814552), e);
    D z = greatest(all(-252.0), least(all(252.0), y * log2));
    D n = (z + 0x1.8p52) - 0x1.8p52, r = z - n;
    return {polynomial(r, 1.0000000005550547, 0.6931472057671234, 0.24022646886040572, 0.05550328711831742, 0.009618489248676221, 0.0013399957602041497, 0.0001534578721706206), n};
}
RW_INLINE F pow(F x, F y) {
    F a = magnitude(x), b = least(magnitude(y), all(0x1p24f));  // at 2^24 and beyond every float is even
    auto tiny = a < 0x1p-126f;
    F m = tiny ? a * 0x1p23f : a;
    I bits = ((I)m - (I)all(0x1.555556p-1f)) & ~0x7fffff;
    F f = (F)((I)m - bits) - 1;
    F e = __builtin_convertvector(bits, F) * 0x1p-23f - (tiny ? all(23.0f) : F{});
    e = a == 0 ? all(-__builtin_inff()) : a < __builtin_inff() ? e : a;
    scaled low = power(widen(lower(f)), widen(lower(e)), widen(lower(y)));
    scaled high = power(widen(upper(f)), widen(upper(e)), widen(upper(y)));
    F r = times_power(narrow(low.p, high.p), narrow(low.n, high.n) + ROUND);
    I whole = __builtin_convertvector(b, I);
    auto fraction = __builtin_convertvector(whole, F) != b;
    r = (a == 1) & (y == y) ? all(1.0f) : r;
    r = (F)((I)r ^ ((I)x & ((fraction ? I{} : whole) << 31)));
    r = (x < 0) & (a < __builtin_inff()) & fraction ? all(__builtin_nanf("")) : r;
    return (x == 1) | (y == 0) ? all(1.0f) : r;
}

// ---- libm, lane by lane -------------------------------------------------------------------------
// Under names the compiler does not know, so that a constant argument gets the same bits as any other.
#define RW_STRING_(x) #x
#define RW_STRING(x) RW_STRING_(x)
#define RW_SYMBOL(name) __asm__(RW_STRING(__USER_LABEL_PREFIX__) #name)
template <class T, class Fn> RW_INLINE V<T> lanewise(Fn* f, V<T> x) {
    T a[W];
    store(a, x);
    for (int i = 0; i < W; ++i) a[i] = f(a[i]);
    return load(a);
}
template <class T, class Fn> RW_INLINE V<T> lanewise(Fn* f, V<T> x, V<T> y) {
    T a[W], b[W];
    store(a, x);
    store(b, y);
    for (int i = 0; i < W; ++i) a[i] = f(a[i], b[i]);
    return load(a);
}
#define RW_LIBM_UNARY_64(name) \
    extern "C" f64 libm_##name(f64) noexcept RW_SYMBOL(name); \
    RW_INLINE f64v name(f64v x) { return lanewise(libm_##name, x); }
#define RW_LIBM_UNARY(name) \
    extern "C" f32 libm_##name##f(f32) noexcept RW_SYMBOL(name##f); \
    RW_INLINE f32v name(f32v x) { return lanewise(libm_##name##f, x); } \
    RW_LIBM_UNARY_64(name)
#define RW_LIBM_BINARY_64(name) \
    extern "C" f64 libm_##name(f64, f64) noexcept RW_SYMBOL(name); \
    RW_INLINE f64v name(f64v x, f64v y) { return lanewise(libm_##name, x, y); }
#define RW_LIBM_BINARY(name) \
    extern "C" f32 libm_##name##f(f32, f32) noexcept RW_SYMBOL(name##f); \
    RW_INLINE f32v name(f32v x, f32v y) { return lanewise(libm_##name##f, x, y); } \
    RW_LIBM_BINARY_64(name)
RW_LIBM_UNARY(tan)
RW_LIBM_UNARY(asin)
RW_LIBM_UNARY(acos)
RW_LIBM_UNARY(atan)
RW_LIBM_UNARY(sinh)
RW_LIBM_UNARY(cosh)
RW_LIBM_UNARY(asinh)
RW_LIBM_UNARY(acosh)
RW_LIBM_UNARY(atanh)
RW_LIBM_BINARY(atan2)
RW_LIBM_BINARY(fmod)
RW_LIBM_BINARY(hypot)
RW_LIBM_BINARY(nextafter)
RW_LIBM_UNARY_64(exp)
RW_LIBM_UNARY_64(exp2)
RW_LIBM_UNARY_64(expm1)
RW_LIBM_UNARY_64(log)
RW_LIBM_UNARY_64(log2)
RW_LIBM_UNARY_64(log10)
RW_LIBM_UNARY_64(log1p)
RW_LIBM_UNARY_64(sin)
RW_LIBM_UNARY_64(cos)
RW_LIBM_UNARY_64(tanh)
RW_LIBM_UNARY_64(erf)
RW_LIBM_UNARY_64(erfc)
RW_LIBM_BINARY_64(pow)

// ---- f32, by chunks, on 16 lanes ----------------------------------------------------------------
#define RW_LIFT(name) \
    RW_INLINE f32v name(f32v x) { RW_EACH(f32, name(x.c[k])) }
RW_LIFT(exp)
RW_LIFT(exp2)
RW_LIFT(expm1)
RW_LIFT(log)
RW_LIFT(log2)
RW_LIFT(log10)
RW_LIFT(log1p)
RW_LIFT(tanh)
RW_LIFT(sigmoid)
RW_LIFT(erf)
RW_LIFT(erfc)
#undef RW_LIFT
RW_INLINE f32v pow(f32v x, f32v y) { RW_EACH(f32, pow(x.c[k], y.c[k])) }

extern "C" f32 libm_sinf(f32) noexcept RW_SYMBOL(sinf);
extern "C" f32 libm_cosf(f32) noexcept RW_SYMBOL(cosf);
template <class Fn> static __attribute__((noinline, cold)) f32v patched(Fn* f, f32v y, f32v x, unsigned which) {
    f32 a[W], b[W];
    store(a, y);
    store(b, x);
    for (int i = 0; i < W; ++i)
        if (which >> i & 1) a[i] = f(b[i]);
    return load(a);
}
RW_INLINE f32v sine(f32v x, int turn) { RW_EACH(f32, sine(quarter_turns(x.c[k]), turn)) }
RW_INLINE mask far(f32v x) { RW_EACH(bool, magnitude(x.c[k]) > 0x1p17f) }
RW_INLINE f32v sin(f32v x) {
    f32v y = sine(x, 0);
    y = select(eq(x, f32v{}), x, y);
    unsigned which = bits(far(x));
    return __builtin_expect(which != 0, 0) ? patched(libm_sinf, y, x, which) : y;
}
RW_INLINE f32v cos(f32v x) {
    f32v y = sine(x, 1);
    unsigned which = bits(far(x));
    return __builtin_expect(which != 0, 0) ? patched(libm_cosf, y, x, which) : y;
}
RW_INLINE f64v sigmoid(f64v x) {
    f64v e = exp(neg(abs(x)));
    RW_EACH(f64, (x.c[k] < 0 ? e.c[k] : all(1.0)) / (1 + e.c[k]))
}
}  // namespace rw
