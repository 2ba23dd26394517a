// Sixteen outputs of a few rows with weights of eight or six bits and activations of one or two bytes, summed in integers.
#pragma once

#include "activations.h"
#include "dot4.h"
#include "float_kernel.h"

namespace native {

// Add one group's integer sums to a row's float sums: 256 high + low, less the weights' offset, times both scales.
template <int Bits>
inline void add_group(const int32_t* high, const int32_t* low, const Activations& in, int row, int group,
                      const Half* scales, float* total) {
    const size_t at = size_t(row) * in.groups + group;
    const int32_t offset = in.sums[at] * (1 << (Bits - 1));
    for (int o = 0; o < kBlock; o += kWidth) {
        IntVec upper, lower;
        std::memcpy(&upper, high + o, sizeof upper);
        std::memcpy(&lower, low + o, sizeof lower);
        const IntVec exact = (upper << 8) + lower - offset;
        store(total + o, load(total + o) + __builtin_convertvector(exact, Vec) * (load(scales + o) * in.scales[at]));
    }
}

// One group of a few rows; `HasLow`: whether any of them needs the low plane. A plane of zeros adds exactly nothing.
template <int Bits, int Rows, bool HasLow>
void integer_group(const uint8_t* weights, const Half* scales, const Activations& in, int row, int group,
                   float (*out)[kBlock]) {
    const size_t begin = size_t(row) * in.width + group * in.image.group;
    const int8_t *high = &in.high[begin], *low = &in.low[begin];
    Sums high_sums[Rows], low_sums[Rows];
    for (int r = 0; r < Rows; ++r) high_sums[r] = low_sums[r] = zero_sums();
    for (int i = 0; i < in.image.group; i += kQuadInputs, weights += kPackBytes<Bits>) {
        for (int byte = 0; byte < kPackBytes<Bits>; byte += 64) stream(weights + byte);
        Quad quads[kQuads];
        unpack<Bits>(weights, quads);
        for (int q = 0; q < kQuads; ++q, high += 4, low += 4)
            for (int r = 0; r < Rows; ++r) {
                dot4(high_sums[r], quads[q], high + size_t(r) * in.width);
                if (HasLow) dot4(low_sums[r], quads[q], low + size_t(r) * in.width);
            }
    }
    for (int r = 0; r < Rows; ++r) {
        int32_t upper[kBlock], lower[kBlock];
        store_sums(upper, high_sums[r]);
        store_sums(lower, low_sums[r]);
        add_group<Bits>(upper, lower, in, row + r, group, scales, out[r]);
    }
}

template <int Bits, int Rows>
void integer_block(const uint8_t* weights, const Half* scales, const Activations& in, int row, float (*out)[kBlock]) {
    for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kBlock; ++o) out[r][o] = 0;
    for (int group = 0; group < in.groups; ++group, scales += kBlock, weights += in.image.group * kBlock * Bits / 8)
        if (in.needs_low(row, Rows, group))
            integer_group<Bits, Rows, true>(weights, scales, in, row, group, out);
        else
            integer_group<Bits, Rows, false>(weights, scales, in, row, group, out);
}

}  // namespace native
