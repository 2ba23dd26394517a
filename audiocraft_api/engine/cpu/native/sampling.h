// Chooses the next token of each codebook from logits, for all requests of a step, in threads.
//
// `TorchSampler` over `counter_noise` in engine/sampling.py is the reference implementation.
#pragma once

#include <cstdint>

#include "pool.h"

namespace native {

// How one request samples. library.py declares the same struct.
struct SamplingParams {
    int64_t seed, draw;  // identify the noise
    int32_t rows;        // logit rows of this request: 2 (conditional, unconditional) or 1 (conditional)
    int32_t is_greedy;
    int32_t top_k;  // 0: off
    float top_p;    // 0: off; otherwise top_k is ignored
    float temperature, cfg_coef;
};

constexpr int64_t kNotFinite = -1;  // returned instead of a token

// Write `tokens` [count, codebooks]. `logits` is [sum of rows, codebooks, codebook_size]; `codebook_size` is a multiple
// of 16.
void sample(Pool& pool, const SamplingParams* params, int count, int codebooks, int codebook_size, const float* logits,
            int64_t* tokens);

}  // namespace native
