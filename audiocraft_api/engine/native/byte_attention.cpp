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
    int32_t high_sum, low_sum;
};

// A run of quads, each multiplied with the next four inputs; `Blocks` sets of 16 outputs side by side.
struct Run {
    const uint8_t* from;
    ShortStream stream;
    int quads;
    size_t quad_stride, block_stride;  // bytes
};

// A sum is 256 high + low less the bytes' offset, times the scale.
template <int Blocks>
void sum_run(const Run& run, const Planes& inputs, float* out) {
    Sums high[Blocks], low[Blocks];
    for (int b = 0; b < Blocks; ++b) high[b] = low[b] = zero_sums();
    const uint8_t* at = run.from;
    for (int i = 0; i < run.quads; i += kQuads) {
        const char *far[Blocks], *near[Blocks];
        for (int b = 0; b < Blocks; ++b) {
            far[b] = run.stream.far(at + b * run.block_stride);
            near[b] = run.stream.near(at + b * run.block_stride);
        }
        for (int q = 0; q < kQuads; ++q, at += run.quad_stride)
            for (int b = 0; b < Blocks; ++b) {
                __builtin_prefetch(far[b] + q * run.quad_stride, 0, 2);
                __builtin_prefetch(near[b] + q * run.quad_stride, 0, 3);
                const Quad quad = load_quad(at + b * run.block_stride);
                dot4(high[b], quad, inputs.high + 4 * (i + q));
                dot4(low[b], quad, inputs.low + 4 * (i + q));
            }
    }
    for (int b = 0; b < Blocks; ++b, out += kBlock) {
        int32_t upper[kBlock], lower[kBlock];
        store_sums(upper, high[b]);
        store_sums(lower, low[b]);
        // The planes apart until they are floats: over many positions 256 high does not fit in 32 bits.
        for (int o = 0; o < kBlock; ++o) {
            const float high_part = float(upper[o] - kOffset * inputs.high_sum);
            out[o] = (256.0f * high_part + float(lower[o] - kOffset * inputs.low_sum)) * inputs.scale;
        }
    }
}

Planes split(const float* from, int count, int8_t* high, int8_t* low) {
    const float largest = peak(from, count);
    const PlaneSums sums = split_planes(from, count, inverse_scale(largest), high, low);
    return {high, low, largest / kLargest, sums.high, sums.low};
}

}  // namespace

void KvCache::attend_bytes(
    size_t offset, int length, const float* query, AttentionScratch& scratch, float* out) const {
    const uint8_t* keys = data_.as<uint8_t>() + offset * head_dim_;
    const uint8_t* values = keys + size_t(capacity_) * head_dim_;
    const float* key_scales = scales_.as<float>() + offset;
    const float* value_scales = key_scales + capacity_;
    float* scores = scratch.scores.data();

    const int end = (length + kBlock - 1) / kBlock * kBlock;
    // Keys, values, and then most likely the next head, whose scales have no stream of their own.
    const size_t bytes = size_t(end) * head_dim_;
    const ShortStream keys_stream(keys, bytes, values);
    const ShortStream values_stream(values, bytes, keys + 2 * size_t(capacity_) * head_dim_);
    const float *next_key_scales = value_scales + capacity_, *next_value_scales = next_key_scales + capacity_;
    for (int position = 0; position < end; position += kBlock) {
        __builtin_prefetch(next_key_scales + position, 0, 2);
        __builtin_prefetch(next_value_scales + position, 0, 2);
    }

    int8_t high[256], low[256];
    const Planes scaled = split(query, head_dim_, high, low);
    const size_t block_bytes = size_t(kBlock) * head_dim_;
    int t = 0;
    for (; t + 2 * kBlock <= end; t += 2 * kBlock)
        sum_run<2>({keys + size_t(t) * head_dim_, keys_stream, head_dim_ / 4, 64, block_bytes}, scaled, scores + t);
    if (t < end) sum_run<1>({keys + size_t(t) * head_dim_, keys_stream, head_dim_ / 4, 64, 0}, scaled, scores + t);
    for (t = 0; t < length; ++t) scores[t] *= key_scales[t];

    const float inverse = 1 / soften(scores, length);
    for (t = 0; t < end; ++t) scores[t] *= value_scales[t] * inverse;
    const Planes weights = split(scores, end, scratch.high.data(), scratch.low.data());
    const size_t stride = 4 * size_t(head_dim_);
    int d = 0;
    for (; d + 4 * kBlock <= head_dim_; d += 4 * kBlock)
        sum_run<4>({values + 4 * d, values_stream, end / 4, stride, 64}, weights, out + d);
    for (; d < head_dim_; d += kBlock)
        sum_run<1>({values + 4 * d, values_stream, end / 4, stride, 0}, weights, out + d);
}

}  // namespace native
