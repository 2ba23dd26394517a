#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace native {
namespace {

constexpr float kNormEpsilon = 1e-5f;
// Moving the weights to huge pages may take half a second. It saves 2 % of a step of two rows and 10 % of sixteen.
constexpr int kRowsBeforeHugePages = 4000;

std::vector<float> copy(const float* from, int count) { return {from, from + count}; }

void layer_norm(const Norm& norm, const float* from, int width, float* to) {
    Vec total = Vec{}, squares = Vec{};
    for (int i = 0; i < width; i += kWidth) total += load(from + i);
    const float mean = sum(total) / width;
    for (int i = 0; i < width; i += kWidth) {
        const Vec centered = load(from + i) - mean;
        squares += centered * centered;
    }
    const float inverse = 1 / std::sqrt(sum(squares) / width + kNormEpsilon);
    for (int i = 0; i < width; i += kWidth)
        store(to + i, (load(from + i) - mean) * inverse * load(&norm.weight[i]) + load(&norm.bias[i]));
}

}  // namespace

Decoder::Decoder(const DecoderSpec& spec)
    : spec_(spec), format_(Format(spec.format)), pool_(spec.num_threads), layers_(spec.num_layers),
      slots_(spec.num_slots), scratch_(pool_.size()) {
    for (Slot& slot : slots_)
        slot.self = KvCache(spec.kv_bits, spec.num_layers, spec.num_heads, spec.dim / spec.num_heads, spec.capacity);
}

void Decoder::set_layer(int index, const LayerPointers& from) {
    const int dim = spec_.dim;
    const auto pack = [&](const void* weights, int outputs, int inputs) {
        return Linear(weights_, pool_, format_, {weights, Format(from.stored)}, outputs, inputs);
    };
    Layer& layer = layers_[index];
    layer.norm1 = {copy(from.norm1_weight, dim), copy(from.norm1_bias, dim)};
    layer.norm2 = {copy(from.norm2_weight, dim), copy(from.norm2_bias, dim)};
    layer.qkv = pack(from.qkv, 3 * dim, dim);
    layer.self_out = pack(from.self_out, dim, dim);
    layer.linear1 = pack(from.linear1, spec_.ffn_dim, dim);
    layer.linear2 = pack(from.linear2, dim, spec_.ffn_dim);
    if (!spec_.has_cross_attention) return;
    layer.cross_norm = {copy(from.cross_norm_weight, dim), copy(from.cross_norm_bias, dim)};
    layer.cross_query = pack(from.cross_query, dim, dim);
    layer.cross_key = pack(from.cross_key, dim, dim);
    layer.cross_value = pack(from.cross_value, dim, dim);
    layer.cross_out = pack(from.cross_out, dim, dim);
}

void Decoder::set_embeddings_and_heads(const float* heads, const float* norm_weight, const float* norm_bias,
                                       const float* const* embeddings, const float* positions) {
    heads_ =
        Linear(weights_, pool_, format_, {heads, Format::kFloat}, spec_.num_codebooks * spec_.codebook_size, spec_.dim);
    out_norm_ = {copy(norm_weight, spec_.dim), copy(norm_bias, spec_.dim)};
    embeddings_.assign(embeddings, embeddings + spec_.num_codebooks);
    positions_ = positions;
}

void Decoder::set_context(int index, int number, const float* context, int length) {
    Slot& slot = slots_[index];
    if (int(slot.contexts.size()) <= number) slot.contexts.resize(number + 1);
    slot.contexts[number] = Context();
    if (!length) return;
    const int dim = spec_.dim, heads = spec_.num_heads, head_dim = dim / heads;
    KvCache cross(spec_.kv_bits, spec_.num_layers, heads, head_dim, length);
    hidden_.resize(length, dim, Linear::quant_layout(format_, dim));
    std::copy_n(context, size_t(length) * dim, hidden_.values.data());
    quantize(hidden_, length);
    std::vector<float> keys(size_t(length) * dim), values(size_t(length) * dim);
    for (int layer = 0; layer < spec_.num_layers; ++layer) {
        layers_[layer].cross_key.apply(pool_, hidden_, length, Epilogue::kStore, keys.data(), dim);
        layers_[layer].cross_value.apply(pool_, hidden_, length, Epilogue::kStore, values.data(), dim);
        pool_.parallel_for(heads, [&](int head, int) {
            for (int position = 0; position < length; ++position) {
                const size_t at = size_t(position) * dim + head * head_dim;
                cross.write(layer, head, position, &keys[at], &values[at]);
            }
        });
    }
    slot.contexts[number] = {std::move(cross), length};
}

