// MLA in absorbed form for a few new positions: everything between the projections from and to the hidden state.
#include "rows.h"

extern "C" {

// For each of `batch` sequences and `length` new positions:
//   q [batch, length, heads, nope + rope], kv [batch, length, latent + rope] (before norm and RoPE),
//   kv_b [heads, nope + value, latent], cosine and sine [length, rope / 2],
//   cache [batch, capacity, latent + rope] holding `past` positions, to which the new ones are added,
//   out [batch, length, heads * value].
void absorbed(const bf16* q, const bf16* kv, const bf16* gain, const bf16* kv_b, const float* cosine, const float* sine, bf16* cache,
              bf16* out, int64_t batch, int64_t length, int64_t capacity, int64_t past, int64_t heads, int64_t nope, int64_t rope,
              int64_t value, int64_t latent, float scale, float eps, bool interleaved) {
  const int64_t width = latent + rope, half = rope / 2, rows = batch * length;
  for (int64_t r = 0; r < rows; ++r) {
    bf16* to = cache + (r / length * capacity + past + r % length) * width;
    normalise(kv + r * width, gain, to, latent, eps);
    turn(kv + r * width + latent, to + latent, cosine + r % length * half, sine + r % length * half, half, interleaved);
  }
  const int64_t parts = std::min<int64_t>(heads, std::max<int64_t>(1, (omp_get_max_threads() + rows - 1) / rows));
  share(rows * parts, (past + length) * width * 2 * heads / parts, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / parts, h0 = heads * (task % parts) / parts, n = heads * (task % parts + 1) / parts - h0;
      const int64_t seen = past + r % length + 1;
      const bf16* keys = cache + r / length * capacity * width;
      std::vector<bf16> query(n * width);
      std::vector<float> mix(n * latent), score(seen * n), total(n);
      for (int64_t h = 0; h < n; ++h) {  // q' = W_UK^T q_nope, then the turned rotary part
        const bf16* from = q + (r * heads + h0 + h) * (nope + rope);
        float* sum = mix.data() + h * latent;
        std::fill_n(sum, latent, 0.f);
        for (int64_t i = 0; i < nope; ++i) add_scaled(sum, wide(from[i]), kv_b + ((h0 + h) * (nope + value) + i) * latent, latent);
        for (int64_t i = 0; i < latent; ++i) query[h * width + i] = narrow(sum[i]);
        turn(from + nope, query.data() + h * width + latent, cosine + r % length * half, sine + r % length * half, half, interleaved);
      }
      for (int64_t t = 0; t < seen; ++t) dot_rows(keys + t * width, query.data(), width, width, n, score.data() + t * n);
      std::vector<float> top(n, -INFINITY);
      for (int64_t t = 0; t < seen; ++t)
        for (int64_t h = 0; h < n; ++h) top[h] = std::max(top[h], score[t * n + h]);
      for (int64_t t = 0; t < seen; ++t)
        for (int64_t h = 0; h < n; ++h) total[h] += score[t * n + h] = std::exp((score[t * n + h] - top[h]) * scale);
      std::fill(mix.begin(), mix.end(), 0.f);
      for (int64_t t = 0; t < seen; ++t)
        for (int64_t h = 0; h < n; ++h) add_scaled(mix.data() + h * latent, score[t * n + h], keys + t * width, latent);
      std::vector<bf16> context(latent);
      std::vector<float> result(value);
      for (int64_t h = 0; h < n; ++h) {  // o = W_UV (P c)
        for (int64_t i = 0; i < latent; ++i) context[i] = narrow(mix[h * latent + i] / total[h]);
        dot_rows(context.data(), kv_b + ((h0 + h) * (nope + value) + nope) * latent, latent, latent, value, result.data());
        for (int64_t i = 0; i < value; ++i) out[(r * heads + h0 + h) * value + i] = narrow(result[i]);
      }
    }
  });
}

}  // extern "C"
