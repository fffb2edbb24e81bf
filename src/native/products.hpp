// The three products of a layer, on matrices of one vector per entry.
#pragma once
#include "job.hpp"
#include "lanes.hpp"

namespace shotnoise::SHOTNOISE_SET {
namespace {

// Rows of A and B in a tile: the sums, a column of A and one number of B fill 32 registers, or 16.
#ifndef SHOTNOISE_TALL
#define SHOTNOISE_TALL (SHOTNOISE_BYTES == 64 ? 5 : 3)
#define SHOTNOISE_WIDE (SHOTNOISE_BYTES == 64 ? 5 : 4)
#endif
constexpr int TALL = SHOTNOISE_TALL, WIDE = SHOTNOISE_WIDE;

template <class T, bool SHARED>
struct Operand {  // numbers that all lanes share, or one per lane
  using Element = T;
};
template <class T>
struct Operand<T, false> {
  using Element = Vector<T>;
};

enum class Start { zero, bias, there };

// What becomes of a gradient: kept, or w -= rate (g + decay w) at once, which spares a pass over weights and gradient.
template <class T>
struct Descent {
  bool now = false;
  T rate{}, decay{};

  Vector<T> operator()(Vector<T> w, Vector<T> g) const { return w - rate * (decay != 0 ? g + decay * w : g); }
};

// A length cut into parts of at most `most`, as equal as can be.
struct Parts {
  Index count, small, larger;  // the first `larger` parts have one more

  Parts(Index length, Index most) : count((length + most - 1) / most), small(length / count), larger(length % count) {}
  Index size(Index part) const { return small + (part < larger); }
  Index start(Index part) const { return small * part + (part < larger ? part : larger); }
};

// forward   C[s][a] = sum_k A[a][k] B[s][k]   outputs a of samples s from inputs k
// back      C[s][a] = sum_k A[k][a] B[s][k]   gradient at inputs a from that at outputs k
// weights   C[a][b] = sum_k A[k][a] B[k][b]   gradient of the weights, over samples k
enum class Kind { forward, back, weights };

template <class T, Kind KIND, bool SHARED>
struct Product {
  using B = typename Operand<T, SHARED>::Element;
  const Vector<T>* a;
  Index a_stride;
  const B* b;
  Index b_stride;
  Vector<T>* c;
  Index c_stride;
  Index rows_a, rows_b, k;
  Start start;
  const Vector<T>* bias = nullptr;    // by row of A
  Descent<T> descent = {};            // with C the weights
  bool relu = false;                  // forward: what becomes of the sums, which spares a pass over them
  const Vector<T>* beyond = nullptr;  // back: outputs of a ReLU, which lets the gradient pass where they are positive

  Index a_row() const { return KIND == Kind::forward ? a_stride : 1; }
  Index a_k() const { return KIND == Kind::forward ? 1 : a_stride; }
  Index b_row() const { return KIND == Kind::weights ? 1 : b_stride; }
  Index b_k() const { return KIND == Kind::weights ? b_stride : 1; }

