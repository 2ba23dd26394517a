// The innermost integer kernel: sixteen sums, each of four products of an unsigned weight byte and a signed activation
// byte.
//
// Integer sums are exact, so every variant below and the AMX kernel (tiles.h) return the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace native {

constexpr int kBlock = 16;               // outputs computed together
constexpr int kQuads = 4;                // quads per pack
constexpr int kPackInputs = 4 * kQuads;  // inputs per pack

template <int Bits>
constexpr int kPackBytes = kBlock * kPackInputs * Bits / 8;

template <int Bits>
constexpr int kPackQuads = kPackBytes<Bits> / 64;

// Weights of 16 outputs x 4 inputs, output by output, one byte each.
#if defined(__AVX2__) && !defined(__AVX512F__)
// Two registers, and not one vector of 64 bytes: GCC moves such a vector through memory in pieces of 16 bytes, which
// takes longer than the products.
struct Quad {
    typedef uint32_t Half __attribute__((vector_size(32)));
    Half half[2];

    friend Quad operator&(Quad a, uint32_t mask) { return {{a.half[0] & mask, a.half[1] & mask}}; }
    friend Quad operator|(Quad a, Quad b) { return {{a.half[0] | b.half[0], a.half[1] | b.half[1]}}; }
    friend Quad operator>>(Quad a, int bits) { return {{a.half[0] >> bits, a.half[1] >> bits}}; }
    friend Quad operator<<(Quad a, int bits) { return {{a.half[0] << bits, a.half[1] << bits}}; }
};

inline Quad load_quad(const uint8_t* from) {
    Quad quad;
    for (int i = 0; i < 2; ++i) std::memcpy(&quad.half[i], from + 32 * i, 32);
    return quad;
}

inline void store_quad(uint8_t* to, Quad quad) {
    for (int i = 0; i < 2; ++i) std::memcpy(to + 32 * i, &quad.half[i], 32);
}
#else
typedef uint32_t Quad __attribute__((vector_size(64)));

inline Quad load_quad(const uint8_t* from) {
    Quad quad;
    std::memcpy(&quad, from, sizeof quad);
    return quad;
}

inline void store_quad(uint8_t* to, Quad quad) { std::memcpy(to, &quad, sizeof quad); }
#endif

// Unpack a pack of four quads. With 6 bits it is three times 64 bytes: their low six bits are the first three quads,
// and their two high bits together are the fourth.
template <int Bits>
inline void unpack(const uint8_t* from, Quad (&quads)[kQuads]) {
    if (Bits == 8) {
        for (int i = 0; i < kQuads; ++i) quads[i] = load_quad(from + 64 * i);
        return;
    }
    const Quad a = load_quad(from), b = load_quad(from + 64), c = load_quad(from + 128);
    quads[0] = a & 0x3f3f3f3fu;
    quads[1] = b & 0x3f3f3f3fu;
    quads[2] = c & 0x3f3f3f3fu;
    quads[3] = (a >> 6 & 0x03030303u) | (b >> 4 & 0x0c0c0c0cu) | (c >> 2 & 0x30303030u);
}

// The inverse of unpack. `Word` is Quad, or uint32_t for the four inputs of a single output.
template <int Bits, class Word>
inline void pack(const Word (&quads)[kQuads], Word (&packed)[kPackQuads<Bits>]) {
    for (int i = 0; i < kPackQuads<Bits>; ++i)
        packed[i] = Bits == 8 ? quads[i] : quads[i] | (quads[3] >> (2 * i) & 0x03030303u) << 6;
}

#if defined(__AVX512VNNI__)
#define NATIVE_INTEGER_KERNEL "avx512-vnni"

using Sums = __m512i;

inline Sums sums_from(int32_t start) { return _mm512_set1_epi32(start); }

template <int Bits>
inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    sums = _mm512_dpbusd_epi32(sums, __m512i(weights), _mm512_set1_epi32(four));
}

#elif defined(__AVX2__)
#define NATIVE_INTEGER_KERNEL "avx2"

