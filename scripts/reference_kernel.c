/* What one would write by hand for one program: tanh, sigmoid, binary cross-entropy, SGD or Adam, batches of 32, and the
 * same measures as the lanes engine records. One network per lane of an AVX-512 register. Only scripts/benchmark.py
 * builds it, to have something to hold the compiled programs against:
 *
 *     cc -O3 -march=native -shared -fPIC -o reference_kernel.so reference_kernel.c
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

typedef __m512 V;
typedef __m512i I;

#define S(x) _mm512_set1_ps(x)
#define FMA _mm512_fmadd_ps
#define FNMA _mm512_fnmadd_ps
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define MUL _mm512_mul_ps
#define DIV _mm512_div_ps
#define BITS _mm512_castps_si512
#define REAL _mm512_castsi512_ps
#define INLINE static inline __attribute__((always_inline))
#define UNITS 8
#define WIDTH (4 * UNITS + 1)

static const float EXP[] = {0.5000000044118259f,    0.16666666366093044f,  0.041666360922360056f,
                            0.008333390174102884f,  0.0013940630399284163f, 0.00019845513745999277f};
static const float LOG[] = {0.33333331703564567f, -0.25000820992847134f, 0.200012274924777f,   -0.16623358746905242f,
                            0.14201742431759934f, -0.13160156383603266f, 0.12761680938988987f, -0.07634688630854013f};

INLINE V polynomial(V x, const float *c, int degree) {
    V result = S(c[degree]);
    for (int i = degree - 1; i >= 0; i--) result = FMA(result, x, S(c[i]));
    return result;
}

/* t / (t + 2) of t = e^(2 |x|) - 1, within 2.5 units in the last place, as in xor_study/engines/lanes/functions.py. */
INLINE V tanh_(V x) {
    V size = _mm512_min_ps(S(18.2f), _mm512_abs_ps(ADD(x, x)));
    V magic = S(12582912.0f + 127.0f);
    V shifted = FMA(size, S(1.44269504f), magic);
    V power = REAL(_mm512_slli_epi32(BITS(shifted), 23));
    V rest = FMA(SUB(magic, shifted), S(0.69314718f), size);
    V less = FMA(polynomial(rest, EXP, 5), MUL(rest, rest), rest);
    V t = FMA(power, less, SUB(power, S(1)));
    V result = DIV(t, ADD(t, S(2)));
    return REAL(_mm512_ternarylogic_epi32(BITS(result), BITS(x), _mm512_set1_epi32(0x80000000), 0xf8));
}

INLINE V exp_(V x) {
    x = _mm512_max_ps(S(-104), _mm512_min_ps(S(89), x));
    V magic = S(12582912.0f), shifted = FMA(x, S(1.44269504f), magic), nearest = SUB(magic, shifted);
    V rest = FMA(nearest, S(-2.12194440e-4f), FMA(nearest, S(0.693359375f), x));
    V value = ADD(FMA(polynomial(rest, EXP, 5), MUL(rest, rest), rest), S(1));
    I n = _mm512_sub_epi32(BITS(shifted), BITS(magic)), half = _mm512_srai_epi32(n, 1), bias = _mm512_set1_epi32(127);
    V first = REAL(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23));
    V second = REAL(_mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23));
    return MUL(MUL(value, first), second);
}

/* log(x + lost), for x = 1 + y where `lost` is what the sum lost of y: log of a probability, log1p of minus one. */
INLINE V log_(V x, V lost, int tiny) {
    V shift = S(0);
    if (tiny) {
        __mmask16 small = _mm512_cmp_ps_mask(x, S(1.17549435e-38f), _CMP_LT_OQ);
        x = _mm512_mask_mul_ps(x, small, x, S(8388608.0f));
        shift = _mm512_maskz_mov_ps(small, S(23));
    }
    I exponent = _mm512_srai_epi32(_mm512_sub_epi32(BITS(x), _mm512_set1_epi32(0x3f3504f3)), 23);
    V f = SUB(REAL(_mm512_sub_epi32(BITS(x), _mm512_slli_epi32(exponent, 23))), S(1));
    if (!tiny) {
        I inverse = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127), exponent), 23);
        f = FMA(lost, REAL(inverse), f);
    }
    V n = SUB(_mm512_cvtepi32_ps(exponent), shift), square = MUL(f, f);
    V result = MUL(MUL(polynomial(f, LOG, 7), f), square);
    result = ADD(f, FMA(square, S(-0.5f), FMA(n, S(-2.12194440e-4f), result)));
    result = FMA(n, S(0.693359375f), result);
    result = _mm512_mask_mov_ps(result, _mm512_cmp_ps_mask(x, S(0), _CMP_EQ_OQ), S(-INFINITY));
    return _mm512_mask_mov_ps(S(NAN), _mm512_cmp_ps_mask(x, S(0), _CMP_GE_OQ), result); /* NaN of NaN */
}

