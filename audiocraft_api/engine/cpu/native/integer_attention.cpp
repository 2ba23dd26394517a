// Keys and values as integers, and attention over them with the integer arithmetic of integer_products.h.
#include "activations.h"
#include "hadamard.h"
#include "integer_products.h"
#include "kv_cache.h"

namespace native {
namespace {

constexpr int kPackDims = kQuads * kBlock;  // dimensions in a pack of values, which has four positions
constexpr int kStep = std::max(kBlock, 8);  // positions that are attended to together: whole blocks, pairs of packs

// Quantized inputs as two planes of bytes.
struct Planes {
    const int8_t *high, *low;
    float scale;
    PlaneSums sums;
};

Planes split(const float* from, int count, int8_t* high, int8_t* low) {
    const float largest = max_abs(from, count);
    return {high, low, largest / kLargest, split_planes(from, count, inverse_scale(largest), high, low)};
}

// The sums of a block of outputs, one set per plane.
struct PlanePair {
    Sums high = sums_from(0), low = sums_from(0);

    template <int Bits>
    void add(Quad first, Quad second, const Planes& inputs, int at) {
        dot8<Bits>(high, first, second, inputs.high + at);
        dot8<Bits>(low, first, second, inputs.low + at);
    }

    // Write (256 * high + low - zero point) * scale. The planes are combined as floats: over many positions 256 * high
    // does not fit in 32 bits.
    void finish(const Planes& inputs, int zero_point, float* out) const {
        for (int o = 0; o < kBlock; o += kWidth) {
            const Vec upper = __builtin_convertvector(lanes(high, o) - zero_point * inputs.sums.high, Vec);
            const Vec lower = __builtin_convertvector(lanes(low, o) - zero_point * inputs.sums.low, Vec);
            store(out + o, (256.0f * upper + lower) * inputs.scale);
        }
    }
};

// Prefetches the packs that will be read next, near and far ahead. Prefetch line by line between the sums: prefetching
// all of a pack's lines at once blocks the processor's loads and takes half as long again.
class PackPrefetch {
public:
    PackPrefetch(const PrefetchPlan& plan, const uint8_t* at) : far_(plan.far(at)), near_(plan.near(at)) {}

