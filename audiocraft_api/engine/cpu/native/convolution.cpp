#include "convolution.h"

#include <algorithm>
#include <vector>

namespace native {

Convolution::Convolution(const ConvolutionSpec& spec)
    : outputs_(spec.outputs), inputs_(spec.inputs), taps_(spec.taps), dilation_(spec.dilation),
      panels_((spec.outputs + kPanel - 1) / kPanel),
      block_inputs_(std::clamp(kBlockProducts / spec.taps, 1, spec.inputs)),
      weights_(sizeof(float) * panels_ * kPanel * spec.taps * spec.inputs), bias_(sizeof(float) * panels_ * kPanel) {
    float* to = weights_.as<float>();
    for (int begin = 0; begin < inputs_; begin += block_inputs_)
        for (int panel = 0; panel < panels_; ++panel)
            for (int tap = 0; tap < taps_; ++tap)
                for (int i = begin; i < std::min(begin + block_inputs_, inputs_); ++i)
                    for (int o = panel * kPanel; o < (panel + 1) * kPanel; ++o)
                        *to++ = o < outputs_ ? spec.weights[(size_t(tap) * outputs_ + o) * inputs_ + i] : 0;
    if (spec.bias) std::copy_n(spec.bias, outputs_, bias_.as<float>());
}

void Convolution::apply(Pool& pool, const float* x, int64_t length, float* y) const {
    constexpr int kItemsPerThread = 4, kMaxChunks = 4096;
    const int chunks = int(std::min<int64_t>((length + kChunkRows - 1) / kChunkRows, kMaxChunks));
    if (!chunks) return;
    const int64_t rows = (length + chunks - 1) / chunks;
    const int groups = pool.size() == 1 ? 1 : std::clamp(kItemsPerThread * pool.size() / chunks, 1, panels_);
    const int panels = (panels_ + groups - 1) / groups;
    pool.parallel_for(chunks * groups, [&](int item, int) {
        const int64_t begin = item / groups * rows;
        const int panel = item % groups * panels;
        run(x, begin, std::min(begin + rows, length), panel, std::min(panel + panels, panels_), y);
    });
}

void Convolution::run(const float* x, int64_t begin, int64_t end, int panel_begin, int panel_end, float* y) const {
    const int64_t rows = end - begin, tiles = (rows + kTileRows - 1) / kTileRows;
    const int64_t input_rows = rows + int64_t(taps_ - 1) * dilation_;
    thread_local std::vector<float> packed;  // the inputs of a block: rows far apart compete for few cache lines
    for (int block = 0; block < inputs_; block += block_inputs_) {
        Tile tile;
        tile.block_inputs = std::min(block_inputs_, inputs_ - block);
        tile.is_first = block == 0;
        const float* from = x + begin * inputs_;
        if (tile.block_inputs < inputs_) {
            packed.resize(input_rows * tile.block_inputs);
            for (int64_t row = 0; row < input_rows; ++row)
                std::copy_n(from + row * inputs_ + block, tile.block_inputs, &packed[row * tile.block_inputs]);
            from = packed.data();
        }
        const float* weights = weights_.as<float>() + size_t(panels_) * kPanel * taps_ * block;
        for (int panel = panel_begin; panel < panel_end; ++panel) {
            const int output = panel * kPanel;
            tile.weights = weights + size_t(panel) * kPanel * taps_ * tile.block_inputs;
            tile.bias = bias_.as<float>() + output;
            tile.width = std::min(kPanel, outputs_ - output);
            for (int64_t index = 0; index < tiles; ++index) {  // of almost equal numbers of rows
                const int64_t row = rows * index / tiles, next = rows * (index + 1) / tiles;
                tile.x = from + row * tile.block_inputs;
                tile.y = y + (begin + row) * outputs_ + output;
                run_tile(int(next - row), tile);
            }
        }
    }
}

// Call run_rows with the number of rows as a constant.
template <int Rows>
void Convolution::run_tile(int rows, const Tile& tile) const {
    if constexpr (Rows < kTileRows)
        if (rows > Rows) return run_tile<Rows + 1>(rows, tile);
    run_rows<Rows>(tile);
}

template <int Rows>
void Convolution::run_rows(const Tile& tile) const {
    Vec left[Rows], right[Rows];
    for (int r = 0; r < Rows; ++r) {
        __builtin_prefetch(tile.y + size_t(r) * outputs_, 1);
        left[r] = right[r] = Vec{};
    }
    const float* weights = tile.weights;
    for (int tap = 0; tap < taps_; ++tap) {
        const float* x = tile.x + size_t(tap) * dilation_ * tile.block_inputs;
        for (int i = 0; i < tile.block_inputs; ++i, weights += kPanel) {
            const Vec left_weights = load(weights), right_weights = load(weights + kWidth);
            for (int r = 0; r < Rows; ++r) {
                const Vec value = splat(x[size_t(r) * tile.block_inputs + i]);
                left[r] += left_weights * value;
                right[r] += right_weights * value;
            }
        }
    }
    for (int r = 0; r < Rows; ++r) {
        float* y = tile.y + size_t(r) * outputs_;
        float partial[kPanel] = {};  // the last panel may have fewer outputs
        float* to = tile.width == kPanel ? y : partial;
        if (to == partial) std::copy_n(y, tile.width, partial);
        const float* addend = tile.is_first ? tile.bias : to;
        store(to, load(addend) + left[r]);
        store(to + kWidth, load(addend + kWidth) + right[r]);
        if (to == partial) std::copy_n(partial, tile.width, y);
    }
}

void elu(const float* x, int64_t count, float* y) {
    int64_t i = 0;
    // exp(x) - 1 is never below x, so the maximum selects the right branch.
    for (; i + kWidth <= count; i += kWidth) store(y + i, max(load(x + i), min(exp(load(x + i)) - 1.0f, Vec{})));
    if (i == count) return;
    float rest[kWidth] = {};
    std::copy(x + i, x + count, rest);
    store(rest, max(load(rest), min(exp(load(rest)) - 1.0f, Vec{})));
    std::copy_n(rest, count - i, y + i);
}

}  // namespace native
