// Routing and routed experts for a few tokens: only the chosen experts' weights are read, each once.
#include "rows.h"

extern "C" {

// DeepSeek-V3's router. x [rows, d]; weight [count, d] bf16; bias [count] fp32 -> chosen [rows, top] and weights [rows, top].
void route_sigmoid_group(const bf16* x, const bf16* weight, const float* bias, int64_t* chosen, float* weights, int64_t rows, int64_t d,
                         int64_t count, int64_t groups, int64_t kept, int64_t top, float scale, bool normalise_weights) {
  const int64_t each = count / groups;
  std::vector<float> score(count), choice(count);
  std::vector<std::pair<float, int64_t>> rank(groups), best;
  for (int64_t r = 0; r < rows; ++r, chosen += top, weights += top) {
    dot_rows(x + r * d, weight, d, d, count, score.data());
    for (int64_t e = 0; e < count; ++e) choice[e] = (score[e] = 1 / (1 + std::exp(-score[e]))) + bias[e];
    for (int64_t g = 0; g < groups; ++g) {
      float first = -INFINITY, second = -INFINITY;
      for (int64_t e = g * each; e < (g + 1) * each; ++e) {
        if (choice[e] > first) { second = first; first = choice[e]; }
        else second = std::max(second, choice[e]);
      }
      rank[g] = {-(groups == 1 ? first : first + second), g};
    }
    std::sort(rank.begin(), rank.end());
    best.clear();
    for (int64_t g = 0; g < kept; ++g)
      for (int64_t e = rank[g].second * each; e < (rank[g].second + 1) * each; ++e) best.emplace_back(-choice[e], e);
    std::partial_sort(best.begin(), best.begin() + top, best.end());
    float sum = 1e-20f;
    for (int64_t i = 0; i < top; ++i) sum += weights[i] = score[chosen[i] = best[i].second];
    for (int64_t i = 0; i < top; ++i) weights[i] *= normalise_weights ? scale / sum : scale;
  }
}

// x [rows, d]; chosen and weights [rows, top]; gate_up [count, 2 hidden, d]; down [count, d, hidden] -> out [rows, d]
void experts(const bf16* x, const int64_t* chosen, const float* weights, const bf16* gate_up, const bf16* down, bf16* out, int64_t rows,
             int64_t top, int64_t count, int64_t d, int64_t hidden) {
  std::vector<std::vector<int64_t>> users(count);  // copies (row * top + i) of each expert
  for (int64_t c = 0; c < rows * top; ++c) users[chosen[c]].push_back(c);
  std::vector<int64_t> used, first;
  std::vector<bf16> sorted(rows * top * d), middle(rows * top * hidden);
  int64_t copies = 0;
  for (int64_t e = 0; e < count; ++e) {
    if (users[e].empty()) continue;
    used.push_back(e), first.push_back(copies);
    for (int64_t c : users[e]) std::copy_n(x + c / top * d, d, sorted.data() + copies++ * d);
  }
  const int64_t kinds = used.size();
  share(kinds * hidden, 2 * d * copies / kinds, [&](int64_t begin, int64_t end) {
    std::vector<float> gate(BLOCK * copies), up(BLOCK * copies);
    blocks(begin, end, hidden, [&](int64_t i, int64_t size) {
      const int64_t u = i / hidden, column = i % hidden, n = users[used[u]].size();
      const bf16 *row = gate_up + (used[u] * 2 * hidden + column) * d, *in = sorted.data() + first[u] * d;
      products(row, size, in, n, d, gate.data());
      products(row + hidden * d, size, in, n, d, up.data());
      for (int64_t j = 0; j < size * n; ++j)
        middle[(first[u] + j % n) * hidden + column + j / n] = narrow(silu(gate[j]) * up[j] * weights[users[used[u]][j % n]]);
    });
  });
  share(d, copies * hidden, [&](int64_t begin, int64_t end) {
    const int64_t span = end - begin;
    std::vector<float> part(BLOCK * copies), total(rows * span, 0.f);
    for (int64_t u = 0; u < kinds; ++u) {
      const int64_t n = users[used[u]].size();
      blocks(begin, end, d, [&](int64_t i, int64_t size) {
        products(down + (used[u] * d + i) * hidden, size, middle.data() + first[u] * hidden, n, hidden, part.data());
        for (int64_t j = 0; j < size * n; ++j) total[users[used[u]][j % n] / top * span + i - begin + j / n] += part[j];
      });
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = begin; i < end; ++i) out[r * d + i] = narrow(total[r * span + i - begin]);
  });
}

}  // extern "C"
