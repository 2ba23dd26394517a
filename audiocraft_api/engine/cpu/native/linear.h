// Matrices packed for products with few rows: y = x W^T reads the weights once, sequentially.
//
// Memory layout: blocks of kBlock outputs. Float formats: sub-blocks of four outputs x 16 inputs (float_kernel.h).
// Integer formats: packs of kBlock outputs x 16 inputs (integer_products.h), with one scale per output and group of
// inputs. Each output is summed in one fixed order for any number of rows: a row's result never depends on the others.
#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "integer_products.h"
#include "memory.h"
#include "pool.h"

namespace native {

enum class Format : int { kFloat = 0, kHalf = 1, kBFloat = 2, kInt8 = 3, kInt6 = 4 };

inline bool is_integer(Format format) { return format == Format::kInt8 || format == Format::kInt6; }

// Weights [outputs, inputs] as in a checkpoint: kFloat or kHalf.
struct StoredWeights {
    const void* data;
    Format format;
};

// How a result y is written: stored, added to the output, or stored as gelu(y).
enum class Epilogue { kStore, kAdd, kGelu };

class Linear {
public:
    Linear() = default;

    // Pack weights. `outputs` is a multiple of 16, `inputs` of 64. kFloat stores a matrix in 16 bits if that is exact,
    // as it is for released checkpoints: the same products for half the memory traffic.
    Linear(Arena& arena, Pool& pool, Format format, StoredWeights weights, int outputs, int inputs);

    // Multiply `rows` rows of `in` and write them to `out` [rows, out_stride].
    void apply(Pool& pool, const Activations& in, int rows, Epilogue epilogue, float* out, int out_stride) const;

    int outputs() const { return outputs_; }
    int inputs() const { return inputs_; }

    // How activations of `inputs` floats must be quantized for weights of `format`.
    static QuantLayout quant_layout(Format format, int inputs) {
        if (!is_integer(format)) return {};
        const int group = inputs % 128 == 0 ? 128 : 64;
        return format == Format::kInt6 ? QuantLayout{group, kProductZeroPoint<6>, kMaxCrestFactor}
                                       : QuantLayout{group, kProductZeroPoint<8>, 0};
    }

private:
    // Up to this crest factor the relative error of one-byte activations is at most 1.1 %, that of 6-bit weights
    // about 2.5 %.
    static constexpr float kMaxCrestFactor = 5;

    const float* to_float32(StoredWeights weights, int block) const;
    void pack_block(StoredWeights weights, int block);
    void apply_block(const Activations& in, int rows, int block, Epilogue epilogue, float* out, int out_stride) const;
    size_t block_bytes() const;

    Format format_ = Format::kFloat;
    int outputs_ = 0, inputs_ = 0, group_ = 0;
    char* weights_ = nullptr;
    Half* scales_ = nullptr;  // float16 [outputs / kBlock, inputs / group, kBlock]
};

}  // namespace native
