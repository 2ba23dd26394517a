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
typedef uint32_t Quad __attribute__((vector_size(64)));

inline Quad load_quad(const uint8_t* from) {
    Quad quad;
    std::memcpy(&quad, from, sizeof quad);
    return quad;
}

inline void store_quad(uint8_t* to, Quad quad) { std::memcpy(to, &quad, sizeof quad); }

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

inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    __m256i half[2];
    std::memcpy(half, &weights, sizeof half);
    int32_t four;
    std::memcpy(&four, inputs, 4);
    const __m256i quad = _mm256_set1_epi32(four);
#if defined(__AVXVNNI__)
    for (int i = 0; i < 2; ++i) sums.half[i] = _mm256_dpbusd_avx_epi32(sums.half[i], half[i], quad);
#else
    // Multiply even and odd bytes separately in 16 bits: the byte multiply-add instruction would saturate.
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), odd = _mm256_srai_epi16(quad, 8);
    for (int i = 0; i < 2; ++i) {
        const __m256i low = _mm256_and_si256(half[i], _mm256_set1_epi16(255));
        const __m256i high = _mm256_srli_epi16(half[i], 8);
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        sums.half[i] = _mm256_add_epi32(sums.half[i], products);
    }
#endif
}

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

inline void dot4(Sums& sums, Quad weights, const int8_t* inputs) {
    uint8_t bytes[sizeof weights];
    std::memcpy(bytes, &weights, sizeof bytes);
    for (int i = 0; i < kBlock; ++i)
        for (int j = 0; j < 4; ++j) sums.lane[i] += int32_t(bytes[4 * i + j]) * inputs[j];
}

#endif

// The sums of kWidth outputs from `output` on.
inline IntVec lanes(const Sums& sums, int output) {
    int32_t all[kBlock];
    std::memcpy(all, &sums, sizeof all);
    return load(all + output);
}

}  // namespace native
