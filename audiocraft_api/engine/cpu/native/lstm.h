// The recurrent part of LSTM layers, in float32, for several sequences at once.
//
// Each step multiplies the hidden state by a matrix that no inner cache holds, so that a step of a few sequences takes
// little longer than one of a single sequence. The results of a sequence do not depend on the others or on the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "linear.h"
#include "memory.h"
#include "pool.h"

namespace native {

// One sequence's steps of one layer, with `size` units. Gates are in torch's order: input, forget, candidate, output.
// library.py declares it, too.
struct LstmSequence {
    int32_t steps;
    const float* gates;  // [steps, 4 * size], what the inputs and the biases add to the gates
    float* hidden;       // [size], read and updated
    float* cell;         // [size], read and updated
    float* outputs;      // [steps, size]
};

class Lstm {
public:
    // `weights[layer]` is [4 * size, size]. Throws std::invalid_argument unless `size` is a multiple of kBlock.
    Lstm(Pool& pool, int layers, int size, const float* const* weights);

    // Advance `count` sequences, each by its own number of steps. One call at a time.
    void advance(Pool& pool, int layer, const LstmSequence* sequences, int count);

private:
    void step(Pool& pool, const Linear& recurrent, const LstmSequence* const* sequences, int count, int step);

    int size_;
    Arena arena_;
    std::vector<Linear> recurrent_;
    Activations hidden_;
    std::vector<float> gates_;  // [count, 4 * size]
};

}  // namespace native
