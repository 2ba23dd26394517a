// Matrices packed for few rows: y = x W^T with the weights read once, in one stream.
//
// Weights lie in blocks of 16 outputs. Float kinds: four outputs by 16 inputs at a time. Integer kinds: 16 outputs by
// four inputs, with one scale for each output and group of inputs. Each output is summed in one fixed order, whatever
// the number of rows: a row's result never depends on its neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "dot4.h"
#include "memory.h"
#include "pool.h"

namespace native {

enum class Format : int { kFloat = 0, kHalf = 1, kBFloat = 2, kInt8 = 3, kInt6 = 4 };

inline bool is_integer(Format format) { return format == Format::kInt8 || format == Format::kInt6; }

// Weights [outputs, inputs] as a checkpoint has them: kFloat or kHalf.
struct Stored {
    const void* data;
    Format format;
};

enum class Epilogue { kStore, kAdd, kGelu };

class Linear {
public:
    Linear() = default;

    // Pack weights; outputs are a multiple of 16, inputs of 64. kFloat keeps weights that fit
    // in 16 bits, as those of released checkpoints do, in 16 bits: the same products for half the memory traffic.
    Linear(Arena& arena, Pool& pool, Format format, Stored weights, int outputs, int inputs);

    // For `rows` rows of `in`: store W in, add it to `out`, or store gelu(W in). `out` is [rows, out_stride].
    void apply(Pool& pool, const Activations& in, int rows, Epilogue epilogue, float* out, int out_stride) const;

    int outputs() const { return outputs_; }
    int inputs() const { return inputs_; }

    // The image that activations of `inputs` floats need.
    static Image image(Format format, int inputs) {
        if (!is_integer(format)) return {};
        const int group = inputs % 128 == 0 ? 128 : 64;
        return format == Format::kInt6 ? Image{group, 32, kMostCrest} : Image{group, 128, 0};
    }

private:
    static constexpr float kMostCrest = 5;  // one byte is then off by 1.1 % at most, a weight of six bits by about 2.5 %

    const float* widened(Stored weights, int block) const;
    void pack_block(Stored weights, int block);
    void apply_block(const Activations& in, int rows, int block, Epilogue epilogue, float* out, int out_stride) const;
    size_t block_bytes() const;

    Format format_ = Format::kFloat;
    int outputs_ = 0, inputs_ = 0, group_ = 0;
    char* weights_ = nullptr;
    Half* scales_ = nullptr;  // float16 [outputs / 16, inputs / group, 16]
};

}  // namespace native
