// A block of outputs of a few rows with 8-bit or 6-bit weights and activations of one or two bytes, summed as integers.
#pragma once

#include "activations.h"
#include "integer_products.h"
#include "memory.h"

namespace native {

constexpr int kBlockVecs = kBlock / kWidth;

// Add one group's integer sums to float sums. `scales` are the weights' scales times the inputs' scales.
inline void add_group(IntVec high, IntVec low, bool has_low, Vec scales, Vec& total) {
    // Both planes together fit in 32 bits but are rounded as a float; the high plane alone is converted exactly.
    const Vec exact =
        has_low ? __builtin_convertvector((high << 8) + low, Vec) * (1.0f / 256) : __builtin_convertvector(high, Vec);
    total += exact * scales;
}

// Add the products of one group and one plane of its inputs, whose rows are `stride` bytes apart.
template <int Bits, int Rows, bool Prefetch>
[[gnu::always_inline]] inline void sum_plane(const uint8_t* weights, const int8_t* inputs, int num_inputs,
                                             size_t stride, Sums (&sums)[Rows]) {
    for (int i = 0; i < num_inputs; i += kPackInputs, weights += kPackBytes<Bits>) {
        for (int byte = 0; Prefetch && byte < kPackBytes<Bits>; byte += 64) prefetch_ahead(weights + byte);
        Quad quads[kQuads];
        unpack<Bits>(weights, quads);
        for (int q = 0; q < kQuads; q += 2)
            for (int r = 0; r < Rows; ++r) dot8<Bits>(sums[r], quads[q], quads[q + 1], inputs + r * stride + i + 4 * q);
    }
}

// The planes are summed one after the other: the sums of both would not fit in the registers of AVX2.
template <int Bits, int Rows>
void integer_block(const uint8_t* weights, const Half* scales, const Activations& in, int row, float (*out)[kBlock]) {
    const int num_inputs = in.layout.group_size;
    const size_t width = in.width, groups = in.groups;
    for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kBlock; ++o) out[r][o] = 0;
    for (size_t group = 0; group < groups; ++group, scales += kBlock, weights += num_inputs * kBlock * Bits / 8) {
        const size_t first_input = row * width + group * num_inputs, at = row * groups + group;
        const bool has_low = in.needs_low(row, Rows, group);
        Sums high[Rows], low[Rows];
        for (int r = 0; r < Rows; ++r) high[r] = sums_from(in.corrections[at + r * groups].high);
        sum_plane<Bits, Rows, true>(weights, &in.high[first_input], num_inputs, width, high);
        if (has_low) {
            for (int r = 0; r < Rows; ++r) low[r] = sums_from(in.corrections[at + r * groups].low);
            sum_plane<Bits, Rows, false>(weights, &in.low[first_input], num_inputs, width, low);
        }
        for (int o = 0; o < kBlock; o += kWidth) {
            const Vec weight_scales = load(scales + o);
            for (int r = 0; r < Rows; ++r) {
                Vec total = load(out[r] + o);
                add_group(lanes(high[r], o), has_low ? lanes(low[r], o) : IntVec{}, has_low,
                          weight_scales * in.scales[at + r * groups], total);
                store(out[r] + o, total);
            }
        }
    }
}

}  // namespace native
