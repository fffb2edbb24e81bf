// shotnoise._native: what comes in is checked here, blocks of runs go to threads, and the kernel is chosen.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "job.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace shotnoise {
namespace portable {
extern const Set SET;
}
#ifdef SHOTNOISE_X86
namespace avx2 {
extern const Set SET;
}
namespace avx512 {
extern const Set SET;
}
#endif

namespace {

// The sets that this processor has, the best first.
std::vector<const Set*> sets() {
  std::vector<const Set*> found;
#ifdef SHOTNOISE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::SET);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::SET);
#endif
  found.push_back(&portable::SET);
  return found;
}

void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

const Set& set_named(const std::string& name) {
  for (const Set* set : sets())
    if (name.empty() || name == set->name) return *set;
  throw nb::value_error(("instruction set '" + name + "' is not one of this processor's").c_str());
}

template <class E>
E one_of(const std::vector<std::string>& names, const std::string& name) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return E(i);
  throw nb::value_error(("'" + name + "' is not known").c_str());
}

class Network {
 public:
  using Row = std::tuple<Index, Index, Index, Index, std::string, std::vector<double>>;

  Network(const std::vector<Row>& rows, const std::string& loss, double l2) {
    const std::vector<std::string> activations = {"identity", "relu",     "leaky_relu", "tanh",
                                                  "sigmoid",  "softplus", "gelu",       "gelu_tanh", "polynomial"};
    require(!rows.empty(), "a network has at least one layer");
    Index parameters = 0, widest = 0;
    for (const auto& row : rows) constants.push_back(std::get<5>(row));
    for (const auto& [outputs, inputs, weight, bias, name, _] : rows) {
      require(outputs > 0 && inputs > 0 && weight >= 0 && bias >= -1, "sizes of layers are positive");
      require(layers.empty() || layers.back().outputs == inputs, "a layer's inputs are the outputs of the one before");
      const Activation activation = one_of<Activation>(activations, name);
      const std::vector<double>& own = constants[layers.size()];
      require(activation == Activation::polynomial ? !own.empty() : own.size() == (activation == Activation::leaky_relu),
              "a leaky ReLU has one constant, a polynomial at least one, other activations none");
      layers.push_back({outputs, inputs, weight, bias, activation, own.data(), Index(own.size())});
      parameters += outputs * inputs + (bias >= 0 ? outputs : 0);
      widest = std::max({widest, outputs, inputs});
    }
    for (const Layer& layer : layers)
      require(layer.weight + layer.outputs * layer.inputs <= parameters && layer.bias + layer.outputs <= parameters,
              "weights lie outside the parameters");
    net = {layers.data(), Index(layers.size()), parameters, widest,
           one_of<Loss>({"cross_entropy", "mse", "logistic"}, loss), l2};
    require(net.loss != Loss::logistic || net.outputs() == 1, "the logistic loss takes one output");
  }
  Network(const Network&) = delete;

  std::vector<std::vector<double>> constants;  // what the layers point to
  std::vector<Layer> layers;
  Net net;
};

template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Cube = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
template <class T>
using Samples = nb::ndarray<T, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
template <class T>
using Numbers = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <class T>
using Line = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Classes = nb::ndarray<const Index, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const Index, nb::ndim<3>, nb::device::cpu>;

std::string shape(Index rows, Index columns) {
  return "(" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
}

template <class T>
T* matrix(const std::optional<Matrix<T>>& found, Index rows, Index columns, const char* name) {
  if (!found) return nullptr;
  require(Index(found->shape(0)) == rows && Index(found->shape(1)) == columns,
          std::string(name) + " has shape " + shape(found->shape(0), found->shape(1)) + "; expected " +
              shape(rows, columns));
  return found->data();
}

