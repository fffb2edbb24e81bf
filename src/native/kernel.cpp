// One block of runs, one run per lane: weights [parameter][lane] stay in the cache for all steps of a call.
//
//     z_0 = x,   h_k = W_k z_{k-1} + c_k,   z_k = act_k(h_k),   d_K = dl/dh_K / m,
//     dW_k = d_k z_{k-1}^T,   dc_k = sum d_k,   d_{k-1} = (W_k^T d_k) act'_{k-1}
//
// In all three products a tile of the result is held in registers. Samples of its own for every run are gathered into
// [sample][feature][lane]; where all runs see the same samples, they stay numbers and the processor broadcasts them.
// Lanes never meet: a run comes out the same in any company.
#include "activations.hpp"
#include "products.hpp"

namespace shotnoise::SHOTNOISE_SET {
namespace {

constexpr Index CHUNK_BYTES = 192 * 1024;  // what the activations of some samples may take, beside the weights in L2
constexpr Index BATCH_BYTES = 512 * 1024;  // the same of a whole batch, which spares its gradient a place of its own
constexpr Index POLL_EVERY = 64;           // samples between looks at the clock

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
    Index per_sample = net.inputs() + 2 * net.widest + net.outputs() + 1;
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
    answers = take(most * net.outputs()), labels = (Int*)take(most);
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
  V* answers;   // targets of the gathered samples under squared loss
  Int* labels;  // under other losses

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
    V loss{};
    for (Index start = 0; start < job.batch; start += most) {
      const Index m = job.batch - start < most ? job.batch - start : most;
      fetch(t, start, m);
      forward<false>(gathered, m);
      loss += compare<false>(0, m, job.batch, true);
      backward<false>(gathered, m, gradient, start > 0, descent);
    }
    return penalised(loss * (1 / T(scale(job.batch))), gradient);
  }

  // Inputs and targets of samples start, start + 1, ... of the lanes' batches; a lane without a run has those of the first.
  void fetch(Index t, Index start, Index m) {
    const Index i = net.inputs(), o = net.outputs();
    const T* const x = job.indices ? job.inputs : job.own_inputs;
    const void* const y = job.indices ? job.targets : job.own_targets;
    const Index* drawn[L];
    Index fresh[L];
    for (int l = 0; l < L; ++l) {
      const Index run = first + (l < runs ? l : 0);
      drawn[l] = job.indices ? job.indices + run * job.index_run + t * job.index_step + start : nullptr;
      fresh[l] = (run * job.steps + t) * job.batch + start;
    }
    for (Index s = 0; s < m; ++s) {
      Index place[L];
      const T* rows[L];
      for (int l = 0; l < L; ++l) place[l] = job.indices ? drawn[l][s] : fresh[l] + s;
      for (int l = 0; l < L; ++l) rows[l] = x + place[l] * i;
      gather(gathered + s * i, rows, i);
      if (net.loss != Loss::mse) {
        for (int l = 0; l < L; ++l) labels[s * L + l] = Int(((const Index*)y)[place[l]]);
      } else if (o == 1) {
        for (int l = 0; l < L; ++l) ((T*)(answers + s))[l] = ((const T*)y)[place[l]];
      } else {
        for (int l = 0; l < L; ++l) rows[l] = (const T*)y + place[l] * o;
        gather(answers + s * o, rows, o);
      }
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
      loss += compare<true>(start, m, job.samples, wanted & full_gradient);
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
      V *const c = to + layer.weight, *const biases = layer.bias < 0 ? nullptr : to + layer.bias;
      if constexpr (!SHARED)
        if (m <= FewSamples<T>::MOST && !add) {
          FewSamples<T>{d, k ? z : x, c, biases, m, o, i, descent}();
          swap(d, d_below);
          continue;
        }
      for (Index a = 0; biases && a < o; ++a) {
        const V sum = total<T>(m, [&](Index s) { return d[s * o + a]; });
        biases[a] = descent.now ? descent(biases[a], sum) : add ? biases[a] + sum : sum;
      }
      if (k) {
        Product<T, Kind::weights, false>{d, o, z, i, c, i, o, i, m, start, nullptr, descent}();
      } else {
        Product<T, Kind::weights, SHARED>{d, o, x, i, c, i, o, i, m, start, nullptr, descent}();
      }
      swap(d, d_below);
    }
  }

  // The sum of the losses (twice that of squares) of m samples, and d, the gradient of the mean at the outputs: of the
  // samples that were fetched, or of those that all lanes share from `start` on.
  template <bool SHARED>
  V compare(Index start, Index m, Index count, bool gradient) {
    const Index o = net.outputs();
    const V* const z = outputs(net.depth - 1);
    const T share = 1 / T(count);
    V loss{};
    if (net.loss == Loss::mse) {
      const T* const y = (const T*)job.targets + start * o;
      for (Index i = 0; i < m * o; ++i) {
        const V miss = SHARED ? z[i] - y[i] : z[i] - answers[i];
        loss += miss * miss;
        d[i] = share * miss;
      }
      return loss;
    }
    const auto label = [&](Index s) {
      return SHARED ? Mask<T>{} + Int(((const Index*)job.targets)[start + s]) : ((const Mask<T>*)labels)[s];
    };
    if (net.loss == Loss::logistic) {  // log(1 + e^-m) for the margin m, and its slope -1 / (1 + e^m)
      for (Index s = 0; s < m; ++s) {
        const V sign = label(s) != 0 ? all<T>(1) : all<T>(-1), margin = sign * z[s], tail = exp_negative<T>(-abs<T>(margin));
        loss += (margin < 0 ? -margin : V{}) + log1p<T>(tail);
        d[s] = -sign * share * ((margin > 0 ? tail : all<T>(1)) / (1 + tail));
      }
      return loss;
    }
    // A pass for the largest outputs, one for exponentials, one for their sums: what samples wait for overlaps.
    for (Index s = 0; s < m; ++s) {
      const V* const h = z + s * o;
      const Mask<T> own = label(s);
      V top = h[0], at_own{};
      for (Index a = 1; a < o; ++a) top = larger<T>(top, h[a]);
      for (Index a = 0; a < o; ++a) {
        const V shifted = d[s * o + a] = h[a] - top;
        at_own = own == Int(a) ? shifted : at_own;
      }
      loss -= at_own;
    }
    for (Index i = 0; i < m * o; ++i) d[i] = exp_negative<T>(d[i]);
    for (Index s = 0; s < m; ++s) {
      V* const slope = d + s * o;
      const Mask<T> own = label(s);
      V sum = slope[0];
      for (Index a = 1; a < o; ++a) sum += slope[a];
      loss += log<T>(sum);
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
