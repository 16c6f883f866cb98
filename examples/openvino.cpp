// An exported .onnx file on OpenVINO, in C++.
//
//   ./openvino model.onnx image.f32 C H W
//
// image.f32 holds one image as the network wants it: C*H*W float32, normalised. In Python:
//   load_image("photo.jpg", description).tofile("image.f32")          (see images.py)
// Prints the five largest logits, a line "class logit" each.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <numeric>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: openvino model.onnx image.f32 C H W\n";
    return 2;
  }
  const ov::Shape shape{1, std::stoul(argv[3]), std::stoul(argv[4]), std::stoul(argv[5])};
  ov::Tensor image(ov::element::f32, shape);
  std::ifstream file(argv[2], std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(image.data()), image.get_byte_size())) {
    std::cerr << argv[2] << ": fewer than " << image.get_byte_size() << " bytes\n";
    return 2;
  }

  ov::Core core;
  auto model = core.read_model(argv[1]);
  model->reshape(shape);
  // On some CPUs the default would be bfloat16 for what is left in float.
  auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
  auto request = compiled.create_infer_request();
  request.set_input_tensor(image);
  request.infer();

  const ov::Tensor logits = request.get_output_tensor();
  const float* values = logits.data<float>();
  std::vector<int> order(logits.get_size());
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min<std::size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [values](int a, int b) { return values[a] > values[b]; });
  for (std::size_t i = 0; i < count; ++i) {
    std::cout << order[i] << " " << values[order[i]] << "\n";
  }
  return 0;
}
