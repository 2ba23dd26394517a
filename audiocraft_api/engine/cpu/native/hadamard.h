// The Hadamard transform: a rotation that spreads an outlier in one dimension over all dimensions.
#pragma once

#include "vec.h"

namespace native {

// The 16 x 16 Hadamard matrix (Sylvester's construction): -1 where the two indices share an odd number of bits.
struct HadamardMatrix {
    alignas(64) float row[16][16];
    constexpr HadamardMatrix() : row() {
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 16; ++j) {
                const int shared = i & j, folded = shared ^ shared >> 2;
                row[i][j] = (folded ^ folded >> 1) & 1 ? -1.0f : 1.0f;
            }
    }
};

constexpr HadamardMatrix kHadamard;

// Transform `count` floats, a multiple of 16, in blocks of the largest power of two that divides `count`. Returns the
// block size; the matrix is not normalized, so vectors grow by the square root of it.
inline float hadamard_transform(const float* from, int count, float* to) {
    for (int begin = 0; begin < count; begin += 16)
        for (int v = 0; v < 16; v += kWidth) {
            Vec total = Vec{};
            for (int i = 0; i < 16; ++i) total += from[begin + i] * load(&kHadamard.row[i][v]);
            store(to + begin + v, total);
        }
    int block = 16;
    for (; count % (2 * block) == 0; block *= 2)
        for (int begin = 0; begin < count; begin += 2 * block)
            for (int i = begin; i < begin + block; i += kWidth) {
                const Vec first = load(to + i), second = load(to + i + block);
                store(to + i, first + second);
                store(to + i + block, first - second);
            }
    return float(block);
}

}  // namespace native
