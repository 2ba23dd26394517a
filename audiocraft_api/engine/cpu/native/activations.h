// Rows of activations in float32, quantized to integers where the weights are integers.
//
// Inputs whose weights share a scale form a group and share a scale too, computed from these inputs alone. Quantized
// values are two planes of signed bytes, value = (high + low / 256) * scale, because processors multiply bytes. With
// both planes the rounding error is negligible compared with that of the weights. With 6-bit weights, a group without
// outliers (see max_crest_factor) uses the high plane alone: its low plane is zero and is not multiplied, because
// rounding to eight bits adds little to the error of such weights.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"

namespace native {

constexpr float kLargest = 127 * 256;  // the largest quantized magnitude, in units of the low plane

// The factor that maps magnitudes up to `largest` to integers up to kLargest.
inline float inverse_scale(float largest) { return largest > 0 ? kLargest / largest : 0.0f; }

// The sum of each plane's bytes.
struct PlaneSums {
    int32_t high, low;
};

// Round floats times `inverse` to integers and split them into high * 256 + low. `count` is a multiple of kWidth.
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

// The same, rounded to high * 256; the low plane is zero.
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

// How activations are quantized for a weight format.
struct QuantLayout {
    int group_size = 0;          // inputs that share a scale; 0: not quantized
    int zero_point = 0;          // of the weights, which are stored as unsigned integers
    float max_crest_factor = 0;  // up to this ratio of peak to root mean square, the high plane alone is used
};

struct Activations {
    int width = 0;   // floats per row
    int groups = 0;  // per row
    QuantLayout layout;
    std::vector<float> values;           // [rows, width]
    std::vector<int8_t> high;            // [rows, width]
    std::vector<int8_t> low;             // [rows, width]
    std::vector<float> scales;           // [rows, groups]
    std::vector<PlaneSums> corrections;  // [rows, groups]: initial value of sums of products, cancels the zero point
    std::vector<uint8_t> has_low;        // [rows, groups]: whether the low plane is used

    void resize(int rows, int new_width, QuantLayout new_layout) {
        width = new_width;
        layout = new_layout;
        groups = layout.group_size ? width / layout.group_size : 0;
        values.resize(size_t(rows) * width);
        if (!layout.group_size) return;
        high.resize(size_t(rows) * width);
        low.resize(size_t(rows) * width);
        scales.resize(size_t(rows) * groups);
        corrections.resize(scales.size());
        has_low.resize(scales.size());
    }

    float* row(int index) { return values.data() + size_t(index) * width; }
    const float* row(int index) const { return values.data() + size_t(index) * width; }

    // Return whether any of `count` rows from `row` on uses the low plane of a group.
    bool needs_low(int row, int count, int group) const {
        const uint8_t* at = &has_low[size_t(row) * groups + group];
        bool needed = false;
        for (int r = 0; r < count; ++r) needed |= at[size_t(r) * groups];
        return needed;
    }

    // Quantize the values of one row; does nothing for float weights.
    void quantize(int index) {
        if (!layout.group_size) return;
        size_t at = size_t(index) * groups;
        for (int begin = 0; begin < width; begin += layout.group_size, ++at) {
            const float* from = row(index) + begin;
            int8_t *to_high = &high[from - values.data()], *to_low = &low[from - values.data()];
            const float largest = max_abs(from, layout.group_size), inverse = inverse_scale(largest);
            const float crest_factor_squared_bound = layout.max_crest_factor * layout.max_crest_factor;
            has_low[at] = largest * largest * layout.group_size >
                          crest_factor_squared_bound * sum_of_squares(from, layout.group_size);
            const PlaneSums sums = has_low[at] ? split_planes(from, layout.group_size, inverse, to_high, to_low)
                                               : high_plane(from, layout.group_size, inverse, to_high, to_low);
            scales[at] = largest / (kLargest / 256);
            corrections[at] = {-layout.zero_point * sums.high, -layout.zero_point * sums.low};
        }
    }
};

}  // namespace native
