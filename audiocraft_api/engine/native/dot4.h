// The integer heart: sixteen sums, each of four products of unsigned weight bytes and signed activation bytes.
//
// `Weights` are 16 outputs x 4 inputs, output by output. Integer sums are exact, so every variant below and the matrix
// unit (tiles.h) give the same bits. Six-bit weights are stored 64 in 48 bytes and unpacked in registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace native {

constexpr int kBlock = 16;  // outputs that are computed together

template <int Bits>
constexpr int kQuadBytes = kBlock * 4 * Bits / 8;  // packed bytes of 16 outputs x 4 inputs

// Spread 64 weights of six bits, four after another in three bytes, to one byte each.
inline void unpack6(const uint8_t* from, uint8_t* to) {
    for (int i = 0; i < 8; ++i) {
        uint64_t bits = 0;
        std::memcpy(&bits, from + 6 * i, 6);
        for (int j = 0; j < 8; ++j) to[8 * i + j] = bits >> (6 * j) & 63;
    }
}

inline void pack6(const uint8_t* from, uint8_t* to) {
    for (int i = 0; i < 8; ++i) {
        uint64_t bits = 0;
        for (int j = 0; j < 8; ++j) bits |= uint64_t(from[8 * i + j]) << (6 * j);
        std::memcpy(to + 6 * i, &bits, 6);
    }
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define NATIVE_DOT4 "avx512-vnni"

using Sums = __m512i;
using Weights = __m512i;

inline Sums zero_sums() { return _mm512_setzero_si512(); }
inline void store_sums(int32_t* to, Sums sums) { _mm512_storeu_si512(to, sums); }

template <int Bits>
inline Weights load_weights(const uint8_t* from) {
    const __m512i bytes = _mm512_loadu_si512(from);
    if (Bits == 8) return bytes;
    // Six bytes to each eight, then eight fields of six bits from each.
    const __m512i spread = _mm512_set_epi64(
        0x00002f2e2d2c2b2a, 0x0000292827262524, 0x0000232221201f1e, 0x00001d1c1b1a1918, 0x0000171615141312,
        0x000011100f0e0d0c, 0x00000b0a09080706, 0x0000050403020100);
    const __m512i shifts = _mm512_set1_epi64(0x2a241e18120c0600);
    const __m512i fields = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(spread, bytes));
    return _mm512_and_si512(fields, _mm512_set1_epi8(63));
}

inline void dot4(Sums& sums, Weights weights, const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    sums = _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(four));
}

#elif defined(__AVX2__)
#define NATIVE_DOT4 "avx2"

struct Sums {
    __m256i half[2];
};
using Weights = Sums;

inline Sums zero_sums() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
inline void store_sums(int32_t* to, const Sums& sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums.half[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), sums.half[1]);
}

template <int Bits>
inline Weights load_weights(const uint8_t* from) {
    uint8_t bytes[64];
    if (Bits == 6) {
        unpack6(from, bytes);
        from = bytes;
    }
    const auto* halves = reinterpret_cast<const __m256i*>(from);
    return {{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
}

inline void dot4(Sums& sums, const Weights& weights, const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    const __m256i quad = _mm256_set1_epi32(four);
#if defined(__AVXVNNI__)
    for (int i = 0; i < 2; ++i) sums.half[i] = _mm256_dpbusd_avx_epi32(sums.half[i], weights.half[i], quad);
#else
    // In 16 bits, even and odd bytes apart: the byte multiply-add would saturate.
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), odd = _mm256_srai_epi16(quad, 8);
    for (int i = 0; i < 2; ++i) {
        const __m256i low = _mm256_and_si256(weights.half[i], _mm256_set1_epi16(255));
        const __m256i high = _mm256_srli_epi16(weights.half[i], 8);
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        sums.half[i] = _mm256_add_epi32(sums.half[i], products);
    }
#endif
}

#else
#define NATIVE_DOT4 "portable"

struct Sums {
    int32_t lane[kBlock];
};
struct Weights {
    uint8_t byte[kBlock * 4];
};

inline Sums zero_sums() { return {}; }
inline void store_sums(int32_t* to, const Sums& sums) { std::memcpy(to, sums.lane, sizeof sums.lane); }

template <int Bits>
inline Weights load_weights(const uint8_t* from) {
    Weights weights;
    if (Bits == 6)
        unpack6(from, weights.byte);
    else
        std::memcpy(weights.byte, from, sizeof weights.byte);
    return weights;
}

inline void dot4(Sums& sums, const Weights& weights, const int8_t* inputs) {
    for (int i = 0; i < kBlock; ++i)
        for (int j = 0; j < 4; ++j) sums.lane[i] += int32_t(weights.byte[4 * i + j]) * inputs[j];
}

#endif

}  // namespace native
