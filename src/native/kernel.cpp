// One block of runs, one run per lane: weights [parameter][lane] stay in the cache for all steps of a call.
//
//     z_0 = x,   h_k = W_k z_{k-1} + c_k,   z_k = act_k(h_k),   d_K = dl/dh_K / m,
//     dW_k = d_k z_{k-1}^T,   dc_k = sum d_k,   d_{k-1} = (W_k^T d_k) act'_{k-1}
//
// In all three products a tile of the result is held in registers. Samples of its own for every run are gathered into
// [sample][feature][lane]; where all runs see the same samples, they stay numbers and the processor broadcasts them.
// Lanes never meet: a run comes out the same in any company.
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
constexpr Index CHUNK_BYTES = 192 * 1024;  // what the activations of some samples may take, beside the weights in L2
constexpr Index BATCH_BYTES = 512 * 1024;  // the same of a whole batch, which spares its gradient a place of its own
constexpr Index POLL_EVERY = 64;           // samples between looks at the clock

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
  void columns(Index j, Index n, Parts across) const {
    if (n == N) {
      Index i = 0;
      for (Index t = 0; t < across.count; ++t) {
        const Index m = across.size(t);
        rows<N>(i, j, m);
        i += m;
      }
      return;
    }
    if constexpr (N > 1) columns<N - 1>(j, n, across);
  }

  // Tiles as equal as can be; a few rows of B stay in the first cache while all of A goes by.
  void operator()() const {
    const Parts across(rows_a, TALL), along(rows_b, WIDE);
    Index j = 0;
    for (Index t = 0; t < along.count; ++t) {
      const Index n = along.size(t);
      columns(j, n, across);
      j += n;
    }
  }
};

template <class T>
void activate(const Layer& layer, Vector<T>* z, Vector<T>* slopes, Index count) {
  const auto each = [&](auto function) {
    for (Index i = 0; i < count; ++i) z[i] = function(z[i]);
  };
  const T slope = layer.constant_count ? T(layer.constants[0]) : T(0);
  switch (layer.activation) {
    case Activation::identity:
    case Activation::relu: return;  // in `forward`, where the sums are written
    case Activation::leaky_relu: return each([=](Vector<T> h) { return h > 0 ? h : h * slope; });
    case Activation::tanh: return each([](Vector<T> h) { return tanh<T>(h); });
    case Activation::sigmoid: return each([](Vector<T> h) { return sigmoid<T>(h); });
    case Activation::softplus:
      return each([](Vector<T> h) { return h > 20 ? h : (h > 0 ? h : Vector<T>{}) + log1p<T>(exp_negative<T>(-abs<T>(h))); });
    case Activation::gelu:  // h Phi(h)
      for (Index i = 0; i < count; ++i) {
        const Vector<T> h = z[i], below = T(0.5) * (1 + erf<T>(h * T(0.70710678118654752)));
        slopes[i] = below + h * T(0.39894228040143268) * exp_negative<T>(T(-0.5) * h * h);
        z[i] = h * below;
      }
      return;
    case Activation::gelu_tanh:  // h (1 + tanh u) / 2
      for (Index i = 0; i < count; ++i) {
        const T factor = T(0.79788456080286536), cubic = T(0.044715);
        const Vector<T> h = z[i], square = h * h, bent = tanh<T>(factor * h * (1 + cubic * square));
        slopes[i] = T(0.5) * ((1 + bent) + h * (1 - bent * bent) * factor * (1 + 3 * cubic * square));
        z[i] = T(0.5) * h * (1 + bent);
      }
      return;
    case Activation::polynomial:  // Horner's scheme, and once more on its partial values for the slope
      for (Index i = 0; i < count; ++i) {
        const Vector<T> h = z[i];
        Vector<T> value = all<T>(T(layer.constants[layer.constant_count - 1])), steep{};
        for (Index k = layer.constant_count - 2; k >= 0; --k) {
          steep = steep * h + value;
          value = value * h + T(layer.constants[k]);
        }
        slopes[i] = steep;
        z[i] = value;
      }
  }
}

