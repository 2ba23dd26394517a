// GELU with the error function, PyTorch's default.
#pragma once

#include "vec.h"

namespace native {

// x/2 (1 + erf(x / sqrt 2)), with erfc(z) = e^(-z^2) P(1 / (1 + 3/8 z)) for z >= 0. The polynomial P is fitted to an
// error of 2e-9 in erfc.
inline Vec gelu(Vec x) {
    const Vec scaled = x * 0.70710678118654752f;
    const Vec z = abs(scaled);
    const Vec t = 1.0f / (1.0f + 0.375f * z);
    Vec p = splat(-0.2993219443886537f);
    p = p * t + 1.3591235114433935f;
    p = p * t - 1.4981067067512692f;
    p = p * t + 1.4387925602195155f;
    p = p * t - 0.32707049999733445f;
    p = p * t + 0.33951487970443606f;
    p = p * t - 0.012931801675698901f;
    const Vec erfc = exp(-z * z) * p;
    return 0.5f * x * (x < Vec{} ? erfc : 2.0f - erfc);
}

}  // namespace native
