#include "kv_cache.h"

#include <cmath>

#include "activations.h"

namespace native {
namespace {

constexpr int kPositions = 16;  // positions of one block of keys
constexpr int kVecs = kPositions / kWidth;

// Scores of all blocks up to `length`; positions beyond it get whatever the cache held.
void score(const float* keys, const float* query, int head_dim, int length, float* scores) {
    for (int block = 0; block < length; block += kPositions) {
        Vec sums[2][kVecs] = {};  // even and odd dimensions apart, or each addition would wait for the last
        for (int d = 0; d < head_dim; d += 2, keys += 2 * kPositions) {
            stream(keys);
            stream(keys + kPositions);
            for (int v = 0; v < kVecs; ++v) {
                sums[0][v] += query[d] * load(keys + v * kWidth);
                sums[1][v] += query[d + 1] * load(keys + kPositions + v * kWidth);
            }
        }
        for (int v = 0; v < kVecs; ++v) store(scores + block + v * kWidth, sums[0][v] + sums[1][v]);
    }
}

// Weighted sum of values over positions, `Vecs` vectors of dimensions at a time.
template <int Vecs>
void blend(const float* values, const float* weights, int head_dim, int length, float scale, float* out) {
    Vec sums[Vecs] = {};
    for (int t = 0; t < length; ++t, values += head_dim) {
        for (int d = 0; d < Vecs * kWidth; d += 16) stream(values + d);
        for (int v = 0; v < Vecs; ++v) sums[v] += weights[t] * load(values + v * kWidth);
    }
    for (int v = 0; v < Vecs; ++v) store(out + v * kWidth, sums[v] * scale);
}

}  // namespace

float soften(float* scores, int length) {
    const int end = (length + kPositions - 1) / kPositions * kPositions;
    for (int i = length; i < end; ++i) scores[i] = -INFINITY;
    Vec largest = load(scores), total = Vec{};
    for (int i = kWidth; i < end; i += kWidth) largest = max(largest, load(scores + i));
    const float top = max(largest);
    for (int i = 0; i < end; i += kWidth) store(scores + i, exp(load(scores + i) - top));
    for (int i = length; i < end; ++i) scores[i] = 0;
    for (int i = 0; i < end; i += kWidth) total += load(scores + i);
    return sum(total);
}

KvCache::KvCache(bool compact, int layers, int heads, int head_dim, int capacity)
    : compact_(compact), heads_(heads), head_dim_(head_dim),
      capacity_((capacity + kPositions - 1) / kPositions * kPositions) {
    const size_t vectors = size_t(layers) * heads * 2 * capacity_;
    data_ = Buffer(vectors * head_dim * (compact ? 1 : sizeof(float)));
    if (compact) scales_ = Buffer(vectors * sizeof(float));
}

void KvCache::put(int layer, int head, int position, const float* key, const float* value) {
    const size_t offset = (size_t(layer) * heads_ + head) * 2 * capacity_;
    const size_t key_block = (offset + position / kPositions * kPositions) * head_dim_;
    const int place = position % kPositions;
    if (!compact_) {
        float* keys = data_.as<float>() + key_block + place;
        for (int d = 0; d < head_dim_; ++d) keys[size_t(d) * kPositions] = key[d];
        std::memcpy(data_.as<float>() + (offset + capacity_ + position) * head_dim_, value, sizeof(float) * head_dim_);
        return;
    }
    const auto scale_of = [&](const float* from) { return peak(from, head_dim_) / 127; };
    const auto byte_of = [](float scaled) { return uint8_t(std::lrintf(scaled) + 128); };
    const float key_scale = scale_of(key), value_scale = scale_of(value);
    scales_.as<float>()[offset + position] = key_scale;
    scales_.as<float>()[offset + capacity_ + position] = value_scale;
    const float key_inverse = key_scale > 0 ? 1 / key_scale : 0, value_inverse = value_scale > 0 ? 1 / value_scale : 0;
    uint8_t* keys = data_.as<uint8_t>() + key_block + 4 * place;
    uint8_t* values = data_.as<uint8_t>() + (offset + capacity_ + position / 4 * 4) * head_dim_ + position % 4;
    for (int d = 0; d < head_dim_; ++d) {
        keys[d / 4 * 64 + d % 4] = byte_of(key[d] * key_inverse);
        values[4 * d] = byte_of(value[d] * value_inverse);
    }
}

void KvCache::attend_floats(size_t offset, int length, const float* query, float* scores, float* out) const {
    const float* keys = data_.as<float>() + offset * head_dim_;
    const float* values = keys + size_t(capacity_) * head_dim_;
    score(keys, query, head_dim_, length, scores);
    const float inverse = 1 / soften(scores, length);
    if (head_dim_ == 64) return blend<64 / kWidth>(values, scores, head_dim_, length, inverse, out);
    for (int d = 0; d < head_dim_; d += 16) blend<kVecs>(values + d, scores, head_dim_, length, inverse, out + d);
}

void KvCache::attend(
    int layer, int head, int length, const float* query, AttentionScratch& scratch, float* out) const {
    const size_t offset = (size_t(layer) * heads_ + head) * 2 * capacity_;
    float scaled[256];
    const float shrink = 1 / std::sqrt(float(head_dim_));
    for (int d = 0; d < head_dim_; ++d) scaled[d] = query[d] * shrink;
    scratch.fit(capacity_);
    if (compact_)
        attend_bytes(offset, length, scaled, scratch, out);
    else
        attend_floats(offset, length, scaled, scratch.scores.data(), out);
}

}  // namespace native