// d *= act'(h), from z = act(h) where that tells it.
template <class T>
void slope_back(const Layer& layer, Vector<T>* d, const Vector<T>* z, const Vector<T>* slopes, Index count) {
  const auto each = [&](auto function) {
    for (Index i = 0; i < count; ++i) d[i] = function(d[i], z[i]);
  };
  using V = Vector<T>;
  const T slope = layer.constant_count ? T(layer.constants[0]) : T(0);
  switch (layer.activation) {
    case Activation::identity:
    case Activation::relu: return;  // as above
    case Activation::leaky_relu: return each([=](V g, V out) { return out > 0 ? g : g * slope; });
    case Activation::tanh: return each([](V g, V out) { return g * (1 - out * out); });
    case Activation::sigmoid: return each([](V g, V out) { return g * ((1 - out) * out); });
    case Activation::softplus:  // 1 - e^-z is the sigmoid of h
      return each([](V g, V out) { return out > 20 ? g : -g * expm1_negative<T>(-out); });
    case Activation::gelu:
    case Activation::gelu_tanh:
    case Activation::polynomial:
      for (Index i = 0; i < count; ++i) d[i] *= slopes[i];
  }
}

bool needs_slopes(const Layer& layer) {
  return layer.activation >= Activation::gelu;
}

