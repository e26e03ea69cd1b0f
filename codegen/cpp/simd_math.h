// Elementary functions on 16 lanes, with PyTorch's results at zeros, infinities, NaN and the edges.
//
// f32 functions named in the table are our own. Their methods are the classical ones (Cody, Waite:
// Software Manual for the Elementary Functions, 1980; Muller et al.: Handbook of Floating-Point
// Arithmetic, 2nd edition, chapter 10); the polynomials are minimax fits whose coefficients were
// rounded to float one after the other. All others, and f64, go through libm lane by lane.
//
// Largest error in ulp over every 13th of the 2^32 floats (pow: 8 * 10^7 pairs) against libm in
// f64, rounded up; GCC 12 on Zen 4. tests/test_simd.py holds the functions to this table.
//
//   function   AVX2, AVX-512   SSE2
//   exp           0.90         1.20
//   exp2          0.90         1.10
//   expm1         1.45         1.45
//   sigmoid       1.95         2.00
//   log           0.95         1.10
//   log2          1.70         2.25
//   log10         2.00         2.35
//   log1p         1.55         1.65
//   tanh          1.30         1.40
//   erf           1.95         1.90
//   erfc          0.85         0.85
//   sin           1.55         1.60
//   cos           1.55         1.55
//   pow           0.90         0.90
#pragma once

