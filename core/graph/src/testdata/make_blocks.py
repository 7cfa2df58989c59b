#!/usr/bin/env python3
"""Writes blocks.json: random blocks of each quantised format, and their values by the reference of the package `gguf`.

    python3 make_blocks.py > blocks.json

Needs gguf and numpy. Scales are small, as in models; integers are any.
"""

import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

# Bytes at which f16 scales begin.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main():
    random, out = np.random.default_rng(7), {}
    for name, scales in SCALES.items():
        size = GGML_QUANT_SIZES[Type[name]][1]
        blocks = random.integers(0, 256, (4, size), dtype=np.uint8)
        for at in scales:
            blocks[:, at : at + 2] = random.normal(0, 0.02, (4, 1)).astype("<f2").view(np.uint8)
        # A subnormal scale, and none.
        blocks[2, scales[0] : scales[0] + 2] = np.array([3e-7], "<f2").view(np.uint8)
        blocks[3, scales[0] : scales[0] + 2] = 0
        values = dequantize(blocks.reshape(1, -1), Type[name]).astype("<f4")
        out[name] = {"blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}
    floats = random.normal(0, 0.05, (1, 128)).astype("<f4")
    floats[0, 32:64] = 0
    out["Q8_0"] |= {"floats": floats.tobytes().hex(), "rounded": quantize(floats, Type.Q8_0).tobytes().hex()}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
