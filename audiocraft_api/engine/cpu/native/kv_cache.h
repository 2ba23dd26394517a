// Keys and values of one row, and attention over them: in float32, or in integers for the formats that round anyway.
#pragma once

#include <cstdint>
#include <vector>

#include "dot4.h"
#include "memory.h"
#include "vec.h"

namespace native {

constexpr int kMaxHeadDim = 256;

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
// position by position. Integers of 8 or 6 bits: packed as weights are (dot4.h), one scale for each head and position.
// A pack of keys is 16 positions x 16 dimensions; one of values, 64 dimensions x 4 positions. Keys are rotated first,
// queries with them, which changes no score: a dimension that stands out, as some do in trained models, would take the
// bits of all others. Queries and attention weights are multiplied as 16-bit integers.
class KvCache {
public:
    KvCache() = default;
    // `bits` of a number: 32, 8 or 6.
    KvCache(int bits, int layers, int heads, int head_dim, int capacity);

    // Keep one position's key and value, float32 [head_dim] each. Threads may put different positions at the same time.
    void put(int layer, int head, int position, const float* key, const float* value);

    // Attend to positions 0 to length - 1; `out` is [head_dim].
    void attend(
        int layer, int head, int length, const float* query, AttentionScratch& scratch, float* out) const;

    size_t bytes() const { return data_.bytes() + scales_.bytes(); }

private:
    // Of one head in one layer.
    struct Head {
        char *keys, *values;
        BFloat *key_scales, *value_scales;
    };

    Head head(int layer, int head) const;
    size_t key_bytes() const { return size_t(capacity_) * head_dim_ * bits_ / 8; }
    size_t value_bytes() const { return size_t(capacity_) * value_dim_ * bits_ / 8; }

    void attend_floats(const Head& head, int length, const float* query, float* scores, float* out) const;
    template <int Bits>
    void put_integers(const Head& head, int position, const float* key, const float* value);
    template <int Bits>
    void attend_integers(
        const Head& head, int length, const float* query, AttentionScratch& scratch, float* out) const;

    int bits_ = 32;
    int heads_ = 0, head_dim_ = 0, capacity_ = 0;
    int value_dim_ = 0;  // head_dim, up to whole packs
    Buffer data_;        // [layers, heads, keys then values, capacity, head_dim]
    Buffer scales_;      // of integers: bfloat16 [layers, heads, keys then values, capacity]
};

// Turn scores into weights e^(score - largest), zero from `length` up to a multiple of 16; return their sum.
float soften(float* scores, int length);

}  // namespace native