void Decoder::set_parts(int index, int count, const int32_t* numbers, const float* weights) {
    std::vector<Part> parts;
    parts.reserve(count);
    for (int i = 0; i < count; ++i) parts.push_back({numbers[i], weights[i]});
    slots_[index].parts = std::move(parts);
}

void Decoder::clear_slot(int index) {
    Slot& slot = slots_[index];
    slot.contexts.clear();
    slot.parts.clear();
    slot.self = KvCache(spec_.kv_bits, spec_.num_layers, spec_.num_heads, spec_.dim / spec_.num_heads, spec_.capacity);
}

void Decoder::forward(int rows, const int64_t* tokens, const float* inputs, const int32_t* slots,
                      const int32_t* positions, int num_logit_rows, float* logits) {
    if (num_rows_ < kRowsBeforeHugePages) {
        num_rows_ += rows;
        if (num_rows_ >= kRowsBeforeHugePages) weights_.use_huge_pages();
    }
    projected_.resize(size_t(rows) * 3 * spec_.dim);
    hidden_.resize(rows, spec_.dim, Linear::quant_layout(format_, spec_.dim));
    ffn_.resize(rows, spec_.ffn_dim, Linear::quant_layout(format_, spec_.ffn_dim));
    embed(rows, tokens, inputs, positions);
    for (int index = 0; index < spec_.num_layers; ++index) {
        self_attention(index, rows, slots, positions);
        if (spec_.has_cross_attention) cross_attention(index, rows, slots);
        feed_forward(layers_[index], rows);
    }
    if (!num_logit_rows) return;
    std::vector<int> last(num_logit_rows);
    std::iota(last.begin(), last.end(), rows - num_logit_rows);
    normalize(out_norm_, last, hidden_);
    heads_.apply(pool_, hidden_, num_logit_rows, Epilogue::kStore, logits, heads_.outputs());
}

// Embeddings are summed in the order of audiocraft's `lm.py::forward`: codebook by codebook, then the position.
void Decoder::embed(int rows, const int64_t* tokens, const float* inputs, const int32_t* positions) {
    const int dim = spec_.dim, codebooks = spec_.num_codebooks;
    residual_.resize(size_t(rows) * dim);
    for (int row = 0; row < rows; ++row) {
        float* to = &residual_[size_t(row) * dim];
        const float* position = positions_ + size_t(positions[row]) * dim;
        for (int i = 0; i < dim; ++i) {
            float value = tokens ? 0 : inputs[size_t(row) * dim + i];
            for (int k = 0; tokens && k < codebooks; ++k)
                value += embeddings_[k][size_t(tokens[size_t(row) * codebooks + k]) * dim + i];
            to[i] = value + position[i];
        }
    }
}

void Decoder::normalize(const Norm& norm, const std::vector<int>& rows, Activations& out) {
    pool_.parallel_for(int(rows.size()), [&](int index, int) {
        layer_norm(norm, &residual_[size_t(rows[index]) * spec_.dim], spec_.dim, out.row(index));
        out.quantize(index);
    });
}

void Decoder::quantize(Activations& values, int rows) {
    if (!values.layout.group_size) return;
    pool_.parallel_for(rows, [&](int row, int) { values.quantize(row); });
}

