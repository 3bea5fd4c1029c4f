"""The card itself: what it is, and its two ceilings as measured in this very process, with which rates are compared."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpu.finding import Finding, measured, not_here, within


class Ceilings(NamedTuple):
    """What the card reaches at best."""

    flops: float
    """Floating-point operations per second of a large matrix product in bf16, on random numbers: zeros run faster."""
    bandwidth: float
    """Bytes per second of a large copy, those read and those written."""


def ceilings(device: str) -> Ceilings:
    """Measure both, in well under a second on a card."""
    import torch

    size, copied = (8192, 2**30) if device == "cuda" else (768, 2**24)
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * size**3 / _median(device, lambda: one @ other)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    return Ceilings(flops, 2 * copied / _median(device, lambda: target.copy_(source)))


def _median(device: str, work: Callable[[], object]) -> float:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        work()
    taken = []
    for _ in range(10):
        wait()
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def memory(device: str) -> float | None:
    """Return the bytes of the card, None of a CPU."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if device == "cuda" else None


def check(device: str, seconds: float) -> Iterator[Finding]:
    """Tell what there is, and both ceilings."""
    import torch

    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        yield measured("cards", torch.cuda.device_count(), "", found.name, capability=[found.major, found.minor])
        yield measured("memory", found.total_memory / 2**30, "GiB")
    else:
        yield not_here("cards", "no card: --device cpu")
        yield not_here("memory", "no card: --device cpu")
    best = ceilings(device)
    yield measured("matrix product, bf16", best.flops / 1e12, "TFLOP/s")
    yield measured("copy, read and written", best.bandwidth / 1e9, "GB/s")


def all_reduce(device: str, seconds: float) -> Iterator[Finding]:
    """Sum a gradient's worth of numbers over all cards by NCCL: right, and how fast."""
    import torch
    from torch import multiprocessing

    what = "NCCL all-reduce"
    cards = torch.cuda.device_count() if device == "cuda" else 0
    if cards < 2:
        yield not_here(what, f"{cards} cards; it takes two")
        return
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_reduce, (cards, queue), nprocs=cards)  # type: ignore[attr-defined]
    wrong, rate = queue.get()
    # Whole numbers below 2^24, so that fp32 sums are exact in any order.
    yield within(f"{what} over {cards} cards, wrong numbers", wrong, 0)
    yield measured(f"{what}, bus bandwidth", rate / 1e9, "GB/s")


def _reduce(rank: int, cards: int, queue: Any) -> None:
    import tempfile
    from pathlib import Path

    import torch
    from torch import distributed

    torch.cuda.set_device(rank)
    meeting = Path(tempfile.gettempdir()) / "rounds-check-gpu-all-reduce"
    distributed.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=cards)
    given = torch.arange(2**26, device="cuda", dtype=torch.float32) % 1024
    total = given * (rank + 1)
    distributed.all_reduce(total)
    wrong = int((total != given * (cards * (cards + 1) // 2)).sum())
    taken = _median("cuda", lambda: distributed.all_reduce(total))
    if rank == 0:
        queue.put((wrong, 2 * (cards - 1) / cards * total.numel() * 4 / taken))
        meeting.unlink(missing_ok=True)
    distributed.destroy_process_group()
