// Masks of one bit per element: bit j % 8 of byte j // 8, every row of a map from a byte of its own.
// Included by kernel_set.h only, inside its target region and namespace.

template <class A>
inline typename IndexOf<A>::type lane_bits() {
  typename IndexOf<A>::type bits;
  for (int l = 0; l < lanes<A>; ++l) bits[l] = 1 << l;
  return bits;
}

// Bit l: whether lane l is above zero, or NaN.
inline uint32_t passing(Vec<float> v) {
#if SE_FUSED_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif SE_FUSED_VECTOR_BYTES == 32
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NLE_UQ));
#else
  uint32_t bits = 0;
  for (int l = 0; l < lanes<float>; ++l) bits |= static_cast<uint32_t>(!(v[l] <= 0)) << l;
  return bits;
#endif
}
inline uint32_t passing(Vec<double> v) {
#if SE_FUSED_VECTOR_BYTES == 64
  return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_NLE_UQ);
#else
  uint32_t bits = 0;
  for (int l = 0; l < lanes<double>; ++l) bits |= static_cast<uint32_t>(!(v[l] <= 0)) << l;
  return bits;
#endif
}

// The lanes whose bit is set; zero, whatever it was, in the others.
inline Vec<float> keep(uint32_t bits, Vec<float> v) {
#if SE_FUSED_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
#else
  using Index = IndexOf<float>::type;
  const Index chosen = (lane_bits<float>() & (static_cast<int32_t>(bits) - Index{})) != 0;
  return (Vec<float>)((Index)v & chosen);
#endif
}
inline Vec<double> keep(uint32_t bits, Vec<double> v) {
#if SE_FUSED_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), (__m512d)v);
#else
  using Index = IndexOf<double>::type;
  const Index chosen = (lane_bits<double>() & (static_cast<int64_t>(bits) - Index{})) != 0;
  return (Vec<double>)((Index)v & chosen);
#endif
}

// What is summed where a vector is not whole: its lanes read as zero, which need not become zero.
template <class V>
inline V only_read(At, V v) {
  return v;
}
template <class V>
inline V only_read(PartAt at, V v) {
  return keep((1u << at.count) - 1, v);
}

// Of 16 lanes, whether more than 8 are there.
inline bool beyond_a_byte(At) { return true; }
inline bool beyond_a_byte(PartAt at) { return at.count > 8; }

// The bits of the lanes at a place of a row, from and to the row's bytes. A byte that holds more
// than one vector is written a vector at a time, from its first on.
template <class A, class Place>
inline uint32_t load_bits(const uint8_t* row, Place at) {
  const uint8_t* byte = row + at.i / 8;
  if constexpr (lanes<A> == 16) {
    return byte[0] | (beyond_a_byte(at) ? static_cast<uint32_t>(byte[1]) << 8 : 0);
  } else {
    return byte[0] >> (at.i % 8);
  }
}
template <class A, class Place>
inline void store_bits(uint8_t* row, Place at, uint32_t bits) {
  uint8_t* byte = row + at.i / 8;
  if constexpr (lanes<A> >= 8) {
    byte[0] = static_cast<uint8_t>(bits);
    if (lanes<A> == 16 && beyond_a_byte(at)) byte[1] = static_cast<uint8_t>(bits >> 8);
  } else {
    const uint32_t before = at.i % 8 ? byte[0] : 0;
    byte[0] = static_cast<uint8_t>(before | bits << (at.i % 8));
  }
}
