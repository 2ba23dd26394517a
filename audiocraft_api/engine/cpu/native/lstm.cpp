#include "lstm.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace native {
namespace {

Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// tanh to about 1 ulp. Near 0, where 1 - 2 / (e^2x + 1) cancels, it is the polynomial of Cephes (`tanhf`).
Vec tanh(Vec x) {
    const Vec z = x * x;
    Vec p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const Vec small = x + x * z * p, large = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
    return abs(x) < 0.625f ? small : large;
}

}  // namespace

Lstm::Lstm(Pool& pool, int layers, int size, const float* const* weights) : size_(size) {
    if (size <= 0 || size % kBlock) throw std::invalid_argument("the size of an LSTM must be a multiple of 16");
    for (int layer = 0; layer < layers; ++layer)
        recurrent_.emplace_back(arena_, pool, Format::kFloat, StoredWeights{weights[layer], Format::kFloat}, 4 * size,
                                size);
    arena_.use_huge_pages();  // a step reads all weights: small pages take 1.2 times as long
}

void Lstm::advance(Pool& pool, int layer, const LstmSequence* sequences, int count) {
    hidden_.resize(count, size_, {});
    gates_.resize(size_t(count) * 4 * size_);
    std::vector<const LstmSequence*> running(count);
    std::iota(running.begin(), running.end(), sequences);
    for (int now = 0;; ++now) {
        running.erase(std::remove_if(running.begin(), running.end(), [=](auto* each) { return each->steps <= now; }),
                      running.end());
        if (running.empty()) return;
        step(pool, recurrent_.at(layer), running.data(), int(running.size()), now);
    }
}

void Lstm::step(Pool& pool, const Linear& recurrent, const LstmSequence* const* sequences, int count, int step) {
    const int num_gates = 4 * size_;
    for (int i = 0; i < count; ++i) {
        std::copy_n(sequences[i]->hidden, size_, hidden_.row(i));
        std::copy_n(sequences[i]->gates + size_t(step) * num_gates, num_gates, &gates_[size_t(i) * num_gates]);
    }
    recurrent.apply(pool, hidden_, count, Epilogue::kAdd, gates_.data(), num_gates);
    for (int i = 0; i < count; ++i) {
        const float* gates = &gates_[size_t(i) * num_gates];
        const LstmSequence& own = *sequences[i];
        for (int at = 0; at < size_; at += kWidth) {
            const Vec input = sigmoid(load(gates + at)), forget = sigmoid(load(gates + size_ + at));
            const Vec candidate = tanh(load(gates + 2 * size_ + at)), output = sigmoid(load(gates + 3 * size_ + at));
            const Vec cell = forget * load(own.cell + at) + input * candidate, hidden = output * tanh(cell);
            store(own.cell + at, cell);
            store(own.hidden + at, hidden);
            store(own.outputs + size_t(step) * size_ + at, hidden);
        }
    }
}

}  // namespace native
