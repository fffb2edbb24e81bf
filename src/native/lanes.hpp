// Vectors of one number per run, and elementary functions of them.
//
// exp, log and what follows from them are Taylor and atanh series after the usual range reduction, with enough terms for
// the type; each is within 4 ulp of the true value where that is a normal number (tests/simulate/test_native.py).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace shotnoise::SHOTNOISE_SET {

template <class T>
inline constexpr int LANES = SHOTNOISE_BYTES / sizeof(T);

template <class T>
struct Types;
template <>
struct Types<float> {
  typedef float V __attribute__((vector_size(SHOTNOISE_BYTES)));
  using Int = std::int32_t;
  typedef Int I __attribute__((vector_size(SHOTNOISE_BYTES)));
  static constexpr int mantissa = 23, bias = 127, exp_terms = 7, log_terms = 5;
  static constexpr float largest = 88.8f, lowest = -87.3f, smallest = -103.98f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
};
template <>
struct Types<double> {
  typedef double V __attribute__((vector_size(SHOTNOISE_BYTES)));
  using Int = std::int64_t;
  typedef Int I __attribute__((vector_size(SHOTNOISE_BYTES)));
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 14, log_terms = 12;
  static constexpr double largest = 709.8, lowest = -708.3, smallest = -745.2;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
};

template <class T>
using Vector = typename Types<T>::V;
template <class T>
using Mask = typename Types<T>::I;

template <class T>
inline Vector<T> all(T value) {
  return Vector<T>{} + value;
}

template <class T>
inline Vector<T> sqrt(Vector<T> x) {
  for (int l = 0; l < LANES<T>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}

template <class T>
inline Vector<T> abs(Vector<T> x) {
  return x < 0 ? -x : x;
}

// A NaN in b is kept.
template <class T>
inline Vector<T> larger(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;
}

template <class T>
inline Vector<T> erf(Vector<T> x) {
  for (int l = 0; l < LANES<T>; ++l) x[l] = std::erf(x[l]);
  return x;
}

template <class T>
inline Vector<T> power_of_two(Mask<T> k) {
  return (Vector<T>)((k + Types<T>::bias) << Types<T>::mantissa);
}

// e^x - 1 = 2^k (e^r - 1) + (2^k - 1) with x = k ln 2 + r: returns e^r - 1, for x in the range of finite results or NaN.
// Adding 3/2 2^mantissa leaves the nearest whole number in the last bits.
template <class T>
inline Vector<T> expm1_reduced(Vector<T> x, Mask<T>& k) {
  using N = Types<T>;
  constexpr T magic = T(1.5) * T(std::int64_t(1) << N::mantissa);
  const Vector<T> shifted = x * T(1.4426950408889634) + magic, whole = shifted - magic;
  k = (Mask<T>)shifted - (Mask<T>)all<T>(magic);
  const Vector<T> r = (x - whole * N::ln2_high) - whole * N::ln2_low;
  Vector<T> sum = all<T>(0);
  T factorial = 1;
  for (int j = 2; j <= N::exp_terms; ++j) factorial *= j;
  for (int j = N::exp_terms; j >= 2; --j) {
    sum = sum * r + 1 / factorial;
    factorial /= j;
  }
  return sum * r * r + r;
}

template <class T>
inline Vector<T> exp(Vector<T> x) {
  using N = Types<T>;
  const Vector<T> inside = x > N::largest ? all<T>(N::largest) : x < N::smallest ? all<T>(N::smallest) : x;
  Mask<T> k;
  const Vector<T> p = expm1_reduced<T>(inside, k);
  const Mask<T> half = k >> 1;  // 2^k may not be a normal number, 2^(k/2) is
  const Vector<T> found = (p + 1) * power_of_two<T>(half) * power_of_two<T>(k - half);
  return x > N::largest ? all<T>(T(INFINITY)) : found;
}

// For x <= 0 or NaN; what is below the normal numbers is 0.
template <class T>
inline Vector<T> exp_negative(Vector<T> x) {
  using N = Types<T>;
  const Vector<T> inside = x < N::lowest ? all<T>(N::lowest) : x;
  Mask<T> k;
  const Vector<T> p = expm1_reduced<T>(inside, k), scale = power_of_two<T>(k);
  return x < N::lowest ? Vector<T>{} : p * scale + scale;
}

// For x <= 0, where it lies in (-1, 0].
template <class T>
inline Vector<T> expm1_negative(Vector<T> x) {
  const Vector<T> inside = x < T(-40) ? all<T>(-40) : x;
  Mask<T> k;
  const Vector<T> p = expm1_reduced<T>(inside, k), scale = power_of_two<T>(k);
  return p * scale + (scale - 1);
}

// For positive normal x, infinity or NaN: log m + k ln 2 with m in [sqrt 1/2, sqrt 2), log m = 2 atanh((m - 1) / (m + 1)).
template <class T>
inline Vector<T> log(Vector<T> x) {
  using N = Types<T>;
  const Mask<T> bits = (Mask<T>)x - (Mask<T>)all<T>(T(0.70710678118654752));
  const Mask<T> k = bits >> N::mantissa;
  const Vector<T> m = (Vector<T>)((Mask<T>)x - (k << N::mantissa));
  const Vector<T> s = (m - 1) / (m + 1), square = s * s;
  Vector<T> sum = all<T>(0);
  for (int j = N::log_terms; j >= 1; --j) sum = sum * square + 1 / T(2 * j + 1);
  const Vector<T> whole = __builtin_convertvector(k, Vector<T>);
  const Vector<T> found = whole * N::ln2_high + (2 * s + (2 * s * square * sum + whole * N::ln2_low));
  return x - x == 0 ? found : x;
}

// For x >= 0; the quotient gives back what 1 + x has lost.
template <class T>
inline Vector<T> log1p(Vector<T> x) {
  const Vector<T> u = x + 1;
  return log<T>(u) + (x - (u - 1)) / u;
}

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  const Vector<T> e = expm1_negative<T>(-2 * abs<T>(x)), z = -e / (2 + e);
  return x < 0 ? -z : x == x ? z : x;
}

