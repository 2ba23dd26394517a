// Rows of activations, and their 16-bit integer image for integer weights.
//
// Each row has its own scale, so a row's image depends on that row alone. The image is two planes of signed bytes,
// value = high * 256 + low, because the machines multiply bytes; with both, rounding is negligible beside the weights'.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"

namespace native {

// Round floats to value = high * 256 + low, `count` a multiple of the width; return the scale that undoes it.
inline float split_planes(const float* from, int count, int8_t* high, int8_t* low) {
    constexpr float kLargest = 127 * 256;
    const float largest = peak(from, count), inverse = largest > 0 ? kLargest / largest : 0.0f;
    for (int i = 0; i < count; i += kWidth) {
        const IntVec value = round_to_int(load(from + i) * inverse);
        const IntVec signed_low = (value << 24) >> 24;
        store(low + i, signed_low);
        store(high + i, (value - signed_low) >> 8);
    }
    return largest / kLargest;
}

inline int32_t sum(const int8_t* from, int count) {
    int32_t total = 0;
    for (int i = 0; i < count; ++i) total += from[i];
    return total;
}

struct Activations {
    int width = 0;               // floats of a row
    int group = 0;               // inputs of one weight scale; 0 where no image is needed
    std::vector<float> values;   // [rows, width]
    std::vector<int8_t> high;    // [rows, width]
    std::vector<int8_t> low;     // [rows, width]
    std::vector<float> scales;   // [rows]
    std::vector<int32_t> sums;   // [rows, width / group]: of the image, to take the weights' offset out again

    void resize(int rows, int new_width, int new_group) {
        width = new_width;
        group = new_group;
        values.resize(size_t(rows) * width);
        if (!group) return;
        high.resize(size_t(rows) * width);
        low.resize(size_t(rows) * width);
        scales.resize(rows);
        sums.resize(size_t(rows) * (width / group));
    }

    float* row(int index) { return values.data() + size_t(index) * width; }
    const float* row(int index) const { return values.data() + size_t(index) * width; }

    // Make the image of one row from its values; nothing to do for float weights.
    void quantize(int index) {
        if (!group) return;
        int8_t* to_high = high.data() + size_t(index) * width;
        int8_t* to_low = low.data() + size_t(index) * width;
        int32_t* to_sums = sums.data() + size_t(index) * (width / group);
        scales[index] = split_planes(row(index), width, to_high, to_low);
        for (int at = 0; at < width; at += group)
            to_sums[at / group] = 256 * sum(to_high + at, group) + sum(to_low + at, group);
    }
};

}  // namespace native
