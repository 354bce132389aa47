"""How well are photographs restored? Eight of scikit-image's, against total variation, non-local means, wavelets, BM3D.

Run: python benchmarks/restore_quality.py --out FOLDER [--tasks denoise-25 ...] [--seeds 3] [--processes 2] [--quick]

Each run is a file in FOLDER: what is there already is not run again. The table is printed, and written there as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from _photographs import PHOTOGRAPHS, as_jpeg, half_known, noisy, photograph, text_known
from invertible.restore import Downsample, Identity, Jpeg, Mask, Operator, Settings, read_image, restore
from invertible.restore.quality import quality

TASKS = ("denoise-25", "denoise-50", "inpaint-half", "inpaint-text", "superres-4", "jpeg-10")


class Damage(NamedTuple):
    """A damaged photograph: what is measured, how it came about, and the noise."""

    measured: Tensor
    operator: Operator
    sigma: float | None


def damaged(task: str, truth: Tensor) -> Damage:
    """Damage a photograph as a task says."""
    kind, amount = task.split("-")
    if kind == "denoise":
        return Damage(noisy(truth, int(amount) / 255), Identity(), int(amount) / 255)
    if kind == "inpaint":
        known = (half_known if amount == "half" else text_known)(*truth.shape[1:])
        return Damage(truth * known, Mask(known), None)
    if kind == "superres":
        operator = Downsample(int(amount))
        return Damage((operator(truth[None])[0].clamp(0, 1) * 255).round() / 255, operator, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        path.write_bytes(as_jpeg(truth, int(amount)))
        return Damage(read_image(path).pixels, Jpeg.from_file(path, pull=1.0), None)


def peers(task: str, truth: Tensor, damage: Damage) -> dict[str, Tensor]:
    """Restore by what people use otherwise; total variation with the weight that is best against the truth."""
    kind = task.split("-")[0]
    before = damage.operator.start(damage.measured[None])[0]
    found = {"input": before}
    if kind == "denoise":
        found |= _denoisers(truth, damage)
    if kind == "inpaint":
        from skimage.restoration import inpaint_biharmonic

        holes = (damage.operator(torch.ones(1, *truth.shape))[0, 0] == 0).numpy()
        found["biharmonic"] = _back(inpaint_biharmonic(_forth(damage.measured), holes, channel_axis=-1))
    if kind == "superres":
        found["lanczos"] = before
        found["bicubic"] = torch.nn.functional.interpolate(damage.measured[None], scale_factor=4, mode="bicubic")[0]
    return found


def _denoisers(truth: Tensor, damage: Damage) -> dict[str, Tensor]:
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

    y, sigma, colour = _forth(damage.measured), damage.sigma or 0.0, truth.shape[0] == 3
    smooth = [_back(denoise_tv_chambolle(y, w, channel_axis=-1)) for w in np.linspace(0.5, 2.5, 9) * sigma]
    means = {"h": 0.6 * sigma, "sigma": sigma, "patch_size": 5, "patch_distance": 6, "fast_mode": False}
    wavelet = {"sigma": sigma, "convert2ycbcr": colour, "rescale_sigma": True}
    bm3d = importlib.import_module("bm3d")
    deep = bm3d.bm3d_rgb(y, sigma) if colour else bm3d.bm3d(y[..., 0], sigma)
    return {
        "total variation": max(smooth, key=lambda picture: psnr(picture, truth)),
        "non-local means": _back(denoise_nl_means(y, channel_axis=-1, **means).reshape(y.shape)),
        "wavelets": _back(denoise_wavelet(y, channel_axis=-1, **wavelet).reshape(y.shape)),
        "BM3D": _back(np.asarray(deep).reshape(y.shape)),
    }


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio, dB."""
    return -10 * math.log10(float((picture.clamp(0, 1) - truth).double().square().mean()))


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity of scikit-image, windows of 7 pixels."""
    return quality(picture.clamp(0, 1), truth).ssim or 0.0


def _forth(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).contiguous().numpy()


def _back(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).permute(2, 0, 1).clamp(0, 1)


def one_run(task: str, name: str, seed: int, folder: Path, settings: dict[str, Any]) -> str:
    """Restore a photograph, or run the peers (seed -1), and leave the pictures and figures in a file."""
    torch.set_num_threads(1)
    truth = photograph(name)
    damage = damaged(task, truth)
    began = time.process_time()
    if seed < 0:
        pictures = peers(task, truth, damage)
        figures: dict[str, Any] = {}
    else:
        chosen = Settings(**settings) if settings else None
        restored = restore(
            damage.measured, damage.operator, sigma=damage.sigma, truth=truth, seed=seed, settings=chosen
        )
        run = restored.trajectory.runs[0]
        pictures = {"invertible": restored.image}
        figures = {"stopped": run.psnr, "peak": run.peak_psnr, "step": run.stop_step, "reason": run.reason}
    figures["cpu seconds"] = time.process_time() - began
    path = _path(folder, task, name, seed)
    arrays: dict[str, Any] = {n: p.numpy() for n, p in pictures.items()}
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        np.savez(file, allow_pickle=False, figures=json.dumps(figures), **arrays)
    Path(file.name).rename(path)
    return f"{task} {name} seed {seed}: {figures}"


def _path(folder: Path, task: str, name: str, seed: int) -> Path:
    return folder / f"{task}_{name}_{seed}.npz"


def rows_of(folder: Path, task: str, names: list[str], seeds: range) -> list[dict[str, Any]]:
    """The table of a task: a row a method, means over photographs (and seeds), and how well the stop did."""
    scores: dict[str, list[tuple[float, float]]] = {}
    gaps: list[float] = []
    for name in names:
        truth, ours = photograph(name), []
        with np.load(_path(folder, task, name, -1)) as file:
            for method in set(file.files) - {"figures"}:
                picture = torch.from_numpy(file[method])
                scores.setdefault(method, []).append((psnr(picture, truth), ssim(picture, truth)))
        for seed in seeds:
            if not _path(folder, task, name, seed).exists():
                continue
            with np.load(_path(folder, task, name, seed)) as file:
                ours.append(torch.from_numpy(file["invertible"]))
                figures = json.loads(str(file["figures"]))
            gaps.append(figures["peak"] - figures["stopped"])
            scores.setdefault("invertible", []).append((psnr(ours[-1], truth), ssim(ours[-1], truth)))
        if len(ours) > 1:
            mean = torch.stack(ours).mean(0)
            scores.setdefault(f"invertible, mean of {len(ours)}", []).append((psnr(mean, truth), ssim(mean, truth)))
    rows = [
        {"task": task, "method": m, "psnr": statistics.mean(p for p, _ in s), "ssim": statistics.mean(q for _, q in s)}
        for m, s in scores.items()
    ]
    for row in rows:
        if row["method"] == "invertible":
            row["stopped within .5 dB"] = sum(gap <= 0.5 for gap in gaps) / len(gaps)
            row["n"] = len(gaps)
    return sorted(rows, key=lambda row: row["psnr"])


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--photographs", nargs="+", default=list(PHOTOGRAPHS), choices=PHOTOGRAPHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two photographs, one seed, 20 steps: does it run?")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    settings: dict[str, Any] = {"steps": 20, "coarse_steps": 20} if options.quick else {}
    names = options.photographs[:2] if options.quick else options.photographs
    seeds = range(1 if options.quick else options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(t, n, s) for t in options.tasks for s in (-1, *seeds) for n in names]
    jobs = [job for job in jobs if not _path(options.out, *job).exists()]
    with ProcessPoolExecutor(options.processes) as pool:
        waiting = [pool.submit(one_run, *job, options.out, settings) for job in jobs]
        for i, job in enumerate(as_completed(waiting), 1):
            print(f"{i}/{len(jobs)}", job.result(), flush=True)
    rows = [row for task in options.tasks for row in rows_of(options.out, task, names, seeds)]
    for row in rows:
        stop = (
            f"  stopped within .5 dB of the peak: {row['stopped within .5 dB']:.0%} of {row['n']}" if "n" in row else ""
        )
        print(f"{row['task']:14} {row['method']:24} {row['psnr']:6.2f} dB  SSIM {row['ssim']:.4f}{stop}")
    if options.json:
        metrics = [{"implementation": r["method"], "setting": {"task": r["task"]}, "metrics": r} for r in rows]
        options.json.write_text(json.dumps(metrics, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
