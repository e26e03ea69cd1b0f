// Half types in plain C++, for kernels.cuh on the CPU.
RW_FN f32 widened(f16 x) {
  _Float16 y;
  __builtin_memcpy(&y, &x.bits, 2);
  return f32(y);
}
RW_FN f32 widened(bf16 x) {
  const u32 bits = u32(x.bits) << 16;
  f32 y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}
template <class To> struct Narrow;
template <> struct Narrow<f16> {
  RW_FN f16 of(f32 x) {
    const _Float16 y = _Float16(x);
    f16 z;
    __builtin_memcpy(&z.bits, &y, 2);
    return z;
  }
};
template <> struct Narrow<bf16> {
  RW_FN bf16 of(f32 x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    bf16 y;
    y.bits = x != x ? u16(bits >> 16 | 0x40) : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return y;
  }
};