// One thread's share, and who answers Ctrl-C.
class Work {
 public:
  template <class T>
  void carry_out(const Kernel<T>& kernel, const Job<T>& job, Index threads) {
    const Index blocks = (job.runs + kernel.lanes - 1) / kernel.lanes;
    threads = std::max<Index>(1, std::min(threads, blocks));
    const auto aligned = [](T* p) { ::operator delete(p, std::align_val_t(64)); };
    std::vector<std::unique_ptr<T, decltype(aligned)>> scratch;
    for (Index i = 0; i < threads; ++i)
      scratch.emplace_back(
          static_cast<T*>(::operator new(kernel.scratch(job) * sizeof(T), std::align_val_t(64))), aligned);
    std::atomic<Index> next = 0, busy = threads;
    const auto work = [&](Index i, Poll poll) {
      for (Index block; !stop && (block = next++) < blocks;) kernel.run(job, block, scratch[i].get(), poll);
      --busy;
    };
    {
      nb::gil_scoped_release free;
      std::vector<std::jthread> others;
      for (Index i = 1; i < threads; ++i)
        others.emplace_back(work, i, Poll{[](void* w) { return static_cast<Work*>(w)->stop.load(); }, this});
      work(0, Poll{[](void* w) { return static_cast<Work*>(w)->interrupted(); }, this});
      while (busy > 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        interrupted();
      }
    }
    if (stop) throw nb::python_error();
  }

 private:
  std::atomic<bool> stop = false;
  std::chrono::steady_clock::time_point looked = std::chrono::steady_clock::now();

  bool interrupted() {
    const auto now = std::chrono::steady_clock::now();
    if (stop || now - looked < std::chrono::milliseconds(100)) return stop;
    looked = now;
    nb::gil_scoped_acquire held;
    if (PyErr_CheckSignals() != 0) stop = true;  // the exception waits in this thread until it is thrown
    return stop;
  }
};

void check_range(const Index* values, Index count, Index below, const char* name, const char* of) {
  std::uint64_t signs = 0;  // of the values and of what is left up to the last one allowed
  for (Index i = 0; i < count; ++i) signs |= std::uint64_t(values[i]) | (std::uint64_t(below - 1) - std::uint64_t(values[i]));
  for (Index i = 0; signs >> 63 && i < count; ++i)
    require(values[i] >= 0 && values[i] < below,
            std::string(name) + " " + std::to_string(values[i]) + " of " + std::to_string(below) + " " + of);
}

