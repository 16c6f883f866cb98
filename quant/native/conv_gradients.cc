// The gradients of a convolution, which Paddle 2.6 gives to its own backward pass only: its Python
// has no way to them, but its library has the functions (paddle/phi/api/backward/backward_api.h of
// its source; the header is not in the package, so they are declared here).

#include <string>
#include <vector>

#include "paddle/extension.h"

namespace paddle {
namespace experimental {

void conv2d_grad(const Tensor& input, const Tensor& filter, const Tensor& out_grad,
                 const std::vector<int>& strides, const std::vector<int>& paddings,
                 const std::string& padding_algorithm, const std::vector<int>& dilations,
                 int groups, const std::string& data_format, Tensor* input_grad,
                 Tensor* filter_grad);

void depthwise_conv2d_grad(const Tensor& input, const Tensor& filter, const Tensor& out_grad,
                           const std::vector<int>& strides, const std::vector<int>& paddings,
                           const std::string& padding_algorithm, int groups,
                           const std::vector<int>& dilations, const std::string& data_format,
                           Tensor* input_grad, Tensor* filter_grad);

}  // namespace experimental
}  // namespace paddle

namespace {

std::vector<paddle::Tensor> ConvGradients(const paddle::Tensor& x, const paddle::Tensor& weight,
                                          const paddle::Tensor& grad, std::vector<int> strides,
                                          std::vector<int> paddings, std::string algorithm,
                                          std::vector<int> dilations, int groups,
                                          std::string format, bool depthwise) {
  paddle::Tensor dx, dweight;
  if (depthwise) {
    paddle::experimental::depthwise_conv2d_grad(x, weight, grad, strides, paddings, algorithm,
                                                groups, dilations, format, &dx, &dweight);
  } else {
    paddle::experimental::conv2d_grad(x, weight, grad, strides, paddings, algorithm, dilations,
                                      groups, format, &dx, &dweight);
  }
  return {dx, dweight};
}

std::vector<std::vector<int64_t>> ConvGradientsShape(const std::vector<int64_t>& x,
                                                     const std::vector<int64_t>& weight,
                                                     const std::vector<int64_t>&) {
  return {x, weight};
}

}  // namespace

PD_BUILD_OP(paddleqat_conv2d_gradients)
    .Inputs({"X", "Weight", "Grad"})
    .Outputs({"DX", "DWeight"})
    .Attrs({"strides: std::vector<int>", "paddings: std::vector<int>", "algorithm: std::string",
            "dilations: std::vector<int>", "groups: int", "format: std::string",
            "depthwise: bool"})
    .SetKernelFn(PD_KERNEL(ConvGradients))
    .SetInferShapeFn(PD_INFER_SHAPE(ConvGradientsShape));