INLINE void draw(I key0, I key1, int64_t step, V *counts) {
    I word[2], index = _mm512_set1_epi64(step * 0x9E3779B97F4A7C15LL), keys[2] = {key0, key1};
    for (int h = 0; h < 2; h++) {
        I z = _mm512_add_epi64(keys[h], index);
        z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)), _mm512_set1_epi64(0xBF58476D1CE4E5B9LL));
        z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)), _mm512_set1_epi64(0x94D049BB133111EBLL));
        word[h] = _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
    }
    I x1 = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(word[0])), _mm512_cvtepi64_epi32(word[1]), 1);
    I high[2] = {_mm512_srli_epi64(word[0], 32), _mm512_srli_epi64(word[1], 32)};
    I x2 = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(high[0])), _mm512_cvtepi64_epi32(high[1]), 1);
    I both = _mm512_popcnt_epi32(_mm512_and_si512(x1, x2)), one = _mm512_popcnt_epi32(x1), two = _mm512_popcnt_epi32(x2);
    counts[0] = _mm512_cvtepi32_ps(
        _mm512_add_epi32(_mm512_sub_epi32(_mm512_sub_epi32(_mm512_set1_epi32(32), one), two), both));
    counts[1] = _mm512_cvtepi32_ps(_mm512_sub_epi32(two, both));
    counts[2] = _mm512_cvtepi32_ps(_mm512_sub_epi32(one, both));
    counts[3] = _mm512_cvtepi32_ps(both);
}

typedef struct {
    V least, largest, logit, norm;
    I first, wrong, right;
    __m512d low, high;
} Record;

INLINE void update(float *p, float *m, float *v, V g, V lr, V root, int adam, V *finite) {
    V old = _mm512_load_ps(p), now;
    if (adam) {
        V mean = _mm512_load_ps(m), square = _mm512_load_ps(v);
        mean = FMA(S(0.1f), SUB(g, mean), mean);
        square = FMA(MUL(S(0.001f), g), g, MUL(S(0.999f), square));
        _mm512_store_ps(m, mean);
        _mm512_store_ps(v, square);
        now = SUB(old, DIV(MUL(lr, mean), FMA(_mm512_sqrt_ps(square), root, S(1e-8f))));
    } else {
        now = FNMA(lr, g, old);
    }
    _mm512_store_ps(p, now);
    *finite = _mm512_or_ps(*finite, _mm512_or_ps(SUB(now, now), SUB(g, g)));
}

/* Parameters in torch's order (hidden.weight, hidden.bias, output.weight, output.bias), 16 networks beside each other. */
INLINE void train(float *p, float *m, float *v, V lr, const int64_t *key, const float *schedule, int64_t steps, int adam,
                  Record *record) {
    I key0 = _mm512_load_si512(key), key1 = _mm512_load_si512(key + 8);
    Record r = *record;
    for (int64_t t = 0; t < steps; t++) {
        V counts[4], h[4][UNITS], z[4], dz[4], loss = S(0), squares = S(0), finite = S(0);
        draw(key0, key1, t + 1, counts);
        for (int k = 0; k < 4; k++) z[k] = _mm512_load_ps(p + 16 * (WIDTH - 1));
#pragma GCC unroll 8
        for (int j = 0; j < UNITS; j++) {
            V w1 = _mm512_load_ps(p + 32 * j), w2 = _mm512_load_ps(p + 32 * j + 16);
            V b = _mm512_load_ps(p + 16 * (2 * UNITS + j)), w = _mm512_load_ps(p + 16 * (3 * UNITS + j)), b1 = ADD(b, w1);
            V a[4] = {b, ADD(b, w2), b1, ADD(b1, w2)};
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                h[k][j] = tanh_(a[k]);
                z[k] = FMA(h[k][j], w, z[k]);
            }
        }
        I right = _mm512_setzero_si512();
        V most = S(0);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            int target = k == 1 || k == 2;
            V one = S(1), probability = DIV(one, ADD(one, exp_(SUB(S(0), z[k])))), rest = SUB(one, probability);
            V lost = SUB(SUB(S(0), probability), SUB(rest, one));
            V log = target ? log_(probability, S(0), 1) : log_(rest, lost, 0);
            V cost = SUB(S(0), _mm512_max_ps(S(-100), log)); /* NaN stays */
            V product = MUL(rest, probability);
            V d = DIV(MUL(S(1 / 32.0f), target ? SUB(probability, one) : probability), _mm512_max_ps(S(1e-12f), product));
            d = MUL(d, product);
            __mmask16 present = _mm512_cmp_ps_mask(counts[k], S(0), _CMP_GT_OQ);
            dz[k] = _mm512_maskz_mul_ps(present, counts[k], d);
            loss = ADD(loss, _mm512_maskz_mul_ps(present, counts[k], cost));
            __mmask16 good = _mm512_cmp_ps_mask(probability, S(0.5f), target ? _CMP_GT_OQ : _CMP_LT_OQ);
            right = _mm512_mask_add_epi32(right, good, right, _mm512_set1_epi32(1));
            most = REAL(_mm512_max_epu32(BITS(most), BITS(_mm512_abs_ps(z[k]))));
        }
        loss = MUL(loss, S(1 / 32.0f));
        V rate = adam ? MUL(lr, S(schedule[2 * t])) : lr, root = adam ? S(schedule[2 * t + 1]) : S(0);
