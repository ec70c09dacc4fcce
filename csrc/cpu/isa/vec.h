// Vectors of the accumulator type, as wide as the instruction set that includes this file.
// Included by kernel_set.h only, inside its target region and namespace.

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  using type __attribute__((vector_size(SE_FUSED_VECTOR_BYTES))) = float;
};
template <>
struct VecOf<double> {
  using type __attribute__((vector_size(SE_FUSED_VECTOR_BYTES))) = double;
};
template <class A>
using Vec = typename VecOf<A>::type;

template <class A>
constexpr int lanes = SE_FUSED_VECTOR_BYTES / static_cast<int>(sizeof(A));

using Bits16 __attribute__((vector_size(SE_FUSED_VECTOR_BYTES / 2))) = uint16_t;
using Bits32 __attribute__((vector_size(SE_FUSED_VECTOR_BYTES))) = uint32_t;

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

// 16-bit floats to and from float, rounding to nearest even

#if SE_FUSED_VECTOR_BYTES == 64
inline Bits32 widen(Bits16 half) { return (Bits32)_mm512_cvtepu16_epi32((__m256i)half); }
inline Bits16 narrow(Bits32 bits) { return (Bits16)_mm512_cvtepi32_epi16((__m512i)bits); }
#elif SE_FUSED_VECTOR_BYTES == 32
inline Bits32 widen(Bits16 half) { return (Bits32)_mm256_cvtepu16_epi32((__m128i)half); }
inline Bits16 narrow(Bits32 bits) {  // each at most 0xffff
  return (Bits16)_mm_packus_epi32(
      _mm256_castsi256_si128((__m256i)bits), _mm256_extracti128_si256((__m256i)bits, 1));
}
#else
inline Bits32 widen(Bits16 half) { return __builtin_convertvector(half, Bits32); }
inline Bits16 narrow(Bits32 bits) { return __builtin_convertvector(bits, Bits16); }
#endif

inline Vec<float> decode(Bits16 half, bf16) { return (Vec<float>)(widen(half) << 16); }
// The bf16 nearest to v in the high half of each lane. A NaN, quiet after any arithmetic, stays one.
inline Bits32 round_to_bf16(Vec<float> v) {
  const Bits32 bits = (Bits32)v;
  return v == v ? bits + 0x7fff + ((bits >> 16) & 1) : bits;
}
inline Bits16 encode(Vec<float> v, bf16) { return narrow(round_to_bf16(v) >> 16); }

