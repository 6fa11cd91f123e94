#!/usr/bin/env python
"""Measure what a whole slide costs: time, windows per second and peak memory, on a synthetic slide with an untrained network.

    python scripts/benchmark_slide.py --size 4000 4000 backbone=resnet18
    python scripts/benchmark_slide.py --size 20000 20000 --predict batch_size=8 --output docs/benchmarks.md

Words with `=` are overrides as for `train.py`, of `task=tiger_mtl` unless they name another; after `--predict` those of
`predict.py`. Generating and predicting run in processes of their own, so that the peak is that of the prediction alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # this checkout, and the modules beside this file

from benchmark_processes import child_environment, peak_memory, resident_memory  # noqa: E402
from benchmark_rows import Row, markdown, write_section  # noqa: E402

from mtl.config.plan import Plan  # noqa: E402

DEFAULTS = {"task": "tiger_mtl"}


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as for train.py")
    parser.add_argument("--size", nargs=2, type=int, default=(4000, 4000), metavar=("HEIGHT", "WIDTH"), help="of the slide")
    parser.add_argument("--slide", type=Path, help="a slide generated before (<folder>/images/<slide>.tif), or any other")
    parser.add_argument("--keep", type=Path, help="folder for the slide and the results; they are removed otherwise")
    parser.add_argument("--no-mask", action="store_true", help="find tissue by colour instead of the tissue mask")
    parser.add_argument("--density", type=float, default=1000.0, help="cells per mm2 that the network reports")
    parser.add_argument("--predict", nargs="*", default=[], help="key=value, as for predict.py")
    parser.add_argument("--limit", type=float, help="GiB of address space (RLIMIT_AS) that the prediction may take")
    parser.add_argument("--seed", type=int, default=0, help="of the slide")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="Markdown file whose generated section is replaced")
    return parser.parse_intermixed_args(words)


def main(words: list[str]) -> dict[str, Any]:
    """Generate, predict, print and return `{"command", "environment", "rows"}`."""
    options = parse(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="mtl-slide-") as folder:
        result = measure(options, (options.keep or Path(folder)).resolve())
    result["command"] = shlex.join(["python", "scripts/benchmark_slide.py", *words])
    text = markdown(result)
    print(json.dumps(result, indent=2) if options.json else text)
    if options.output:
        write_section(options.output, text, "scripts/benchmark_slide.py")
    return result


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Generate what is missing, predict in another process and turn its figures into rows."""
    from benchmark_plans import describe

    given = {word.partition("=")[0].lstrip("+~") for word in options.overrides}
    plan = Plan.from_words([*(f"{k}={v}" for k, v in DEFAULTS.items() if k not in given), *options.overrides])
    rows, slide = [], options.slide
    if slide is None:
        slide = folder / "images" / f"{options.size[0]}x{options.size[1]}.tif"
        seconds = call(["--generate", str(slide), *map(str, options.size), str(options.seed)])["seconds"]
        rows.append(Row("slide", "generated in", seconds, "s", f"{options.size[0]} x {options.size[1]} pixels"))
    mask = slide.parent.parent / "tissue-masks" / f"{slide.stem}_tissue.tif"
    words = [*options.predict]
    if mask.is_file() and not options.no_mask:
        words.append(f"slide.tissue_masks={mask.parent}")
    build_checkpoint(plan, slide, folder / "untrained.ckpt", options.density)
    words = [f"checkpoint={folder / 'untrained.ckpt'}", f"source={slide}", f"output={folder / 'results'}", *words]
    found = call(["--measure", str(options.limit or 0), *words])
    summary = json.loads((folder / "results" / slide.stem / "til-score.json").read_text(encoding="utf-8"))
    rows += rows_of(found, summary, folder / "results" / slide.stem)
    return {"environment": describe(plan.config, options.threads), "rows": [row.to_dict() for row in rows]}


def rows_of(found: dict[str, float], summary: dict[str, Any], results: Path) -> list[Row]:
    """Turn the figures of a prediction into rows."""
    windows, pixels = summary["windows_with_tissue"], summary["width"] * summary["height"]
    points = sum('"probability"' in line for line in (results / "detected-lymphocytes.json").open(encoding="utf-8"))
    size = (results / "tissue.tif").stat().st_size / 2**20
    return [
        Row("slide", "predicted in", found["seconds"], "s", f"{pixels / 1e6:.0f} million pixels"),
        Row("slide", "windows with tissue", windows, "", f"of {summary['windows']}"),
        Row("slide", "speed", windows / found["seconds"], "windows/s", ""),
        Row(
            "slide",
            "peak memory",
            found["peak"] / 1024,
            "GiB",
            f"resident; {found['before'] / 1024:.2f} with the network alone",
        ),
        Row("slide", "cells written", points, "", f"{summary['cells']} above the threshold"),
        Row("slide", "tissue.tif", size, "MiB", ""),
    ]


