#include "linear.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "float_kernel.h"
#include "gelu.h"
#include "tiles.h"

namespace native {
namespace {

template <class T>
T convert(float value);
template <>
float convert<float>(float value) {
    return value;
}
template <>
Half convert<Half>(float value) {
    return to_half(value);
}
template <>
BFloat convert<BFloat>(float value) {
    return to_bfloat(value);
}

template <class T>
bool fits(const float* weights, int count) {
    bool same = true;
    for (int i = 0; i < count; ++i) same &= to_float(convert<T>(weights[i])) == weights[i];
    return same;
}

template <class T>
bool all_fit(Pool& pool, const float* weights, int outputs, int inputs) {
    std::atomic<bool> same{true};
    pool.parallel_for(outputs / kBlock, [&](int block, int) {
        if (same.load(std::memory_order_relaxed) &&
            !fits<T>(weights + size_t(block) * kBlock * inputs, kBlock * inputs))
            same.store(false, std::memory_order_relaxed);
    });
    return same;
}

template <class T>
void pack_float_block(const float* weights, int inputs, T* to) {
    for (int o = 0; o < kBlock; o += kFloatOutputs)
        for (int i = 0; i < inputs; i += kFloatInputs)
            for (int row = o; row < o + kFloatOutputs; ++row)
                for (int j = i; j < i + kFloatInputs; ++j) *to++ = convert<T>(weights[size_t(row) * inputs + j]);
}

// Quantize one group of one output to unsigned integers and return the scale. The scale's sign maps the largest
// magnitude to the lowest integer, because the negative range has one more value than the positive.
template <int Bits>
Half quantize_group(const float* weights, int group, uint8_t* to) {
    // Floats of the same sign order like their bits as integers, whose maximum the compiler vectorizes.
    int32_t positive = 0, negative = 0;
    for (int i = 0; i < group; ++i) {
        int32_t bits;
        std::memcpy(&bits, weights + i, sizeof bits);
        positive = std::max(positive, bits);
        negative = std::max(negative, bits ^ INT32_MIN);
    }
    const int32_t largest_bits = std::max(positive, negative);
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    const Half scale = to_half((positive > negative ? -largest : largest) / kZeroPoint<Bits>);
    const float inverse = to_float(scale) != 0 ? 1 / to_float(scale) : 0;
    for (int i = 0; i < group; ++i) {
        const int rounded = int(std::nearbyint(weights[i] * inverse));
        to[i] = uint8_t(std::min(std::max(rounded, -kZeroPoint<Bits>), kZeroPoint<Bits> - 1) + kZeroPoint<Bits>);
    }
    return scale;
}

template <int Bits>
void pack_integer_block(const float* weights, int inputs, int group, uint8_t* to, Half* scales) {
    uint8_t bytes[kBlock][128];
    for (int begin = 0; begin < inputs; begin += group, scales += kBlock) {
        for (int o = 0; o < kBlock; ++o)
            scales[o] = quantize_group<Bits>(weights + size_t(o) * inputs + begin, group, bytes[o]);
        for (int i = 0; i < group; i += kPackInputs, to += kPackBytes<Bits>) {
            uint8_t unpacked[kQuads][kBlock][4];
            for (int q = 0; q < kQuads; ++q)
                for (int o = 0; o < kBlock; ++o) std::memcpy(unpacked[q][o], bytes[o] + i + 4 * q, 4);
            Quad quads[kQuads];
            std::memcpy(quads, unpacked, sizeof quads);
            Quad packed[kPackQuads<Bits>];
            pack<Bits>(quads, packed);
            std::memcpy(to, packed, sizeof packed);
        }
    }
}

void apply_epilogue(Epilogue epilogue, const float* block, float* out) {
    for (int o = 0; o < kBlock; o += kWidth) {
        const Vec value = load(block + o);
        if (epilogue == Epilogue::kStore) store(out + o, value);
        if (epilogue == Epilogue::kAdd) store(out + o, load(out + o) + value);
        if (epilogue == Epilogue::kGelu) store(out + o, gelu(value));
    }
}

// Call kernel(row, std::integral_constant<int, number of rows>) for blocks of at most `MaxRows` rows.
template <int MaxRows, class Kernel>
void for_each_row_block(int row, int rows, Kernel&& kernel) {
    for (; row + MaxRows <= rows; row += MaxRows) kernel(row, std::integral_constant<int, MaxRows>());
    if constexpr (MaxRows > 1) for_each_row_block<MaxRows / 2>(row, rows, kernel);
}

}  // namespace

Linear::Linear(Arena& arena, Pool& pool, Format format, StoredWeights weights, int outputs, int inputs)
    : format_(format), outputs_(outputs), inputs_(inputs), group_(quant_layout(format, inputs).group_size) {
    if (format == Format::kFloat) {
        const auto* wide = static_cast<const float*>(weights.data);
        if (weights.format == Format::kHalf || all_fit<Half>(pool, wide, outputs, inputs))
            format_ = Format::kHalf;
        else if (all_fit<BFloat>(pool, wide, outputs, inputs))
            format_ = Format::kBFloat;
    }
    weights_ = arena.allocate(block_bytes() * (outputs / kBlock));
    if (group_) scales_ = reinterpret_cast<Half*>(arena.allocate(sizeof(Half) * size_t(outputs) * (inputs / group_)));
    pool.parallel_for(outputs / kBlock, [&](int block, int) { pack_block(weights, block); });
}

size_t Linear::block_bytes() const {
    const size_t count = size_t(kBlock) * inputs_;
    switch (format_) {
        case Format::kFloat: return count * 4;
        case Format::kInt8: return count;
        case Format::kInt6: return count * 6 / 8;
        default: return count * 2;
    }
}

// A block's weights in float32: in place, or converted in a buffer of this thread that its next block overwrites.
const float* Linear::to_float32(StoredWeights weights, int block) const {
    const size_t count = size_t(kBlock) * inputs_, begin = count * block;
    if (weights.format == Format::kFloat) return static_cast<const float*>(weights.data) + begin;
    thread_local std::vector<float> wide;
    wide.resize(count);
    const auto* from = static_cast<const Half*>(weights.data) + begin;
    for (size_t i = 0; i < count; i += kWidth) store(&wide[i], load(from + i));
    return wide.data();
}

void Linear::pack_block(StoredWeights stored, int block) {
    const float* weights = to_float32(stored, block);
    char* to = weights_ + block_bytes() * block;
    auto* bytes = reinterpret_cast<uint8_t*>(to);
    Half* scales = group_ ? scales_ + size_t(block) * (inputs_ / group_) * kBlock : nullptr;
    switch (format_) {
        case Format::kFloat: return pack_float_block(weights, inputs_, reinterpret_cast<float*>(to));
        case Format::kHalf: return pack_float_block(weights, inputs_, reinterpret_cast<Half*>(to));
        case Format::kBFloat: return pack_float_block(weights, inputs_, reinterpret_cast<BFloat*>(to));
        case Format::kInt8: return pack_integer_block<8>(weights, inputs_, group_, bytes, scales);
        case Format::kInt6: return pack_integer_block<6>(weights, inputs_, group_, bytes, scales);
    }
}

void Linear::apply_block(const Activations& in, int rows, int block, Epilogue epilogue, float* out,
                         int out_stride) const {
    const char* weights = weights_ + block_bytes() * block;
    const Half* scales = group_ ? scales_ + size_t(block) * (inputs_ / group_) * kBlock : nullptr;
    const auto store_rows = [&](int row, int count, const float (*results)[kBlock]) {
        for (int r = 0; r < count; ++r)
            apply_epilogue(epilogue, results[r], out + size_t(row + r) * out_stride + block * kBlock);
    };
    const auto run_float = [&](auto* typed) {
        for_each_row_block<4>(0, rows, [&](int row, auto count) {
            float results[count][kBlock];
            float_block<std::remove_cv_t<std::remove_pointer_t<decltype(typed)>>, count>(typed, in, row, results);
            store_rows(row, count, results);
        });
    };
    const auto run_integer = [&](auto bits) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(weights);
        int done = 0;
        for (; rows - done >= kMinTileRows && amx_available(); done += kTileRows) {
            float results[kTileRows][kBlock];
            const int count = std::min(rows - done, kTileRows);
            tile_block<bits>(bytes, scales, in, done, count, results);
            store_rows(done, count, results);
        }
        for_each_row_block<8>(done, rows, [&](int row, auto count) {
            float results[count][kBlock];
            integer_block<bits, count>(bytes, scales, in, row, results);
            store_rows(row, count, results);
        });
    };
    switch (format_) {
        case Format::kFloat: return run_float(reinterpret_cast<const float*>(weights));
        case Format::kHalf: return run_float(reinterpret_cast<const Half*>(weights));
        case Format::kBFloat: return run_float(reinterpret_cast<const BFloat*>(weights));
        case Format::kInt8: return run_integer(std::integral_constant<int, 8>());
        case Format::kInt6: return run_integer(std::integral_constant<int, 6>());
    }
}

void Linear::apply(Pool& pool, const Activations& in, int rows, Epilogue epilogue, float* out, int out_stride) const {
    pool.parallel_for_chunked(outputs_ / kBlock,
                              [&](int block, int) { apply_block(in, rows, block, epilogue, out, out_stride); });
}

}  // namespace native
