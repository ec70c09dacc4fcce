// Masks of one bit per element: bit j % 8 of byte j // 8; every row of a map begins a byte.
// Included by kernel_set.h only, inside its target region and namespace.

inline int64_t mask_bytes(int64_t cols) { return (cols + 7) / 8; }

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

// Of 16 lanes, whether more than 8 are there.
inline bool beyond_a_byte(Full) { return true; }
inline bool beyond_a_byte(MaskedTail at) { return at.count > 8; }

// The bits of the lanes at a place of a row, from the row's bytes.
template <class A, class Place>
inline uint32_t load_bits(const uint8_t* row, Place at) {
  const uint8_t* byte = row + at.i / 8;
  if constexpr (lanes<A> == 16) {
    return byte[0] | (beyond_a_byte(at) ? static_cast<uint32_t>(byte[1]) << 8 : 0);
  } else {
    return byte[0] >> (at.i % 8);
  }
}
template <class A>
inline uint32_t load_bits(const uint8_t* row, OverlapTail at) {
  const uint8_t* byte = row + at.i / 8;
  const int64_t before = at.i % 8;
  const uint32_t next = before + lanes<A> > 8 ? static_cast<uint32_t>(byte[1]) << 8 : 0;
  return (byte[0] | next) >> before;
}

// And to them. A byte that holds more than one vector is written a vector at a time, from its first
// on.
template <class A>
inline void store_bits(uint8_t* row, Full at, uint32_t bits) {
  uint8_t* byte = row + at.i / 8;
  if constexpr (lanes<A> >= 8) {
    byte[0] = static_cast<uint8_t>(bits);
    if constexpr (lanes<A> == 16) byte[1] = static_cast<uint8_t>(bits >> 8);
  } else {
    const uint32_t before = at.i % 8 ? byte[0] : 0;
    byte[0] = static_cast<uint8_t>(before | bits << (at.i % 8));
  }
}
template <class A>
inline void store_bits(uint8_t* row, OverlapTail at, uint32_t bits) {
  static_assert(lanes<A> <= 8 || SE_FUSED_VECTOR_BYTES == 64);
  uint8_t* byte = row + (at.i + at.done) / 8;
  const int64_t shift = (at.i + at.done) % 8;
  byte[0] = static_cast<uint8_t>((shift ? byte[0] : 0) | bits >> at.done << shift);
}
template <class A>
inline void store_bits(uint8_t* row, MaskedTail at, uint32_t bits) {
  bits &= (1u << at.count) - 1;
  if (lanes<A> < 16 || beyond_a_byte(at)) return store_bits<A>(row, Full{at.i}, bits);
  row[at.i / 8] = static_cast<uint8_t>(bits);
}

// v where the mask's bit is set, else zero.
template <class Place, class V>
inline V masked(const uint8_t* row, Place at, V v) {
  using A = std::decay_t<decltype(v[0])>;
  return keep<A>(load_bits<A>(row, at), v);
}

// v where it is above zero or NaN, else zero; the mask has the bits of the former.
template <class Place, class V>
inline V rectified(uint8_t* row, Place at, V v) {
  using A = std::decay_t<decltype(v[0])>;
  const uint32_t bits = passing(v);
  store_bits<A>(row, at, bits);
  if constexpr (SE_FUSED_VECTOR_BYTES == 64) return keep<A>(bits, v);
  using Index = typename IndexOf<A>::type;
  return (Vec<A>)((Index)v & ~(Index)(v <= A(0)));  // from v itself, not by way of its bits
}
