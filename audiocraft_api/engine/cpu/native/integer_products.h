// The innermost integer kernel: sums of products of unsigned weight bytes and signed activation bytes, for as many
// outputs as a register has 32-bit sums.
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

// Outputs computed together: as many as a register has 32-bit lanes. The sums of eight rows then fit in the sixteen
// registers of AVX2, beside the weights; and GCC moves vectors that the processor does not have, such as those of 64
// bytes with AVX2, through memory.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kBlock = 4;
#elif defined(__AVX2__) && !defined(__AVX512BW__)
constexpr int kBlock = 8;
#else
constexpr int kBlock = 16;
#endif
constexpr int kQuads = 4;                // quads per pack
constexpr int kPackInputs = 4 * kQuads;  // inputs per pack
constexpr int kQuadBytes = 4 * kBlock;

template <int Bits>
constexpr int kPackBytes = kBlock * kPackInputs * Bits / 8;

template <int Bits>
constexpr int kPackQuads = kPackBytes<Bits> / kQuadBytes;

// Weights of a block's outputs x 4 inputs, output by output, one byte each.
typedef uint32_t Quad __attribute__((vector_size(kQuadBytes)));

// One sum per output of a block.
typedef int32_t Sums __attribute__((vector_size(kQuadBytes)));

// Weights are unsigned integers from 0 on, this one for zero.
template <int Bits>
constexpr int kZeroPoint = 1 << (Bits - 1);

// Where products take signed bytes, weights of 8 bits are stored with their highest bit inverted, which makes zero 0.
// Those of 6 bits are the same number either way.
#if defined(__ARM_FEATURE_DOTPROD)
template <int Bits>
constexpr bool kStoredSigned = Bits == 8;
#else
template <int Bits>
constexpr bool kStoredSigned = false;
#endif

// The zero point of weights as they are multiplied.
template <int Bits>
constexpr int kProductZeroPoint = kStoredSigned<Bits> ? 0 : kZeroPoint<Bits>;

inline Quad load_quad(const uint8_t* from) {
    Quad quad;
    std::memcpy(&quad, from, sizeof quad);
    return quad;
}

// Unpack a pack of four quads, as they are multiplied. With 6 bits it is stored as three: their low six bits are the
// first three quads, and their two high bits together are the fourth.
template <int Bits>
inline void unpack(const uint8_t* from, Quad (&quads)[kQuads]) {
    if (Bits == 8) {
        for (int i = 0; i < kQuads; ++i) quads[i] = load_quad(from + kQuadBytes * i);
        return;
    }
    const Quad a = load_quad(from), b = load_quad(from + kQuadBytes), c = load_quad(from + 2 * kQuadBytes);
    quads[0] = a & 0x3f3f3f3fu;
    quads[1] = b & 0x3f3f3f3fu;
    quads[2] = c & 0x3f3f3f3fu;
#if defined(__ARM_FEATURE_DOTPROD)
    // Each instruction shifts bytes to the right and keeps the bits that are shifted in.
    const uint8x16_t two = vsriq_n_u8(uint8x16_t(c), uint8x16_t(b), 2), three = vsriq_n_u8(two, uint8x16_t(a), 4);
    quads[3] = Quad(vshrq_n_u8(three, 2));
#else
    quads[3] = (a >> 6 & 0x03030303u) | (b >> 4 & 0x0c0c0c0cu) | (c >> 2 & 0x30303030u);
#endif
}

// Pack four quads of unsigned weights. `Word` is Quad, or uint32_t for the four inputs of a single output.
template <int Bits, class Word>
inline void pack(const Word (&quads)[kQuads], Word (&packed)[kPackQuads<Bits>]) {
    for (int i = 0; i < kPackQuads<Bits>; ++i)
        packed[i] = Bits == 8 ? quads[i] ^ (kStoredSigned<Bits> ? 0x80808080u : 0u)
                              : quads[i] | (quads[3] >> (2 * i) & 0x03030303u) << 6;
}

inline Sums sums_from(int32_t start) { return start - Sums{}; }

// The same four activations for every output.
inline Sums broadcast4(const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return sums_from(four);
}

#if defined(__ARM_FEATURE_DOTPROD)
#define NATIVE_INTEGER_KERNEL "neon-dotprod"

