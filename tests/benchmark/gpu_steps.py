"""Steps on a GPU against a hand-written torch loop, and a published protocol in the time at hand.

    python tests/benchmark/gpu_steps.py steps --out gpu
    python tests/benchmark/gpu_steps.py protocol --minutes 6 --out gpu

MNIST is read from the folder named by LATENT_ZOO_DATA; without it, ``steps`` uses random rows of the same shape, whose
steps take as long. Nothing is downloaded. Results are printed and appended to ``steps.jsonl`` and ``protocol.json``;
``protocol`` writes its curve to ``curve.csv`` as it goes.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guides
import zoo
from zoo.benchmark.speed.steps import Loop, binary_vae
from zoo.benchmark.suites.deep import CLIP, DEEP

ROUNDS = 5  # of every kind, in turns


def rows(count: int) -> Tensor:
    """MNIST's training rows where they are at hand, else random ones of the same shape."""
    if os.environ.get("LATENT_ZOO_DATA"):
        return zoo.data.load("mnist", dtype=torch.float32).x[:count]
    return torch.rand(count, 784)


def mnist() -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, with values in [0, 1]."""
    parts = zoo.data.load_parts("mnist", dtype=torch.float32)
    return parts.train.x, parts.validation.x, parts.test.x


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(loop: Loop, steps: int, capture: bool) -> float:
    """Seconds per step of ``zoo.fit`` in its steady state: from a fifth of the steps on."""
    times: dict[int, float] = {}

    class Clock:
        def see(self, fit: Any) -> None:
            if fit.step in (steps // 5, steps - 1):
                wait(str(loop.x.device))
                times[fit.step] = time.perf_counter()

    loop.fit(steps, capture, Clock())
    first, last = times[steps // 5], times[steps - 1]
    return (last - first) / (steps - 1 - steps // 5)


def measure(
    device: str, batch: int, count: int, steps: int, hidden: int = 400, latent: int = 20
) -> list[dict[str, Any]]:
    """Median seconds per step, eager and captured, over those of the loop by hand, in turns."""
    x = rows(count).to(device)
    torch.manual_seed(0)
    loop = binary_vae(x, hidden, latent, batch)

    def by_hand(steps: int) -> None:
        for _ in range(steps):
            loop.by_hand()

    by_hand(max(3, steps // 5))
    found: dict[str, list[float]] = {"by hand": [], "eager": [], "captured": []}
    for _ in range(ROUNDS):
        wait(device)
        started = time.perf_counter()
        by_hand(steps)
        wait(device)
        found["by hand"].append((time.perf_counter() - started) / steps)
        for name in ("eager", "captured"):
            found[name].append(timed(loop, steps, name == "captured"))
    reference = statistics.median(found["by hand"])
    place = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return [
        {
            "batch": batch,
            "kind": kind,
            "microseconds": 1e6 * statistics.median(own),
            "rows_per_second": batch / statistics.median(own),
            "ratio": statistics.median(own) / reference,
            "spread": (max(own) - min(own)) / statistics.median(own),
            "device": place,
            "torch": torch.__version__,
        }
        for kind, own in found.items()
    ]


def protocol(device: str, minutes: float, folder: Path, epochs: int | None = None, every: int = 1) -> dict[str, Any]:
    """The protocol ``MNIST gated 784-[300,300]-40``, as many of its epochs as the minutes allow.

    The learning rate falls over the epochs that fit into the time, or over ``epochs``, so that a short run is a short
    protocol and not the beginning of a long one.
    """
    p = next(own for own in DEEP if own.name == "MNIST gated 784-[300,300]-40")
    train, valid, test = (part.to(device) for part in mnist())
    per_epoch = math.ceil(len(train) / p.batch)

    def run(steps: int, limit: float, **options: Any) -> zoo.Fit:
        torch.manual_seed(0)
        model = zoo.VAE(784, p.latent_dim, **p.model).to(device)
        guide = guides.Amortized(model, train, **p.guide)
        rate = zoo.infer.Fused(
            torch.optim.Adam, {"lr": p.rate}, schedule=zoo.infer.cosine(steps), clip_norm=CLIP * len(train)
        )
        beta = zoo.infer.linear_warmup(max(1, round(p.warm_up * steps)))
        return zoo.fit(
            model,
            guide,
            train,
            steps=steps,
            batch_size=p.batch,
            loss=zoo.infer.AnnealedELBO(beta=beta),
            optim=rate,
            transform=torch.bernoulli,
            capture=True,
            progress=False,
            callbacks=[Curve(folder / "curve.csv", limit, per_epoch)],
            **options,
        )

    began = time.perf_counter()
    short, longer = (float(run(count * per_epoch, math.inf).settings["seconds"]) for count in (2, 6))
    seconds = (longer - short) / 4  # an epoch without what the beginning of a fit takes
    left = 60 * minutes - (time.perf_counter() - began)
    planned = epochs or max(2, min(p.efforts["full"].epochs, int(0.85 * left / seconds)))
    found = run(planned * per_epoch, left, validation=valid, every=every * per_epoch)
    seen = torch.bernoulli(test, generator=torch.Generator(test.device).manual_seed(0))
    evaluated = zoo.posterior.evidence.log_evidence_bounds(found, seen[:2000], draws=(500,))
    row = {
        "protocol": p.name,
        "epochs": len(found.losses) / per_epoch,
        "planned": planned,
        "seconds": found.settings["seconds"],
        "stopped": found.settings["stopped"],
        "elbo": evaluated["ELBO"].mean,
        "iwae_500": evaluated["IWAE-500"].mean,
        "rows": min(2000, len(seen)),
        "published": None if p.published is None else -p.published.value,
    }
    (folder / "protocol.json").write_text(json.dumps(row, indent=1))
    return row


class Curve:
    """Writes the bounds of the held-out rows as they come, and ends a fit whose time is up."""

    def __init__(self, path: Path, limit: float, per_epoch: int) -> None:
        self.path, self.limit, self.per_epoch = path, limit, per_epoch
        self.started, self.written = time.perf_counter(), 0
        path.write_text("epoch,seconds,loss per row (held out)\n")

    def see(self, fit: Any) -> str | None:
        spent = time.perf_counter() - self.started
        with self.path.open("a") as file:
            for step, loss in fit.curve[self.written :]:
                file.write(f"{step / self.per_epoch:.2f},{spent:.1f},{loss:.4f}\n")
        self.written = len(fit.curve)
        return "the time is up" if spent > self.limit else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "protocol"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--epochs", type=int, help="of the protocol, in place of as many as the minutes allow")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=40_960)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "protocol":
        if not os.environ.get("LATENT_ZOO_DATA"):
            raise SystemExit("set LATENT_ZOO_DATA to the folder with MNIST's four .gz files, directly or under mnist/")
        print(json.dumps(protocol(given.device, given.minutes, given.out, given.epochs), indent=1))
        return
    for batch in given.batches:
        for row in measure(given.device, batch, given.rows, given.steps):
            line = (
                "{batch:>6} {kind:<9} {microseconds:9.0f} us {rows_per_second:12,.0f} rows/s x {ratio:.2f} on {device}"
            )
            print(line.format(**row), flush=True)
            with (given.out / "steps.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
