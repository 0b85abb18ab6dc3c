// Linear layers and RMSNorm on a few rows, bf16 in and out, fp32 sums.
#include "rows.h"

extern "C" {

// x [rows, k], weight [n, k] -> out [rows, n]
void linear(const bf16* x, const bf16* weight, bf16* out, int64_t rows, int64_t n, int64_t k) {
  share(n, rows * k, [&](int64_t begin, int64_t end) { multiply(x, weight, out, rows, n, k, begin, end); });
}

// x / rms(x) * gain: x [rows, n] with a stride, out [rows, n]
void rms_norm(const bf16* x, const bf16* gain, bf16* out, int64_t rows, int64_t n, int64_t stride, float eps) {
  for (int64_t r = 0; r < rows; ++r) normalise(x + r * stride, gain, out + r * n, n, eps);
}

// down(silu(gate x) * up x): x [rows, d], gate and up [hidden, d], down [d, hidden] -> out [rows, d]
void swiglu(const bf16* x, const bf16* gate, const bf16* up, const bf16* down, bf16* out, int64_t rows, int64_t d, int64_t hidden) {
  std::vector<bf16> middle(rows * hidden);
  share(hidden, 2 * rows * d, [&](int64_t begin, int64_t end) {
    std::vector<float> g(BLOCK * rows), u(BLOCK * rows);
    blocks(begin, end, hidden, [&](int64_t i, int64_t count) {
      products(gate + i * d, count, x, rows, d, g.data());
      products(up + i * d, count, x, rows, d, u.data());
      for (int64_t j = 0; j < count; ++j)
        for (int64_t r = 0; r < rows; ++r) middle[r * hidden + i + j] = narrow(silu(g[j * rows + r]) * u[j * rows + r]);
    });
  });
  share(d, rows * hidden, [&](int64_t begin, int64_t end) { multiply(middle.data(), down, out, rows, d, hidden, begin, end); });
}

}  // extern "C"
