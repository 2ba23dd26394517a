// From logits to tokens, for every request of a step: `sampling.py` with the noise of `noise.py`, in threads.
#pragma once

#include <cstdint>

#include "pool.h"

namespace native {

// How one request chooses its tokens. The same struct is declared in library.py.
struct Choice {
    int64_t seed, draw;  // name the noise
    int32_t rows;        // of logits: conditional and null, or the conditional one alone
    int32_t is_greedy;
    int32_t top_k;       // 0: off
    float top_p;         // 0: off; else used in place of top_k
    float temperature, cfg_coef;
};

constexpr int64_t kNotFinite = -1;  // in the place of a token

// Choose `tokens` [count, codebooks] from logits [rows of all, codebooks, card]; `card` is a multiple of 16.
void sample(Pool& pool, const Choice* choices, int count, int codebooks, int card, const float* logits, int64_t* tokens);

}  // namespace native
