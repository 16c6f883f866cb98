"""What the processor can do with integers."""

from __future__ import annotations

import os
from functools import cache

# The instructions that multiply 8-bit integers and add the products in 32 bits.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
# Values of oneDNN's own variable that keep it from using them.
_WITHOUT_DOT_PRODUCTS = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


@cache
def has_int8_products() -> bool:
    """False where /proc/cpuinfo tells that there is no such instruction, or oneDNN is told so.

    Without one, engines add pairs of products in 16 bits, which saturate: ONNX Runtime lets them
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html), oneDNN halves
    the weights first and so loses a bit of them, and OpenVINO saturates as well.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in _WITHOUT_DOT_PRODUCTS:
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            words = set(file.read().split())
    except OSError:
        return True
    return bool(words.intersection(_DOT_PRODUCTS))
