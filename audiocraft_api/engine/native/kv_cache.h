// Keys and values of one row, and attention over them: in float32, or in bytes for the formats that round anyway.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "vec.h"

namespace native {

// What one thread needs while it attends.
struct AttentionScratch {
    std::vector<float> scores;
    std::vector<int8_t> high, low;

    void fit(int positions) {
        if (int(scores.size()) >= positions) return;
        scores.resize(positions);
        high.resize(positions);
        low.resize(positions);
    }
};

// Heads lie apart, all of a head's keys before its values.
//
// float32: keys in blocks of 16 positions, dimension by dimension, so that 16 scores are summed side by side; values
// position by position. Bytes: unsigned with an offset of 128, in the order of dot4.h, one scale for each head and
// position: keys are 16 positions x 4 dimensions, values 16 dimensions x 4 positions. Queries and attention
// weights are multiplied as 16-bit integers.
class KvCache {
public:
    KvCache() = default;
    KvCache(bool compact, int layers, int heads, int head_dim, int capacity);

    // Keep one position's key and value, float32 [head_dim] each.
    void put(int layer, int head, int position, const float* key, const float* value);

    // Attend to positions 0 to length - 1; `out` is [head_dim].
    void attend(
        int layer, int head, int length, const float* query, AttentionScratch& scratch, float* out) const;

    size_t bytes() const { return data_.bytes() + scales_.bytes(); }

private:
    void attend_floats(size_t offset, int length, const float* query, float* scores, float* out) const;
    void attend_bytes(size_t offset, int length, const float* query, AttentionScratch& scratch, float* out) const;

    bool compact_ = false;
    int heads_ = 0, head_dim_ = 0, capacity_ = 0;
    Buffer data_;    // [layers, heads, keys then values, capacity, head_dim]
    Buffer scales_;  // compact: float32 [layers, heads, keys then values, capacity]
};

// Turn scores into weights e^(score - largest), zero from `length` up to a multiple of 16; return their sum.
float soften(float* scores, int length);

}  // namespace native
