// Forests of oblivious trees: see costmodel/forest.py, whose Python gives the same.
#include <stdint.h>

// rows [n, width] -> sums [n], of what the trees' leaves hold.
void rw_predict(const float *rows, int64_t n, int64_t width, const uint8_t *features,
             const float *borders, const int16_t *leaves, int64_t trees, int64_t depth,
             int64_t *sums) {
  for (int64_t r = 0; r < n; ++r, rows += width) {
    const uint8_t *feature = features;
    const float *border = borders;
    const int16_t *leaf = leaves;
    int64_t sum = 0;
    for (int64_t t = 0; t < trees; ++t, feature += depth, border += depth, leaf += 1 << depth) {
      int64_t number = 0;
      for (int64_t d = 0; d < depth; ++d)
        number |= (int64_t)(rows[feature[d]] > border[d]) << d;
      sum += leaf[number];
    }
    sums[r] = sum;
  }
}