// Sums over many numbers in four parts, for speed and for precision.
template <class T, class F>
Vector<T> total(Index count, F term) {
  Vector<T> part[4] = {};
  Index i = 0;
  for (; i + 4 <= count; i += 4)
    for (int j = 0; j < 4; ++j) part[j] += term(i + j);
  for (; i < count; ++i) part[0] += term(i);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

template <class T>
class Block {
  using V = Vector<T>;
  using Int = typename Types<T>::Int;
  static constexpr int L = LANES<T>;

 public:
  // How many samples are seen at a time, and how many when all of a batch is.
  static Index portion(const Job<T>& job) {
    const Index fitting = CHUNK_BYTES / bytes(job) / WIDE * WIDE, most = job.batch > job.samples ? job.batch : job.samples;
    return fitting < WIDE ? WIDE : fitting < most ? fitting : most;
  }
  static Index chunk(const Job<T>& job) {
    const Index some = portion(job);
    return job.batch > some && job.batch * bytes(job) <= BATCH_BYTES ? job.batch : some;
  }
  static Index bytes(const Job<T>& job) {  // of a sample
    Index width = job.net->inputs();
    for (Index k = 0; k < job.net->depth; ++k) width += job.net->layers[k].outputs;
    return width * Index(sizeof(V));
  }

  static Index scratch(const Job<T>& job) {
    const Net& net = *job.net;
    Index per_sample = net.inputs() + 2 * net.widest + Index(sizeof(Index) / sizeof(T));
    for (Index k = 0; k < net.depth; ++k) per_sample += net.layers[k].outputs * (needs_slopes(net.layers[k]) ? 2 : 1);
    return L * (net.parameters * (4 + job.optimizer.memories()) + chunk(job) * per_sample);
  }

  Block(const Job<T>& job, Index block, T* scratch, Poll poll)
      : job(job), net(*job.net), first(block * L), poll(poll), most(chunk(job)) {
    runs = job.runs - first < L ? job.runs - first : L;
    V* free = (V*)scratch;
    const auto take = [&](Index count) { return (free += count) - count; };
    const Index P = net.parameters;
    weights = take(P), gradient = take(P), before = take(P), full = take(P);
    for (int m = 0; m < job.optimizer.memories(); ++m) memory[m] = take(P);
    gathered = take(most * net.inputs());
    d = take(most * net.widest), d_below = take(most * net.widest);
    places = (Index*)take(most * Index(sizeof(Index) / sizeof(T)));
    states = free;
  }

  void run() {
    const int memories = job.updates ? job.optimizer.memories() : 0;
    in(weights, job.weights);
    for (int m = 0; m < memories; ++m) in(memory[m], job.memory[m]);
    if (job.before) in(before, job.before);
    T *kept = job.kept_weights, *kept_gradient = job.kept_gradients, *kept_full = job.kept_full_gradients;
    for (Index t = 0; t < job.steps; ++t) {
      if (stopped(job.batch)) return;
      look(t);
      if (job.wanted[t] & keep_weights) keep(kept, weights);
      if (job.wanted[t] & keep_full_gradient) keep(kept_full, full);
      if (!job.batch) continue;
      const bool at_once = descends(t);
      out(job.losses, t, minibatch(t, at_once));
      if (job.wanted[t] & keep_gradient) keep(kept_gradient, gradient);
      if (job.wanted[t] & (gradient_norm | cosine) || job.optimizer.max_norm) observe(t);
      if (t < job.updates && !at_once) update(t);
      if (job.before) swap(gradient, before);
    }
    if (job.updates) out(job.weights, weights);
    for (int m = 0; m < memories; ++m) out(job.memory[m], memory[m]);
    if (job.before) out(job.before, before);
    if (job.gradients) out(job.gradients, job.before ? before : gradient);
    if (job.full_gradients) out(job.full_gradients, full);
  }

 private:
  const Job<T>& job;
  const Net& net;
  const Index first;
  const Poll poll;
  const Index most;
  Index runs, seen = 0;
  V *weights, *gradient, *before, *full, *memory[3], *gathered, *d, *d_below, *states;
  V norm;
  Index* places;

  // Matrices (R, P) to [parameter][lane] and back; lanes without a run have weights of zero.
  void in(V* to, const T* from) const {
    const Index P = net.parameters;
    const T* rows[L];
    for (int l = 0; l < L; ++l) rows[l] = from + (first + (l < runs ? l : 0)) * P;
    gather(to, rows, P);
    if (runs == L) return;
    V keep{};
    for (int l = 0; l < runs; ++l) keep[l] = 1;
    for (Index p = 0; p < P; ++p) to[p] = keep > 0 ? to[p] : V{};
  }

  void out(T* to, const V* from) const {
    const Index P = net.parameters;
    Index p = 0;
    for (; p + L <= P; p += L) {
      V rows[L];
      for (int l = 0; l < L; ++l) rows[l] = from[p + l];
      transpose<T>(rows);
      for (Index l = 0; l < runs; ++l) std::memcpy(to + (first + l) * P + p, &rows[l], sizeof(V));
    }
    for (; p < P; ++p)
      for (Index l = 0; l < runs; ++l) to[(first + l) * P + p] = from[p][l];
  }

  void keep(T*& to, const V* from) const {
    out(to, from);
    to += job.runs * net.parameters;
  }

  void out(T* to, Index t, V values) const {
    if (to)
      for (Index l = 0; l < runs; ++l) to[t * job.runs + first + l] = values[l];
  }

  // count numbers from each of L rows, to [number][lane]; the last pieces of rows may overlap.
  static void gather(V* to, const T* const* rows, Index count) {
    constexpr int Q = PIECE<T>;
    if (count < Q) {
      for (Index i = 0; i < count; ++i) {
        V column;
        for (int l = 0; l < L; ++l) column[l] = rows[l][i];
        to[i] = column;
      }
      return;
    }
    for (Index next = 0; next < count; next += Q) {
      const Index i = next + Q <= count ? next : count - Q;
      V block[Q];
#pragma GCC unroll 16
      for (int k = 0; k < Q; ++k) block[k] = pieces<T>(rows + k, i);
      transpose_pieces<T>(block);
#pragma GCC unroll 16
      for (int k = 0; k < Q; ++k) to[i + k] = block[k];
    }
  }

  bool stopped(Index samples) {
    seen += samples + 1;
    if (seen < POLL_EVERY) return false;
    seen = 0;
    return poll.stop(poll.state);
  }

  // Whether plain SGD may change each weight as soon as its gradient is there.
  bool descends(Index t) const {
    const Optimizer& rule = job.optimizer;
    const bool plain = rule.rule == Rule::sgd && rule.momentum == 0 && rule.max_norm == 0 && net.l2 == 0;
    const bool unseen = !(job.wanted[t] & (gradient_norm | cosine | keep_gradient)) && !job.before && !job.gradients;
    return plain && unseen && t < job.updates && job.batch <= most;
  }

  V minibatch(Index t, bool at_once) {
    const Descent<T> descent = at_once ? Descent<T>{true, T(job.rates[t]), T(job.optimizer.weight_decay)} : Descent<T>{};
    const T* x = job.indices ? job.inputs : job.own_inputs;
    const void* y = job.indices ? job.targets : job.own_targets;
    V loss{};
    for (Index start = 0; start < job.batch; start += most) {
      const Index m = job.batch - start < most ? job.batch - start : most;
      place(t, start, m);
      for (Index s = 0; s < m; ++s) {
        const T* rows[L];
        for (int l = 0; l < L; ++l) rows[l] = x + places[s * L + l] * net.inputs();
        gather(gathered + s * net.inputs(), rows, net.inputs());
      }
      forward<false>(gathered, m);
      loss += compare<false>(y, 0, m, job.batch, true);
      backward<false>(gathered, m, gradient, start > 0, descent);
    }
    return penalised(loss * (1 / T(scale(job.batch))), gradient);
  }

  // Where the lanes find samples start, start + 1, ... of their batch; a lane without a run does as the first.
  void place(Index t, Index start, Index m) {
    for (int l = 0; l < L; ++l) {
      const Index run = first + (l < runs ? l : 0);
      const Index* const own = job.indices + run * job.index_run + t * job.index_step + start;
      const Index fresh = (run * job.steps + t) * job.batch + start;
      for (Index s = 0; s < m; ++s) places[s * L + l] = job.indices ? own[s] : fresh + s;
    }
  }

  // Full loss, gradient and accuracy.
  void look(Index t) {
    const std::uint8_t wanted = job.wanted[t];
    if (!(wanted & (full_loss | full_gradient | accuracy))) return;
    V loss{}, right{};
    for (Index start = 0, some = portion(job); start < job.samples; start += some) {
      const Index m = job.samples - start < some ? job.samples - start : some;
      const T* x = job.inputs + start * net.inputs();
      forward<true>(x, m);
      if (wanted & accuracy) right += hits((const Index*)job.targets + start, m);
      loss += compare<true>(job.targets, start, m, job.samples, wanted & full_gradient);
      if (wanted & full_gradient) backward<true>(x, m, full, start > 0);
      if (stopped(m)) return;
    }
    out(job.full_losses, t, penalised(loss * (1 / T(scale(job.samples))), wanted & full_gradient ? full : nullptr));
    out(job.accuracies, t, right / T(job.samples));
    if (wanted & full_gradient && job.full_norms) out(job.full_norms, t, length(full));
  }

  Index scale(Index count) const { return net.loss == Loss::mse ? 2 * count : count; }

  V penalised(V loss, V* gradient) const {
    if (net.l2 == 0) return loss;
    const T l2 = T(net.l2);
    if (gradient)
      for (Index p = 0; p < net.parameters; ++p) gradient[p] += l2 * weights[p];
    return loss + T(0.5) * l2 * total<T>(net.parameters, [&](Index p) { return weights[p] * weights[p]; });
  }

  // Outputs of layer k for up to `most` samples, and the slopes of its activation.
  V* outputs(Index k) const {
    V* place = states;
    for (Index j = 0; j < k; ++j) place += most * net.layers[j].outputs * (needs_slopes(net.layers[j]) ? 2 : 1);
    return place;
  }
  V* slopes(Index k) const { return outputs(k) + most * net.layers[k].outputs; }

  template <bool SHARED>
  void forward(const typename Operand<T, SHARED>::Element* x, Index m) {
    for (Index k = 0; k < net.depth; ++k) {
      const Layer& layer = net.layers[k];
      const Index o = layer.outputs, i = layer.inputs;
      const V* w = weights + layer.weight;
      V* z = outputs(k);
      const V* bias = layer.bias < 0 ? nullptr : weights + layer.bias;
      const Start start = bias ? Start::bias : Start::zero;
      const bool relu = layer.activation == Activation::relu;
      if (k == 0) {
        Product<T, Kind::forward, SHARED>{w, i, x, i, z, o, o, m, i, start, bias, {}, relu}();
      } else {
        Product<T, Kind::forward, false>{w, i, outputs(k - 1), i, z, o, o, m, i, start, bias, {}, relu}();
      }
      activate<T>(layer, z, slopes(k), m * o);
    }
  }

  // From d, the gradient at the outputs, that of all weights: added to what is there, instead of it, or a step at once.
  template <bool SHARED>
  void backward(const typename Operand<T, SHARED>::Element* x, Index m, V* gradient, bool add, Descent<T> descent = {}) {
    const Start start = add ? Start::there : Start::zero;
    V* const to = descent.now ? weights : gradient;
    for (Index k = net.depth - 1; k >= 0; --k) {
      const Layer& layer = net.layers[k];
      const Index o = layer.outputs, i = layer.inputs;
      const V* z = k ? outputs(k - 1) : nullptr;
      if (k) {
        const bool relu = net.layers[k - 1].activation == Activation::relu;
        Product<T, Kind::back, false>{weights + layer.weight, i, d, o, d_below, i, i, m, o, Start::zero, nullptr, {},
                                      false, relu ? z : nullptr}();
        slope_back<T>(net.layers[k - 1], d_below, z, slopes(k - 1), m * i);
      }
      if (layer.bias >= 0)
        for (Index a = 0; a < o; ++a) {
          const V sum = total<T>(m, [&](Index s) { return d[s * o + a]; });
          V& place = to[layer.bias + a];
          place = descent.now ? descent(place, sum) : add ? place + sum : sum;
        }
      V* const c = to + layer.weight;
      if (k) {
        Product<T, Kind::weights, false>{d, o, z, i, c, i, o, i, m, start, nullptr, descent}();
      } else {
        Product<T, Kind::weights, SHARED>{d, o, x, i, c, i, o, i, m, start, nullptr, descent}();
      }
      swap(d, d_below);
    }
  }

  // The sum of the losses (twice that of squares) of m samples, and d, the gradient of the mean at the outputs. Lane l of
  // the runs' own samples has target places[s * L + l]; of shared ones all have target `start + s`.
  template <bool SHARED>
  V compare(const void* targets, Index start, Index m, Index count, bool gradient) {
    const Index o = net.outputs();
    const V* z = outputs(net.depth - 1);
    const T share = 1 / T(count);
    V loss{};
    for (Index s = 0; s < m; ++s, z += o) {
      V* const slope = d + s * o;
      if (net.loss == Loss::mse) {
        const T* y = (const T*)targets;
        if constexpr (SHARED) {
          for (Index a = 0; a < o; ++a) slope[a] = z[a] - y[(start + s) * o + a];
        } else {
          const T* rows[L];
          for (int l = 0; l < L; ++l) rows[l] = y + places[s * L + l] * o;
          gather(slope, rows, o);
          for (Index a = 0; a < o; ++a) slope[a] = z[a] - slope[a];
        }
        for (Index a = 0; a < o; ++a) {
          loss += slope[a] * slope[a];
          slope[a] *= share;
        }
        continue;
      }
      const Index* classes = (const Index*)targets;
      Mask<T> own{};
      if constexpr (SHARED) {
        own += Int(classes[start + s]);
      } else {
        for (int l = 0; l < L; ++l) own[l] = Int(classes[places[s * L + l]]);
      }
      if (net.loss == Loss::logistic) {  // log(1 + e^-m) for the margin m, and its slope -1 / (1 + e^m)
        const V sign = own != 0 ? all<T>(1) : all<T>(-1), margin = sign * z[0], tail = exp_negative<T>(-abs<T>(margin));
        loss += (margin < 0 ? -margin : V{}) + log1p<T>(tail);
        slope[0] = -sign * share * ((margin > 0 ? tail : all<T>(1)) / (1 + tail));
        continue;
      }
      V top = z[0], sum{}, at_own{};
      for (Index a = 1; a < o; ++a) top = z[a] > top ? z[a] : top;
      for (Index a = 0; a < o; ++a) {
        const V shifted = z[a] - top;
        at_own = own == Int(a) ? shifted : at_own;
        sum += slope[a] = exp_negative<T>(shifted);
      }
      loss += log<T>(sum) - at_own;
      if (!gradient) continue;
      const V factor = share / sum;
      for (Index a = 0; a < o; ++a) slope[a] = slope[a] * factor - (own == Int(a) ? all<T>(share) : V{});
    }
    return loss;
  }

  V hits(const Index* classes, Index m) const {
    const Index o = net.outputs();
    const V* z = outputs(net.depth - 1);
    V right{};
    for (Index s = 0; s < m; ++s, z += o) {
      Mask<T> best{};
      if (net.loss == Loss::logistic) best = z[0] > 0 ? best + 1 : best;
      V top = z[0];
      for (Index a = 1; a < o; ++a) {
        const Mask<T> larger = z[a] > top;
        best = larger ? Mask<T>{} + Int(a) : best;
        top = larger ? z[a] : top;
      }
      right += best == Int(classes[s]) ? all<T>(1) : V{};
    }
    return right;
  }

  V length(const V* v) const {
    return sqrt<T>(total<T>(net.parameters, [=](Index p) { return v[p] * v[p]; }));
  }

  // Norms, and the cosine of the angle to the gradient before: each is normalised first, for late norms are small.
  void observe(Index t) {
    norm = length(gradient);
    if (job.wanted[t] & gradient_norm) out(job.gradient_norms, t, norm);
    if (!(job.wanted[t] & cosine)) return;
    const V mine = 1 / norm, theirs = 1 / length(before);
    out(job.cosines, t, total<T>(net.parameters, [&](Index p) { return (gradient[p] * mine) * (before[p] * theirs); }));
  }

  void update(Index t) {
    const Optimizer& rule = job.optimizer;
    const T rate = T(job.rates[t]), decay = T(rule.weight_decay), mu = T(rule.momentum), rest = T(1 - rule.dampening);
    const bool clips = rule.max_norm != 0;
    V factor = all<T>(1);
    if (clips) {
      const V wanted = T(rule.max_norm) / (norm + T(1e-6));
      factor = wanted > 1 ? all<T>(1) : wanted;
    }
    const auto each = [&](auto step) {
      for (Index p = 0; p < net.parameters; ++p) {
        V g = gradient[p];
        if (clips) g = g * factor;
        if (decay != 0 && rule.rule != Rule::adamw) g = g + decay * weights[p];
        step(p, g);
      }
    };
    V *const w = weights, *const m = memory[0], *const square = memory[1], *const largest = memory[2];
    switch (rule.rule) {
      case Rule::sgd:
        if (mu == 0) return each([=, descent = Descent<T>{true, rate, 0}](Index p, V g) { w[p] = descent(w[p], g); });
        if (rule.nesterov)
          return each([=](Index p, V g) {
            m[p] = mu * m[p] + g;
            w[p] = (w[p] - rate * g) - rate * mu * m[p];
          });
        return each([=, kept = job.first + t == 0 ? T(1) : rest](Index p, V g) {
          m[p] = mu * m[p] + kept * g;
          w[p] -= rate * m[p];
        });
      case Rule::averaged_momentum:
        return each([=](Index p, V g) {
          m[p] += (1 - mu) * (g - m[p]);
          w[p] -= rate * m[p];
        });
      case Rule::heavy_ball:
        return each([=](Index p, V g) {
          m[p] = mu * m[p] - rate * g;
          w[p] += m[p];
        });
      case Rule::adam:
      case Rule::adamw: {
        const double beta1 = rule.momentum, beta2 = rule.dampening, steps = double(job.first + t + 1);
        const double root = std::sqrt(1 - std::pow(beta2, steps));
        const T step = T(job.rates[t] * root / (1 - std::pow(beta1, steps))), eps = T(rule.eps * root);
        const T shrink = rule.rule == Rule::adamw ? T(1 - job.rates[t] * rule.weight_decay) : T(1);
        const T new1 = T(1 - beta1), old2 = T(beta2), new2 = T(1 - beta2);
        return each([=](Index p, V g) {
          m[p] += new1 * (g - m[p]);
          V second = square[p] = old2 * square[p] + new2 * g * g;
          if (rule.nesterov) second = largest[p] = second > largest[p] ? second : largest[p];
          w[p] = shrink * w[p] - step * (m[p] / (sqrt<T>(second) + eps));
        });
      }
    }
  }

  static void swap(V*& a, V*& b) {
    V* const kept = a;
    a = b, b = kept;
  }
};

template <class T>
void run(const Job<T>& job, Index block, T* scratch, Poll poll) {
  Block<T>(job, block, scratch, poll).run();
}

template <class T>
constexpr Kernel<T> kernel{LANES<T>, Block<T>::scratch, run<T>};

}  // namespace

#define NAME(set) #set
#define NAME_OF(set) NAME(set)
void distinct(const double*, Index*, Index, Index, Index);
extern const Set SET;
const Set SET{NAME_OF(SHOTNOISE_SET), kernel<float>, kernel<double>, distinct};

}  // namespace shotnoise::SHOTNOISE_SET
