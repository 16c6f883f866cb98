"""An exported int8 model on Paddle Inference, with oneDNN's int8 kernels.

    python examples/run_paddle.py output_models/inference_model/qat_model photo.jpg

For a model that was made for --deploy_target=onednn, or generic. It needs paddlepaddle, numpy and
opencv-python-headless.
"""

from __future__ import annotations

import sys

from images import description_beside, load_image, show
from paddle import inference


def main(prefix: str, photo: str) -> None:
    """Prints the likeliest classes of a photo."""
    description = description_beside(prefix)
    config = inference.Config(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    if hasattr(config, "enable_onednn"):  # the name of it in Paddle 3
        config.enable_onednn()
        config.enable_onednn_int8()
    else:
        config.enable_mkldnn()
        config.enable_mkldnn_int8()
    predictor = inference.create_predictor(config)

    image = load_image(photo, description)
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.reshape(image.shape)
    handle.copy_from_cpu(image)
    predictor.run()
    logits = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    show(logits, description)


if __name__ == "__main__":
    main(*sys.argv[1:3])