template <class T>
inline Vector<T> sigmoid(Vector<T> x) {
  return 1 / (1 + exp<T>(-x));
}

// A piece of a row: what is loaded into a part of a vector at no price, so that fewer numbers have to be moved there.
inline constexpr int PIECE_BYTES = SHOTNOISE_BYTES < 32 ? SHOTNOISE_BYTES : 32;
template <class T>
inline constexpr int PIECE = PIECE_BYTES / sizeof(T);

template <class T, int COUNT>
struct Pieces {
  typedef T V __attribute__((vector_size(PIECE_BYTES * COUNT)));

  // Pieces of rows 0, PIECE, 2 PIECE, ..., one after the other.
  static V from(const T* const* rows, std::int64_t start) {
    if constexpr (COUNT == 1) {
      V piece;
      std::memcpy(&piece, rows[0] + start, sizeof piece);
      return piece;
    } else {
      using Half = Pieces<T, COUNT / 2>;
      return join(Half::from(rows, start), Half::from(rows + COUNT / 2 * PIECE<T>, start),
                  std::make_integer_sequence<int, COUNT * PIECE<T>>());
    }
  }

  template <class H, int... L>
  static V join(H a, H b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, L...);
  }
};

template <class T>
inline Vector<T> pieces(const T* const* rows, std::int64_t start) {
  return (Vector<T>)Pieces<T, LANES<T> / PIECE<T>>::from(rows, start);
}

// Of vectors as rows: swaps the off-diagonal blocks of size STAGE in every square of COUNT columns.
template <class T, int COUNT, int STAGE, int... L>
inline void swap_blocks(Vector<T>* rows, std::integer_sequence<int, L...>) {
  constexpr int N = LANES<T>;
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; ++i) {
    if (i & STAGE) continue;
    const Vector<T> a = rows[i], b = rows[i | STAGE];
    rows[i] = __builtin_shufflevector(a, b, ((L & STAGE) ? N + (L ^ STAGE) : L)...);
    rows[i | STAGE] = __builtin_shufflevector(a, b, ((L & STAGE) ? N + L : (L ^ STAGE))...);
  }
}

template <class T, int COUNT, int STAGE = 1>
inline void transpose_squares(Vector<T>* rows) {
  if constexpr (STAGE < COUNT) {
    swap_blocks<T, COUNT, STAGE>(rows, std::make_integer_sequence<int, LANES<T>>());
    transpose_squares<T, COUNT, STAGE * 2>(rows);
  }
}

template <class T>
inline void transpose_pieces(Vector<T>* rows) {
  transpose_squares<T, PIECE<T>>(rows);
}

template <class T>
inline void transpose(Vector<T>* rows) {
  transpose_squares<T, LANES<T>>(rows);
}

}  // namespace shotnoise::SHOTNOISE_SET
