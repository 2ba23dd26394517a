// Convolutions over time in float32, of time-major samples: rows are moments, columns are channels.
//
// A tap is a matrix product with the rows that begin a few moments later, so one product with overlapping rows does all
// taps. Each output is summed in one fixed order: its bits do not depend on the number of rows or of threads.
//
// Memory layout of the weights: [input blocks, panels, taps, inputs of the block, kPanel], so that the weights of one
// block and panel stay in the innermost cache for all rows.
#pragma once

#include <cstdint>

#include "memory.h"
#include "pool.h"
#include "vec.h"

namespace native {

// The weights of a convolution. library.py declares it, too.
struct ConvolutionSpec {
    int32_t outputs, inputs, taps, dilation;
    const float* weights;  // [taps, outputs, inputs]
    const float* bias;     // [outputs], or null
};

class Convolution {
public:
    explicit Convolution(const ConvolutionSpec& spec);

    // y[t] = sum_j weights[j] x[t + j * dilation] + bias, for t < length.
    void apply(Pool& pool, const float* x, int64_t length, float* y) const;

private:
    static constexpr int kPanel = 2 * kWidth;                // outputs computed together
    static constexpr int kTileRows = kWidth == 16 ? 12 : 6;  // rows computed together: as many as fit the registers
    static constexpr int kBlockProducts = 256;               // taps times inputs of a block: half the innermost cache
    static constexpr int kChunkRows = 96;

    struct Tile {
        const float* x;
        float* y;
        const float* weights;
        const float* bias;
        int block_inputs;  // also the distance of rows of `x`
        int width;         // outputs of this panel that exist
        bool is_first;     // of the blocks: store the bias plus the products; otherwise add the products to `y`
    };

    void run(const float* x, int64_t begin, int64_t end, int panel_begin, int panel_end, float* y) const;
    template <int Rows = 1>
    void run_tile(int rows, const Tile& tile) const;
    template <int Rows>
    void run_rows(const Tile& tile) const;

    int outputs_, inputs_, taps_, dilation_, panels_, block_inputs_;
    Buffer weights_, bias_;
};

// y = x where x > 0, else e^x - 1. The error is at most half a unit in the last place of 1.
void elu(const float* x, int64_t count, float* y);

}  // namespace native
