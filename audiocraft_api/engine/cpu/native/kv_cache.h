// The keys and values of one row and attention over them, in float32 or, for the reduced precisions, in integers.
#pragma once

#include <cstdint>
#include <vector>

#include "integer_products.h"
#include "memory.h"
#include "vec.h"

namespace native {

constexpr int kMaxHeadDim = 256;

// Scratch memory of one thread.
struct AttentionScratch {
    std::vector<float> scores;
    std::vector<int8_t> high, low;

    void reserve(int positions) {
        if (int(scores.size()) >= positions) return;
        high.resize(positions);
        low.resize(positions);
        scores.resize(positions);  // last, because its size says that all three have been resized
    }
};

// Memory layout: head by head, all keys of a head before its values.
//
// float32: keys are stored in blocks of 16 positions, dimension by dimension, so that 16 scores are summed at a time;
// values position by position.
//
// Integers of 8 or 6 bits: packed like weights (integer_products.h), with one scale per head and position. A pack of
// keys is kBlock positions x 16 dimensions, a pack of values 4 * kBlock dimensions x 4 positions. Keys and queries are
// rotated first (hadamard.h), which leaves every score unchanged: an outlier dimension, as trained models have, would
// otherwise cost the others their precision. Queries and attention weights are multiplied as 16-bit integers.
class KvCache {
public:
    KvCache() = default;
    // `bits` per number: 32 (float32), 8 or 6.
    KvCache(int bits, int layers, int heads, int head_dim, int capacity);

    // Store one position's key and value, float32 [head_dim] each. Threads may write different positions concurrently.
    void write(int layer, int head, int position, const float* key, const float* value);

    // Attend with `query` [head_dim] to positions 0 to length - 1; writes `out` [head_dim].
    void attend(int layer, int head, int length, const float* query, AttentionScratch& scratch, float* out) const;

    size_t bytes() const { return data_.bytes() + scales_.bytes(); }

private:
    // Where the keys and values of one head in one layer are.
    struct Head {
        char *keys, *values;
        BFloat *key_scales, *value_scales;
    };

    Head head(int layer, int head) const;
    size_t key_bytes() const { return size_t(capacity_) * head_dim_ * bits_ / 8; }
    size_t value_bytes() const { return size_t(capacity_) * value_dim_ * bits_ / 8; }

    void attend_floats(const Head& head, int length, const float* query, float* scores, float* out) const;
    template <int Bits>
    void write_integers(const Head& head, int position, const float* key, const float* value);
    template <int Bits>
    void attend_integers(const Head& head, int length, const float* query, AttentionScratch& scratch, float* out) const;

    int bits_ = 32;
    int heads_ = 0, head_dim_ = 0, capacity_ = 0;
    int value_dim_ = 0;  // head_dim, rounded up to whole packs
    Buffer data_;        // [layers, heads, keys then values, capacity, head_dim]
    Buffer scales_;      // for integers: bfloat16 [layers, heads, keys then values, capacity]
};

// Softmax without its division: replace scores by e^(score - maximum) and return their sum. Pads with zeros from
// `length` to a multiple of 16.
float softmax_unnormalized(float* scores, int length);

}  // namespace native
