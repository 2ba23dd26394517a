#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "vec.h"

namespace native {
namespace {

// splitmix64, as noise.py has it.
constexpr uint64_t kGamma = 0x9e3779b97f4a7c15;

uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// Exp(1) noise of one draw.
class Noise {
public:
    explicit Noise(const Choice& choice) : stream_(mixed(choice.seed + kGamma * (uint64_t(choice.draw) + 1))) {}

    float at(int index) const {
        const auto bits = float(mixed(stream_ + kGamma * (uint64_t(index) + 1)) >> 40);
        return -std::log((bits + 0.5f) * 0x1p-24f);
    }

private:
    uint64_t stream_;
};

// The largest of weight / noise wins with a probability in proportion to its weight.
struct Race {
    float best = -1;
    int winner = 0;

    void enter(int candidate, float weight, float noise) {
        const float score = weight / noise;
        if (score > best) best = score, winner = candidate;
    }
};

class Sampler {
public:
    Sampler(const Choice& choice, int codebook, int card)
        : choice_(choice), noise_(choice), first_(codebook * card), card_(card), logits_(card) {}

    int64_t token(const float* cond, const float* null) {
        if (!guide(cond, null)) return kNotFinite;
        if (choice_.is_greedy) return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
        if (choice_.top_p > 0) return by_top_p();
        return by_top_k();
    }

private:
    // Fill the logits; say whether all are finite.
    bool guide(const float* cond, const float* null) {
        Vec zeros = Vec{};
        for (int i = 0; i < card_; i += kWidth) {
            Vec value = load(cond + i);
            if (null) value = load(null + i) + (value - load(null + i)) * choice_.cfg_coef;
            store(&logits_[i], value);
            zeros += value - value;  // no number where it is not finite
        }
        return sum(zeros) == 0;
    }

    // Turn the logits into what probabilities are in proportion to.
    void soften() {
        const float top = *std::max_element(logits_.begin(), logits_.end());
        for (int i = 0; i < card_; i += kWidth)
            store(&logits_[i], exp((load(&logits_[i]) - top) / choice_.temperature));
    }

    // Ties with the k-th stay.
    int64_t by_top_k() {
        float least = -INFINITY;
        if (choice_.top_k > 0 && choice_.top_k < card_) {
            std::vector<float> ranked = logits_;
            const auto kth = ranked.begin() + choice_.top_k - 1;
            std::nth_element(ranked.begin(), kth, ranked.end(), std::greater<float>());
            least = *kth;
        }
        std::vector<int> kept;
        for (int i = 0; i < card_; ++i)
            if (logits_[i] >= least) kept.push_back(i);
        soften();
        Race race;
        for (const int i : kept) race.enter(i, logits_[i], noise_.at(first_ + i));
        return race.winner;
    }

    // The shortest head of the ranking that holds over top_p; the noise belongs to ranks.
    int64_t by_top_p() {
        soften();
        std::vector<int> ranked(card_);
        std::iota(ranked.begin(), ranked.end(), 0);
        std::sort(ranked.begin(), ranked.end(), [&](int a, int b) {
            return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
        });
        const double bound = choice_.top_p * std::accumulate(logits_.begin(), logits_.end(), 0.0);
        double before = 0;
        Race race;
        for (int rank = 0; rank < card_ && before <= bound; ++rank) {
            const float weight = logits_[ranked[rank]];
            race.enter(ranked[rank], weight, noise_.at(first_ + rank));
            before += weight;
        }
        return race.winner;
    }

    const Choice& choice_;
    Noise noise_;
    int first_, card_;
    std::vector<float> logits_;
};

}  // namespace

void sample(Pool& pool, const Choice* choices, int count, int codebooks, int card, const float* logits, int64_t* tokens) {
    std::vector<int> first_row(count + 1);
    for (int i = 0; i < count; ++i) first_row[i + 1] = first_row[i] + choices[i].rows;
    pool.run(count * codebooks, [&](int task, int) {
        const int index = task / codebooks, codebook = task % codebooks;
        const auto row = [&](int r) { return logits + (size_t(first_row[index] + r) * codebooks + codebook) * card; };
        tokens[task] = Sampler(choices[index], codebook, card).token(row(0), choices[index].rows > 1 ? row(1) : nullptr);
    });
}

}  // namespace native
