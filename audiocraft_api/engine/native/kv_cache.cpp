#include "kv_cache.h"

#include <algorithm>
#include <cmath>

namespace native {
namespace {

constexpr int kPositions = 16;  // positions of one block of keys
constexpr int kVecs = kPositions / kWidth;

// Bytes of a head with one scale.
float quantize(const float* from, int count, int8_t* to) {
    const float largest = peak(from, count), inverse = largest > 0 ? 127 / largest : 0;
    for (int i = 0; i < count; i += kWidth) store(to + i, round_to_int(load(from + i) * inverse));
    return largest / 127;
}

// Scores of all blocks up to `length`; positions beyond it get whatever the cache held.
template <class T>
void score(const T* keys, const float* query, int head_dim, int length, float* scores) {
    for (int block = 0; block < length; block += kPositions) {
        Vec sums[2][kVecs] = {};  // even and odd dimensions apart, or each addition would wait for the last
        for (int d = 0; d < head_dim; d += 2, keys += 2 * kPositions) {
            stream(keys);
            for (int v = 0; v < kVecs; ++v) {
                sums[0][v] += query[d] * load(keys + v * kWidth);
                sums[1][v] += query[d + 1] * load(keys + kPositions + v * kWidth);
            }
        }
        for (int v = 0; v < kVecs; ++v) store(scores + block + v * kWidth, sums[0][v] + sums[1][v]);
    }
}

// Turn scores into weights e^(score - largest) and return their sum. Room behind them up to a full vector is overwritten.
float soften(float* scores, int length) {
    const int end = (length + kWidth - 1) / kWidth * kWidth;
    for (int i = length; i < end; ++i) scores[i] = -INFINITY;
    Vec largest = load(scores), total = Vec{};
    for (int i = kWidth; i < end; i += kWidth) largest = max(largest, load(scores + i));
    const float top = max(largest);
    for (int i = 0; i < end; i += kWidth) store(scores + i, exp(load(scores + i) - top));
    for (int i = length; i < end; ++i) scores[i] = 0;
    for (int i = 0; i < end; i += kWidth) total += load(scores + i);
    return sum(total);
}

// Weighted sum of values over positions, `Vecs` vectors of dimensions at a time.
template <class T, int Vecs>
void blend(const T* values, const float* weights, int head_dim, int length, float scale, float* out) {
    Vec sums[Vecs] = {};
    for (int t = 0; t < length; ++t, values += head_dim) {
        stream(values);
        for (int v = 0; v < Vecs; ++v) sums[v] += weights[t] * load(values + v * kWidth);
    }
    for (int v = 0; v < Vecs; ++v) store(out + v * kWidth, sums[v] * scale);
}

}  // namespace

KvCache::KvCache(bool compact, int layers, int heads, int head_dim, int capacity)
    : compact_(compact), heads_(heads), head_dim_(head_dim),
      capacity_((capacity + kPositions - 1) / kPositions * kPositions) {
    const size_t vectors = size_t(layers) * heads * 2 * capacity_;
    data_ = Buffer(vectors * head_dim * (compact ? 1 : sizeof(float)));
    if (compact) scales_ = Buffer(vectors * sizeof(float));
}

size_t KvCache::head_offset(int layer, int head) const {
    return (size_t(layer) * heads_ + head) * 2 * capacity_;
}

void KvCache::put(int layer, int head, int position, const float* key, const float* value) {
    const size_t offset = head_offset(layer, head);
    const size_t block = offset * head_dim_ + size_t(position) / kPositions * kPositions * head_dim_;
    const size_t key_at = block + position % kPositions;
    const size_t value_at = (offset + capacity_ + position) * head_dim_;
    if (!compact_) {
        for (int d = 0; d < head_dim_; ++d) data_.as<float>()[key_at + size_t(d) * kPositions] = key[d];
        std::memcpy(data_.as<float>() + value_at, value, sizeof(float) * head_dim_);
        return;
    }
    int8_t bytes[256];
    scales_.as<float>()[offset + position] = quantize(key, head_dim_, bytes);
    for (int d = 0; d < head_dim_; ++d) data_.as<int8_t>()[key_at + size_t(d) * kPositions] = bytes[d];
    scales_.as<float>()[offset + capacity_ + position] = quantize(value, head_dim_, data_.as<int8_t>() + value_at);
}

template <class T>
void KvCache::attend_as(int layer, int head, int length, const float* query, float* scores, float* out) const {
    const size_t offset = head_offset(layer, head);
    const T* keys = data_.as<T>() + offset * head_dim_;
    const T* values = keys + size_t(capacity_) * head_dim_;
    float scaled[256];
    const float shrink = 1 / std::sqrt(float(head_dim_));
    for (int d = 0; d < head_dim_; ++d) scaled[d] = query[d] * shrink;
    score(keys, scaled, head_dim_, length, scores);
    const float* scales = compact_ ? scales_.as<float>() + offset : nullptr;
    if (compact_)
        for (int t = 0; t < length; ++t) scores[t] *= scales[t];
    const float inverse = 1 / soften(scores, length);
    if (compact_)
        for (int t = 0; t < length; ++t) scores[t] *= scales[capacity_ + t];
    constexpr int kStep = 64 / kWidth;
    int d = 0;
    if (head_dim_ == 64) return blend<T, kStep>(values, scores, head_dim_, length, inverse, out);
    for (; d < head_dim_; d += 16) blend<T, kVecs>(values + d, scores, head_dim_, length, inverse, out + d);
}

void KvCache::attend(int layer, int head, int length, const float* query, float* scores, float* out) const {
    if (compact_)
        attend_as<int8_t>(layer, head, length, query, scores, out);
    else
        attend_as<float>(layer, head, length, query, scores, out);
}

}  // namespace native
