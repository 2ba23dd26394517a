// Keys and values of one row, and attention over them.
//
// Heads apart. Keys lie in blocks of 16 positions, dimension by dimension, so that scores of 16 positions are summed
// side by side; values lie position by position. The compact form keeps bytes with one scale for each head and position.
#pragma once

#include <cstdint>

#include "memory.h"
#include "vec.h"

namespace native {

class KvCache {
public:
    KvCache() = default;
    KvCache(bool compact, int layers, int heads, int head_dim, int capacity);

    // Keep one position's key and value, float32 [head_dim] each.
    void put(int layer, int head, int position, const float* key, const float* value);

    // Attend to positions 0 to length - 1; `scores` is room for capacity() floats, `out` is [head_dim].
    void attend(int layer, int head, int length, const float* query, float* scores, float* out) const;

    int capacity() const { return capacity_; }
    size_t bytes() const { return data_.bytes() + scales_.bytes(); }

private:
    template <class T>
    void attend_as(int layer, int head, int length, const float* query, float* scores, float* out) const;
    size_t head_offset(int layer, int head) const;

    bool compact_ = false;
    int heads_ = 0, head_dim_ = 0, capacity_ = 0;
    Buffer data_;    // [layers, heads, keys then values, capacity, head_dim]
    Buffer scales_;  // compact: float32 [layers, heads, keys then values, capacity]
};

}  // namespace native
