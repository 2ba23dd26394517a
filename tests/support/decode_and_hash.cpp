// Decodes with small random models in every format and prints hashes of the results: a program that is compiled for
// several processors and must print the same on each of them.
//
// All numbers come from integer arithmetic, and the results from IEEE operations in one order. Only the contraction of
// products and sums (-ffp-contract) and the width of vectors change them.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "decoder.h"

using namespace native;

namespace {

class Random {
public:
    uint32_t bits() {
        state_ = state_ * 6364136223846793005 + 1442695040888963407;
        return uint32_t(state_ >> 32);
    }
    std::vector<float> floats(size_t count, float scale) {
        std::vector<float> values(count);
        for (float& value : values) value = float(int32_t(bits())) * 0x1p-31f * scale;
        return values;
    }

private:
    uint64_t state_ = 1;
};

class Hash {
public:
    template <class T>
    void add(const std::vector<T>& values) {
        for (const T& value : values) {
            uint8_t bytes[sizeof(T)];
            std::memcpy(bytes, &value, sizeof value);
            for (uint8_t byte : bytes) value_ = (value_ ^ byte) * 1099511628211;
        }
    }
    void print(const char* what, int first, int second) const {
        std::printf("%s %d %d %016llx\n", what, first, second, static_cast<unsigned long long>(value_));
    }

private:
    uint64_t value_ = 14695981039346656037u;
};

// The sums of products of extreme and random bytes, 16 outputs x 64 inputs.
template <int Bits>
void print_products(Random& random) {
    constexpr int kOutputs = 16, kInputs = 64, kMost = (1 << Bits) - 1;
    const auto byte = [&](int least, int most) {
        const uint32_t bits = random.bits();
        return bits & 1 ? (bits & 2 ? least : most) : least + int(bits >> 8) % (most - least + 1);
    };
    uint8_t weights[kOutputs][kInputs];
    int8_t inputs[kInputs];
    for (auto& row : weights)
        for (uint8_t& weight : row) weight = uint8_t(byte(0, kMost));
    for (int8_t& input : inputs) input = int8_t(byte(-128, 127));
    for (int i = 0; i < kInputs; ++i) weights[0][i] = kMost, weights[1][i] = inputs[i] < 0 ? kMost : 0;

    const int total = std::accumulate(inputs, inputs + kInputs, 0);
    std::vector<int32_t> sums;
    for (int output = 0; output < kOutputs; output += kBlock) {
        Sums block = sums_from((kZeroPoint<Bits> - kProductZeroPoint<Bits>)*total);
        for (int i = 0; i < kInputs; i += kPackInputs) {
            Quad quads[kQuads], packed[kPackQuads<Bits>];
            for (int q = 0; q < kQuads; ++q)
                for (int o = 0; o < kBlock; ++o)
                    std::memcpy(reinterpret_cast<char*>(&quads[q]) + 4 * o, &weights[output + o][i + 4 * q], 4);
            pack<Bits>(quads, packed);
            unpack<Bits>(reinterpret_cast<const uint8_t*>(packed), quads);
            for (int q = 0; q < kQuads; q += 2) dot8<Bits>(block, quads[q], quads[q + 1], inputs + i + 4 * q);
        }
        for (int o = 0; o < kBlock; ++o) sums.push_back(block[o]);
    }
    for (int output = 0; output < kOutputs; ++output) {
        int expected = 0;
        for (int i = 0; i < kInputs; ++i) expected += weights[output][i] * inputs[i];
        if (sums[output] != expected) std::printf("wrong: %d is not %d\n", sums[output], expected);
    }
    Hash hash;
    hash.add(sums);
    hash.print("products", Bits, kInputs);
}

void print_logits(Random& random, Format format, int kv_bits, int dim, int num_heads) {
    constexpr int kLayers = 2, kCodebooks = 2, kCodebookSize = 64, kCapacity = 64, kContext = 7;
    const int ffn_dim = 2 * dim;
    Decoder decoder(
        {kLayers, dim, num_heads, ffn_dim, kCodebookSize, kCodebooks, 1, 1, kCapacity, 2, int(format), kv_bits});
    const auto matrix = [&](int outputs, int inputs) {
        std::vector<float> values = random.floats(size_t(outputs) * inputs, 0.2f);
        for (int o = 0; o < outputs; ++o) values[size_t(o) * inputs + 5] *= 8;
        return values;
    };
    for (int layer = 0; layer < kLayers; ++layer) {
        std::vector<float> norms[6], matrices[8];
        for (auto& norm : norms) norm = random.floats(dim, 2);
        norms[0][5] *= 30;  // an outlier, whose low plane is used
        for (auto& square : matrices) square = matrix(dim, dim);
        matrices[0] = matrix(3 * dim, dim);
        matrices[6] = matrix(ffn_dim, dim);
        matrices[7] = matrix(dim, ffn_dim);
        const auto norm = [&](int i) { return norms[i].data(); };
        const auto at = [&](int i) { return matrices[i].data(); };
        decoder.set_layer(layer, {norm(0), norm(1), norm(2), norm(3), norm(4), norm(5), at(0), at(1), at(2), at(3),
                                  at(4), at(5), at(6), at(7), int(Format::kFloat)});
    }
    const std::vector<float> heads = matrix(kCodebooks * kCodebookSize, dim), norm = random.floats(dim, 2),
                             embedding = random.floats(size_t(kCodebookSize + 1) * dim, 1),
                             positions = random.floats(size_t(kCapacity) * dim, 1),
                             context = random.floats(size_t(kContext) * dim, 1);
    const float* embeddings[kCodebooks] = {embedding.data(), embedding.data()};
    decoder.set_embeddings_and_heads(heads.data(), norm.data(), norm.data(), embeddings, positions.data());
    decoder.set_context(0, 0, context.data(), kContext);
    const int32_t number = 0;
    const float weight = 1;
    decoder.set_parts(0, 1, &number, &weight);

    Hash hash;
    int position = 0;
    for (int rows : {1, 1, 2, 5, 20, 3}) {  // every block of rows, and more than the largest
        std::vector<int64_t> tokens(size_t(rows) * kCodebooks);
        for (int64_t& token : tokens) token = random.bits() % (kCodebookSize + 1);
        std::vector<int32_t> slots(rows, 0), at(rows);
        std::iota(at.begin(), at.end(), position);
        std::vector<float> logits(size_t(rows) * kCodebooks * kCodebookSize);
        decoder.forward(rows, tokens.data(), nullptr, slots.data(), at.data(), rows, logits.data());
        hash.add(logits);
        position += rows;
    }
    static const char* names[] = {"float32", "float16", "bfloat16", "int8", "int6"};
    hash.print(names[int(format)], dim, num_heads);
}

}  // namespace

int main() {
    std::printf("kernel %s\n", NATIVE_INTEGER_KERNEL);
    Random random;
    print_products<8>(random);
    print_products<6>(random);
    const int kv_bits[] = {32, 8, 8, 8, 6}, sizes[][2] = {{128, 2}, {192, 6}, {64, 4}};
    for (int format = 0; format < 5; ++format)
        for (const auto& size : sizes) print_logits(random, Format(format), kv_bits[format], size[0], size[1]);
}
