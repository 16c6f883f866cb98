"""An exported .onnx file on ONNX Runtime. The file says itself what it is.

    python examples/run_onnxruntime.py output_models/inference_model/qat_model.onnx photo.jpg

For a model that was made for --deploy_target=onnxruntime. It needs onnxruntime, numpy and
opencv-python-headless.
"""

from __future__ import annotations

import json
import sys

import onnxruntime
from images import load_image, show


def main(path: str, photo: str) -> None:
    """Prints the likeliest classes of a photo."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    description = json.loads(session.get_modelmeta().custom_metadata_map["paddleqat.run"])
    image = load_image(photo, description)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
    show(logits, description)


if __name__ == "__main__":
    main(*sys.argv[1:3])