template <class T>
void run(const Network& network, Matrix<T> weights, Matrix<const T> inputs, std::optional<Matrix<const T>> targets,
         std::optional<Classes> classes, std::optional<Indices> indices, std::optional<Samples<const T>> own_inputs,
         std::optional<Numbers<const T>> own_targets, std::optional<Classes> own_classes, const std::string& rule,
         const std::vector<double>& options, const std::vector<Matrix<T>>& memory, Line<const double> rates, Index first,
         Line<const std::uint8_t> wanted, std::optional<Matrix<T>> before, std::optional<Matrix<T>> gradients,
         std::optional<Matrix<T>> full_gradients, std::optional<Matrix<T>> losses,
         std::optional<Matrix<T>> gradient_norms, std::optional<Matrix<T>> cosines,
         std::optional<Matrix<T>> full_losses, std::optional<Matrix<T>> full_norms,
         std::optional<Matrix<T>> accuracies, std::optional<Matrix<T>> kept_weights,
         std::optional<Matrix<T>> kept_gradients, std::optional<Matrix<T>> kept_full_gradients, Index threads,
         const std::string& set) {
  const Net& net = network.net;
  Job<T> job{};
  job.net = &net;
  const Index R = job.runs = weights.shape(0), S = job.steps = wanted.shape(0), P = net.parameters;
  require(Index(weights.shape(1)) == P, "weights have " + std::to_string(weights.shape(1)) + " columns for " +
                                            std::to_string(P) + " parameters");
  const Index n = job.samples = inputs.shape(0), outputs = net.outputs();
  require(Index(inputs.shape(1)) == net.inputs(), "inputs have " + std::to_string(inputs.shape(1)) + " columns for " +
                                                      std::to_string(net.inputs()) + " inputs of the network");
  job.weights = weights.data();
  job.inputs = inputs.data();
  const bool classifies = net.loss != Loss::mse;
  const Index labels = net.loss == Loss::logistic ? 2 : outputs;
  require(classifies ? classes && Index(classes->size()) == n
                     : targets && Index(targets->shape(0)) == n && Index(targets->shape(1)) == outputs,
          "one target per sample is needed: a matrix (samples, outputs) for squared loss, else classes");
  job.targets = classifies ? static_cast<const void*>(classes->data()) : targets->data();
  if (classifies) check_range(classes->data(), n, labels, "class", "classes");

  if (indices) {
    require(Index(indices->shape(0)) == R && Index(indices->shape(1)) == S && indices->stride(2) == 1,
            "indices must be (runs, steps, batch), contiguous by batch");
    job.indices = indices->data(), job.batch = indices->shape(2);
    job.index_run = indices->stride(0), job.index_step = indices->stride(1);
    const bool together = job.index_step == job.batch;  // the steps of a run, which are checked much faster in one piece
    for (Index r = 0; r < R; ++r)
      for (Index t = 0; t < (together ? 1 : S); ++t)
        check_range(job.indices + r * job.index_run + t * job.index_step, together ? S * job.batch : job.batch, n, "index",
                    "samples");
  } else if (own_inputs) {
    job.batch = own_inputs->shape(2);
    const Index count = R * S * job.batch;
    require(Index(own_inputs->shape(0)) == R && Index(own_inputs->shape(1)) == S &&
                Index(own_inputs->shape(3)) == net.inputs(),
            "samples of the runs' own must be (runs, steps, batch, inputs)");
    require(classifies ? own_classes && Index(own_classes->size()) == count
                       : own_targets && Index(own_targets->size()) == count * outputs,
            "one target is needed for each of the runs' own samples");
    job.own_inputs = own_inputs->data();
    job.own_targets = classifies ? static_cast<const void*>(own_classes->data()) : own_targets->data();
    if (classifies) check_range(own_classes->data(), count, labels, "class", "classes");
  }
  require(job.batch > 0 || !(indices || own_inputs), "a batch has at least one sample");

  require(options.size() == 6, "six options of the rule");
  job.optimizer = {one_of<Rule>({"sgd", "averaged_momentum", "heavy_ball", "adam", "adamw"}, rule),
                   options[0], options[1], options[2] != 0, options[3], options[4], options[5]};
  job.updates = rates.shape(0), job.rates = rates.data(), job.first = first;
  require(job.updates <= S && (job.batch > 0 || job.updates == 0), "an update needs a step with a batch");
  require(job.updates == 0 || int(memory.size()) == job.optimizer.memories(), "the rule's memory is not complete");
  for (std::size_t i = 0; i < memory.size() && job.updates; ++i)
    job.memory[i] = matrix<T>(memory[i], R, P, "memory");

  job.wanted = wanted.data();
  job.before = matrix(before, R, P, "before");
  job.gradients = matrix(gradients, R, P, "gradients");
  job.full_gradients = matrix(full_gradients, R, P, "full_gradients");
  job.losses = matrix(losses, S, R, "losses");
  job.gradient_norms = matrix(gradient_norms, S, R, "gradient_norms");
  job.cosines = matrix(cosines, S, R, "cosines");
  job.full_losses = matrix(full_losses, S, R, "full_losses");
  job.full_norms = matrix(full_norms, S, R, "full_norms");
  job.accuracies = matrix(accuracies, S, R, "accuracies");
  Index weights_kept = 0, gradients_kept = 0, full_kept = 0;
  for (Index t = 0; t < S; ++t) {
    weights_kept += (job.wanted[t] & keep_weights) != 0;
    gradients_kept += (job.wanted[t] & keep_gradient) != 0;
    full_kept += (job.wanted[t] & keep_full_gradient) != 0;
    require(!(job.wanted[t] & keep_full_gradient) || job.wanted[t] & full_gradient, "no full gradient to keep");
    require(!(job.wanted[t] & accuracy) || classifies, "accuracy needs classes");
    require(!(job.wanted[t] & cosine) || job.before, "a cosine needs the gradient before");
  }
  require(gradients_kept == 0 || job.batch > 0, "a gradient to keep needs a batch");
  require((kept_weights || !weights_kept) && (kept_gradients || !gradients_kept) && (kept_full_gradients || !full_kept),
          "there is no room for what is to be kept");
  job.kept_weights = matrix(kept_weights, weights_kept * R, P, "kept_weights");
  job.kept_gradients = matrix(kept_gradients, gradients_kept * R, P, "kept_gradients");
  job.kept_full_gradients = matrix(kept_full_gradients, full_kept * R, P, "kept_full_gradients");
  require(threads >= 1, "at least one thread");
  if (R == 0 || S == 0) return;
  if constexpr (sizeof(T) == 4) {
    Work().carry_out(set_named(set).single, job, threads);
  } else {
    Work().carry_out(set_named(set).twice, job, threads);
  }
}

