// What the kernel is asked for, in plain structs: nothing here, nor in the kernel, instantiates the standard library. An
// inline function of it, compiled for AVX-512, could otherwise be the copy that the linker keeps for every processor.
#pragma once
#include <cstdint>

namespace shotnoise {

using Index = std::int64_t;

// From GELU on their slope is no function of the output.
enum class Activation { identity, relu, leaky_relu, tanh, sigmoid, softplus, gelu, gelu_tanh, polynomial };
enum class Loss { cross_entropy, mse, logistic };  // logistic: labels 0 and 1 as classes, one output
enum class Rule { sgd, averaged_momentum, heavy_ball, adam, adamw };

struct Layer {
  Index outputs, inputs;
  Index weight, bias;  // first entry among the P parameters; bias -1: none
  Activation activation;
  const double* constants;  // slope of leaky ReLU; c_0, c_1, ... of a polynomial
  Index constant_count;
};

struct Net {
  const Layer* layers;
  Index depth, parameters, widest;
  Loss loss;
  double l2;

  Index inputs() const { return layers[0].inputs; }
  Index outputs() const { return layers[depth - 1].outputs; }
};

struct Optimizer {
  Rule rule;
  double momentum, dampening;  // beta_1, beta_2 of Adam
  bool nesterov;               // amsgrad of Adam
  double weight_decay, eps;
  double max_norm;  // of the gradient, 0: any

  int memories() const {
    if (rule == Rule::adam || rule == Rule::adamw) return nesterov ? 3 : 2;
    return rule == Rule::sgd && momentum == 0 ? 0 : 1;
  }
};

// What is looked at before update t, as bits of Job::wanted[t].
enum Wanted : std::uint8_t {
  full_loss = 1,
  full_gradient = 2,
  accuracy = 4,
  gradient_norm = 8,
  cosine = 16,
  keep_weights = 32,  // and to keep all of them
  keep_gradient = 64,
  keep_full_gradient = 128,
};

// R runs, T steps. Matrices are row-major, (R, P) with one run per row, (T, R) with one step per row; what may be null is
// not wanted. A pass of `batch` samples is made at every step, an update at the first `updates` of them.
template <class T>
struct Job {
  const Net* net;
  Index runs, steps, updates;
  T* weights;              // (R, P), changed in place
  const T* inputs;         // (n, d), all samples
  const void* targets;     // classes (n,) int64, or (n, outputs) for squared loss
  Index samples;           // n
  Index batch;             // b, 0: no minibatch at all
  const Index* indices;    // (R, T, b) with the strides below, or null:
  Index index_run, index_step;
  const T* own_inputs;     // (R, T, b, d)
  const void* own_targets;
  Optimizer optimizer;
  T* memory[3];            // (R, P) each
  const double* rates;     // (updates,)
  Index first;             // updates made before, for Adam's corrections
  const std::uint8_t* wanted;  // (T,)
  T* before;               // (R, P) in: the gradient of the step before; out: the last one
  T* gradients;            // (R, P) out, the last minibatch gradient
  T* full_gradients;       // (R, P) out, the last full gradient
  T *kept_weights, *kept_gradients, *kept_full_gradients;  // (K R, P) out, of the K steps at which the bit is set
  T *losses, *gradient_norms, *cosines, *full_losses, *full_norms, *accuracies;  // (T, R) out
};

// Called between steps with Job-independent state; true: stop now.
struct Poll {
  bool (*stop)(void*);
  void* state;
};

// One instruction set. `run` trains the runs [block * lanes, ...) with a scratch of scratch(job) numbers, 64-byte aligned.
template <class T>
struct Kernel {
  Index lanes;
  Index (*scratch)(const Job<T>&);
  void (*run)(const Job<T>&, Index block, T* scratch, Poll);
};

// Batches of up to so many samples, out of less than 2^31, are drawn without repetition by `distinct`.
constexpr Index LARGEST_SORTED = 128;

struct Set {
  const char* name;
  Kernel<float> single;
  Kernel<double> twice;
  void (*distinct)(const double* uniform, Index* drawn, Index batches, Index batch, Index samples);
};

}  // namespace shotnoise