def build_checkpoint(plan: Plan, slide: Path, path: Path, density: float) -> None:
    """Write a checkpoint of an untrained network that reports all tissues, and about as many cells as a real slide has.

    Args:
        plan: Of a run.
        slide: The middle of it decides.
        path: The file.
        density: Cells per square millimetre.
    """
    import numpy as np
    import torch

    from mtl.data.formats.slides import open_slide
    from mtl.inference.predictor import Predictor
    from mtl.runs.build import build_model
    from mtl.runs.checkpoint import save_atomic
    from mtl.runs.stored import FORMAT

    torch.manual_seed(0)
    model = build_model(plan, load_weights=False).eval()
    side = 2 * model.preprocessing.geometry.size[0]
    with open_slide(slide) as file:
        high, wide = (min(side, length) for length in file.size)
        pixels = file.read((file.size[1] - wide) // 2, (file.size[0] - high) // 2, wide, high)
    threshold = 0.5
    if "tissue" in model.heads and hasattr(model.heads["tissue"], "logits"):
        shares = Predictor(model, device="cpu", pixel_scale=2.0).predict(pixels).tasks["tissue"]["probabilities"]
        with torch.no_grad():  # so that all tissues occur
            model.heads["tissue"].logits.bias -= torch.from_numpy(np.log(shares).mean(axis=(1, 2)))
    if "cells" in model.heads and hasattr(model.heads["cells"], "logits"):
        head, floor = model.heads["cells"].logits, model.heads["cells"].score_threshold

        def logits() -> np.ndarray:
            found = Predictor(model, device="cpu", pixel_scale=2.0).predict(pixels).tasks["cells"]
            inner = (np.abs(found["points"] - [wide / 2, high / 2]) < [wide / 4, high / 4]).all(axis=1)  # borders are special
            scores = found["scores"][inner].astype(np.float64)
            return np.log(scores / (1 - scores))

        with torch.no_grad():
            torch.nn.init.zeros_(head.bias)
            found = logits()
            head.weight /= found.std()  # untrained, all scores are nearly the same
            head.bias -= float(found.mean() / found.std())
            found = logits()
            head.bias += float(np.log(floor / (1 - floor)) - found[min(len(found) - 1, round(density * high * wide / 16e6))])
        threshold = round(1.5 * floor, 6)
    about = {
        "format": FORMAT, "config": plan.to_dict(), "model": model.to_config(), "thresholds_source": "none", "split": [],
        "thresholds": {"cells": {"score": threshold}}, "pretraining": [], "epoch": 0,
    }  # fmt: skip
    save_atomic({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}, "mtl": about}, path)


def call(words: list[str]) -> dict[str, Any]:
    """Run a part of this script in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *words], capture_output=True, text=True, env=child_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def generate(path: str, height: str, width: str, seed: str) -> dict[str, float]:
    from mtl.data.families.tiger.slide_generator import generate_slide

    started = time.perf_counter()
    if not Path(path).is_file():
        generate_slide(Path(path), (int(height), int(width)), int(seed))
    return {"seconds": time.perf_counter() - started}


def predict(limit: float, words: list[str]) -> dict[str, float]:
    import torch

    from mtl.config.load import load_config
    from mtl.config.verbs import PredictConfig, SlideConfig
    from mtl.core.files import file_hash
    from mtl.inference.loading import load_predictor
    from mtl.inference.slides.run import SlidePredictor

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit * 2**30),) * 2)
    config = load_config("predict", words, PredictConfig)
    predictor = load_predictor(config["checkpoint"], config["device"])
    predictor.batch_size = config["batch_size"]
    slides = SlidePredictor(predictor, SlideConfig(**config["slide"]), file_hash(config["checkpoint"]))
    path, before, started = Path(config["source"]), resident_memory(), time.perf_counter()
    outcome = slides.predict(path, Path(config["output"]) / path.stem)
    if outcome.error is not None:
        raise outcome.error
    return {"seconds": time.perf_counter() - started, "before": before, "peak": peak_memory()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--generate"]:
        print(json.dumps(generate(*sys.argv[2:])))
    elif sys.argv[1:2] == ["--measure"]:
        print(json.dumps(predict(float(sys.argv[2]), sys.argv[3:])))
    else:
        main(sys.argv[1:])
