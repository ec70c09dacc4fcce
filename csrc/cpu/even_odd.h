// Two vectors of bf16 at once, their even elements apart from their odd ones, with the mask's bits.
// Included by norm_kernel_set.h only, inside its target region and namespace.

struct EvenOdd {
  Vec<float> even, odd;
};

inline EvenOdd operator+(EvenOdd a, EvenOdd b) { return {a.even + b.even, a.odd + b.odd}; }
inline EvenOdd operator+(EvenOdd a, Vec<float> b) { return {a.even + b, a.odd + b}; }
inline EvenOdd operator-(EvenOdd a, Vec<float> b) { return {a.even - b, a.odd - b}; }
inline EvenOdd operator*(EvenOdd a, EvenOdd b) { return {a.even * b.even, a.odd * b.odd}; }
inline EvenOdd operator*(EvenOdd a, Vec<float> b) { return {a.even * b, a.odd * b}; }

struct EvenOddAt {
  int64_t i;
  EvenOdd operator()(const bf16* p) const { return {EvenAt{i}(p), OddAt{i}(p)}; }
};

template <bool past_caches>
inline void place(bf16* out, EvenOddAt at, EvenOdd v) {
  put_even_odd<past_caches>(out + at.i, v.even, v.odd);
}

// f of every vector.
template <class F, class V>
inline V each(V v, F f) {
  if constexpr (std::is_same_v<V, EvenOdd>) return {f(v.even), f(v.odd)};
  else return f(v);
}

// The mask's bits of two vectors: even elements have the even ones.

constexpr int even_odd_bytes = lanes<float> / 4;

inline uint32_t load_even_odd_bits(const uint8_t* row, int64_t i) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, row + i / 8, even_odd_bytes);
  return bits;
}
template <int first>
inline Vec<float> keep_every_other(uint32_t bits, Vec<float> v) {
  Bits32 bit{};
  for (int l = 0; l < lanes<float>; ++l) bit[l] = 1u << (2 * l + first);
  return (Vec<float>)((Bits32)v & (Bits32)((bit & (bits - Bits32{})) == bit));
}
inline Vec<float> masked(const uint8_t* row, EvenAt at, Vec<float> v) {
  return keep_every_other<0>(load_even_odd_bits(row, at.i), v);
}
inline Vec<float> masked(const uint8_t* row, OddAt at, Vec<float> v) {
  return keep_every_other<1>(load_even_odd_bits(row, at.i), v);
}
inline EvenOdd masked(const uint8_t* row, EvenOddAt at, EvenOdd v) {
  const uint32_t bits = load_even_odd_bits(row, at.i);
  return {keep_every_other<0>(bits, v.even), keep_every_other<1>(bits, v.odd)};
}

#if SE_FUSED_VECTOR_BYTES == 32
inline EvenOdd rectified(uint8_t* row, EvenOddAt at, EvenOdd v) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 even = _mm256_cmp_ps((__m256)v.even, zero, _CMP_NLE_UQ);
  const __m256 odd = _mm256_cmp_ps((__m256)v.odd, zero, _CMP_NLE_UQ);
  const __m256i in_order = _mm256_blend_epi16((__m256i)even, (__m256i)odd, 0xaa);
  const uint32_t bits = _mm_movemask_epi8(_mm_packs_epi16(
      _mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1)));
  __builtin_memcpy(row + at.i / 8, &bits, even_odd_bytes);
  return {(Vec<float>)_mm256_and_ps(even, (__m256)v.even),
          (Vec<float>)_mm256_and_ps(odd, (__m256)v.odd)};
}
#else
// Bit l to bit 2·l.
inline uint32_t spread(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f;
  bits = (bits | bits << 2) & 0x33333333;
  return (bits | bits << 1) & 0x55555555;
}
inline EvenOdd rectified(uint8_t* row, EvenOddAt at, EvenOdd v) {
  const uint32_t bits = spread(passing(v.even)) | spread(passing(v.odd)) << 1;
  __builtin_memcpy(row + at.i / 8, &bits, even_odd_bytes);
  return {keep_every_other<0>(bits, v.even), keep_every_other<1>(bits, v.odd)};
}
#endif
