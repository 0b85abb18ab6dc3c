// FP8 on a CPU, in one pass over memory each: E4M3 codes with power-of-two factors per tile, codes back to numbers, and sums as Hopper's
// tensor cores make them. `quantize.py` and `backends/emulation.py` define all of it.
#include "rows.h"

// Positive numbers are ordered as their bits are; those from INFINITY_BITS on are no numbers.
constexpr uint32_t INFINITY_BITS = 0x7f800000, MAGNITUDE = 0x7fffffff, SMALLEST_NORMAL = 0x3c800000;  // 2^-6

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float number(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline float wide(float x) { return x; }

// The least power of two s with amax / s <= 448 = 1.75 * 2^8.
static inline uint32_t factor(uint32_t amax) { return ((amax + 0x1fffff) & INFINITY_BITS) - (8u << 23); }

// To nearest, ties to even, saturating.
static inline uint8_t encode(float x) {
  const uint32_t sign = (bits_of(x) >> 24) & 0x80;
  const float magnitude = std::min(std::fabs(x), 448.0f);
  const uint32_t bits = bits_of(magnitude);
  const uint32_t normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120u << 3);
  const uint32_t subnormal = bits_of(magnitude + 16384.0f) - bits_of(16384.0f);  // numbers there are 2^-9 apart
  return uint8_t(sign | (bits < SMALLEST_NORMAL ? subnormal : normal));
}

static inline float decode(uint8_t code) {
  const uint32_t magnitude = code & 0x7f, exponent = magnitude >> 3;
  const float normal = number((magnitude << 20) + (120u << 23));
  const float subnormal = float(int32_t(magnitude)) * 0x1p-9f;
  const float value = magnitude == 0x7f ? NAN : exponent ? normal : subnormal;
  return number(bits_of(value) | uint32_t(code & 0x80) << 24);
}

static inline void put(float x, float& to) { to = x; }
static inline void put(float x, bf16& to) { to = narrow(x); }

// Codes and factors of a stripe of `high` rows, whose tiles are `across` columns wide. Returns whether all of them are numbers.
template <typename T>
static bool stripe(const T* __restrict x, uint8_t* __restrict codes, float* __restrict factors, int64_t high, int64_t columns,
                   int64_t across, uint32_t floor, uint32_t* __restrict amax) {
  std::fill(amax, amax + columns, 0u);
  for (int64_t r = 0; r < high; ++r)
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) amax[c] = std::max(amax[c], bits_of(wide(x[r * columns + c])) & MAGNITUDE);
  uint32_t largest = 0;
  for (int64_t first = 0, tile = 0; first < columns; first += across, ++tile) {
    const int64_t end = std::min(first + across, columns);
    uint32_t top = 0;
    for (int64_t c = first; c < end; ++c) top = std::max(top, amax[c]);
    largest = std::max(largest, top);
    const uint32_t scale = factor(std::max(top, floor));
    factors[tile] = number(scale);
    for (int64_t c = first; c < end; ++c) amax[c] = (254u << 23) - scale;  // its reciprocal
  }
  for (int64_t r = 0; r < high; ++r)
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) codes[r * columns + c] = encode(wide(x[r * columns + c]) * number(amax[c]));
  return largest < INFINITY_BITS;
}

template <typename T>
static bool quantise(const T* x, uint8_t* codes, float* factors, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                     int64_t across, float floor) {
  const int64_t stripes = (rows + down - 1) / down, tiles = (columns + across - 1) / across;
  bool finite = true;
#pragma omp parallel if (matrices * rows * columns > 65536) reduction(&& : finite)
  {
    std::vector<uint32_t> amax(columns);
#pragma omp for
    for (int64_t i = 0; i < matrices * stripes; ++i) {
      const int64_t first = i % stripes * down, at = (i / stripes * rows + first) * columns;
      finite = stripe(x + at, codes + at, factors + i * tiles, std::min(down, rows - first), columns, across, bits_of(floor), amax.data()) && finite;
    }
  }
  return finite;
}

