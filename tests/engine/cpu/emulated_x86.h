// Instructions of newer x86 processors in plain C++, so that a processor with AVX2 runs the code that uses them.
//
// Include it before the decoder's sources, and define EMULATED_AVX_VNNI, EMULATED_AVX512, EMULATED_AVX512_VNNI or
// EMULATED_AMX. It defines the macros of these instruction sets after the compiler's header, which must not see them.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#if defined(EMULATED_AMX)
#define EMULATED_AVX512_VNNI
#define __AMX_INT8__ 1
#endif
#if defined(EMULATED_AVX512_VNNI)
#define EMULATED_AVX512
#define __AVX512VNNI__ 1
#endif
#if defined(EMULATED_AVX512)
#define __AVX512F__ 1
#define __AVX512BW__ 1
#endif
#if defined(EMULATED_AVX_VNNI)
#define __AVXVNNI__ 1
#endif

namespace emulated {

template <class Vector, class Element>
struct Lanes {
    static constexpr int kCount = sizeof(Vector) / sizeof(Element);
    Element lane[kCount];

    Lanes() = default;
    Lanes(const Vector& from) { std::memcpy(lane, &from, sizeof from); }
    operator Vector() const {
        Vector to;
        std::memcpy(&to, lane, sizeof to);
        return to;
    }
};

inline int16_t saturated(int32_t value) { return value > 32767 ? 32767 : value < -32768 ? -32768 : int16_t(value); }

// vpdpbusd
template <class Vector>
Vector dpbusd(Vector sums, Vector weights, Vector inputs) {
    Lanes<Vector, int32_t> result(sums);
    const Lanes<Vector, uint8_t> a(weights);
    const Lanes<Vector, int8_t> b(inputs);
    for (int i = 0; i < a.kCount; ++i) result.lane[i / 4] += a.lane[i] * b.lane[i];
    return result;
}

// vpmaddubsw
template <class Vector>
Vector maddubs(Vector weights, Vector inputs) {
    Lanes<Vector, int16_t> result;
    const Lanes<Vector, uint8_t> a(weights);
    const Lanes<Vector, int8_t> b(inputs);
    for (int i = 0; i < result.kCount; ++i)
        result.lane[i] = saturated(a.lane[2 * i] * b.lane[2 * i] + a.lane[2 * i + 1] * b.lane[2 * i + 1]);
    return result;
}

// vpmaddwd
template <class Vector>
Vector madd(Vector left, Vector right) {
    Lanes<Vector, int32_t> result;
    const Lanes<Vector, int16_t> a(left), b(right);
    for (int i = 0; i < result.kCount; ++i)
        result.lane[i] = a.lane[2 * i] * b.lane[2 * i] + a.lane[2 * i + 1] * b.lane[2 * i + 1];
    return result;
}

// vcvtph2ps
template <class From, class To>
To cvtph(From halves) {
    const Lanes<From, uint16_t> a(halves);
    Lanes<To, float> result;
    for (int i = 0; i < result.kCount; ++i) result.lane[i] = _cvtsh_ss(a.lane[i]);
    return result;
}

// vpmovdb
template <class From, class FromElement, class To, class ToElement>
To convert(From from) {
    const Lanes<From, FromElement> a(from);
    Lanes<To, ToElement> result;
    for (int i = 0; i < result.kCount; ++i) result.lane[i] = ToElement(a.lane[i]);
    return result;
}

// The eight tiles of AMX and their configuration.
struct Tiles {
    uint8_t rows[8] = {};
    uint16_t row_bytes[8] = {};
    int8_t bytes[8][16][64];
};
inline thread_local Tiles tiles;

inline void load_config(const void* config) {
    std::memcpy(tiles.row_bytes, static_cast<const char*>(config) + 16, sizeof tiles.row_bytes);
    std::memcpy(tiles.rows, static_cast<const char*>(config) + 48, sizeof tiles.rows);
}

inline void load_tile(int tile, const void* from, size_t stride) {
    for (int r = 0; r < tiles.rows[tile]; ++r)
        std::memcpy(tiles.bytes[tile][r], static_cast<const char*>(from) + r * stride, tiles.row_bytes[tile]);
}

inline void store_tile(int tile, void* to, size_t stride) {
    for (int r = 0; r < tiles.rows[tile]; ++r)
        std::memcpy(static_cast<char*>(to) + r * stride, tiles.bytes[tile][r], tiles.row_bytes[tile]);
}

// tdpbsud: signed bytes of `left`, unsigned bytes of `right`.
inline void multiply_tiles(int sums, int left, int right) {
    for (int m = 0; m < tiles.rows[sums]; ++m)
        for (int k = 0; k < tiles.row_bytes[left]; ++k)
            for (int n = 0; n < tiles.row_bytes[sums] / 4; ++n) {
                int32_t sum;
                std::memcpy(&sum, &tiles.bytes[sums][m][4 * n], 4);
                sum += tiles.bytes[left][m][k] * uint8_t(tiles.bytes[right][k / 4][4 * n + k % 4]);
                std::memcpy(&tiles.bytes[sums][m][4 * n], &sum, 4);
            }
}

}  // namespace emulated

#if defined(EMULATED_AVX_VNNI)
#define _mm256_dpbusd_avx_epi32 emulated::dpbusd<__m256i>
#endif

#if defined(EMULATED_AVX512)
#define _mm512_dpbusd_epi32 emulated::dpbusd<__m512i>
#define _mm512_maddubs_epi16 emulated::maddubs<__m512i>
#define _mm512_madd_epi16 emulated::madd<__m512i>
#define _mm512_cvtph_ps emulated::cvtph<__m256i, __m512>
#define _mm512_cvtepi32_epi8 emulated::convert<__m512i, int32_t, __m128i, int8_t>
#endif

#if defined(EMULATED_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#define syscall(...) 0  // the system allows AMX
#define _tile_loadconfig emulated::load_config
#define _tile_release()
#define _tile_zero(tile) std::memset(emulated::tiles.bytes[tile], 0, sizeof emulated::tiles.bytes[tile])
#define _tile_loadd emulated::load_tile
#define _tile_stored emulated::store_tile
#define _tile_dpbsud emulated::multiply_tiles
#endif
