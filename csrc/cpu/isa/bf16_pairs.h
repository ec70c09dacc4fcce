// Two vectors of bf16 at once, their even elements apart from their odd ones: half the work of
// widening them in order. With the mask's bits.
// Included by kernel_set.h only, inside its target region and namespace.

struct Pair {
  Vec<float> even, odd;
};

inline Pair operator+(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }
inline Pair operator+(Pair a, Vec<float> b) { return {a.even + b, a.odd + b}; }
inline Pair operator-(Pair a, Vec<float> b) { return {a.even - b, a.odd - b}; }
inline Pair operator*(Pair a, Pair b) { return {a.even * b.even, a.odd * b.odd}; }
inline Pair operator*(Pair a, Vec<float> b) { return {a.even * b, a.odd * b}; }

// The place of two vectors at i.
struct FullPair {
  int64_t i;
  Pair operator()(const bf16* p) const {
    const Bits32 both = (Bits32)load(reinterpret_cast<const float*>(p + i));
    return {(Vec<float>)(both << 16), (Vec<float>)(both & 0xffff0000)};
  }
};

template <bool non_temporal>
inline void store_at(bf16* out, FullPair at, Pair v) {
  const Bits32 both = (round_to_bf16(v.even) >> 16) | (round_to_bf16(v.odd) & 0xffff0000);
  store_at<non_temporal>(reinterpret_cast<float*>(out + at.i), Full{0}, (Vec<float>)both);
}

// f of every vector.
template <class F, class V>
inline V each(V v, F f) {
  if constexpr (std::is_same_v<V, Pair>) return {f(v.even), f(v.odd)};
  else return f(v);
}

// The mask's bits of two vectors: even elements have the even ones.

constexpr int pair_bytes = lanes<float> / 4;

inline uint32_t load_pair_bits(const uint8_t* row, int64_t i) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, row + i / 8, pair_bytes);
  return bits;
}
template <int first>
inline Vec<float> keep_every_other(uint32_t bits, Vec<float> v) {
  Bits32 bit{};
  for (int l = 0; l < lanes<float>; ++l) bit[l] = 1u << (2 * l + first);
  return (Vec<float>)((Bits32)v & (Bits32)((bit & (bits - Bits32{})) == bit));
}
inline Pair masked(const uint8_t* row, FullPair at, Pair v) {
  const uint32_t bits = load_pair_bits(row, at.i);
  return {keep_every_other<0>(bits, v.even), keep_every_other<1>(bits, v.odd)};
}

#if SE_FUSED_VECTOR_BYTES == 32
inline Pair rectified(uint8_t* row, FullPair at, Pair v) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 even = _mm256_cmp_ps((__m256)v.even, zero, _CMP_NLE_UQ);
  const __m256 odd = _mm256_cmp_ps((__m256)v.odd, zero, _CMP_NLE_UQ);
  const __m256i in_order = _mm256_blend_epi16((__m256i)even, (__m256i)odd, 0xaa);
  const uint32_t bits = _mm_movemask_epi8(_mm_packs_epi16(
      _mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1)));
  __builtin_memcpy(row + at.i / 8, &bits, pair_bytes);
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
inline Pair rectified(uint8_t* row, FullPair at, Pair v) {
  const uint32_t bits = spread(passing(v.even)) | spread(passing(v.odd)) << 1;
  __builtin_memcpy(row + at.i / 8, &bits, pair_bytes);
  return {keep_every_other<0>(bits, v.even), keep_every_other<1>(bits, v.odd)};
}
#endif
