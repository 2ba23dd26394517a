// MusicGen's transformer decoder: embeds rows of tokens, runs every layer, and returns logits.
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

// library.py declares the same struct.
struct DecoderSpec {
    int32_t num_layers, dim, num_heads, ffn_dim, codebook_size, num_codebooks, has_cross_attention;
    int32_t num_slots, capacity, num_threads;  // capacity: positions per slot
    int32_t format;                            // Format of the matrices of all layers and output heads
    int32_t kv_bits;                           // of keys and values: 32, 8 or 6
};

// Weights of one layer; read during set_layer only. Norms are float32, matrices are all of Format `stored`: kFloat or
// kHalf. Absent cross-attention pointers are null. library.py declares the same struct.
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

// A text that a row may attend to.
struct Context {
    KvCache cross;
    int length = 0;
};

// What a row attends to with a weight.
struct Part {
    int context;
    float weight;
};

struct Slot {
    KvCache self;
    std::vector<Context> contexts;
    std::vector<Part> parts;  // their outputs are added in this order; empty: the row skips cross-attention
};

class Decoder {
public:
    explicit Decoder(const DecoderSpec& spec);

    void set_layer(int index, const LayerPointers& from);
    // `heads` [codebooks * codebook_size, dim] are packed here. The caller keeps the tables in memory for the decoder's
    // lifetime: `embeddings`, one [codebook_size + 1, dim] per codebook, and `positions` [capacity, dim].
    void set_embeddings_and_heads(const float* heads, const float* norm_weight, const float* norm_bias,
                                  const float* const* embeddings, const float* positions);

    // Compute the cross-attention keys and values of a slot's context with this number from `context` [length, dim].
    // Length 0 frees it. No row attends to it until set_parts.
    void set_context(int slot, int number, const float* context, int length);

    // Let a slot's row attend to the contexts with these numbers, and add the outputs with these weights.
    void set_parts(int slot, int count, const int32_t* numbers, const float* weights);

    // Free the memory of a slot's keys and values.
    void clear_slot(int slot);

    // Run `rows` rows, each one position of a slot. Rows of the same slot must be in order; a row attends to the rows
    // before it. The input is `tokens` [rows, codebooks] or, if null, `inputs` [rows, dim] without position embeddings.
    // Writes the logits of the last rows to `logits` [num_logit_rows, codebooks * codebook_size].
    void forward(int rows, const int64_t* tokens, const float* inputs, const int32_t* slots, const int32_t* positions,
                 int num_logit_rows, float* logits);

    // Sample the next tokens [count, codebooks] of `count` requests from the logits of their rows.
    void sample(const SamplingParams* params, int count, const float* logits, int64_t* tokens) {
        native::sample(pool_, params, count, spec_.num_codebooks, spec_.codebook_size, logits, tokens);
    }

    // Bytes of packed weights, keys and values.
    size_t bytes() const;

private:
    void embed(int rows, const int64_t* tokens, const float* inputs, const int32_t* positions);
    void self_attention(int layer, int rows, const int32_t* slots, const int32_t* positions);
    void cross_attention(int layer, int rows, const int32_t* slots);
    void attend_cross(int layer, int head, const Slot& slot, const float* query, AttentionScratch& scratch, float* out);
    void feed_forward(const Layer& layer, int rows);
    void normalize(const Norm& norm, const std::vector<int>& rows, Activations& out);
    void quantize(Activations& values, int rows);

    DecoderSpec spec_;
    Format format_;
    Pool pool_;
    Arena weights_;
    int num_rows_ = 0;  // rows run so far, counted until the weights move to huge pages
    std::vector<Layer> layers_;
    std::vector<Slot> slots_;
    Norm out_norm_;
    Linear heads_;
    std::vector<const float*> embeddings_;
    const float* positions_ = nullptr;

    std::vector<float> residual_;            // [rows, dim]
    std::vector<float> projected_;           // [rows, 3 * dim]
    std::vector<AttentionScratch> scratch_;  // one per worker
    Activations hidden_;                     // [rows, dim]
    Activations ffn_;                        // [rows, ffn_dim]
};

}  // namespace native
