// Linear layers with narrow weights: y[m, n] = sum over k of x[m, k] w[n, k] + bias[n], `rows` by
// `columns` by `depth`; rows of x and y lie `step` apart. Weights come in panels of 16 columns and
// quads of 4 along the depth, where sizes are rounded up and what is missing is 0:
//   int8   [columns / 16][depth / 4][16][4]: w[n, k], of -127 to 127, at
//          [n / 16][k / 4][n % 16][k % 4].
//   int4   [columns / 16][depth / 8][16][4], two in a byte: w[n, k] + 8, of -8 to 7 before that, at
//          [n / 16][k / 8][n % 16][k % 4], in its low half where k % 8 < 4, else in its high half.
//   scales of int4, and zeros: [columns / 16][depth / group][16]; of int8: [columns].
// A block of rows stays in the second cache while panels go by, a slice of a panel in the first.
#pragma once

#include "quantized_int4.h"
#include "quantized_int8.h"
#include "quantized_int8_weight.h"

namespace rw {

using quantized::linear_int4;
using quantized::linear_int8;
using quantized::linear_int8_weight;

}  // namespace rw