struct Sums {
    __m256i half[2];
};

inline Sums sums_from(int32_t start) { return {{_mm256_set1_epi32(start), _mm256_set1_epi32(start)}}; }

inline __m256i broadcast4(const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return _mm256_set1_epi32(four);
}

#if defined(__AVXVNNI__)

template <int Bits>
inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    const __m256i quad = broadcast4(inputs);
    for (int i = 0; i < 2; ++i) sums.half[i] = _mm256_dpbusd_avx_epi32(sums.half[i], __m256i(weights.half[i]), quad);
}

#else
#define NATIVE_SIX_BIT_PAIRS 1

template <int Bits>
inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    const __m256i quad = broadcast4(inputs);
    if (Bits == 6) {
        for (int i = 0; i < 2; ++i) {
            const __m256i pairs = _mm256_maddubs_epi16(__m256i(weights.half[i]), quad);
            sums.half[i] = _mm256_add_epi32(sums.half[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        return;
    }
    // Multiply even and odd bytes separately in 16 bits: the byte multiply-add instruction would saturate.
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), odd = _mm256_srai_epi16(quad, 8);
    for (int i = 0; i < 2; ++i) {
        const __m256i low = _mm256_and_si256(__m256i(weights.half[i]), _mm256_set1_epi16(255));
        const __m256i high = _mm256_srli_epi16(__m256i(weights.half[i]), 8);
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        sums.half[i] = _mm256_add_epi32(sums.half[i], products);
    }
}

// The four dot4 of a pack of six-bit weights. The sums of four products, at most 4 * 63 * 128 = 32,256, fit in 16 bits,
// so that two quads are added before they are widened to 32 bits.
inline void dot16(Sums& sums, const Quad (&quads)[kQuads], const int8_t* inputs) {
    __m256i four[kQuads];
    for (int q = 0; q < kQuads; ++q) four[q] = broadcast4(inputs + 4 * q);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i) {
        const auto pairs = [&](int q) { return _mm256_maddubs_epi16(__m256i(quads[q].half[i]), four[q]); };
        const __m256i first = _mm256_add_epi16(pairs(0), pairs(1)), second = _mm256_add_epi16(pairs(2), pairs(3));
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones));
        sums.half[i] = _mm256_add_epi32(sums.half[i], products);
    }
}

#endif

#else
#define NATIVE_INTEGER_KERNEL "portable"

struct Sums {
    int32_t lane[kBlock];
};
inline Sums sums_from(int32_t start) {
    Sums sums;
    for (int32_t& lane : sums.lane) lane = start;
    return sums;
}

template <int Bits>
inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    uint8_t bytes[sizeof weights];
    std::memcpy(bytes, &weights, sizeof bytes);
    for (int i = 0; i < kBlock; ++i)
        for (int j = 0; j < 4; ++j) sums.lane[i] += int32_t(bytes[4 * i + j]) * inputs[j];
}

#endif

// Add the products of a pack of weights and 16 inputs of each row, which are `stride` bytes apart.
template <int Bits, int Rows>
[[gnu::always_inline]] inline void add_products(Sums (&sums)[Rows], const Quad (&quads)[kQuads], const int8_t* inputs,
                                                size_t stride) {
#if defined(NATIVE_SIX_BIT_PAIRS)
    if (Bits == 6) {
        for (int r = 0; r < Rows; ++r) dot16(sums[r], quads, inputs + r * stride);
        return;
    }
#endif
    for (int q = 0; q < kQuads; ++q)
        for (int r = 0; r < Rows; ++r) dot4<Bits>(sums[r], quads[q], inputs + 4 * q + r * stride);
}

// The sums of kWidth outputs from `output` on.
inline IntVec lanes(const Sums& sums, int output) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return IntVec(sums.half[output / kWidth]);
#else
    int32_t all[kBlock];
    std::memcpy(all, &sums, sizeof all);
    return load(all + output);
#endif
}

}  // namespace native
