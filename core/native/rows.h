// Products of bf16 vectors with fp32 sums, and loops over threads: what the decoding kernels share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(BESTIARY_PORTABLE)
#define BESTIARY_BF16_DOT 1
#include <immintrin.h>
#endif

using bf16 = uint16_t;

inline float wide(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bf16((bits >> 16) | 0x40);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr int64_t AHEAD = 2048;  // elements, one page: a weight's rows follow one another, and processors stop at a page's end

inline float silu(float x) { return x / (1 + std::exp(-x)); }

// out[r] = a . b_r for R vectors b_r = b + r * stride; a is loaded once.
template <int R>
inline void dots(const bf16* a, const bf16* b, int64_t stride, int64_t n, float* out) {
#if defined(BESTIARY_BF16_DOT)
  __m512 sum[R];
  for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_ps();
  int64_t i = 0;
  if (R == 1) {  // four sums hide the latency of adding to one
    __m512 more[3] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    const auto at = [](const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); };
    for (; i + 128 <= n; i += 128) {
      for (int j = 0; j < 4; ++j) _mm_prefetch((const char*)(a + i + 32 * j + AHEAD), _MM_HINT_T0);
      sum[0] = _mm512_dpbf16_ps(sum[0], at(a + i), at(b + i));
      for (int j = 0; j < 3; ++j) more[j] = _mm512_dpbf16_ps(more[j], at(a + i + 32 * (j + 1)), at(b + i + 32 * (j + 1)));
    }
    sum[0] = _mm512_add_ps(_mm512_add_ps(sum[0], more[0]), _mm512_add_ps(more[1], more[2]));
  }
  for (; i + 32 <= n; i += 32) {
    const auto left = (__m512bh)_mm512_loadu_si512(a + i);
    for (int r = 0; r < R; ++r) sum[r] = _mm512_dpbf16_ps(sum[r], left, (__m512bh)_mm512_loadu_si512(b + r * stride + i));
  }
  if (i < n) {
    const __mmask32 live = (1u << (n - i)) - 1;
    const auto left = (__m512bh)_mm512_maskz_loadu_epi16(live, a + i);
    for (int r = 0; r < R; ++r)
      sum[r] = _mm512_dpbf16_ps(sum[r], left, (__m512bh)_mm512_maskz_loadu_epi16(live, b + r * stride + i));
  }
  for (int r = 0; r < R; ++r) out[r] = _mm512_reduce_add_ps(sum[r]);
#else
  for (int r = 0; r < R; ++r) {
    float sum = 0;
    const bf16* right = b + r * stride;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += wide(a[i]) * wide(right[i]);
    out[r] = sum;
  }
#endif
}

// The same for any number of vectors.
inline void dot_rows(const bf16* a, const bf16* b, int64_t stride, int64_t n, int64_t rows, float* out) {
  for (; rows >= 8; rows -= 8, b += 8 * stride, out += 8) dots<8>(a, b, stride, n, out);
  if (rows >= 4) { dots<4>(a, b, stride, n, out); rows -= 4; b += 4 * stride; out += 4; }
  if (rows >= 2) { dots<2>(a, b, stride, n, out); rows -= 2; b += 2 * stride; out += 2; }
  if (rows) dots<1>(a, b, stride, n, out);
}

// out[0:n] += scale * x[0:n]
inline void add_scaled(float* out, float scale, const bf16* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] += scale * wide(x[i]);
}

// Runs body(begin, end) over [0, n), one contiguous piece a thread; in place when there is little work.
template <typename Body>
inline void share(int64_t n, int64_t work_each, const Body& body) {
  const int64_t worth = n * work_each / 32768;
  const int64_t threads = std::min<int64_t>({omp_get_max_threads(), n, std::max<int64_t>(1, worth)});
  if (threads <= 1) return body(0, n);
#pragma omp parallel num_threads(threads)
  {
    const int64_t t = omp_get_thread_num(), all = omp_get_num_threads();
    body(n * t / all, n * (t + 1) / all);
  }
}

constexpr int64_t BLOCK = 8;  // rows of a weight taken together

// out[i * rows + r] = weight_i . x_r for `count` (at most BLOCK) rows of a weight and `rows` vectors; all of width k.
inline void products(const bf16* weight, int64_t count, const bf16* x, int64_t rows, int64_t k, float* out) {
  for (int64_t i = 0; i < count; ++i) dot_rows(weight + i * k, x, k, k, rows, out + i * rows);
}

// out[r * n + i] = weight_i . x_r for i in [begin, end): x [rows, k], weight [n, k], out [rows, n].
inline void multiply(const bf16* x, const bf16* weight, bf16* out, int64_t rows, int64_t n, int64_t k, int64_t begin, int64_t end) {
  std::vector<float> sums(BLOCK * rows);
  for (int64_t i = begin; i < end; i += BLOCK) {
    const int64_t count = std::min(BLOCK, end - i);
    products(weight + i * k, count, x, rows, k, sums.data());
    for (int64_t j = 0; j < count; ++j)
      for (int64_t r = 0; r < rows; ++r) out[r * n + i + j] = narrow(sums[j * rows + r]);
  }
}

// Calls body(i, count) for blocks of [begin, end) that do not cross a multiple of `edge`.
template <typename Body>
inline void blocks(int64_t begin, int64_t end, int64_t edge, const Body& body) {
  for (int64_t i = begin, count; i < end; i += count) {
    count = std::min({BLOCK, end - i, edge - i % edge});
    body(i, count);
  }
}

inline void normalise(const bf16* x, const bf16* gain, bf16* out, int64_t n, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += wide(x[i]) * wide(x[i]);
  const float unit = 1 / std::sqrt(sum / n + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = narrow(wide(narrow(wide(x[i]) * unit)) * wide(gain[i]));
}

// Turns the pairs of x [2 half]; neighbours when interleaved, half apart otherwise.
inline void turn(const bf16* x, bf16* out, const float* cosine, const float* sine, int64_t half, bool interleaved) {
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : half + i;
    const float u = wide(x[a]), v = wide(x[b]);
    out[a] = narrow(u * cosine[i] - v * sine[i]);
    out[b] = narrow(u * sine[i] + v * cosine[i]);
  }
}
