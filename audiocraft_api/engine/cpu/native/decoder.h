// The transformer decoder of MusicGen: embeds rows of tokens, runs every layer, gives logits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "activations.h"
#include "kv_cache.h"
#include "linear.h"
#include "pool.h"
#include "sampling.h"

namespace native {

// The same struct is declared in library.py.
struct Shape {
    int32_t layers, dim, heads, hidden, card, codebooks, cross;
    int32_t slots, capacity, threads;
    int32_t format;   // Format of all layers and heads
    int32_t kv_bits;  // of keys and values: 32, 8 or 6
};

// Read while they are packed only; norms are float32 and copied, matrices all of the one Format, kFloat or kHalf.
struct LayerPointers {
    const float *norm1_weight, *norm1_bias, *cross_norm_weight, *cross_norm_bias, *norm2_weight, *norm2_bias;
    const void *qkv, *self_out, *cross_query, *cross_key, *cross_value, *cross_out, *linear1, *linear2;
    int32_t stored;
};

struct Norm {
    std::vector<float> weight, bias;
};

struct Layer {
    Norm norm1, cross_norm, norm2;
    Linear qkv, self_out, cross_query, cross_key, cross_value, cross_out, linear1, linear2;
};

struct Slot {
    KvCache self, cross;
    int context = 0;  // positions of cross-attention; 0 skips it
};

class Decoder {
public:
    explicit Decoder(const Shape& shape);

    void set_layer(int index, const LayerPointers& from);
    // Heads are [codebooks * card, dim], packed here; the two tables are [codebooks * (card + 1), dim] and
    // [capacity, dim], kept by the caller while the decoder lives.
    void set_ends(const float* heads, const float* norm_weight, const float* norm_bias, const float* const* embeddings,
                  const float* positions);

    // Compute a slot's cross-attention keys and values from `context` [length, dim].
    void begin(int slot, const float* context, int length);

    // Give a slot's memory back.
    void release(int slot);

    // Run `rows` rows, each a position of a slot. Rows of one slot must be in order; a row sees the rows before it.
    // Input is `tokens` [rows, codebooks] or, where that is null, `inputs` [rows, dim] without positions.
    // The last `wanted` rows' logits go to `logits` [wanted, codebooks * card].
    void run(int rows, const int64_t* tokens, const float* inputs, const int32_t* slots, const int32_t* positions,
             int wanted, float* logits);

    // Choose the next tokens [count, codebooks] of so many requests from their rows' logits.
    void sample(const Choice* choices, int count, const float* logits, int64_t* tokens) {
        native::sample(pool_, choices, count, shape_.codebooks, shape_.card, logits, tokens);
    }

    size_t bytes() const;

private:
    void embed(int rows, const int64_t* tokens, const float* inputs, const int32_t* positions);
    void self_attention(int layer, int rows, const int32_t* slots, const int32_t* positions);
    void cross_attention(int layer, int rows, const int32_t* slots);
    void feed_forward(const Layer& layer, int rows);
    void normalize(const Norm& norm, const std::vector<int>& rows, Activations& out);
    void quantize(Activations& values, int rows);

    Shape shape_;
    Format format_;
    Pool pool_;
    Arena weights_;
    int num_rows_ = 0;  // that were run, until weights are gathered
    std::vector<Layer> layers_;
    std::vector<Slot> slots_;
    Norm out_norm_;
    Linear heads_;
    std::vector<const float*> embeddings_;
    const float* positions_ = nullptr;

    std::vector<float> residual_;              // [rows, dim]
    std::vector<float> projected_;             // [rows, 3 dim]
    std::vector<AttentionScratch> scratch_;    // one for each worker
    Activations narrow_, wide_;                // [rows, dim] and [rows, hidden]
};

}  // namespace native
