// Sixteen outputs of a few rows with weights of eight or six bits and 16-bit activations, summed in integers.
#pragma once

#include "activations.h"
#include "dot4.h"
#include "float_kernel.h"

namespace native {

// Add one group's integer sums to a row's float sums: 256 high + low, less the weights' offset, times the scales.
template <int Bits>
inline void add_group(const int32_t* high, const int32_t* low, int32_t input_sum, const Half* scales, float* total) {
    const int32_t offset = input_sum * (1 << (Bits - 1));
    for (int o = 0; o < kBlock; o += kWidth) {
        IntVec upper, lower;
        std::memcpy(&upper, high + o, sizeof upper);
        std::memcpy(&lower, low + o, sizeof lower);
        const IntVec exact = (upper << 8) + lower - offset;
        store(total + o, load(total + o) + __builtin_convertvector(exact, Vec) * load(scales + o));
    }
}

template <int Bits, int Rows>
void integer_block(const uint8_t* weights, const Half* scales, const Activations& in, int row, float (*out)[kBlock]) {
    const int group = in.group, groups = in.width / group;
    for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kBlock; ++o) out[r][o] = 0;
    const int8_t* high = in.high.data() + size_t(row) * in.width;
    const int8_t* low = in.low.data() + size_t(row) * in.width;
    for (int g = 0; g < groups; ++g, scales += kBlock) {
        Sums high_sums[Rows], low_sums[Rows];
        for (int r = 0; r < Rows; ++r) high_sums[r] = low_sums[r] = zero_sums();
        for (int i = 0; i < group; i += kQuadInputs, weights += kPackBytes<Bits>) {
            for (int byte = 0; byte < kPackBytes<Bits>; byte += 64) stream(weights + byte);
            Quad quads[kQuads];
            unpack<Bits>(weights, quads);
            for (int q = 0; q < kQuads; ++q, high += 4, low += 4)
                for (int r = 0; r < Rows; ++r) {
                    dot4(high_sums[r], quads[q], high + size_t(r) * in.width);
                    dot4(low_sums[r], quads[q], low + size_t(r) * in.width);
                }
        }
        for (int r = 0; r < Rows; ++r) {
            int32_t upper[kBlock], lower[kBlock];
            store_sums(upper, high_sums[r]);
            store_sums(lower, low_sums[r]);
            add_group<Bits>(upper, lower, in.sums[size_t(row + r) * groups + g], scales, out[r]);
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kBlock; ++o) out[r][o] *= in.scales[row + r];
}

}  // namespace native