    // Prefetch the cache line that begins with a quad of the packs that are read next, if one does.
    template <int Bits>
    void prefetch(int quad) const {
        if (quad >= kPackQuads<Bits> || quad * kQuadBytes % 64) return;
        __builtin_prefetch(far_ + quad * kQuadBytes, 0, 2);
        __builtin_prefetch(near_ + quad * kQuadBytes, 0, 3);
    }

private:
    const char *far_, *near_;
};

// Scores of `Blocks` blocks of positions.
template <int Bits, int Blocks>
void compute_scores(const uint8_t* keys, const PrefetchPlan& plan, int head_dim, const Planes& query, float* scores) {
    const size_t block_bytes = size_t(head_dim) / kPackInputs * kPackBytes<Bits>;
    PlanePair sums[Blocks];
    for (int d = 0; d < head_dim; d += kPackInputs, keys += kPackBytes<Bits>) {
        Quad quads[Blocks][kQuads];
        for (int b = 0; b < Blocks; ++b) unpack<Bits>(keys + b * block_bytes, quads[b]);
        for (int q = 0; q < kQuads; q += 2)
            for (int b = 0; b < Blocks; ++b) {
                const PackPrefetch next(plan, keys + b * block_bytes);
                next.prefetch<Bits>(q);
                next.prefetch<Bits>(q + 1);
                sums[b].template add<Bits>(quads[b][q], quads[b][q + 1], query, d + 4 * q);
            }
    }
    for (int b = 0; b < Blocks; ++b) sums[b].finish(query, kProductZeroPoint<Bits>, scores + b * kBlock);
}

// Weighted sum of the dimensions in a pack over positions up to `end`, a multiple of 8.
template <int Bits>
void weighted_sum(const uint8_t* values, const PrefetchPlan& plan, int end, const Planes& weights, float* out) {
    PlanePair sums[kQuads];
    for (int t = 0; t < end; t += 8, values += 2 * kPackBytes<Bits>) {
        const PackPrefetch after_first(plan, values), after_second(plan, values + kPackBytes<Bits>);
        Quad first[kQuads], second[kQuads];
        unpack<Bits>(values, first);
        unpack<Bits>(values + kPackBytes<Bits>, second);
        for (int q = 0; q < kQuads; ++q) {
            after_first.prefetch<Bits>(q);
            after_second.prefetch<Bits>(q);
            sums[q].template add<Bits>(first[q], second[q], weights, t);
        }
    }
    for (int q = 0; q < kQuads; ++q) sums[q].finish(weights, kProductZeroPoint<Bits>, out + q * kBlock);
}

// Quantize floats to unsigned integers and return the scale. The scale's sign maps the largest magnitude to the lowest
// integer, because the negative range has one more value than the positive. `count` is a multiple of 16.
template <int Bits>
BFloat quantize(const float* from, int count, int32_t* to) {
    Vec top = load(from), bottom = -top;
    for (int i = kWidth; i < count; i += kWidth) {
        top = max(top, load(from + i));
        bottom = max(bottom, -load(from + i));
    }
    const float highest = max(top), lowest = max(bottom);
    const BFloat scale = to_bfloat((highest > lowest ? -highest : lowest) / kZeroPoint<Bits>);
    const float inverse = to_float(scale) != 0 ? 1 / to_float(scale) : 0;
    const Vec least = splat(-kZeroPoint<Bits>), most = splat(kZeroPoint<Bits> - 1);
    for (int i = 0; i < count; i += kWidth) {
        const Vec scaled = min(max(load(from + i) * inverse, least), most);
        const IntVec integers = round_to_int(scaled) + kZeroPoint<Bits>;
        std::memcpy(to + i, &integers, sizeof integers);
    }
    return scale;
}

}  // namespace

template <int Bits>
void KvCache::write_integers(const Head& head, int position, const float* key, const float* value) {
    float transformed[kMaxHeadDim];
    int32_t integers[kMaxHeadDim] = {};
    hadamard_transform(key, head_dim_, transformed);
    head.key_scales[position] = quantize<Bits>(transformed, head_dim_, integers);
    const size_t block = size_t(position) / kBlock * (head_dim_ / kPackInputs);
    char* keys = head.keys + block * kPackBytes<Bits> + 4 * (position % kBlock);
    for (int d = 0; d < head_dim_; d += kPackInputs, keys += kPackBytes<Bits>) {
        uint32_t quads[kQuads], packed[kPackQuads<Bits>];
        for (int q = 0; q < kQuads; ++q) {
            const int32_t* four = integers + d + 4 * q;
            quads[q] = uint32_t(four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24);
        }
        pack<Bits>(quads, packed);
        for (int i = 0; i < kPackQuads<Bits>; ++i) std::memcpy(keys + kQuadBytes * i, &packed[i], 4);
    }

    head.value_scales[position] = quantize<Bits>(value, head_dim_, integers);
    auto* values = reinterpret_cast<uint8_t*>(head.values) + size_t(position) / 4 * kPackBytes<Bits> + position % 4;
    for (int d = 0; d < value_dim_; d += kPackDims, values += size_t(capacity_) / 4 * kPackBytes<Bits>) {
        Quad quads[kQuads], packed[kPackQuads<Bits>];
        std::memcpy(quads, integers + d, sizeof quads);
        pack<Bits>(quads, packed);
        // One byte of each four: other threads may be writing the other three, which belong to other positions.
        for (int i = 0; i < kPackQuads<Bits>; ++i) {
            uint8_t bytes[kQuadBytes];
            std::memcpy(bytes, &packed[i], sizeof bytes);
            for (int o = 0; o < kBlock; ++o) values[kQuadBytes * i + 4 * o] = bytes[4 * o];
        }
    }
}

template <int Bits>
void KvCache::attend_integers(const Head& head, int length, const float* query, AttentionScratch& scratch,
                              float* out) const {
    const auto* keys = reinterpret_cast<const uint8_t*>(head.keys);
    const auto* values = reinterpret_cast<const uint8_t*>(head.values);
    float* scores = scratch.scores.data();
    const int end = (length + kStep - 1) / kStep * kStep;
    // Keys are followed by values, and these most likely by the next head, whose scales are prefetched here.
    const PrefetchPlan key_plan(keys, size_t(end) * head_dim_ * Bits / 8, values);
    const BFloat *next_key_scales = head.value_scales + capacity_, *next_value_scales = next_key_scales + capacity_;
    for (int position = 0; position < end; position += 2 * kBlock) {
        __builtin_prefetch(next_key_scales + position, 0, 2);
        __builtin_prefetch(next_value_scales + position, 0, 2);
    }

    float transformed[kMaxHeadDim];
    const float squared_norm = hadamard_transform(query, head_dim_, transformed);
    int8_t high[kMaxHeadDim], low[kMaxHeadDim];
    Planes planes = split(transformed, head_dim_, high, low);
    planes.scale /= squared_norm;
    const size_t position_bytes = size_t(head_dim_) * Bits / 8;
    int t = 0;
    for (; t + 2 * kBlock <= end; t += 2 * kBlock)
        compute_scores<Bits, 2>(keys + t * position_bytes, key_plan, head_dim_, planes, scores + t);
    if (t < end) compute_scores<Bits, 1>(keys + t * position_bytes, key_plan, head_dim_, planes, scores + t);
    for (t = 0; t < end; t += kWidth) store(scores + t, load(scores + t) * load(head.key_scales + t));

    const float inverse = 1 / softmax_unnormalized(scores, length);
    for (t = 0; t < end; t += kWidth) store(scores + t, load(scores + t) * (load(head.value_scales + t) * inverse));
    const Planes weights = split(scores, end, scratch.high.data(), scratch.low.data());
    const size_t pack_stride = size_t(capacity_) / 4 * kPackBytes<Bits>;
    for (int d = 0; d < head_dim_; d += kPackDims, values += pack_stride) {
        const PrefetchPlan plan(values, size_t(end) / 4 * kPackBytes<Bits>, values + pack_stride);
        float summed[kPackDims];
        weighted_sum<Bits>(values, plan, end, weights, summed);
        std::memcpy(out + d, summed, sizeof(float) * std::min(kPackDims, head_dim_ - d));
    }
}

template void KvCache::write_integers<8>(const Head&, int, const float*, const float*);
template void KvCache::write_integers<6>(const Head&, int, const float*, const float*);
template void KvCache::attend_integers<8>(const Head&, int, const float*, AttentionScratch&, float*) const;
template void KvCache::attend_integers<6>(const Head&, int, const float*, AttentionScratch&, float*) const;

}  // namespace native
