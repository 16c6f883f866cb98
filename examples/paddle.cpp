// An exported int8 model on Paddle Inference with oneDNN's int8 kernels, in C++.
//
//   ./paddle output_models/inference_model/qat_model image.f32 C H W
//
// Arguments and output are those of openvino.cpp. It needs Paddle's C++ inference package: the Python
// package has the library but none of its headers.

#include <algorithm>
#include <fstream>
#include <functional>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "paddle_inference_api.h"

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: paddle PREFIX image.f32 C H W\n";
    return 2;
  }
  const std::vector<int> shape{1, std::stoi(argv[3]), std::stoi(argv[4]), std::stoi(argv[5])};
  const int size = std::accumulate(shape.begin(), shape.end(), 1, std::multiplies<int>());
  std::vector<float> image(size);
  std::ifstream file(argv[2], std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(image.data()), size * sizeof(float))) {
    std::cerr << argv[2] << ": fewer than " << size << " numbers\n";
    return 2;
  }

  const std::string prefix = argv[1];
  paddle_infer::Config config(prefix + ".pdmodel", prefix + ".pdiparams");
  config.DisableGpu();
  config.EnableMKLDNN();
  config.EnableMkldnnInt8();
  auto predictor = paddle_infer::CreatePredictor(config);
  auto input = predictor->GetInputHandle(predictor->GetInputNames()[0]);
  input->Reshape(shape);
  input->CopyFromCpu(image.data());
  predictor->Run();

  auto output = predictor->GetOutputHandle(predictor->GetOutputNames()[0]);
  const auto out_shape = output->shape();
  std::vector<float> logits(
      std::accumulate(out_shape.begin(), out_shape.end(), 1, std::multiplies<int>()));
  output->CopyToCpu(logits.data());
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min<std::size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&logits](int a, int b) { return logits[a] > logits[b]; });
  for (std::size_t i = 0; i < count; ++i) {
    std::cout << order[i] << " " << logits[order[i]] << "\n";
  }
  return 0;
}
