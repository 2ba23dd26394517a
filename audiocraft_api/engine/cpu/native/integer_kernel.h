// Sixteen outputs of a few rows with 8-bit or 6-bit weights and activations of one or two bytes, summed as integers.
#pragma once

#include "activations.h"
#include "dot4.h"
#include "float_kernel.h"

namespace native {

constexpr int kBlockVecs = kBlock / kWidth;

// One group of the quantized rows from `row` on. The next row is `width` bytes and `groups` scales further.
struct QuantizedGroup {
    QuantizedGroup(const Activations& in, int row, int group)
        : inputs(in.layout.group_size), width(in.width), groups(in.groups),
          high(&in.high[row * width + group * inputs]), low(&in.low[row * width + group * inputs]),
          corrections(&in.corrections[row * groups + group]), scales(&in.scales[row * groups + group]) {}

    const int inputs;
    const size_t width, groups;
    const int8_t *const high, *const low;
    const PlaneSums* const corrections;
    const float* const scales;
};

// The float sums of a block's outputs. A struct stays in registers from group to group; an array argument would not.
template <int Rows>
struct Totals {
    Vec sums[Rows][kBlockVecs] = {};

    void load_from(const float (*from)[kBlock]) {
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < kBlockVecs; ++v) sums[r][v] = load(from[r] + v * kWidth);
    }
    void store_to(float (*to)[kBlock]) const {
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < kBlockVecs; ++v) store(to[r] + v * kWidth, sums[r][v]);
    }
};

// Add one group's integer sums to float sums. `scales` are the weights' scales times the inputs' scales.
inline void add_group(IntVec high, IntVec low, bool has_low, Vec scales, Vec& total) {
    // Both planes together fit in 32 bits but are rounded as a float; the high plane alone is converted exactly.
    const Vec exact =
        has_low ? __builtin_convertvector((high << 8) + low, Vec) * (1.0f / 256) : __builtin_convertvector(high, Vec);
    total += exact * scales;
}

// One group of a few rows. `HasLow`: whether any of them uses the low plane; a plane of zeros adds exactly zero.
template <int Bits, int Rows, bool HasLow>
[[gnu::always_inline]] inline void integer_group(const uint8_t* weights, const Half* scales, const QuantizedGroup& in,
                                                 Totals<Rows>& totals) {
    Sums high_sums[Rows], low_sums[Rows];
    for (int r = 0; r < Rows; ++r) {
        high_sums[r] = sums_from(in.corrections[r * in.groups].high);
        low_sums[r] = sums_from(in.corrections[r * in.groups].low);
    }
    for (int i = 0; i < in.inputs; i += kPackInputs, weights += kPackBytes<Bits>) {
        for (int byte = 0; byte < kPackBytes<Bits>; byte += 64) prefetch_ahead(weights + byte);
        Quad quads[kQuads];
        unpack<Bits>(weights, quads);
        add_products<Bits>(high_sums, quads, in.high + i, in.width);
        if (HasLow) add_products<Bits>(low_sums, quads, in.low + i, in.width);
    }
    for (int v = 0; v < kBlockVecs; ++v) {
        const Vec weight_scales = load(scales + v * kWidth);
        for (int r = 0; r < Rows; ++r)
            add_group(lanes(high_sums[r], v * kWidth), lanes(low_sums[r], v * kWidth), HasLow,
                      weight_scales * in.scales[r * in.groups], totals.sums[r][v]);
    }
}

// Not inlined: it is rare, and its sums would take registers from the common case.
template <int Bits, int Rows>
[[gnu::noinline]] void integer_group_with_low(const uint8_t* weights, const Half* scales, const Activations& in,
                                              int row, int group, float (*out)[kBlock]) {
    Totals<Rows> totals;
    totals.load_from(out);
    integer_group<Bits, Rows, true>(weights, scales, QuantizedGroup(in, row, group), totals);
    totals.store_to(out);
}

template <int Bits, int Rows>
void integer_block(const uint8_t* weights, const Half* scales, const Activations& in, int row, float (*out)[kBlock]) {
    const int groups = in.groups;
    Totals<Rows> totals;
    for (int group = 0; group < groups; ++group, scales += kBlock, weights += in.layout.group_size * kBlock * Bits / 8)
        if (in.needs_low(row, Rows, group)) {
            totals.store_to(out);
            integer_group_with_low<Bits, Rows>(weights, scales, in, row, group, out);
            totals.load_from(out);
        } else {
            integer_group<Bits, Rows, false>(weights, scales, QuantizedGroup(in, row, group), totals);
        }
    totals.store_to(out);
}

}  // namespace native