#pragma GCC unroll 8
        for (int j = 0; j < UNITS; j++) {
            V w = _mm512_load_ps(p + 16 * (3 * UNITS + j)), da[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) da[k] = MUL(MUL(dz[k], w), FNMA(h[k][j], h[k][j], S(1)));
            V gw = FMA(dz[3], h[3][j], FMA(dz[2], h[2][j], FMA(dz[1], h[1][j], MUL(dz[0], h[0][j]))));
            V g1 = ADD(da[2], da[3]), g2 = ADD(da[1], da[3]), gb = ADD(ADD(da[0], da[1]), g1);
            squares = FMA(gb, gb, FMA(g2, g2, FMA(g1, g1, FMA(gw, gw, squares))));
            int at[4] = {2 * j, 2 * j + 1, 2 * UNITS + j, 3 * UNITS + j};
            V g[4] = {g1, g2, gb, gw};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                update(p + 16 * at[i], m + 16 * at[i], v + 16 * at[i], g[i], rate, root, adam, &finite);
        }
        V gz = ADD(ADD(dz[0], dz[1]), ADD(dz[2], dz[3]));
        squares = FMA(gz, gz, squares);
        update(p + 16 * (WIDTH - 1), m + 16 * (WIDTH - 1), v + 16 * (WIDTH - 1), gz, rate, root, adam, &finite);
        finite = _mm512_or_ps(finite, SUB(loss, loss));

        I number = _mm512_set1_epi32((int)(t + 1));
        __mmask16 bad = _mm512_test_epi32_mask(BITS(finite), BITS(finite));
        __mmask16 unseen = _mm512_testn_epi32_mask(r.first, r.first);
        r.first = _mm512_mask_mov_epi32(r.first, bad & unseen, number);
        r.wrong = _mm512_mask_mov_epi32(r.wrong, _mm512_cmplt_epi32_mask(right, _mm512_set1_epi32(4)), number);
        r.right = right;
        r.least = _mm512_min_ps(loss, r.least);
        r.largest = _mm512_max_ps(loss, r.largest);
        r.logit = _mm512_max_ps(most, r.logit);
        r.norm = _mm512_max_ps(_mm512_sqrt_ps(squares), r.norm);
        r.low = _mm512_add_pd(r.low, _mm512_cvtps_pd(_mm512_castps512_ps256(loss)));
        r.high = _mm512_add_pd(r.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(loss, 1)));
    }
    *record = r;
}

#define ENTRY(name, adam)                                                                                              \
    void name(float *p, float *m, float *v, const float *lr, const int64_t *key, const float *schedule, int64_t blocks, \
              int64_t steps, Record *records) {                                                                        \
        for (int64_t b = 0; b < blocks; b++)                                                                           \
            train(p + b * 16 * WIDTH, m + b * 16 * WIDTH, v + b * 16 * WIDTH, _mm512_load_ps(lr + 16 * b), key + 16 * b, \
                  schedule, steps, adam, records + b);                                                                 \
    }

ENTRY(sgd, 0)
ENTRY(adam, 1)