// A bit generator of NumPy as it shows itself to C (numpy/random/bitgen.h).
struct Generator {
  void* state;
  std::uint64_t (*next_uint64)(void*);
  std::uint32_t (*next_uint32)(void*);
  double (*next_double)(void*);
  std::uint64_t (*next_raw)(void*);

  // Below n <= 2^32: the numbers of Generator.integers, by Lemire's method of one product and few rejections.
  Index below(std::uint64_t n) const {
    std::uint64_t product = next_uint32(state) * n;
    if (std::uint32_t(product) < n)
      for (const std::uint64_t least = (std::uint64_t(1) << 32) % n; std::uint32_t(product) < least;)
        product = next_uint32(state) * n;
    return Index(product >> 32);
  }
};

// The next batches (R, T, b) of every run, from its own generator: what sampling's rules draw with NumPy.
void draw(const std::vector<nb::capsule>& streams, Index n, bool replace, Cube<Index> drawn, const std::string& set) {
  const Index R = drawn.shape(0), T = drawn.shape(1), b = drawn.shape(2);
  require(Index(streams.size()) == R, "there are as many streams as runs");
  require(n >= 1 && n < Index(1) << 31 && (replace || (b <= n && b <= LARGEST_SORTED)),
          "batches of " + std::to_string(b) + " out of " + std::to_string(n) + " samples are not for this");
  const Set& kernel = set_named(set);
  const Index count = T * b;
  std::vector<double> uniform(replace ? 0 : count);
  for (Index r = 0; r < R; ++r) {
    const Generator own = *static_cast<const Generator*>(streams[r].data("BitGenerator"));
    Index* const to = drawn.data() + r * count;
    if (replace) {
      for (Index i = 0; i < count; ++i) to[i] = n > 1 ? own.below(n) : 0;
    } else {
      for (double& number : uniform) number = own.next_double(own.state);
      kernel.distinct(uniform.data(), to, T, b, n);
    }
  }
}

// Nothing is converted: a copy would be trained instead.
auto array(const char* name) { return nb::arg(name).noconvert(); }

template <class T>
void bind_run(nb::module_& m) {
  const auto optional = [](const char* name) { return array(name).none() = nb::none(); };
  m.def("run", &run<T>, "network"_a, array("weights"), array("inputs"), array("targets").none(),
        array("classes").none(), nb::kw_only(), optional("indices"), optional("own_inputs"), optional("own_targets"),
        optional("own_classes"), "rule"_a = "sgd", "options"_a = std::vector<double>(6, 0.0),
        array("memory") = nb::list(), array("rates"), "first"_a = 0, array("wanted"), optional("before"),
        optional("gradients"), optional("full_gradients"), optional("losses"), optional("gradient_norms"),
        optional("cosines"), optional("full_losses"), optional("full_norms"), optional("accuracies"),
        optional("kept_weights"), optional("kept_gradients"), optional("kept_full_gradients"), "threads"_a = 1,
        "set"_a = "");
}

}  // namespace
}  // namespace shotnoise

NB_MODULE(_native, m) {
  using namespace shotnoise;
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Set* set : sets()) names.emplace_back(set->name);
    return names;
  });
  nb::class_<Network>(m, "Network")
      .def(nb::init<const std::vector<Network::Row>&, const std::string&, double>(), "layers"_a, "loss"_a, "l2"_a)
      .def_prop_ro("parameters", [](const Network& network) { return network.net.parameters; });
  m.attr("LARGEST_SORTED") = LARGEST_SORTED;
  m.def("draw", &draw, "streams"_a, "n"_a, "replace"_a, array("drawn"), "set"_a = "");
  bind_run<float>(m);
  bind_run<double>(m);
}