// Add the products of two quads and eight activations to the sums.
template <int Bits>
inline void dot8(Sums& sums, Quad first, Quad second, const int8_t* inputs) {
    const int8x8_t eight = vld1_s8(inputs);
    sums = Sums(vdotq_lane_s32(int32x4_t(sums), int8x16_t(first), eight, 0));
    sums = Sums(vdotq_lane_s32(int32x4_t(sums), int8x16_t(second), eight, 1));
}

#elif defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512BW__))

#if defined(__AVX512VNNI__)
#define NATIVE_INTEGER_KERNEL "avx512-vnni"
inline Sums add_products(Sums sums, Quad weights, Sums inputs) {
    return Sums(_mm512_dpbusd_epi32(__m512i(sums), __m512i(weights), __m512i(inputs)));
}
#else
#define NATIVE_INTEGER_KERNEL "avx-vnni"
inline Sums add_products(Sums sums, Quad weights, Sums inputs) {
    return Sums(_mm256_dpbusd_avx_epi32(__m256i(sums), __m256i(weights), __m256i(inputs)));
}
#endif

// Add the products of two quads and eight activations to the sums.
template <int Bits>
inline void dot8(Sums& sums, Quad first, Quad second, const int8_t* inputs) {
    sums = add_products(sums, first, broadcast4(inputs));
    sums = add_products(sums, second, broadcast4(inputs + 4));
}

#elif defined(__AVX2__)

typedef int16_t Words __attribute__((vector_size(kQuadBytes)));
typedef uint16_t UnsignedWords __attribute__((vector_size(kQuadBytes)));

// multiply_bytes: sums of two products of an unsigned and a signed byte, which saturate at 16 bits.
// multiply_words: sums of two products of signed words.
#if defined(__AVX512BW__)
#define NATIVE_INTEGER_KERNEL "avx512"
inline Words multiply_bytes(Quad a, Sums b) { return Words(_mm512_maddubs_epi16(__m512i(a), __m512i(b))); }
inline Sums multiply_words(Words a, Words b) { return Sums(_mm512_madd_epi16(__m512i(a), __m512i(b))); }
#else
#define NATIVE_INTEGER_KERNEL "avx2"
inline Words multiply_bytes(Quad a, Sums b) { return Words(_mm256_maddubs_epi16(__m256i(a), __m256i(b))); }
inline Sums multiply_words(Words a, Words b) { return Sums(_mm256_madd_epi16(__m256i(a), __m256i(b))); }
#endif

// The products of a quad of 8-bit weights, which multiply_bytes would saturate: even and odd bytes are multiplied
// separately as words.
inline Sums multiply_wide(Quad weights, Sums inputs) {
    const Words even = Words(UnsignedWords(inputs) << 8) >> 8, odd = Words(inputs) >> 8;
    const Words low = Words(weights) & 255, high = Words(UnsignedWords(weights) >> 8);
    return multiply_words(low, even) + multiply_words(high, odd);
}

// Add the products of two quads and eight activations to the sums. With six-bit weights, the sums of four products are
// at most 4 * 63 * 128 = 32,256, so that two quads are added before they are widened to 32 bits.
template <int Bits>
inline void dot8(Sums& sums, Quad first, Quad second, const int8_t* inputs) {
    const Sums left = broadcast4(inputs), right = broadcast4(inputs + 4);
    if (Bits == 6)
        sums += multiply_words(multiply_bytes(first, left) + multiply_bytes(second, right), Words{} + 1);
    else
        sums += multiply_wide(first, left) + multiply_wide(second, right);
}

#else
#define NATIVE_INTEGER_KERNEL "portable"

// Add the products of two quads and eight activations to the sums.
template <int Bits>
inline void dot8(Sums& sums, Quad first, Quad second, const int8_t* inputs) {
    uint8_t bytes[2][kBlock][4];
    std::memcpy(bytes[0], &first, sizeof first);
    std::memcpy(bytes[1], &second, sizeof second);
    for (int o = 0; o < kBlock; ++o)
        for (int j = 0; j < 8; ++j) sums[o] += int32_t(bytes[j / 4][o][j % 4]) * inputs[j];
}

#endif

// The sums of kWidth outputs from `output` on.
inline IntVec lanes(const Sums& sums, int output) {
    int32_t all[kBlock];
    std::memcpy(all, &sums, sizeof all);
    return load(all + output);
}

}  // namespace native
