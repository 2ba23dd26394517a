#include "kv_cache.h"

#include <cmath>

namespace native {
namespace {

constexpr int kPositions = 16;  // positions per block of keys
constexpr int kVecs = kPositions / kWidth;
constexpr int kValueDims = 64;  // dimensions of values are padded to a multiple of this, whole packs on every processor
static_assert(kValueDims % (kQuads * kBlock) == 0);

// Scores of all blocks up to `length`. Scores of positions from `length` on are undefined.
void compute_scores(const float* keys, const float* query, int head_dim, int length, float* scores) {
    for (int block = 0; block < length; block += kPositions) {
        Vec sums[2][kVecs] = {};  // even and odd dimensions: one chain of additions would be bound by its latency
        for (int d = 0; d < head_dim; d += 2, keys += 2 * kPositions) {
            prefetch_ahead(keys);
            prefetch_ahead(keys + kPositions);
            for (int v = 0; v < kVecs; ++v) {
                sums[0][v] += query[d] * load(keys + v * kWidth);
                sums[1][v] += query[d + 1] * load(keys + kPositions + v * kWidth);
            }
        }
        for (int v = 0; v < kVecs; ++v) store(scores + block + v * kWidth, sums[0][v] + sums[1][v]);
    }
}

// The weighted sum of values over positions, times `scale`, for `Vecs` vectors of dimensions.
template <int Vecs>
void weighted_sum(const float* values, const float* weights, int head_dim, int length, float scale, float* out) {
    Vec sums[Vecs] = {};
    for (int t = 0; t < length; ++t, values += head_dim) {
        for (int d = 0; d < Vecs * kWidth; d += 16) prefetch_ahead(values + d);
        for (int v = 0; v < Vecs; ++v) sums[v] += weights[t] * load(values + v * kWidth);
    }
    for (int v = 0; v < Vecs; ++v) store(out + v * kWidth, sums[v] * scale);
}

}  // namespace

float softmax_unnormalized(float* scores, int length) {
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

KvCache::KvCache(int bits, int layers, int heads, int head_dim, int capacity)
    : bits_(bits), heads_(heads), head_dim_(head_dim), capacity_((capacity + kPositions - 1) / kPositions * kPositions),
      value_dim_(bits == 32 ? head_dim : (head_dim + kValueDims - 1) / kValueDims * kValueDims) {
    const size_t count = size_t(layers) * heads;
    data_ = Buffer(count * (key_bytes() + value_bytes()));
    if (bits != 32) scales_ = Buffer(count * 2 * capacity_ * sizeof(BFloat));
}

KvCache::Head KvCache::head(int layer, int head) const {
    const size_t index = size_t(layer) * heads_ + head;
    char* keys = data_.as<char>() + index * (key_bytes() + value_bytes());
    BFloat* scales = scales_.as<BFloat>() + index * 2 * capacity_;
    return {keys, keys + key_bytes(), scales, scales + capacity_};
}

void KvCache::write(int layer, int index, int position, const float* key, const float* value) {
    const Head to = head(layer, index);
    if (bits_ == 8) return write_integers<8>(to, position, key, value);
    if (bits_ == 6) return write_integers<6>(to, position, key, value);
    float* keys = reinterpret_cast<float*>(to.keys);
    keys += position / kPositions * kPositions * head_dim_ + position % kPositions;
    for (int d = 0; d < head_dim_; ++d) keys[size_t(d) * kPositions] = key[d];
    std::memcpy(reinterpret_cast<float*>(to.values) + size_t(position) * head_dim_, value, sizeof(float) * head_dim_);
}

void KvCache::attend_floats(const Head& head, int length, const float* query, float* scores, float* out) const {
    const auto* values = reinterpret_cast<const float*>(head.values);
    compute_scores(reinterpret_cast<const float*>(head.keys), query, head_dim_, length, scores);
    const float inverse = 1 / softmax_unnormalized(scores, length);
    if (head_dim_ == 64) return weighted_sum<64 / kWidth>(values, scores, head_dim_, length, inverse, out);
    for (int d = 0; d < head_dim_; d += 16)
        weighted_sum<kVecs>(values + d, scores, head_dim_, length, inverse, out + d);
}

void KvCache::attend(int layer, int index, int length, const float* query, AttentionScratch& scratch,
                     float* out) const {
    const Head from = head(layer, index);
    float scaled[kMaxHeadDim];
    const float scale = 1 / std::sqrt(float(head_dim_));
    for (int d = 0; d < head_dim_; ++d) scaled[d] = query[d] * scale;
    scratch.reserve(capacity_);
    if (bits_ == 8) return attend_integers<8>(from, length, scaled, scratch, out);
    if (bits_ == 6) return attend_integers<6>(from, length, scaled, scratch, out);
    attend_floats(from, length, scaled, scratch.scores.data(), out);
}

}  // namespace native