template <typename T>
static void values(const uint8_t* codes, const float* factors, T* to, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                   int64_t across) {
  const int64_t stripes = (rows + down - 1) / down, tiles = (columns + across - 1) / across;
#pragma omp parallel for if (matrices * rows * columns > 65536)
  for (int64_t row = 0; row < matrices * rows; ++row) {
    const float* own = factors + (row / rows * stripes + row % rows / down) * tiles;
    if (across == 1) {
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) put(decode(codes[row * columns + c]) * own[c], to[row * columns + c]);
      continue;
    }
    for (int64_t first = 0; first < columns; first += across) {
      const int64_t at = row * columns + first, wide = std::min(across, columns - first);
      const float scale = own[first / across];
#pragma omp simd
      for (int64_t c = 0; c < wide; ++c) put(decode(codes[at + c]) * scale, to[at + c]);
    }
  }
}

constexpr int64_t HIGH = 4, WIDE = 64, MMA = 32, PROMOTE = 4;  // rows and columns of a tile of sums; products, and their sums, together

// out [HIGH, WIDE] of a [HIGH, k] and b [k, WIDE], the latter with `n` columns from one row to the next.
template <bool promote>
static void sums(const float* a, const float* b, float* out, int64_t k, int64_t n, uint32_t kept) {
  float total[HIGH][WIDE] = {}, partial[HIGH][WIDE] = {};
  for (int64_t first = 0, step = 1; first < k; first += MMA, ++step) {
    for (int64_t i = first; i < std::min(first + MMA, k); ++i)
      for (int64_t r = 0; r < HIGH; ++r)
#pragma omp simd
        for (int64_t c = 0; c < WIDE; ++c) partial[r][c] += a[r * k + i] * b[i * n + c];
    for (int64_t r = 0; r < HIGH; ++r)
#pragma omp simd
      for (int64_t c = 0; c < WIDE; ++c) partial[r][c] = number(bits_of(partial[r][c]) & kept);
    if (!promote || step % PROMOTE) continue;
    for (int64_t r = 0; r < HIGH; ++r)
#pragma omp simd
      for (int64_t c = 0; c < WIDE; ++c) total[r][c] += partial[r][c], partial[r][c] = 0;
  }
  for (int64_t r = 0; r < HIGH; ++r)
    for (int64_t c = 0; c < WIDE; ++c) out[r * n + c] = total[r][c] + partial[r][c];
}

extern "C" {

// [matrices, rows, columns] in tiles of `down` x `across`. 0 where a number is NaN or infinite: then nothing of it is of use.
int32_t quantise_bf16(const bf16* x, uint8_t* codes, float* factors, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                      int64_t across, float floor) {
  return quantise(x, codes, factors, matrices, rows, columns, down, across, floor);
}

int32_t quantise_fp32(const float* x, uint8_t* codes, float* factors, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                      int64_t across, float floor) {
  return quantise(x, codes, factors, matrices, rows, columns, down, across, floor);
}

void values_bf16(const uint8_t* codes, const float* factors, bf16* to, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                 int64_t across) {
  values(codes, factors, to, matrices, rows, columns, down, across);
}

void values_fp32(const uint8_t* codes, const float* factors, float* to, int64_t matrices, int64_t rows, int64_t columns, int64_t down,
                 int64_t across) {
  values(codes, factors, to, matrices, rows, columns, down, across);
}

// a [m, k] times b [k, n], m a multiple of HIGH and n of WIDE; sums lose the `cut` lowest bits after every MMA products.
void hopper(const float* a, const float* b, float* out, int64_t m, int64_t n, int64_t k, int64_t cut, int32_t promote) {
#pragma omp parallel for collapse(2) if (m * n * k > 1 << 20)
  for (int64_t c = 0; c < n; c += WIDE)
    for (int64_t r = 0; r < m; r += HIGH) (promote ? sums<true> : sums<false>)(a + r * k, b + c, out + r * n + c, k, n, ~((1u << cut) - 1));
}

}  // extern "C"
