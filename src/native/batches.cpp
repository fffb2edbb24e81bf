// Ordered samples without repetition for many batches, one batch per lane: what sampling.distinct does with NumPy.
#include "job.hpp"
#include "lanes.hpp"

namespace shotnoise::SHOTNOISE_SET {

// The j-th of a batch is drawn by its rank among the n - j samples that are left, and lies past all those taken before that
// have no more than `rank` samples left below them. Of the samples taken, in order, these numbers are kept.
void distinct(const double* uniform, Index* drawn, Index batches, Index b, Index n) {
  constexpr int L = LANES<float>;
  using V = Mask<float>;
  V ranks[LARGEST_SORTED] = {}, below[LARGEST_SORTED];
  double left[LARGEST_SORTED];
  for (Index j = 0; j < b; ++j) left[j] = double(n - j);
  std::int32_t* const one = (std::int32_t*)ranks;  // [j][lane]
  for (Index first = 0; first < batches; first += L) {
    const Index lanes = batches - first < L ? batches - first : L;
    for (Index l = 0; l < lanes; ++l)
      for (Index j = 0; j < b; ++j) one[j * L + l] = std::int32_t(uniform[(first + l) * b + j] * left[j]);
    for (Index j = 0; j < b; ++j) {
      const V rank = ranks[j];
      V past{}, next = rank;
      for (Index i = 0; i < j; ++i) {
        const V after = below[i] > rank, old = below[i] + after;  // true is -1: one less is left below
        past += after;
        below[i] = old < next ? old : next;
        next = old < next ? next : old;
      }
      below[j] = next;
      ranks[j] = rank + std::int32_t(j) + past;
    }
    for (Index l = 0; l < lanes; ++l)
      for (Index j = 0; j < b; ++j) drawn[(first + l) * b + j] = one[j * L + l];
  }
}

}  // namespace shotnoise::SHOTNOISE_SET
