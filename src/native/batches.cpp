// Ordered samples without repetition for many batches, one batch per lane: what sampling.distinct does with NumPy.
#include "job.hpp"
#include "lanes.hpp"

namespace shotnoise::SHOTNOISE_SET {

// The j-th of a batch is drawn from the n - j samples that are left, counted past those taken before, which are kept sorted.
void distinct(const double* uniform, Index* drawn, Index batches, Index b, Index n) {
  constexpr int L = LANES<float>;
  using V = Mask<float>;
  V ranks[LARGEST_SORTED] = {}, taken[LARGEST_SORTED];
  double left[LARGEST_SORTED];
  for (Index j = 0; j < b; ++j) left[j] = double(n - j);
  std::int32_t* const one = (std::int32_t*)ranks;  // [j][lane]
  for (Index first = 0; first < batches; first += L) {
    const Index lanes = batches - first < L ? batches - first : L;
    for (Index l = 0; l < lanes; ++l)
      for (Index j = 0; j < b; ++j) one[j * L + l] = std::int32_t(uniform[(first + l) * b + j] * left[j]);
    for (Index j = 0; j < b; ++j) {
      V rank = ranks[j];
      for (Index i = 0; i < j; ++i) rank -= rank >= taken[i];  // true is -1
      ranks[j] = rank;
      for (Index i = 0; i < j; ++i) {
        const V old = taken[i];
        taken[i] = old < rank ? old : rank;
        rank = old < rank ? rank : old;
      }
      taken[j] = rank;
    }
    for (Index l = 0; l < lanes; ++l)
      for (Index j = 0; j < b; ++j) drawn[(first + l) * b + j] = one[j * L + l];
  }
}

}  // namespace shotnoise::SHOTNOISE_SET