namespace rw {

// c0 + c1 x + c2 x^2 + ...: by Horner in F; in D by Horner on pairs, for its latency.
template <class... Cs> RW_INLINE F polynomial(F x, f32 c, Cs... more) {
    if constexpr (sizeof...(more) == 0) {
        return all(c);
    } else {
        return fma(polynomial(x, more...), x, all(c));
    }
}
RW_INLINE D pairs(D, D, f64 c0) { return all(c0); }
RW_INLINE D pairs(D x, D, f64 c0, f64 c1) { return fma(all(c1), x, all(c0)); }
template <class... Cs> RW_INLINE D pairs(D x, D xx, f64 c0, f64 c1, Cs... more) {
    return fma(pairs(x, xx, more...), xx, pairs(x, xx, c0, c1));
}
template <class... Cs> RW_INLINE D polynomial_64(D x, Cs... c) { return pairs(x, x * x, c...); }

// fma, rounded once on every machine: for reductions that hang on it.
RW_INLINE F fma_exact(F a, F b, F c) {
#if defined RW_FMA
    return fma(a, b, c);
#else
    D low = widen(lower(a)) * widen(lower(b)) + widen(lower(c));
    D high = widen(upper(a)) * widen(upper(b)) + widen(upper(c));
    return narrow(low, high);
#endif
}

// x + ROUND rounds x to an integer n, which the low bits of the sum t hold; n = t - ROUND.
constexpr f32 ROUND = 0x1.8p23f;
constexpr f64 ROUND_64 = 0x1.8p52;
constexpr f32 INF = __builtin_inff();
constexpr f32 NOT_A_NUMBER = __builtin_nanf("");

// p 2^n, rounded once when that is subnormal; |n| <= 252, t = n + ROUND. NaN if p is.
RW_INLINE F times_power(F p, F t) {
#if defined RW_SCALE
    return scale(p, t - ROUND);
#else
    I n = (I)t - (I)all(ROUND), h = n >> 1;
    return p * (F)((h + 127) << 23) * (F)((n - h + 127) << 23);
#endif
}

// ---- exp, exp2, expm1, sigmoid ------------------------------------------------------------------
// x = n log 2 + r with |r| <= log(2) / 2, or any other r and the count n of what it leaves.
struct reduced { F r, t; };
RW_INLINE reduced exp_reduced(F x) {
    F t = fma(x, all(0x1.715476p0f), all(ROUND)), n = t - ROUND;
    F r = fma(n, all(-0x1.62e4p-1f), x);
    return {fma(n, all(-0x1.7f7d1cp-20f), r), t};
}
// A product that is rounded to zero takes a hundred times as long as one of zero (masked scores).
RW_INLINE F exp(F x) {
    F within = greatest(all(-104.0f), least(all(89.0f), x));  // in this order NaN stays
    reduced a = exp_reduced(within);
    F p = polynomial(a.r, 1, 1, 0.49999994f, 0.166665211f, 0.0416682884f, 0.00836870354f,
                     0.00138189388f);
    return times_power(x < -103.98f ? all(0.0f) : p, a.t);
}
RW_INLINE F exp2(F x) {
    F within = greatest(all(-151.0f), least(all(129.0f), x)), t = within + ROUND;
    F p = polynomial(within - (t - ROUND), 1, 0.693147182f, 0.240226477f, 0.0555035956f,
                     0.0096185049f, 0.00133910251f, 0.000153271962f);
    return times_power(x < -150.0f ? all(0.0f) : p, t);
}
RW_INLINE F expm1(F x) {
    reduced a = exp_reduced(greatest(all(-18.0f), least(all(89.0f), x)));
    F q = polynomial(a.r, 0.5f, 0.166666657f, 0.0416664928f, 0.00833354332f, 0.00139323645f,
                     0.000197643312f);
    F p = fma(a.r * a.r, q, a.r);             // e^r - 1
    F h = (F)(((I)a.t << 23) + (126 << 23));  // 2^(n - 1): 2^n may overflow
    return with_sign(2 * fma(h, p, h - 0.5f), x);
}
RW_INLINE F sigmoid(F x) {
    F e = exp(-magnitude(x)), d = 1 + e;
    F y = (x < 0 ? e : all(1.0f)) / d;
    return fma(y, (d - 1) - e, y);  // what d lost in rounding
}

// ---- log, log2, log10, log1p --------------------------------------------------------------------
// The bits of 2^n nearest below 3 x / 2, less those of 1: x 2^-n is in [2/3, 4/3].
RW_INLINE I exponent(F x) { return ((I)x - (I)all(0x1.555556p-1f)) & ~0x7fffff; }

struct logarithm { F y, e; };  // log x = y + e 2^-23 log 2
RW_INLINE F log1p_of_third(F f) {  // |f| <= 1/3
    F p = polynomial(f, -0.5f, 0.333332151f, -0.249998048f, 0.200104386f, -0.166802064f,
                     0.140054747f, -0.121877834f, 0.139859751f, -0.12877509f);
    return fma(f * f, p, f);
}
RW_INLINE logarithm log_reduced(F x) {
    auto tiny = x < 0x1p-126f;
    F m = tiny ? x * 0x1p23f : x;
    I e = exponent(m);
    return {log1p_of_third((F)((I)m - e) - 1), convert<F>(tiny ? e - (23 << 23) : e)};
}
RW_INLINE F log_or_special(F y, F x) {
#if defined RW_FIX
    return fix(y, x, 0x03530422);  // from the lowest digit: NaN NaN -inf y NaN inf NaN y for
                                   // quiet and signalling NaN, 0, 1, -inf, inf, below 0, above 0
#else
    y = x < INF ? y : x;
    return x > 0 ? y : x == 0 ? all(-INF) : all(NOT_A_NUMBER);
#endif
}
RW_INLINE F log(F x) {
    logarithm a = log_reduced(x);
    return log_or_special(fma(a.e, all(0x1.62e43p-24f), a.y), x);
}
RW_INLINE F log2(F x) {
    logarithm a = log_reduced(x);
    F y = fma(a.y, all(0x1.715476p0f), fma(a.y, all(0x1.4ae0cp-26f), a.e * 0x1p-23f));
    return log_or_special(y, x);
}
RW_INLINE F log10(F x) {
    logarithm a = log_reduced(x);
    F y = fma(a.y, all(0x1.bcb7b2p-2f), fma(a.y, all(-0x1.5b235ep-27f), a.e * -0x1.ec10cp-50f));
    return log_or_special(fma(a.e, all(0x1.344136p-25f), y), x);
}
RW_INLINE F log1p(F x) {
    I e = exponent(x + 1);
    F s = (F)((I)all(4.0f) - e);  // 4 2^-n: 2^-n may be subnormal
    F f = (F)((I)x - e) + fma(s, all(0.25f), all(-1.0f));
    F y = fma(convert<F>(e), all(0x1.62e43p-24f), log1p_of_third(f));
    y = x < INF ? y : x;
    y = x > -1 ? y : x == -1 ? all(-INF) : all(NOT_A_NUMBER);
    return with_sign(y, x);
}

// ---- tanh, erf: a polynomial for each of 16 intervals -------------------------------------------
// (p(t) - p(0)) / t of the polynomial p of interval i, whose coefficients are c[0][i], ... c[5][i].
RW_INLINE F slope(const f32 (&c)[6][16], I i, F t) {
    F y = lookup(c[5], i);
    RW_UNROLL for (int k = 4; k > 0; --k) y = fma(y, t, lookup(c[k], i));
    return y;
}

// tanh(edge + t), where edge + 5/8 is |x| + 5/8 cut to three bits.
alignas(64) constexpr f32 TANH[6][16] = {
    {0, 0.124352999, 0.244918659, 0.3583574, 0.554599702, 0.703905582, 0.809301078, 0.879826725,
     0.954045236, 0.982845008, 0.993654609, 0.997660995, 0.999683142, 0.999957085, 0.999994218,
     0.999999225},
    {1, 0.984537542, 0.94001615, 0.871578753, 0.692423224, 0.504521608, 0.345030487, 0.225907072,
     0.0897997469, 0.0340172313, 0.0126528032, 0.00467020227, 0.00063291064, 8.70098156e-05,
     1.04624387e-05, 1.29590535e-06},
    {0, -0.122511521, -0.230311945, -0.312267631, -0.384145588, -0.355296791, -0.27920422,
     -0.198844463, -0.0856999829, -0.0334497094, -0.0126037542, -0.00462940708, -0.000626271765,
     -9.52796909e-05, -2.43879003e-06, -4.30649322e-07},
    {-0.333327711, -0.311097771, -0.255078256, -0.179925069, -0.016420614, 0.0838571489,
     0.110807762, 0.100527093, 0.051933907, 0.0215590149, 0.00843147468, 0.00294001494,
     0.000393881404, 8.24047311e-05, -1.80207753e-05, -6.50146148e-07},
    {0, 0.0632373467, 0.123687692, 0.179318011, 0.132214293, 0.0498029143, 0.00252594892,
     -0.0258582365, -0.0210896078, -0.00984194595, -0.00426079426, -0.00119814707,
     -0.000156687485, -5.42060225e-05, 2.59096159e-05, 5.87862928e-07},
    {0.132167533, 0.160300091, 0.109820187, -0.0253587514, -0.0518877096, -0.0344596058,
     -0.0235349946, 0.000842413749, 0.00484165689, 0.00267849164, 0.00138553046, 0.000239510322,
     3.01372584e-05, 1.72063592e-05, -1.09380926e-05, -1.35112515e-07},
};
RW_INLINE F tanh(F x) {
    F a = least(all(9.1f), magnitude(x));
    I cut = (I)(a + 0.625f) >> 21;
    I i = cut - 0x1f9;
    F t = a - ((F)(cut << 21) - 0.625f);
    return with_sign(fma(slope(TANH, i, t), t, lookup(TANH[0], i)), x);
}

// erf(i STEP + t) - t. STEP is such that the first few erf(i STEP) lie close to floats.
alignas(64) constexpr f32 ERF[6][16] = {
    {0, 0.292117149, 0.54638505, 0.739030659, 0.866075516, 0.939001322, 0.975436926, 0.991281688,
     0.997278929, 0.999254584, 0.999821067, 0.999962389, 0.999993086, 0.999998868, 0.999999821,
     1},
    {0.128379166, 0.0518830381, -0.147872701, -0.400117487, -0.633011401, -0.80489713,
     -0.90986377, -0.963812351, -0.987374604, -0.99617213, -0.998991489, -0.999769092,
     -0.999954045, -0.999992073, -0.999998808, -0.999999821},
    {0, -0.278695226, -0.451542974, -0.476820499, -0.38894552, -0.258473158, -0.143287748,
     -0.067115292, -0.0267624799, -0.00912380312, -0.00268171891, -0.000671193062,
     -0.000144583595, -1.70261392e-05, 6.09362542e-06, -9.2520313e-06},
    {-0.376122594, -0.301426589, -0.124541856, 0.0527000427, 0.152474657, 0.1632424, 0.121822774,
     0.070919998, 0.0336086042, 0.0132314833, 0.00438727951, 0.00123144616, 0.000292421551,
     6.30104551e-05, 1.08113081e-05, -2.32936213e-06},
    {0, 0.131833091, 0.182373762, 0.137489721, 0.0493547358, -0.0211772639, -0.0490009226,
     -0.0433697589, -0.0266529527, -0.0130199678, -0.00441149389, -0.00168880704, -0.000510481826,
     -0.00068195106, -0.00061454135, 0.000486701436},
    {0.112171873, 0.0773855597, -0.000507163641, -0.0588305481, -0.0662306622, -0.037517067,
     -0.00569117488, 0.0109286392, 0.0124670919, 0.0083087543, 0.00377767347, 0.00143914262,
     0.000521761423, 6.2140416e-06, 1.43066864e-05, 0.000153183544},
};
RW_INLINE F erf(F x) {
    constexpr f32 STEP = 4341.0f / 16384;
    F a = least(all(3.95f), magnitude(x));
    F i = fma(a, all(1 / STEP), all(ROUND));
    F t = fma(i - ROUND, all(-STEP), a);
    return with_sign(fma(slope(ERF, (I)i, t), t, lookup(ERF[0], (I)i) + t), x);
}

// ---- sin, cos -----------------------------------------------------------------------------------
// x less the nearest multiple of pi / 2, and the count of those; |x| <= FAR.
constexpr f32 FAR = 0x1p17f;
RW_INLINE reduced quarter_turns(F x) {
    F t = fma(x, all(0x1.45f306p-1f), all(ROUND)), n = t - ROUND;
    F r = fma_exact(n, all(-0x1.921fb6p0f), x);
    r = fma_exact(n, all(0x1.777a5cp-25f), r);
    return {fma_exact(n, all(0x1.ee59dap-50f), r), t};
}
// The sine of x, a number of quarter turns later.
RW_INLINE F sine(F x, int later) {
    reduced a = quarter_turns(x);
    F z = a.r * a.r;
    F s = fma(a.r * z, polynomial(z, -0.166666552f, 0.00833218731f, -0.000195179076f), a.r);
    F c = polynomial(z, 1, -0.5f, 0.0416666456f, -0.00138873095f, 2.4432331e-05f);
    I turns = (I)a.t + later;
    F y = (turns & 1) != 0 ? c : s;
    return (F)((I)y ^ ((turns & 2) << 30));
}

// ---- pow, erfc: what float loses on the way to the exponent, f64 keeps --------------------------
struct scaled { D p, n; };  // p 2^n
RW_INLINE scaled exp2_scaled(D z) {
    z = greatest(all(-252.0), least(all(252.0), z));
    D n = (z + ROUND_64) - ROUND_64, r = z - n;
    D p = polynomial_64(r, 0.693147206, 0.240226469, 0.0555032871, 0.00961848925, 0.00133999576,
                        0.000153457872);
    return {fma(p, r, all(1.0)), n};
}
RW_INLINE F times_power(scaled low, scaled high) {
    return times_power(narrow(low.p, high.p), narrow(low.n, high.n) + ROUND);
}
RW_INLINE scaled erfc_scaled(D a) {  // a >= 0: e^(-a^2) times a rational function
    scaled e = exp2_scaled(a * a * -1.4426950408889634);
    D p = polynomial_64(a, 1.000000006, 1.238092671, 0.7312710984, 0.2290599569, 0.03276314028);
    D q = polynomial_64(a, 1, 2.366472412, 2.401539984, 1.324746854, 0.4060247659, 0.05807044968);
    return {e.p * p / q, e.n};
}
RW_INLINE F erfc(F x) {
    F a = least(all(10.1f), magnitude(x));
    F y = times_power(erfc_scaled(widen(lower(a))), erfc_scaled(widen(upper(a))));
    return x < 0 ? 2 - y : y;
}
RW_INLINE scaled pow_scaled(D f, D e, D y) {  // ((1 + f) 2^e)^y, |f| <= 1/3
    D log2 = polynomial_64(f, 1.4426950408, -0.72134752, 0.480898438, -0.360673969, 0.28852959,
                           -0.240434142, 0.206454238, -0.180796167, 0.154326175, -0.137550039,
                           0.1760797, -0.165814552);
    return exp2_scaled(y * fma(f, log2, e));
}
RW_INLINE F pow_of_magnitude(F a, F y) {
    auto tiny = a < 0x1p-126f;
    F m = tiny ? a * 0x1p23f : a;
    I bits = exponent(m);
    F f = (F)((I)m - bits) - 1;
    F e = convert<F>(tiny ? bits - (23 << 23) : bits) * 0x1p-23f;
    e = a == 0 ? all(-INF) : a < INF ? e : a;
    F r = times_power(pow_scaled(widen(lower(f)), widen(lower(e)), widen(lower(y))),
                      pow_scaled(widen(upper(f)), widen(upper(e)), widen(upper(y))));
    return ((a == 1) & (y == y)) ? all(1.0f) : r;
}
RW_INLINE F pow(F x, F y) {
    F b = least(magnitude(y), all(0x1p24f));  // from 2^24 on every float is even
    I whole = convert<I>(b);
    auto fraction = convert<F>(whole) != b;
    F r = pow_of_magnitude(magnitude(x), y);
    r = (F)((I)r ^ ((I)x & ((fraction ? I{} : whole) << 31)));
    r = ((x < 0) & (x > -INF) & fraction) ? all(NOT_A_NUMBER) : r;
    return ((x == 1) | (y == 0)) ? all(1.0f) : r;
}

// ---- lifted to 16 lanes -------------------------------------------------------------------------
#define RW_LIFT(name) \
    RW_INLINE f32v name(f32v x) { RW_EACH(f32, name(x.c[k])) }
RW_LIFT(exp)
RW_LIFT(exp2)
RW_LIFT(expm1)
RW_LIFT(sigmoid)
RW_LIFT(log)
RW_LIFT(log2)
RW_LIFT(log10)
RW_LIFT(log1p)
RW_LIFT(tanh)
RW_LIFT(erf)
RW_LIFT(erfc)
#undef RW_LIFT
RW_INLINE f32v pow(f32v x, f32v y) { RW_EACH(f32, pow(x.c[k], y.c[k])) }
RW_INLINE f32v sine(f32v x, int later) { RW_EACH(f32, sine(x.c[k], later)) }

// ---- libm, lane by lane -------------------------------------------------------------------------
// Under names the compiler does not know: the bits of a constant argument are those of any other.
#define RW_STRING_OF(x) #x
#define RW_STRING(x) RW_STRING_OF(x)
#define RW_LIBM(T, name, ...) \
    extern "C" T libm_##name(__VA_ARGS__) noexcept __asm__(RW_STRING(__USER_LABEL_PREFIX__) #name);

template <class T> RW_INLINE V<T> lanewise(T (*f)(T), V<T> x) {
    T a[W];
    store(a, x);
    for (int i = 0; i < W; ++i) a[i] = f(a[i]);
    return load(a);
}
template <class T> RW_INLINE V<T> lanewise(T (*f)(T, T), V<T> x, V<T> y) {
    T a[W], b[W];
    store(a, x);
    store(b, y);
    for (int i = 0; i < W; ++i) a[i] = f(a[i], b[i]);
    return load(a);
}
#define RW_UNARY_64(name) \
    RW_LIBM(f64, name, f64) \
    RW_INLINE f64v name(f64v x) { return lanewise(libm_##name, x); }
#define RW_UNARY_BOTH(name) \
    RW_LIBM(f32, name##f, f32) \
    RW_INLINE f32v name(f32v x) { return lanewise(libm_##name##f, x); } \
    RW_UNARY_64(name)
#define RW_BINARY_64(name) \
    RW_LIBM(f64, name, f64, f64) \
    RW_INLINE f64v name(f64v x, f64v y) { return lanewise(libm_##name, x, y); }
#define RW_BINARY_BOTH(name) \
    RW_LIBM(f32, name##f, f32, f32) \
    RW_INLINE f32v name(f32v x, f32v y) { return lanewise(libm_##name##f, x, y); } \
    RW_BINARY_64(name)
RW_UNARY_64(exp)
RW_UNARY_64(exp2)
RW_UNARY_64(expm1)
RW_UNARY_64(log)
RW_UNARY_64(log2)
RW_UNARY_64(log10)
RW_UNARY_64(log1p)
RW_UNARY_64(tanh)
RW_UNARY_64(erf)
RW_UNARY_64(erfc)
RW_UNARY_64(sin)
RW_UNARY_64(cos)
RW_BINARY_64(pow)
RW_UNARY_BOTH(tan)
RW_UNARY_BOTH(asin)
RW_UNARY_BOTH(acos)
RW_UNARY_BOTH(atan)
RW_UNARY_BOTH(sinh)
RW_UNARY_BOTH(cosh)
RW_UNARY_BOTH(asinh)
RW_UNARY_BOTH(acosh)
RW_UNARY_BOTH(atanh)
RW_BINARY_BOTH(atan2)
RW_BINARY_BOTH(fmod)
RW_BINARY_BOTH(hypot)
RW_BINARY_BOTH(nextafter)
RW_LIBM(f32, lgammaf_r, f32, int*)
RW_LIBM(f64, lgamma_r, f64, int*)
static inline f32 lgamma_lane(f32 x) { int sign; return libm_lgammaf_r(x, &sign); }
static inline f64 lgamma_lane(f64 x) { int sign; return libm_lgamma_r(x, &sign); }
RW_INLINE f32v lgamma(f32v x) { return lanewise<f32>(lgamma_lane, x); }
RW_INLINE f64v lgamma(f64v x) { return lanewise<f64>(lgamma_lane, x); }

static inline f64 erfinv_lane(f64 y) {  // a rational first guess and two steps of Newton
    const f64 a = y < 0 ? -y : y, z = a <= 0.7 ? a * a : __builtin_sqrt(-libm_log((1 - a) / 2));
    f64 x = a <= 0.7
        ? a * (((-0.140543331 * z + 0.914624893) * z - 1.645349621) * z + 0.886226899) /
            ((((0.012229801 * z - 0.329097515) * z + 1.442710462) * z - 2.118377725) * z + 1)
        : (((1.641345311 * z + 3.429567803) * z - 1.624906493) * z - 1.970840454) /
            ((1.637067800 * z + 3.543889200) * z + 1);
    for (int i = 0; i < 2; ++i) x -= (libm_erf(x) - a) / (1.1283791670955126 * libm_exp(-x * x));
    return __builtin_copysign(a < 1 ? x : a == 1 ? __builtin_inf() : __builtin_nan(""), y);
}
RW_INLINE f64v erfinv(f64v x) { return lanewise<f64>(erfinv_lane, x); }
RW_INLINE f32v erfinv(f32v x) { return to_f32(erfinv(to_f64(x))); }

RW_INLINE f64v sigmoid(f64v x) {
    f64v e = exp(neg(abs(x)));
    RW_EACH(f64, (x.c[k] < 0 ? e.c[k] : all(1.0)) / (1 + e.c[k]))
}

// sin and cos of floats that are far out, where one step of reduction does not do.
RW_LIBM(f32, sinf, f32)
RW_LIBM(f32, cosf, f32)
static inline __attribute__((noinline, cold))
f32v far(f32 (*f)(f32), f32v y, f32v x, unsigned which) {
    f32 a[W], r[W];
    store(a, x);
    store(r, y);
    for (int i = 0; i < W; ++i)
        if (which >> i & 1) r[i] = f(a[i]);
    return load(r);
}
RW_INLINE f32v sin(f32v x) {
    f32v y = select(eq(x, f32v{}), x, sine(x, 0));
    unsigned which = bits(gt(abs(x), splat(FAR)));
    return __builtin_expect(which == 0, 1) ? y : far(libm_sinf, y, x, which);
}
RW_INLINE f32v cos(f32v x) {
    f32v y = sine(x, 1);
    unsigned which = bits(gt(abs(x), splat(FAR)));
    return __builtin_expect(which == 0, 1) ? y : far(libm_cosf, y, x, which);
}

// ---- division with PyTorch's rounding, integer powers -------------------------------------------
template <class T> RW_INLINE mask signs_differ(V<T> remains, V<T> divisor) {
    V<T> zero = {};
    return logical_and(ne(remains, zero), logical_xor(lt(remains, zero), lt(divisor, zero)));
}
template <class T> RW_INLINE V<T> remainder(V<T> x, V<T> y) {  // of the sign of y, as Python's %
    V<T> m = fmod(x, y);
    return select(signs_differ(m, y), add(m, y), m);
}
template <class T> RW_INLINE V<T> div_floor(V<T> x, V<T> y) {  // Python's //
    V<T> m = fmod(x, y), one = splat(T(1));
    if constexpr (!is_float<T>) {
        V<T> q = div_trunc(x, y);
        return select(signs_differ(m, y), sub(q, one), q);
    } else {
        V<T> q = div(sub(x, m), y);
        q = select(signs_differ(m, y), sub(q, one), q);
        V<T> whole = floor(q);
        whole = select(gt(sub(q, whole), splat(T(0.5))), add(whole, one), whole);
        whole = select(eq(q, V<T>{}), copysign(V<T>{}, div(x, y)), whole);
        return select(eq(y, V<T>{}), div(x, y), whole);
    }
}

template <class T> static inline T power(T x, T n) {  // by squaring; truncated to 0 when n < 0
    if (n < 0) return x == 1 ? 1 : x == -1 ? (n & 1 ? -1 : 1) : 0;
    T r = 1;
    for (; n != 0; n >>= 1, x *= x)
        if (n & 1) r *= x;
    return r;
}
RW_INLINE i32v pow(i32v x, i32v n) { return lanewise<i32>(power, x, n); }
RW_INLINE i64v pow(i64v x, i64v n) { return lanewise<i64>(power, x, n); }

}  // namespace rw
