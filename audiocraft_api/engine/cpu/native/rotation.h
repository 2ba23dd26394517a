// A rotation that spreads what stands out in one dimension over all of them.
#pragma once

#include "vec.h"

namespace native {

// Hadamard's matrix of 16 (Sylvester's construction): -1 where the indices share an odd number of bits.
struct Signs {
    alignas(64) float row[16][16];
    constexpr Signs() : row() {
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 16; ++j) {
                const int shared = i & j, folded = shared ^ shared >> 2;
                row[i][j] = (folded ^ folded >> 1) & 1 ? -1.0f : 1.0f;
            }
    }
};

constexpr Signs kSigns;

// Multiply `count` floats, a multiple of 16, by Hadamard's matrix, in the largest blocks of a power of two that divides
// it. Lengths grow by the root of what is returned, the block.
inline float rotate(const float* from, int count, float* to) {
    for (int begin = 0; begin < count; begin += 16)
        for (int v = 0; v < 16; v += kWidth) {
            Vec total = Vec{};
            for (int i = 0; i < 16; ++i) total += from[begin + i] * load(&kSigns.row[i][v]);
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