  template <int M, int N>
  void tile(Index i, Index j) const {
    constexpr bool upright = KIND == Kind::weights;  // rows of C are rows of A, otherwise of B
    constexpr int ROWS = upright ? M : N, LENGTH = upright ? N : M;
    Vector<T> sum[ROWS][LENGTH];
    Vector<T>* const corner = c + (upright ? i * c_stride + j : j * c_stride + i);
    const auto each = [](Vector<T>* row, Index stride, auto act) {  // unrolled, or the sums would not stay in registers
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r, row += stride) {
        asm("" : "+r"(row));  // one address per row: the compiler would keep one per entry, most of them on the stack
#pragma GCC unroll 8
        for (int l = 0; l < LENGTH; ++l) act(r, l, row[l]);
      }
    };
    if (start == Start::there) {
      each(corner, c_stride, [&](int r, int l, Vector<T>& place) { sum[r][l] = place; });
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int l = 0; l < LENGTH; ++l) sum[r][l] = !upright && start == Start::bias ? bias[i + l] : Vector<T>{};
    }
    const Vector<T>* left = a + i * a_row();
    const B* right = b + j * b_row();
    for (Index s = 0; s < k; ++s, left += a_k(), right += b_k()) {
      Vector<T> row[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) row[m] = left[m * a_row()];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const B number = right[n * b_row()];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) (upright ? sum[m][n] : sum[n][m]) += row[m] * number;
      }
    }
    if (upright && descent.now) {
      const Descent<T> step = descent;
      if (step.decay == 0) {
        each(corner, c_stride, [&](int r, int l, Vector<T>& place) { place -= step.rate * sum[r][l]; });
      } else {
        each(corner, c_stride, [&](int r, int l, Vector<T>& place) { place = step(place, sum[r][l]); });
      }
    } else if (KIND == Kind::forward && relu) {
      each(corner, c_stride, [&](int r, int l, Vector<T>& place) { place = sum[r][l] <= 0 ? Vector<T>{} : sum[r][l]; });
    } else if (KIND == Kind::back && beyond) {
      const Vector<T>* const z = beyond + (corner - c);
      each(corner, c_stride, [&](int r, int l, Vector<T>& place) {
        place = z[r * c_stride + l] <= 0 ? Vector<T>{} : sum[r][l];
      });
    } else {
      each(corner, c_stride, [&](int r, int l, Vector<T>& place) { place = sum[r][l]; });
    }
  }

  template <int N, int M = TALL>
  void rows(Index i, Index j, Index m) const {
    if (m == M) return tile<M, N>(i, j);
    if constexpr (M > 1) rows<N, M - 1>(i, j, m);
  }

  template <int N = WIDE>
  void columns(Index j, Index n, Parts across, bool down) const {
    if (n == N) {
      for (Index t = 0; t < across.count; ++t) {
        const Index part = down ? across.count - 1 - t : t;
        rows<N>(across.start(part), j, across.size(part));
      }
      return;
    }
    if constexpr (N > 1) columns<N - 1>(j, n, across, down);
  }

  // Tiles as equal as can be. A few rows of B stay in the first cache while all of A goes by; going forward it does so down
  // and up in turns, for the last rows are still there: from the round before, or from their own change before that.
  void operator()() const {
    const Parts across(rows_a, TALL), along(rows_b, WIDE);
    for (Index t = 0; t < along.count; ++t)
      columns(along.start(t), along.size(t), across, KIND == Kind::forward && t % 2 == 0);
  }
};

// The gradient of weights and biases, as Kind::weights has it, from so few samples that their gradients at some outputs
// stay in registers while all inputs go by: fewer loads than tiles of that little depth need, and the biases for nothing.
template <class T>
struct FewSamples {
  static constexpr int MOST = 5;

  const Vector<T>*d, *x;        // (samples, outputs), (samples, inputs)
  Vector<T>*weights, *biases;   // or their gradients; biases may be null
  Index samples, outputs, inputs;
  Descent<T> descent;

  static constexpr int tall(int samples) {
    constexpr int room = TALL * WIDE < 25 ? 10 : 25;  // registers for the gradients
    return room / samples < 5 ? room / samples : 5;
  }

  template <int K, int M, class Act>
  void strip(Index o, Act act) const {
    Vector<T> here[K][M];
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) here[s][m] = d[s * outputs + o + m];
    if (biases) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        Vector<T> sum = here[0][m];
#pragma GCC unroll 8
        for (int s = 1; s < K; ++s) sum += here[s][m];
        biases[o + m] = act(biases[o + m], sum);
      }
    }
    const Index stride = inputs;
    Vector<T>* w = weights + o * stride;
    const Vector<T>* z = x;
    for (Index i = 0; i < stride; ++i, ++w, ++z) {
      Vector<T> sum[M];
#pragma GCC unroll 8
      for (int s = 0; s < K; ++s) {
        const Vector<T> number = z[s * stride];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[m] = s ? sum[m] + here[s][m] * number : here[s][m] * number;
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) w[m * stride] = act(w[m * stride], sum[m]);
    }
  }

  template <int K, int M, class Act>
  void strips(Index o, Index m, Act act) const {
    if (m == M) return strip<K, M>(o, act);
    if constexpr (M > 1) strips<K, M - 1>(o, m, act);
  }

  template <int K = MOST, class Act>
  void each(Act act) const {
    if (samples == K) {
      const Parts parts(outputs, tall(K));
      for (Index t = 0; t < parts.count; ++t) strips<K, tall(K)>(parts.start(t), parts.size(t), act);
      return;
    }
    if constexpr (K > 1) each<K - 1>(act);
  }

  void operator()() const {
    if (!descent.now) return each([](Vector<T>, Vector<T> g) { return g; });
    if (descent.decay == 0) return each([rate = descent.rate](Vector<T> w, Vector<T> g) { return w - rate * g; });
    each(descent);
  }
};

}  // namespace
}  // namespace shotnoise::SHOTNOISE_SET
