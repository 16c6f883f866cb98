"""An exported .onnx file on OpenVINO.

    python examples/run_openvino.py output_models/inference_model/qat_model.onnx photo.jpg

For a model that was made for --deploy_target=onnxruntime. It needs openvino, onnx, numpy and
opencv-python-headless.
"""

from __future__ import annotations

import json
import sys

import onnx
import openvino
from images import load_image, show


def main(path: str, photo: str) -> None:
    """Prints the likeliest classes of a photo."""
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    description = json.loads(metadata["paddleqat.run"])
    image = load_image(photo, description)
    # A fixed number of images lets OpenVINO plan ahead.
    model = openvino.Core().read_model(path)
    model.reshape(list(image.shape))
    # On some CPUs the default would be bfloat16 for what is left in float.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    show(compiled({0: image})[0], description)


if __name__ == "__main__":
    main(*sys.argv[1:3])
