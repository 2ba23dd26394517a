#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace native {
namespace {

constexpr float kNormEpsilon = 1e-5f;
// Getting huge pages may cost half a second. They save a fiftieth of a step of two rows, a tenth of one of sixteen.
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

Decoder::Decoder(const Shape& shape)
    : shape_(shape), format_(Format(shape.format)), pool_(shape.threads), layers_(shape.layers), slots_(shape.slots),
      scratch_(pool_.size()) {
    for (Slot& slot : slots_)
        slot.self = KvCache(shape.kv_bits, shape.layers, shape.heads, shape.dim / shape.heads, shape.capacity);
}

void Decoder::set_layer(int index, const LayerPointers& from) {
    const int dim = shape_.dim;
    const auto pack = [&](const void* weights, int outputs, int inputs) {
        return Linear(weights_, pool_, format_, {weights, Format(from.stored)}, outputs, inputs);
    };
    Layer& layer = layers_[index];
    layer.norm1 = {copy(from.norm1_weight, dim), copy(from.norm1_bias, dim)};
    layer.norm2 = {copy(from.norm2_weight, dim), copy(from.norm2_bias, dim)};
    layer.qkv = pack(from.qkv, 3 * dim, dim);
    layer.self_out = pack(from.self_out, dim, dim);
    layer.linear1 = pack(from.linear1, shape_.hidden, dim);
    layer.linear2 = pack(from.linear2, dim, shape_.hidden);
    if (!shape_.cross) return;
    layer.cross_norm = {copy(from.cross_norm_weight, dim), copy(from.cross_norm_bias, dim)};
    layer.cross_query = pack(from.cross_query, dim, dim);
    layer.cross_key = pack(from.cross_key, dim, dim);
    layer.cross_value = pack(from.cross_value, dim, dim);
    layer.cross_out = pack(from.cross_out, dim, dim);
}

void Decoder::set_ends(const float* heads, const float* norm_weight, const float* norm_bias,
                       const float* const* embeddings, const float* positions) {
    heads_ = Linear(weights_, pool_, format_, {heads, Format::kFloat}, shape_.codebooks * shape_.card, shape_.dim);
    out_norm_ = {copy(norm_weight, shape_.dim), copy(norm_bias, shape_.dim)};
    embeddings_.assign(embeddings, embeddings + shape_.codebooks);
    positions_ = positions;
}

void Decoder::begin(int slot, const float* context, int length) {
    Slot& taken = slots_[slot];
    taken.context = length;
    taken.cross = KvCache();
    if (!length) return;
    const int dim = shape_.dim, heads = shape_.heads, head_dim = dim / heads;
    taken.cross = KvCache(shape_.kv_bits, shape_.layers, heads, head_dim, length);
    narrow_.resize(length, dim, Linear::image(format_, dim));
    std::copy_n(context, size_t(length) * dim, narrow_.values.data());
    quantize(narrow_, length);
    std::vector<float> keys(size_t(length) * dim), values(size_t(length) * dim);
    for (int index = 0; index < shape_.layers; ++index) {
        layers_[index].cross_key.apply(pool_, narrow_, length, Epilogue::kStore, keys.data(), dim);
        layers_[index].cross_value.apply(pool_, narrow_, length, Epilogue::kStore, values.data(), dim);
        pool_.run(heads, [&](int head, int) {
            for (int position = 0; position < length; ++position) {
                const size_t at = size_t(position) * dim + head * head_dim;
                taken.cross.put(index, head, position, &keys[at], &values[at]);
            }
        });
    }
}

void Decoder::release(int slot) {
    Slot& given = slots_[slot];
    given.context = 0;
    given.cross = KvCache();
    given.self = KvCache(shape_.kv_bits, shape_.layers, shape_.heads, shape_.dim / shape_.heads, shape_.capacity);
}

void Decoder::run(int rows, const int64_t* tokens, const float* inputs, const int32_t* slots,
                  const int32_t* positions, int wanted, float* logits) {
    if (num_rows_ < kRowsBeforeHugePages && (num_rows_ += rows) >= kRowsBeforeHugePages) weights_.gather();
    projected_.resize(size_t(rows) * 3 * shape_.dim);
    narrow_.resize(rows, shape_.dim, Linear::image(format_, shape_.dim));
    wide_.resize(rows, shape_.hidden, Linear::image(format_, shape_.hidden));
    embed(rows, tokens, inputs, positions);
    for (int index = 0; index < shape_.layers; ++index) {
        self_attention(index, rows, slots, positions);
        if (shape_.cross) cross_attention(index, rows, slots);
        feed_forward(layers_[index], rows);
    }
    if (!wanted) return;
    std::vector<int> last(wanted);
    std::iota(last.begin(), last.end(), rows - wanted);
    normalize(out_norm_, last, narrow_);
    heads_.apply(pool_, narrow_, wanted, Epilogue::kStore, logits, heads_.outputs());
}

// Codebooks are added in order, then the position: the order of audiocraft's `lm.py::forward`.
void Decoder::embed(int rows, const int64_t* tokens, const float* inputs, const int32_t* positions) {
    const int dim = shape_.dim, codebooks = shape_.codebooks;
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
    pool_.run(int(rows.size()), [&](int index, int) {
        layer_norm(norm, &residual_[size_t(rows[index]) * shape_.dim], shape_.dim, out.row(index));
        out.quantize(index);
    });
}

void Decoder::quantize(Activations& values, int rows) {
    if (!values.image.group) return;
    pool_.run(rows, [&](int row, int) { values.quantize(row); });
}

void Decoder::self_attention(int index, int rows, const int32_t* slots, const int32_t* positions) {
    const Layer& layer = layers_[index];
    const int dim = shape_.dim, heads = shape_.heads, head_dim = dim / heads;
    std::vector<int> all(rows);
    std::iota(all.begin(), all.end(), 0);
    normalize(layer.norm1, all, narrow_);
    layer.qkv.apply(pool_, narrow_, rows, Epilogue::kStore, projected_.data(), 3 * dim);
    // All rows put before any attends: rows of one slot see each other.
    const auto query = [&](int row, int head) { return &projected_[size_t(row) * 3 * dim + head * head_dim]; };
    pool_.run_in_order(rows * heads, [&](int task, int) {
        const int row = task / heads, head = task % heads;
        const float* at = query(row, head);
        slots_[slots[row]].self.put(index, head, positions[row], at + dim, at + 2 * dim);
    });
    pool_.run_in_order(rows * heads, [&](int task, int worker) {
        const int row = task / heads, head = task % heads;
        float* out = narrow_.row(row) + head * head_dim;
        slots_[slots[row]].self.attend(
            index, head, positions[row] + 1, query(row, head), scratch_[worker], out);
    });
    quantize(narrow_, rows);
    layer.self_out.apply(pool_, narrow_, rows, Epilogue::kAdd, residual_.data(), dim);
}

// Only rows with a context: without biases, a null context's keys and values are zero and the block adds zero.
void Decoder::cross_attention(int index, int rows, const int32_t* slots) {
    const Layer& layer = layers_[index];
    const int dim = shape_.dim, heads = shape_.heads, head_dim = dim / heads;
    std::vector<int> present;
    for (int row = 0; row < rows; ++row)
        if (slots_[slots[row]].context) present.push_back(row);
    const int count = int(present.size());
    if (!count) return;
    normalize(layer.cross_norm, present, narrow_);
    layer.cross_query.apply(pool_, narrow_, count, Epilogue::kStore, projected_.data(), dim);
    pool_.run_in_order(count * heads, [&](int task, int worker) {
        const int at = task / heads, head = task % heads;
        const Slot& slot = slots_[slots[present[at]]];
        const float* query = &projected_[size_t(at) * dim + head * head_dim];
        slot.cross.attend(
            index, head, slot.context, query, scratch_[worker], narrow_.row(at) + head * head_dim);
    });
    quantize(narrow_, count);
    layer.cross_out.apply(pool_, narrow_, count, Epilogue::kStore, projected_.data(), dim);
    for (int at = 0; at < count; ++at) {
        float* to = &residual_[size_t(present[at]) * dim];
        const float* from = &projected_[size_t(at) * dim];
        for (int i = 0; i < dim; ++i) to[i] += from[i];
    }
}

void Decoder::feed_forward(const Layer& layer, int rows) {
    const int dim = shape_.dim;
    std::vector<int> all(rows);
    std::iota(all.begin(), all.end(), 0);
    normalize(layer.norm2, all, narrow_);
    layer.linear1.apply(pool_, narrow_, rows, Epilogue::kGelu, wide_.values.data(), wide_.width);
    quantize(wide_, rows);
    layer.linear2.apply(pool_, wide_, rows, Epilogue::kAdd, residual_.data(), dim);
}

size_t Decoder::bytes() const {
    size_t total = weights_.bytes();
    for (const Slot& slot : slots_) total += slot.self.bytes() + slot.cross.bytes();
    return total;
}

}  // namespace native