void Decoder::self_attention(int index, int rows, const int32_t* slots, const int32_t* positions) {
    const Layer& layer = layers_[index];
    const int dim = spec_.dim, heads = spec_.num_heads, head_dim = dim / heads;
    std::vector<int> all(rows);
    std::iota(all.begin(), all.end(), 0);
    normalize(layer.norm1, all, hidden_);
    layer.qkv.apply(pool_, hidden_, rows, Epilogue::kStore, projected_.data(), 3 * dim);
    // Write the keys and values of all rows first: rows of the same slot attend to each other.
    const auto query = [&](int row, int head) { return &projected_[size_t(row) * 3 * dim + head * head_dim]; };
    pool_.parallel_for_chunked(rows * heads, [&](int task, int) {
        const int row = task / heads, head = task % heads;
        const float* at = query(row, head);
        slots_[slots[row]].self.write(index, head, positions[row], at + dim, at + 2 * dim);
    });
    pool_.parallel_for_chunked(rows * heads, [&](int task, int worker) {
        const int row = task / heads, head = task % heads;
        float* out = hidden_.row(row) + head * head_dim;
        slots_[slots[row]].self.attend(index, head, positions[row] + 1, query(row, head), scratch_[worker], out);
    });
    quantize(hidden_, rows);
    layer.self_out.apply(pool_, hidden_, rows, Epilogue::kAdd, residual_.data(), dim);
}

// Rows without context are skipped: the projections have no biases, so keys and values would be zero and add nothing.
void Decoder::cross_attention(int index, int rows, const int32_t* slots) {
    const Layer& layer = layers_[index];
    const int dim = spec_.dim, heads = spec_.num_heads, head_dim = dim / heads;
    std::vector<int> present;
    for (int row = 0; row < rows; ++row)
        if (!slots_[slots[row]].parts.empty()) present.push_back(row);
    const int count = int(present.size());
    if (!count) return;
    normalize(layer.cross_norm, present, hidden_);
    layer.cross_query.apply(pool_, hidden_, count, Epilogue::kStore, projected_.data(), dim);
    pool_.parallel_for_chunked(count * heads, [&](int task, int worker) {
        const int at = task / heads, head = task % heads;
        const float* query = &projected_[size_t(at) * dim + head * head_dim];
        float* out = hidden_.row(at) + head * head_dim;
        attend_cross(index, head, slots_[slots[present[at]]], query, scratch_[worker], out);
    });
    quantize(hidden_, count);
    layer.cross_out.apply(pool_, hidden_, count, Epilogue::kStore, projected_.data(), dim);
    for (int at = 0; at < count; ++at) {
        float* to = &residual_[size_t(present[at]) * dim];
        const float* from = &projected_[size_t(at) * dim];
        for (int i = 0; i < dim; ++i) to[i] += from[i];
    }
}

// Weighted sum of the outputs of a row's parts. One part of weight 1 gives the bits of plain attention.
void Decoder::attend_cross(int layer, int head, const Slot& slot, const float* query, AttentionScratch& scratch,
                           float* out) {
    const int head_dim = spec_.dim / spec_.num_heads;
    float found[kMaxHeadDim];
    for (size_t i = 0; i < slot.parts.size(); ++i) {
        const auto [number, weight] = slot.parts[i];
        const Context& context = slot.contexts[number];
        context.cross.attend(layer, head, context.length, query, scratch, i ? found : out);
        for (int d = 0; d < head_dim; ++d) out[d] = i ? out[d] + weight * found[d] : weight * out[d];
    }
}

void Decoder::feed_forward(const Layer& layer, int rows) {
    const int dim = spec_.dim;
    std::vector<int> all(rows);
    std::iota(all.begin(), all.end(), 0);
    normalize(layer.norm2, all, hidden_);
    layer.linear1.apply(pool_, hidden_, rows, Epilogue::kGelu, ffn_.values.data(), ffn_.width);
    quantize(ffn_, rows);
    layer.linear2.apply(pool_, ffn_, rows, Epilogue::kAdd, residual_.data(), dim);
}

size_t Decoder::bytes() const {
    size_t total = weights_.bytes();
    for (const Slot& slot : slots_) {
        total += slot.self.bytes();
        for (const Context& context : slot.contexts) total += context.cross.bytes();
    }
    return total;
}

}  // namespace native
