// Activations of a layer and their slopes.
#pragma once
#include "job.hpp"
#include "lanes.hpp"

namespace shotnoise::SHOTNOISE_SET {
namespace {

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

inline bool needs_slopes(const Layer& layer) {
  return layer.activation >= Activation::gelu;
}

}  // namespace
}  // namespace shotnoise::SHOTNOISE_SET
