// A block of outputs of a few rows with weights of 32 or 16 bits, in float32 arithmetic.
#pragma once

#include "activations.h"
#include "integer_products.h"
#include "memory.h"

namespace native {

constexpr int kFloatOutputs = 4;  // outputs of one float sub-block
constexpr int kFloatInputs = 16;  // consecutive inputs of one output in it

// Each lane sums its inputs in order, then the lanes are summed: the same order for any number of rows.
template <class T, int Rows>
void float_sub_block(const T* weights, const Activations& in, int row, float (*out)[kBlock]) {
    const float* x[Rows];
    Vec sums[Rows][kFloatOutputs] = {};
    for (int r = 0; r < Rows; ++r) x[r] = in.row(row + r);
    for (int i = 0; i < in.width; i += kFloatInputs, weights += kFloatOutputs * kFloatInputs) {
        for (size_t byte = 0; byte < kFloatOutputs * kFloatInputs * sizeof(T); byte += 64)
            prefetch_ahead(reinterpret_cast<const char*>(weights) + byte);
        for (int j = 0; j < kFloatInputs; j += kWidth)
            for (int o = 0; o < kFloatOutputs; ++o) {
                const Vec weight = load(weights + o * kFloatInputs + j);
                for (int r = 0; r < Rows; ++r) sums[r][o] += weight * load(x[r] + i + j);
            }
    }
    for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kFloatOutputs; ++o) out[r][o] = sum(sums[r][o]);
}

template <class T, int Rows>
void float_block(const T* weights, const Activations& in, int row, float (*out)[kBlock]) {
    for (int o = 0; o < kBlock; o += kFloatOutputs, weights += size_t(kFloatOutputs) * in.width)
        float_sub_block<T, Rows>(weights, in, row, reinterpret_cast<float (*)[kBlock]>(&out[0][o]));
}

}  // namespace native