#if SE_FUSED_VECTOR_BYTES == 64
inline Vec<float> decode(Bits16 half, fp16) { return (Vec<float>)_mm512_cvtph_ps((__m256i)half); }
inline Bits16 encode(Vec<float> v, fp16) {
  return (Bits16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif SE_FUSED_VECTOR_BYTES == 32
inline Vec<float> decode(Bits16 half, fp16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)half); }
inline Bits16 encode(Vec<float> v, fp16) {
  return (Bits16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#else
inline Vec<float> decode(Bits16 half, fp16) {
  const Bits32 bits = widen(half);
  const Bits32 is_special = (Bits32)((bits & 0x7c00) == 0x7c00);  // Inf and NaN
  const Vec<float> magnitude = (Vec<float>)((bits & 0x7fff) << 13) * 0x1p112f;
  return (Vec<float>)((Bits32)magnitude | (is_special & 0x7f800000) | ((bits & 0x8000) << 16));
}
inline Bits16 encode(Vec<float> v, fp16) {
  const Bits32 bits = (Bits32)v;
  const Bits32 sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Normal halves round in the integers; subnormal ones in the float adder, whose ulp is 2^-24.
  const Bits32 normal = (magnitude + 0x0fff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const Bits32 subnormal = (Bits32)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const Bits32 is_subnormal = (Bits32)(magnitude < 0x38800000);
  const Bits32 is_infinite = (Bits32)(magnitude >= 0x477ff000);
  const Bits32 is_nan = (Bits32)(magnitude > 0x7f800000);
  const Bits32 finite = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  return narrow((finite & ~is_infinite) | (is_infinite & 0x7c00) | (is_nan & 0x0200) | sign);
}
#endif

// Loads and stores of a whole vector

inline Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof v); }

template <class H>
inline Vec<float> load_half(const H* p) {
  Bits16 half;
  __builtin_memcpy(&half, p, sizeof half);
  return decode(half, H{});
}
template <class H>
inline void store_half(H* p, Vec<float> v) {
  const Bits16 half = encode(v, H{});
  __builtin_memcpy(p, &half, sizeof half);
}
inline Vec<float> load(const bf16* p) { return load_half(p); }
inline Vec<float> load(const fp16* p) { return load_half(p); }
inline void store(bf16* p, Vec<float> v) { store_half(p, v); }
inline void store(fp16* p, Vec<float> v) { store_half(p, v); }

// Non-temporal stores, past the caches; p is aligned to what is stored.
#if SE_FUSED_VECTOR_BYTES == 64
inline void stream(float* p, Vec<float> v) { _mm512_stream_ps(p, (__m512)v); }
inline void stream(double* p, Vec<double> v) { _mm512_stream_pd(p, (__m512d)v); }
inline void stream_half(void* p, Bits16 v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
#elif SE_FUSED_VECTOR_BYTES == 32
inline void stream(float* p, Vec<float> v) { _mm256_stream_ps(p, (__m256)v); }
inline void stream(double* p, Vec<double> v) { _mm256_stream_pd(p, (__m256d)v); }
inline void stream_half(void* p, Bits16 v) { _mm_stream_si128((__m128i*)p, (__m128i)v); }
#else
inline void stream(float* p, Vec<float> v) { store(p, v); }
inline void stream(double* p, Vec<double> v) { store(p, v); }
inline void stream_half(void* p, Bits16 v) { __builtin_memcpy(p, &v, sizeof v); }
#endif
inline void stream(bf16* p, Vec<float> v) { stream_half(p, encode(v, bf16{})); }
inline void stream(fp16* p, Vec<float> v) { stream_half(p, encode(v, fp16{})); }

// Orders non-temporal stores before later ones.
inline void finish_streaming() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Whether p is aligned for stream().
template <class T>
inline bool streamable(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (lanes<acc_t<T>> * sizeof(T)) == 0;
}

// Loads and stores of the first `count` < lanes elements; the other lanes read as zero

#if SE_FUSED_VECTOR_BYTES == 64
inline __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Vec<float> load_part(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(first(count), p);
}
inline Vec<double> load_part(const double* p, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first(count)), p);
}
template <class H>
inline Vec<float> load_part(const H* p, int64_t count) {
  return decode((Bits16)_mm256_maskz_loadu_epi16(first(count), p), H{});
}
inline void store_part(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, first(count), (__m512)v);
}
inline void store_part(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first(count)), (__m512d)v);
}
template <class H>
inline void store_part(H* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first(count), (__m256i)encode(v, H{}));
}
#else
template <class T>
inline Vec<acc_t<T>> load_part(const T* p, int64_t count) {
  T lane[lanes<acc_t<T>>] = {};
  for (int64_t i = 0; i < count; ++i) lane[i] = p[i];
  return load(lane);
}
template <class T>
inline void store_part(T* p, Vec<acc_t<T>> v, int64_t count) {
  T lane[lanes<acc_t<T>>];
  store(lane, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lane[i];
}
#endif

// Places in a row. Full: a whole vector at i. OverlapTail: the last whole vector of the row, whose first
// `done` elements belong to the vector before it. MaskedTail: the last `count` < lanes elements.
struct Full {
  int64_t i;
  template <class T>
  Vec<acc_t<T>> operator()(const T* p) const {
    return load(p + i);
  }
};
struct OverlapTail {
  int64_t i, done;
  template <class T>
  Vec<acc_t<T>> operator()(const T* p) const {
    return load(p + i);
  }
};
struct MaskedTail {
  int64_t i, count;
  template <class T>
  Vec<acc_t<T>> operator()(const T* p) const {
    return load_part(p + i, count);
  }
};

// body(place) for what is left of [begin, end) at i, less than a vector. A vector that reaches back is
// faster than a masked one, except on AVX512.
template <class A, class Body>
SE_FUSED_INLINE inline void for_rest(int64_t begin, int64_t i, int64_t end, Body body) {
  constexpr int64_t width = lanes<A>;
  if (i >= end) return;
  if constexpr (SE_FUSED_VECTOR_BYTES < 64) {
    if (end - begin >= width) return body(OverlapTail{end - width, width - (end - i)});
  }
  body(MaskedTail{i, end - i});
}

// body(place) for every vector of [begin, end).
template <class A, class Body>
SE_FUSED_INLINE inline void for_vectors(int64_t begin, int64_t end, Body body) {
  constexpr int64_t width = lanes<A>;
  int64_t i = begin;
  for (; i + width <= end; i += width) body(Full{i});
  for_rest<A>(begin, i, end, body);
}

template <bool non_temporal, class T>
inline void store_at(T* out, Full at, Vec<acc_t<T>> v) {
  if constexpr (non_temporal)
    stream(out + at.i, v);
  else
    store(out + at.i, v);
}
template <bool non_temporal, class T>
inline void store_at(T* out, OverlapTail at, Vec<acc_t<T>> v) {
  store(out + at.i, v);
}
template <bool non_temporal, class T>
inline void store_at(T* out, MaskedTail at, Vec<acc_t<T>> v) {
  store_part(out + at.i, v, at.count);
}
