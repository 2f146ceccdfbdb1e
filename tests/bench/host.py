"""What this machine can do: what starting an operator costs its host, and how fast its accelerator's products are.

    .venv/bin/python tests/bench/host.py --shape qwen2.5-0.5b --tokens 3072

Prints JSON: microseconds that the host takes for each operator, and tokens a second of a step that is nothing but the
products with frozen weights, forward and for the gradient of what goes in, started all at once: the limit of training
an adapter. Meant for a machine with an accelerator; `train.py --host` runs it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from setting import child
from shapes import SHAPES, Shape

LAUNCHES, REPLAYS, SIDE, FEW = 500, 10, 64, 16
MICRO = 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=[*SHAPES, ""], default="")
    parser.add_argument("--tokens", type=int, default=0)
    options = parser.parse_args()
    found = launch_costs()
    if options.shape and options.tokens:
        found["limit"] = limit(SHAPES[options.shape], options.tokens)
    sys.stdout.write(json.dumps(found) + "\n")


def launch_costs() -> dict[str, float]:
    """Microseconds of the host for one operator, the accelerator's own time overlapped."""
    import torch

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers, square = torch.zeros(1, device=where), torch.zeros(FEW, SIDE, device=where)
    linear = torch.nn.Linear(SIDE, SIDE, device=where)
    few = torch.zeros(SIDE, SIDE, device=where)

    def autocast_linear() -> object:
        with torch.autocast(where.type, torch.bfloat16):
            return linear(square)

    return {
        "python loop": cost(lambda: None),
        "add_": cost(lambda: numbers.add_(1)),
        "mm": cost(lambda: torch.mm(square, few)),
        "Linear with autograd": cost(lambda: linear(square)),
        "Linear under autocast": cost(autocast_linear),
    }


def cost(call: Callable[[], object]) -> float:
    """Microseconds of one call among many; the least of three rounds."""
    times = []
    for _ in range(3):
        _wait()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            call()
        times.append((time.perf_counter() - start) / LAUNCHES * MICRO)
    _wait()
    return min(times)


def limit(shape: Shape, tokens: int) -> float:
    """Tokens a second of the frozen products alone: of every layer's matrices and of the output head."""
    import torch

    sizes = [*shape.products * shape.layers, (shape.vocabulary, shape.hidden)]
    weights = [torch.randn(size, dtype=torch.bfloat16, device="cuda") for size in sizes]
    widths = {width for size in sizes for width in size}
    buffers = {
        width: [torch.randn(tokens, width, dtype=torch.bfloat16, device="cuda") for _ in range(2)] for width in widths
    }

    def products() -> None:
        for weight in weights:
            (given, gradient), (out, grad_out) = buffers[weight.shape[1]], buffers[weight.shape[0]]
            torch.mm(given, weight.T, out=grad_out)
            torch.mm(out, weight, out=gradient)

    return tokens / _graph_seconds(products)


def _graph_seconds(call: Callable[[], None]) -> float:
    """Seconds of a call whose kernels are started all at once."""
    import torch

    stream: Any = torch.cuda.Stream  # it has no types
    with torch.cuda.stream(stream()):
        call()  # libraries set up what they need outside of the capture
    _wait()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    _wait()
    start = time.perf_counter()
    for _ in range(REPLAYS):
        graph.replay()
    _wait()
    return (time.perf_counter() - start) / REPLAYS


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(folder: Path, env: Mapping[str, str], **options: object) -> dict[str, float]:
    """Do this in a child process."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    log = folder / "host.log"
    child([__file__, *words], env, log)
    found: dict[str, float] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
