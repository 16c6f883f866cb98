// Observing and fake quantizing in as few passes over memory as there can be.
//
// Each operator computes what the formulas in ../functional.py compute, in the same order and with
// the same roundings (no fused multiply-add), so both give the same bits:
//
//   abs_max         max |x| of a tensor, or of each index of an axis
//   fake_quant      clip(x * inverse, low, high), rounded half to even, * scale / high
//   pact_backward   the gradients of PACT (arXiv:1805.06085) for x and alpha

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "paddle/extension.h"

#ifdef PADDLEQAT_CUDA
#include "fake_quant.cuh"
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
// One file for every CPU: the widest vectors it has are chosen when the library is loaded.
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

// As in functional.py: rounds half to even by addition, and what counts as a scale of zero.
constexpr float kRoundMagic = 12582912.0f;
constexpr float kTiny = 1e-30f;
// Values per task: large enough to be worth a thread, small enough to share out evenly.
constexpr int64_t kBlock = 1 << 14;

struct Grid {
  float scale, inverse, low, high;
};

Grid grid_of(float scale, float low, float high) {
  return {scale, scale > kTiny ? high * (1.0f / scale) : 0.0f, low, high};
}

FOR_EACH_CPU void quantize_rounded(const float* x, float* y, int64_t n, Grid grid) {
  for (int64_t i = 0; i < n; ++i) {
    float code = x[i] * grid.inverse;
    code = code < grid.low ? grid.low : code;
    code = code > grid.high ? grid.high : code;
    code = (code + kRoundMagic) - kRoundMagic;
    y[i] = code * grid.scale / grid.high;
  }
}

FOR_EACH_CPU void quantize_cut(const float* x, float* y, int64_t n, Grid grid) {
  for (int64_t i = 0; i < n; ++i) {
    float code = x[i] * grid.inverse;
    code = code < grid.low ? grid.low : code;
    code = code > grid.high ? grid.high : code;
    y[i] = code * grid.scale / grid.high;
  }
}

FOR_EACH_CPU float largest(const float* x, int64_t n) {
  // Independent lanes, so that the maximum is vectorised without reordering what matters: a
  // maximum is the same in any order. NaN is taken over as the greatest value.
  constexpr int kLanes = 64;
  uint32_t lane[kLanes] = {0};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      uint32_t bits;
      __builtin_memcpy(&bits, x + i + j, 4);
      bits &= 0x7fffffffu;
      lane[j] = bits > lane[j] ? bits : lane[j];
    }
  }
  uint32_t most = 0;
  for (int j = 0; j < kLanes; ++j) most = std::max(most, lane[j]);
  for (; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    most = std::max(most, bits & 0x7fffffffu);
  }
  float value;
  __builtin_memcpy(&value, &most, 4);
  return value;
}

FOR_EACH_CPU void pact_grad_block(const float* x, const float* grad, float* dx, int64_t n,
                                  float alpha, double* dalpha) {
  float above = 0.0f, below = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const bool over = x[i] > alpha, under = x[i] < -alpha;
    dx[i] = over || under ? 0.0f : grad[i];
    above += over ? grad[i] : 0.0f;
    below += under ? grad[i] : 0.0f;
  }
  *dalpha = static_cast<double>(above) - static_cast<double>(below);
}

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// The tensor as [outer, channels, inner] around an axis; one channel if the axis is -1.
#ifdef PADDLEQAT_CUDA
using paddleqat::Layout;
#else
struct Layout {
  int64_t outer = 1, channels = 1, inner = 1;
};
#endif

Layout layout_of(const paddle::Tensor& x, int axis) {
  Layout layout;
  const auto shape = x.shape();
  if (axis < 0) {
    layout.inner = x.numel();
    return layout;
  }
  for (int i = 0; i < static_cast<int>(shape.size()); ++i) {
    (i < axis ? layout.outer : i == axis ? layout.channels : layout.inner) *= shape[i];
  }
  return layout;
}

std::vector<int64_t> kept_shape(const std::vector<int64_t>& shape, int axis) {
  if (axis < 0) return {1};
  std::vector<int64_t> kept(shape.size(), 1);
  kept[axis] = shape[axis];
  return kept;
}

void check(const paddle::Tensor& x) {
  PD_CHECK(x.dtype() == paddle::DataType::FLOAT32, "these kernels are for float32");
}

}  // namespace

std::vector<paddle::Tensor> AbsMax(const paddle::Tensor& x, int axis) {
  check(x);
  auto out = paddle::empty(kept_shape(x.shape(), axis), x.dtype(), x.place());
  const float* data = x.data<float>();
  float* result = out.data<float>();
#ifdef PADDLEQAT_CUDA
  if (x.is_gpu()) {
    paddleqat::abs_max_cuda(data, result, layout_of(x, axis), x.stream());
    return {out};
  }
#endif
  if (axis < 0) {
    const int64_t n = x.numel(), blocks = blocks_of(n);
    std::vector<float> found(std::max<int64_t>(blocks, 1), 0.0f);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; ++b) {
      found[b] = largest(data + b * kBlock, std::min(kBlock, n - b * kBlock));
    }
    *result = largest(found.data(), static_cast<int64_t>(found.size()));
    return {out};
  }
  const Layout layout = layout_of(x, axis);
  if (layout.inner > 1) {
#pragma omp parallel for schedule(static) if (x.numel() > kBlock)
    for (int64_t c = 0; c < layout.channels; ++c) {
      float most = 0.0f;
      for (int64_t o = 0; o < layout.outer; ++o) {
        const float own = largest(data + (o * layout.channels + c) * layout.inner, layout.inner);
        const float both[2] = {most, own};
        most = largest(both, 2);
      }
      result[c] = most;
    }
    return {out};
  }
  std::fill(result, result + layout.channels, 0.0f);
  for (int64_t o = 0; o < layout.outer; ++o) {
    const float* row = data + o * layout.channels;
    for (int64_t c = 0; c < layout.channels; ++c) {
      const float value = std::fabs(row[c]);
      result[c] = value > result[c] || value != value ? value : result[c];
    }
  }
  return {out};
}

