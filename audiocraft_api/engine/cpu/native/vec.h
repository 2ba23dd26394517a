// Short vectors of floats in the compiler's vector type, and the few functions that need more than arithmetic.
//
// The width is that of the target processor. A result depends on the width, never on the number of rows or threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace native {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));

inline Vec splat(float value) { return value - Vec{}; }

inline Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline IntVec load(const int32_t* from) {
    IntVec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// The sum of the lanes, in a fixed order.
inline float sum(Vec value) {
    float lanes[kWidth];
    std::memcpy(lanes, &value, sizeof value);
    for (int width = kWidth / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline Vec abs(Vec value) { return max(value, -value); }

inline float max(Vec value) {
    float best = value[0];
    for (int i = 1; i < kWidth; ++i) best = value[i] > best ? value[i] : best;
    return best;
}

inline int32_t sum(IntVec value) {
    int32_t total = 0;
    for (int i = 0; i < kWidth; ++i) total += value[i];
    return total;
}

// float16 and bfloat16 as raw bits. Conversions to 16 bits round to nearest even.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

inline float to_float(BFloat value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

inline float to_float(Half value) {
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#elif defined(__aarch64__)
    __fp16 half;
    std::memcpy(&half, &value, 2);
    return half;
#else
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
    // Scaling by 2^112 corrects the exponent bias, also of subnormals. Infinities do not occur in weights.
    const uint32_t bits = magnitude << 13;
    float result;
    std::memcpy(&result, &bits, 4);
    result *= 0x1p112f;
    return sign ? -result : result;
#endif
}

inline BFloat to_bfloat(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline Half to_half(float value) {
#if defined(__F16C__)
    return {uint16_t(_cvtss_sh(value, 0))};
#elif defined(__aarch64__)
    const __fp16 half = value;
    Half result;
    std::memcpy(&result, &half, 2);
    return result;
#else
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return {uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00))};
    if (bits < 0x38800000) {  // subnormal: adding 0.5 lets the addition round at the right bit
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, 4);
        return {uint16_t(sign | (bits - 0x3f000000))};
    }
    return {uint16_t(sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13))};
#endif
}

inline Vec load(const Half* from) {
#if defined(__AVX512F__)
    return Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX__) && defined(__F16C__)
    return Vec(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
    return Vec(vcvt_f32_f16(vld1_f16(reinterpret_cast<const __fp16*>(from))));
#else
    Vec value;
    for (int i = 0; i < kWidth; ++i) value[i] = to_float(from[i]);
    return value;
#endif
}

inline Vec load(const BFloat* from) {
#if defined(__aarch64__)  // GCC 12 widens lane by lane
    return Vec(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(from)), 16));
#else
    typedef uint16_t Bits __attribute__((vector_size(kWidth * 2)));
    typedef uint32_t Wide __attribute__((vector_size(kWidth * 4)));
    Bits bits;
    std::memcpy(&bits, from, sizeof bits);
    return Vec(__builtin_convertvector(bits, Wide) << 16);
#endif
}

// Store the low byte of each lane, with intrinsics: compilers generate poor code for it.
inline void store(int8_t* to, IntVec value) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(value)));
#elif defined(__AVX2__)
    const __m256i low_bytes = _mm256_shuffle_epi8(__m256i(value), _mm256_set1_epi32(0x0c080400));  // in both halves
    const int32_t first = _mm256_extract_epi32(low_bytes, 0), second = _mm256_extract_epi32(low_bytes, 4);
    std::memcpy(to, &first, 4);
    std::memcpy(to + 4, &second, 4);
#elif defined(__aarch64__)
    const int16x4_t words = vmovn_s32(int32x4_t(value));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    std::memcpy(to, &bytes, kWidth);
#else
    for (int i = 0; i < kWidth; ++i) to[i] = int8_t(value[i]);
#endif
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer in the low bits

inline IntVec round_to_int(Vec value) { return IntVec(value + kRound) - 0x4b400000; }

// The largest magnitude of `count` floats, a multiple of kWidth.
inline float max_abs(const float* from, int count) {
    Vec largest = Vec{};
    for (int i = 0; i < count; i += kWidth) largest = max(largest, abs(load(from + i)));
    return max(largest);
}

// The sum of squares of `count` floats, a multiple of kWidth.
inline float sum_of_squares(const float* from, int count) {
    Vec squares = Vec{};
    for (int i = 0; i < count; i += kWidth) squares += load(from + i) * load(from + i);
    return sum(squares);
}

// e^x to about 1 ulp: 2^n times a Taylor polynomial on |r| <= ln 2 / 2. Below -87 the result is about 1e-38.
inline Vec exp(Vec x) {
    const Vec low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : (x > high ? high : x);
    const Vec shifted = x * 1.44269504f + kRound;
    const Vec n = shifted - kRound;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * Vec((IntVec(shifted) << 23) + 0x3f800000);
}

}  // namespace native
