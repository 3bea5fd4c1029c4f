"""What a GPU has: memory, its bandwidth, and arithmetic per second. Dense figures of the vendors' data sheets, without sparsity.

`utilisation` is the share of it that training reaches in practice, counted over all arithmetic that is done, recomputation
included. It is what `rounds plan` assumes and no promise. H100's and A100's are held against published throughputs in
train/forecast/README.md; the other kinds' are guesses by these two.
"""

from dataclasses import dataclass
from typing import Literal

GpuName = Literal["h200-141", "h100-80", "a100-80", "a100-40", "l40s-48", "a10g-24", "l4-24", "rtx4090-24"]


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    memory: float
    """GiB that torch sees as a whole."""
    bf16: float
    """TFLOP/s of dense bf16 products with fp32 sums."""
    fp32: float
    """TFLOP/s of fp32, without TF32."""
    bandwidth: float
    """TB/s of its memory."""
    utilisation: float = 0.34


GPUS: dict[GpuName, Gpu] = {
    "h200-141": Gpu(139.8, 989, 67, 4.8),
    "h100-80": Gpu(79.1, 989, 67, 3.35),
    # An A100 has less arithmetic for its bandwidth, so more of it is reached.
    "a100-80": Gpu(79.1, 312, 19.5, 2.04, utilisation=0.5),
    "a100-40": Gpu(39.4, 312, 19.5, 1.56, utilisation=0.5),
    "l40s-48": Gpu(44.4, 362, 91.6, 0.86),
    "a10g-24": Gpu(22.1, 70, 31.2, 0.6, utilisation=0.5),
    "l4-24": Gpu(22.1, 121, 30.3, 0.3),
    "rtx4090-24": Gpu(23.5, 165, 82.6, 1.01),
}
