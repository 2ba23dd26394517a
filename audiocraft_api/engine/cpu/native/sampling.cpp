#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "vec.h"

namespace native {
namespace {

// splitmix64, as in engine/sampling.py.
constexpr uint64_t kGamma = 0x9e3779b97f4a7c15;

uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// The Exp(1) noise of one draw.
class Noise {
public:
    explicit Noise(const SamplingParams& params) : stream_(mixed(params.seed + kGamma * (uint64_t(params.draw) + 1))) {}

    float at(int index) const {
        const auto bits = float(mixed(stream_ + kGamma * (uint64_t(index) + 1)) >> 40);
        return -std::log((bits + 0.5f) * 0x1p-24f);
    }

private:
    uint64_t stream_;
};

// Samples one codebook of one request.
class Sampler {
public:
    Sampler(const SamplingParams& params, int codebook, int codebook_size)
        : params_(params), noise_(params), first_(codebook * codebook_size), codebook_size_(codebook_size),
          logits_(codebook_size) {}

    // Return a token, or kNotFinite. `uncond` is null for a request without guidance.
    int64_t token(const float* cond, const float* uncond) {
        if (!apply_cfg(cond, uncond)) return kNotFinite;
        if (params_.is_greedy) return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
        if (params_.top_p > 0) return sample_top_p();
        return sample_top_k();
    }

private:
    // Fill logits_ and return whether all of them are finite.
    bool apply_cfg(const float* cond, const float* uncond) {
        Vec zeros = Vec{};
        for (int i = 0; i < codebook_size_; i += kWidth) {
            Vec value = load(cond + i);
            if (uncond) value = load(uncond + i) + (value - load(uncond + i)) * params_.cfg_coef;
            store(&logits_[i], value);
            zeros += value - value;  // NaN where the value is not finite
        }
        return sum(zeros) == 0;
    }

    // Replace the logits by weights that are proportional to the probabilities: softmax without its division.
    void softmax_unnormalized() {
        const float top = *std::max_element(logits_.begin(), logits_.end());
        for (int i = 0; i < codebook_size_; i += kWidth)
            store(&logits_[i], exp((load(&logits_[i]) - top) / params_.temperature));
    }

    // Return one of `tokens`, each with a probability proportional to its weight in logits_: with Exp(1) noise, the
    // token with the largest weight / noise. `noise_index(i)` selects the noise of tokens[i].
    template <class NoiseIndex>
    int sample_exponential(const std::vector<int>& tokens, NoiseIndex&& noise_index) const {
        float best = -1;
        int winner = 0;
        for (int i = 0; i < int(tokens.size()); ++i) {
            const float score = logits_[tokens[i]] / noise_.at(first_ + noise_index(i));
            if (score > best) best = score, winner = tokens[i];
        }
        return winner;
    }

    // Tokens that tie with the k-th are kept.
    int64_t sample_top_k() {
        float least = -INFINITY;
        if (params_.top_k > 0 && params_.top_k < codebook_size_) {
            std::vector<float> ranked = logits_;
            const auto kth = ranked.begin() + params_.top_k - 1;
            std::nth_element(ranked.begin(), kth, ranked.end(), std::greater<float>());
            least = *kth;
        }
        std::vector<int> kept;
        for (int i = 0; i < codebook_size_; ++i)
            if (logits_[i] >= least) kept.push_back(i);
        softmax_unnormalized();
        return sample_exponential(kept, [&](int i) { return kept[i]; });
    }

    // Keep the shortest prefix of the ranking whose probabilities sum to more than top_p. Noise is drawn per rank, as
    // in the reference, not per token.
    int64_t sample_top_p() {
        softmax_unnormalized();
        std::vector<int> ranked(codebook_size_);
        std::iota(ranked.begin(), ranked.end(), 0);
        std::sort(ranked.begin(), ranked.end(),
                  [&](int a, int b) { return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b); });
        const double bound = params_.top_p * std::accumulate(logits_.begin(), logits_.end(), 0.0);
        double before = 0;
        int num_kept = 0;
        for (; num_kept < codebook_size_ && before <= bound; ++num_kept) before += logits_[ranked[num_kept]];
        ranked.resize(num_kept);
        return sample_exponential(ranked, [](int rank) { return rank; });
    }

    const SamplingParams& params_;
    Noise noise_;
    int first_;  // index of the codebook's first noise value
    int codebook_size_;
    std::vector<float> logits_;
};

}  // namespace

void sample(Pool& pool, const SamplingParams* params, int count, int codebooks, int codebook_size, const float* logits,
            int64_t* tokens) {
    std::vector<int> first_row(count + 1);
    for (int i = 0; i < count; ++i) first_row[i + 1] = first_row[i] + params[i].rows;
    pool.parallel_for(count * codebooks, [&](int task, int) {
        const int index = task / codebooks, codebook = task % codebooks;
        const auto row = [&](int r) {
            return logits + (size_t(first_row[index] + r) * codebooks + codebook) * codebook_size;
        };
        Sampler sampler(params[index], codebook, codebook_size);
        tokens[task] = sampler.token(row(0), params[index].rows > 1 ? row(1) : nullptr);
    });
}

}  // namespace native