std::vector<paddle::Tensor> FakeQuant(const paddle::Tensor& x, const paddle::Tensor& scale,
                                      int axis, float low, float high, bool rounds) {
  check(x);
  auto out = paddle::empty(x.shape(), x.dtype(), x.place());
  const float* data = x.data<float>();
  const float* scales = scale.data<float>();
  float* result = out.data<float>();
#ifdef PADDLEQAT_CUDA
  if (x.is_gpu()) {
    paddleqat::fake_quant_cuda(data, scales, result, layout_of(x, axis), low, high, rounds,
                               x.stream());
    return {out};
  }
#endif
  const auto quantize = rounds ? quantize_rounded : quantize_cut;
  if (axis < 0) {
    const Grid grid = grid_of(scales[0], low, high);
    const int64_t n = x.numel(), blocks = blocks_of(n);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t start = b * kBlock;
      quantize(data + start, result + start, std::min(kBlock, n - start), grid);
    }
    return {out};
  }
  const Layout layout = layout_of(x, axis);
  PD_CHECK(scale.numel() == layout.channels, "one scale per channel is needed");
  const int64_t rows = layout.outer * layout.channels;
  if (layout.inner > 1) {
#pragma omp parallel for schedule(static) if (x.numel() > kBlock)
    for (int64_t row = 0; row < rows; ++row) {
      const Grid grid = grid_of(scales[row % layout.channels], low, high);
      quantize(data + row * layout.inner, result + row * layout.inner, layout.inner, grid);
    }
    return {out};
  }
  std::vector<float> inverse(layout.channels);
  for (int64_t c = 0; c < layout.channels; ++c) inverse[c] = grid_of(scales[c], low, high).inverse;
#pragma omp parallel for schedule(static) if (x.numel() > kBlock)
  for (int64_t o = 0; o < layout.outer; ++o) {
    for (int64_t c = 0; c < layout.channels; ++c) {
      float code = data[o * layout.channels + c] * inverse[c];
      code = code < low ? low : code;
      code = code > high ? high : code;
      if (rounds) code = (code + kRoundMagic) - kRoundMagic;
      result[o * layout.channels + c] = code * scales[c] / high;
    }
  }
  return {out};
}

std::vector<paddle::Tensor> PactGrad(const paddle::Tensor& x, const paddle::Tensor& alpha,
                                     const paddle::Tensor& grad) {
  check(x);
  auto dx = paddle::empty(x.shape(), x.dtype(), x.place());
  auto dalpha = paddle::empty({1}, x.dtype(), x.place());
  const float *data = x.data<float>(), *grads = grad.data<float>();
  float* result = dx.data<float>();
#ifdef PADDLEQAT_CUDA
  if (x.is_gpu()) {
    paddleqat::pact_backward_cuda(data, alpha.data<float>(), grads, result, dalpha.data<float>(),
                                  x.numel(), x.stream());
    return {dx, dalpha};
  }
#endif
  const float bound = alpha.data<float>()[0];
  const int64_t n = x.numel(), blocks = blocks_of(n);
  std::vector<double> parts(blocks);
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t start = b * kBlock;
    pact_grad_block(data + start, grads + start, result + start, std::min(kBlock, n - start), bound,
                    &parts[b]);
  }
  double sum = 0.0;
  for (double part : parts) sum += part;
  dalpha.data<float>()[0] = static_cast<float>(sum);
  return {dx, dalpha};
}

std::vector<std::vector<int64_t>> AbsMaxShape(const std::vector<int64_t>& x, int axis) {
  return {kept_shape(x, axis)};
}

std::vector<std::vector<int64_t>> FakeQuantShape(const std::vector<int64_t>& x,
                                                 const std::vector<int64_t>&) {
  return {x};
}

std::vector<std::vector<int64_t>> PactGradShape(const std::vector<int64_t>& x,
                                                const std::vector<int64_t>&,
                                                const std::vector<int64_t>&) {
  return {x, {1}};
}

PD_BUILD_OP(paddleqat_abs_max)
    .Inputs({"X"})
    .Outputs({"Out"})
    .Attrs({"axis: int"})
    .SetKernelFn(PD_KERNEL(AbsMax))
    .SetInferShapeFn(PD_INFER_SHAPE(AbsMaxShape));

PD_BUILD_OP(paddleqat_fake_quant)
    .Inputs({"X", "Scale"})
    .Outputs({"Out"})
    .Attrs({"axis: int", "low: float", "high: float", "rounds: bool"})
    .SetKernelFn(PD_KERNEL(FakeQuant))
    .SetInferShapeFn(PD_INFER_SHAPE(FakeQuantShape));

PD_BUILD_OP(paddleqat_pact_backward)
    .Inputs({"X", "Alpha", "Grad"})
    .Outputs({"DX", "DAlpha"})
    .SetKernelFn(PD_KERNEL(PactGrad))
    .SetInferShapeFn(PD_INFER_SHAPE(PactGradShape));
