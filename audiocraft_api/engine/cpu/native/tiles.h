// Integer products with AMX, the matrix unit of newer x86 processors, for three rows or more. Integer sums are exact,
// so the results have the same bits as those of integer_products.h.
#pragma once

#include "integer_kernel.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define NATIVE_TILES 1
#endif

namespace native {

constexpr int kTileRows = 16;
constexpr int kMinTileRows = 3;

#if defined(NATIVE_TILES)

// Return whether this process may use AMX. Linux enables the tile registers only on request.
inline bool amx_available() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return allowed;
}

// Configures the tile registers: 0 and 1 accumulate the high and the low plane, 2 and 3 contain the planes, and 4 the
// weights of 16 outputs x 64 inputs.
class TileRegisters {
public:
    explicit TileRegisters(int rows) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 4; ++tile) config.rows[tile] = uint8_t(rows);
        config.rows[4] = 16;
        _tile_loadconfig(&config);
    }
    ~TileRegisters() { _tile_release(); }
};

template <int Bits>
void tile_block(const uint8_t* weights, const Half* scales, const Activations& in, int row, int rows,
                float (*out)[kBlock]) {
    constexpr int kTileInputs = 64;
    const TileRegisters registers(rows);
    alignas(64) uint8_t unpacked[kTileInputs * kBlock];
    alignas(64) int32_t high_sums[kTileRows * kBlock], low_sums[kTileRows * kBlock];
    for (int r = 0; r < rows; ++r)
        for (int o = 0; o < kBlock; ++o) out[r][o] = 0;
    const int8_t* high = in.high.data() + size_t(row) * in.width;
    const int8_t* low = in.low.data() + size_t(row) * in.width;
    for (int g = 0; g < in.groups; ++g, scales += kBlock) {
        const bool has_low = in.needs_low(row, rows, g);
        _tile_zero(0);
        _tile_zero(1);
        for (int i = 0; i < in.layout.group_size; i += kTileInputs, high += kTileInputs, low += kTileInputs) {
            const uint8_t* tile = Bits == 8 ? weights : unpacked;
            for (int at = 0; at < kTileInputs; at += kPackInputs, weights += kPackBytes<Bits>) {
                for (int byte = 0; byte < kPackBytes<Bits>; byte += 64) prefetch_ahead(weights + byte);
                if (Bits == 8) continue;
                Quad quads[kQuads];
                unpack<Bits>(weights, quads);
                std::memcpy(unpacked + at * kBlock, quads, sizeof quads);
            }
            _tile_loadd(4, tile, 64);
            _tile_loadd(2, high, in.width);
            _tile_dpbsud(0, 2, 4);
            if (!has_low) continue;
            _tile_loadd(3, low, in.width);
            _tile_dpbsud(1, 3, 4);
        }
        _tile_stored(0, high_sums, 64);
        _tile_stored(1, low_sums, 64);
        for (int r = 0; r < rows; ++r)
            for (int o = 0; o < kBlock; o += kWidth) {
                const size_t at = size_t(row + r) * in.groups + g;
                const IntVec high_part = load(high_sums + r * kBlock + o) + in.corrections[at].high;
                const IntVec low_part = load(low_sums + r * kBlock + o) + in.corrections[at].low;
                Vec total = load(out[r] + o);
                add_group(high_part, low_part, has_low, load(scales + o) * in.scales[at], total);
                store(out[r] + o, total);
            }
    }
}

#else

inline bool amx_available() { return false; }

template <int Bits>
void tile_block(const uint8_t*, const Half*, const Activations&, int, int, float (*)[kBlock]) {}

#endif

}  // namespace native
