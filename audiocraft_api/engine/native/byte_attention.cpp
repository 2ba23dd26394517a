// Attention over keys and values of bytes, in the integer arithmetic of dot4.h.
#include "activations.h"
#include "dot4.h"
#include "kv_cache.h"

namespace native {
namespace {

constexpr int kOffset = 128;  // of the unsigned bytes

struct Planes {
    const int8_t *high, *low;
    float scale;
};

// Sum `quads` quads, an even number, each with the next four inputs; a sum is 256 high + low less the bytes' offset,
// times the scale. Two sets of sums take turns, or each product would wait for the last.
inline void sum_quads(
    const uint8_t* from, int quads, const Planes& inputs, int32_t high_sum, int32_t low_sum, float* out) {
    Sums high[2] = {zero_sums(), zero_sums()}, low[2] = {zero_sums(), zero_sums()};
    for (int i = 0; i < quads; i += 2, from += 128) {
        stream(from);
        stream(from + 64);
        const Quad even = load_quad(from), odd = load_quad(from + 64);
        dot4(high[0], even, inputs.high + 4 * i);
        dot4(low[0], even, inputs.low + 4 * i);
        dot4(high[1], odd, inputs.high + 4 * i + 4);
        dot4(low[1], odd, inputs.low + 4 * i + 4);
    }
    int32_t sums[4][kBlock];
    for (int i = 0; i < 2; ++i) {
        store_sums(sums[i], high[i]);
        store_sums(sums[2 + i], low[i]);
    }
    // The planes apart until they are floats: over many positions 256 high does not fit in 32 bits.
    for (int o = 0; o < kBlock; ++o) {
        const int32_t upper = sums[0][o] + sums[1][o] - kOffset * high_sum;
        const int32_t lower = sums[2][o] + sums[3][o] - kOffset * low_sum;
        out[o] = (256.0f * float(upper) + float(lower)) * inputs.scale;
    }
}

}  // namespace

void KvCache::attend_bytes(
    size_t offset, int length, const float* query, AttentionScratch& scratch, float* out) const {
    const uint8_t* keys = data_.as<uint8_t>() + offset * head_dim_;
    const uint8_t* values = keys + size_t(capacity_) * head_dim_;
    const float* key_scales = scales_.as<float>() + offset;
    const float* value_scales = key_scales + capacity_;
    float* scores = scratch.scores.data();

    int8_t high[256], low[256];
    const Planes query_planes = {high, low, split_planes(query, head_dim_, high, low)};
    const int32_t query_high = sum(high, head_dim_), query_low = sum(low, head_dim_);
    for (int t = 0; t < length; t += kBlock) {
        sum_quads(keys + size_t(t) * head_dim_, head_dim_ / 4, query_planes, query_high, query_low, scores + t);
        for (int i = t; i < t + kBlock; ++i) scores[i] *= key_scales[i];
    }

    const float inverse = 1 / soften(scores, length);
    const int end = (length + kBlock - 1) / kBlock * kBlock;
    for (int t = 0; t < end; ++t) scores[t] *= value_scales[t] * inverse;
    const float scale = split_planes(scores, end, scratch.high.data(), scratch.low.data());
    const Planes weights = {scratch.high.data(), scratch.low.data(), scale};
    const int32_t weights_high = sum(weights.high, end), weights_low = sum(weights.low, end);
    for (int d = 0; d < head_dim_; d += kBlock)
        sum_quads(values + size_t(d) * capacity_, end / 4, weights, weights_high, weights_low, out + d);
}

}  // namespace native
