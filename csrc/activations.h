// The activations and gates of the excitation, with their derivatives.
// Names as in se_fused/activations.py and, of a statistic, in se_fused/backends/README.md.
#pragma once

#ifdef __CUDACC__
#define SE_FUSED_HOST_DEVICE __host__ __device__
#define SE_FUSED_MATH(function) ::function
#else
#define SE_FUSED_HOST_DEVICE
#define SE_FUSED_MATH(function) __builtin_##function
#endif

namespace se_fused {

enum class Act { identity, relu, silu, hardswish, leaky_relu, gelu };
enum class Gate { identity, relu, sigmoid, hardsigmoid, tanh };
enum class Statistic { mean, max, moments };

constexpr const char* names_of(Act, int i) {
  constexpr const char* names[] = {
      "identity", "relu", "silu", "hardswish", "leaky_relu", "gelu", nullptr};
  return names[i];
}
constexpr const char* names_of(Gate, int i) {
  constexpr const char* names[] = {
      "identity", "relu", "sigmoid", "hardsigmoid", "tanh", nullptr};
  return names[i];
}
constexpr const char* names_of(Statistic, int i) {
  constexpr const char* names[] = {"mean", "max", "moments", nullptr};
  return names[i];
}

// exp in float, of a number or of a GCC vector of them; Bits is as wide, of integers. 2^n · e^r with
// |r| <= ln2/2, minimax polynomial, within 2 ulp.
template <class Bits, class V>
inline V exponential_by_parts(V x) {
  x = x < -87.3f ? V{} - 87.3f : x;
  x = x > 88.3f ? V{} + 88.3f : x;
  const V shifted = x * 1.44269504f + 12582912.0f;  // n in the low mantissa bits
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Bits bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  V scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
SE_FUSED_HOST_DEVICE inline float exponential(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  return exponential_by_parts<unsigned>(x);
#endif
}
SE_FUSED_HOST_DEVICE inline double exponential(double x) { return SE_FUSED_MATH(exp)(x); }
template <class V, class Element = decltype(V{}[0])>
inline V exponential(V x) {
  if constexpr (sizeof(x[0]) == sizeof(float)) {
    return exponential_by_parts<decltype(x < x)>(x);
  } else {
    for (unsigned l = 0; l < sizeof(x) / sizeof(x[0]); ++l) x[l] = exponential(x[l]);
    return x;
  }
}

SE_FUSED_HOST_DEVICE inline float error_function(float x) { return SE_FUSED_MATH(erff)(x); }
SE_FUSED_HOST_DEVICE inline double error_function(double x) { return SE_FUSED_MATH(erf)(x); }
// In double: 1 - g² of a saturated gate magnifies every error of g.
SE_FUSED_HOST_DEVICE inline float hyperbolic_tangent(float x) { return static_cast<float>(SE_FUSED_MATH(tanh)(x)); }
SE_FUSED_HOST_DEVICE inline double hyperbolic_tangent(double x) { return SE_FUSED_MATH(tanh)(x); }

// Of numbers and of GCC's vectors of them.

template <class A>
SE_FUSED_HOST_DEVICE inline A clamp_to_6(A x) {  // a NaN stays
  x = x < 0 ? A{} : x;
  return x > 6 ? A{} + 6 : x;
}

template <class A>
SE_FUSED_HOST_DEVICE inline A sigmoid(A x) {
  return 1 / (1 + exponential(-x));
}

template <class A>
SE_FUSED_HOST_DEVICE inline A silu_derivative(A p) {
  const A s = sigmoid(p);
  return s * (1 + p * (1 - s));
}

template <class A>
SE_FUSED_HOST_DEVICE inline A hardswish(A p) {
  return p * clamp_to_6(p + 3) / 6;
}
template <class A>
SE_FUSED_HOST_DEVICE inline A hardswish_derivative(A p) {
  A slope = (p + p + 3) / 6;
  slope = p < -3 ? A{} : slope;
  return p > 3 ? A{} + 1 : slope;
}

template <class A>
SE_FUSED_HOST_DEVICE inline A apply(Act act, A p) {
  switch (act) {
    case Act::relu: return p < 0 ? A(0) : p;
    case Act::silu: return p * sigmoid(p);
    case Act::hardswish: return hardswish(p);
    case Act::leaky_relu: return p > 0 ? p : p * A(0.01);
    case Act::gelu: return A(0.5) * p * (A(1) + error_function(p * A(0.70710678118654752440)));
    default: return p;
  }
}

// act'(p), from the value before the activation.
template <class A>
SE_FUSED_HOST_DEVICE inline A derivative(Act act, A p) {
  switch (act) {
    case Act::relu: return p > 0 ? A(1) : A(0);
    case Act::silu: return silu_derivative(p);
    case Act::hardswish: return hardswish_derivative(p);
    case Act::leaky_relu: return p > 0 ? A(1) : A(0.01);
    case Act::gelu:
      return A(0.5) * (A(1) + error_function(p * A(0.70710678118654752440))) +
          p * exponential(A(-0.5) * p * p) * A(0.39894228040143267794);
    default: return A(1);
  }
}

template <class A>
SE_FUSED_HOST_DEVICE inline A apply(Gate gate, A p) {
  switch (gate) {
    case Gate::relu: return p < 0 ? A(0) : p;
    case Gate::sigmoid: return sigmoid(p);
    case Gate::hardsigmoid: return clamp_to_6(p + 3) / 6;
    case Gate::tanh: return hyperbolic_tangent(p);
    default: return p;
  }
}

// gate'(p), from the gate's output g = gate(p).
template <class A>
SE_FUSED_HOST_DEVICE inline A derivative(Gate gate, A g) {
  switch (gate) {
    case Gate::relu: return g > 0 ? A(1) : A(0);
    case Gate::sigmoid: return g * (A(1) - g);
    case Gate::hardsigmoid: return g > 0 && g < 1 ? A(1) / A(6) : A(0);
    case Gate::tanh: return A(1) - g * g;
    default: return A(1);
  }
}

}  // namespace se_fused
