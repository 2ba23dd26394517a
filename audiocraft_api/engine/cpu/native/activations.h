// Rows of activations, and their image in integers for integer weights.
//
// Inputs that share a weight scale share one here too, which depends on them alone. The image is two planes of signed
// bytes, value = (high + low / 256) scale, because the machines multiply bytes. With both, rounding is negligible beside
// the weights'. Beside weights of six bits the low plane of a group may stay zero, and is then not multiplied: where no input
// stands far out of its group, rounding to eight bits is small against theirs.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"

namespace native {

constexpr float kLargest = 127 * 256;  // of an image

// What takes floats up to `largest` to integers up to kLargest.
inline float inverse_scale(float largest) { return largest > 0 ? kLargest / largest : 0.0f; }

struct PlaneSums {
    int32_t high, low;
};

// Round floats times `inverse` to high * 256 + low; `count` is a multiple of the width.
inline PlaneSums split_planes(const float* from, int count, float inverse, int8_t* high, int8_t* low) {
    IntVec high_sums = {}, low_sums = {};
    for (int i = 0; i < count; i += kWidth) {
        const IntVec value = round_to_int(load(from + i) * inverse);
        const IntVec low_part = (value << 24) >> 24, high_part = (value - low_part) >> 8;
        store(low + i, low_part);
        store(high + i, high_part);
        low_sums += low_part;
        high_sums += high_part;
    }
    return {sum(high_sums), sum(low_sums)};
}

// The same to high * 256 alone.
inline PlaneSums high_plane(const float* from, int count, float inverse, int8_t* high, int8_t* low) {
    IntVec sums = {};
    for (int i = 0; i < count; i += kWidth) {
        const IntVec value = round_to_int(load(from + i) * (inverse / 256));
        store(high + i, value);
        sums += value;
    }
    std::memset(low, 0, count);
    return {sum(sums), 0};
}

// How activations meet weights of a format.
struct Image {
    int group = 0;         // inputs of one scale; 0 for no image
    int offset = 0;        // of the weights' integers, which are stored without a sign
    float most_crest = 0;  // the most that a group's largest may be over its root mean square where one plane is enough
};

struct Activations {
    int width = 0;               // floats of a row
    int groups = 0;              // of a row
    Image image;
    std::vector<float> values;   // [rows, width]
    std::vector<int8_t> high;    // [rows, width]
    std::vector<int8_t> low;     // [rows, width]
    std::vector<float> scales;   // [rows, groups]
    std::vector<PlaneSums> starts;  // [rows, groups]: what sums of products start at, to take the weights' offset out
    std::vector<uint8_t> has_low;  // [rows, groups]: whether the low plane is not all zeros

    void resize(int rows, int new_width, Image new_image) {
        width = new_width;
        image = new_image;
        groups = image.group ? width / image.group : 0;
        values.resize(size_t(rows) * width);
        if (!image.group) return;
        high.resize(size_t(rows) * width);
        low.resize(size_t(rows) * width);
        scales.resize(size_t(rows) * groups);
        starts.resize(scales.size());
        has_low.resize(scales.size());
    }

    float* row(int index) { return values.data() + size_t(index) * width; }
    const float* row(int index) const { return values.data() + size_t(index) * width; }

    // Say whether any of `count` rows needs the low plane of a group.
    bool needs_low(int row, int count, int group) const {
        const uint8_t* at = &has_low[size_t(row) * groups + group];
        bool needed = false;
        for (int r = 0; r < count; ++r) needed |= at[size_t(r) * groups];
        return needed;
    }

    // Make the image of one row from its values; nothing to do for float weights.
    void quantize(int index) {
        if (!image.group) return;
        size_t at = size_t(index) * groups;
        for (int begin = 0; begin < width; begin += image.group, ++at) {
            const float* from = row(index) + begin;
            int8_t *to_high = &high[from - values.data()], *to_low = &low[from - values.data()];
            const float largest = peak(from, image.group), inverse = inverse_scale(largest);
            has_low[at] = largest * largest * image.group > image.most_crest * image.most_crest * energy(from, image.group);
            const PlaneSums of = has_low[at] ? split_planes(from, image.group, inverse, to_high, to_low)
                                             : high_plane(from, image.group, inverse, to_high, to_low);
            scales[at] = largest / (kLargest / 256);
            starts[at] = {-image.offset * of.high, -image.offset * of.low};
        }
    }
};

}  // namespace native
