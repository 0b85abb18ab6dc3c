// One step of AdamW on a parameter in fp32 whose moments are kept in bf16: one pass over memory, 20 bytes a number.
#include "rows.h"

// Round to nearest, ties to even, without `narrow`'s test for NaN: gradients have been checked, and the loop stays in vectors.
static inline bf16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

extern "C" {

// keep = 1 - lr * weight_decay, rate = lr / (1 - beta1^t), scale = 1 / sqrt(1 - beta2^t)
void adamw(float* parameter, const float* gradient, bf16* first, bf16* second, int64_t n, float beta1, float beta2, float keep, float rate,
           float scale, float eps) {
#pragma omp parallel for simd schedule(static) if (n > 65536)
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i];
    const float m = beta1 * wide(first[i]) + (1 - beta1) * g;
    const float v = beta2 * wide(second[i]) + (1 - beta2) * g * g;
    first[i] = rounded(m);
    second[i] = rounded(v);
    parameter[i] = keep * parameter[i] - rate * m / (std::sqrt(v) * scale + eps);
  }
}

}  // extern "C"
