"""The command line: parse, call the library, print. Our own errors come without a traceback, exit code 2."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from invertible.cli._compare import add_compare, add_recipes, compare
from invertible.cli._compare import recipes as _recipes
from invertible.cli._experiment import add_experiment, experiment
from invertible.cli._flows import add_sample, add_score, sample, score
from invertible.cli._interpolate import add_interpolate, interpolate
from invertible.cli._measure import add_checkup, add_measure, checkup, measure
from invertible.cli._restore import add_restore, restore
from invertible.cli._show import check_data_dir, check_picture, show, show_table
from invertible.errors import InvertibleError

DESCRIPTION = "Deep networks that lose nothing: train them, evaluate them, get your input back."
EPILOG = """examples:
  invertible demo                                        the main job on real data, in a minute
  invertible recipes                                     what can be trained
  invertible train irevnet/digits --training.epochs 5    a recipe with an override
  invertible train my_recipe.yaml --out runs/mine        a recipe of your own
  invertible compare irevnet/tables/digits               a paper's table: several recipes, several seeds
  invertible experiment random_like/spectra              a paper's experiment that is more than one training
  invertible resume runs/mine                            go on after Ctrl-C or a crash
  invertible evaluate runs/demo                          accuracy and reconstruction error; of a flow its likelihood
  invertible reconstruct runs/demo --image cat.png       a picture from its representation
  invertible interpolate runs/demo                       what the network has between two images
  invertible train spline_flow/toys --data.name toy/moons --out runs/moons   a density of points in the plane
  invertible sample runs/moons                           draw from it
  invertible score runs/moons points.csv                 how likely are these? outliers first
  invertible encode runs/demo cat.png --out cat.safetensors   a picture as an exact network's representation
  invertible decode runs/demo cat.safetensors --out cat.png   and back: every pixel the same, or an error
  invertible restore cat.jpg -o clean.png --task denoise      a photograph without its noise; or holes, or blocks
  invertible measure signal_propagation my_package.nets:resnet --data 16,3,32,32   mean and variance, block by block
  invertible checkup runs/demo                           what the instruments find, worst first

`invertible COMMAND --help` tells more. INVERTIBLE_TRACEBACK=1 shows where an error came from."""

SHOWN = (
    "test_accuracy",
    "test_nats",
    "test_nats_standard_error",
    "test_bits_per_dim",
    "reconstruction_max_abs_error",
    "reconstruction_mean_abs_error",
    "reconstruction_n",
    "bit_exact",
    "pixels_equal",
    "n_parameters",
    "train_seconds",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: As on the command line; None takes them from there.

    Returns:
        Exit code: 0 done, 2 a mistake that the message explains, 130 stopped by Ctrl-C.

    Raises:
        InvertibleError: Instead of exit code 2 if INVERTIBLE_TRACEBACK is set.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in {"train", "compare", "experiment", "measure"}:
        parser.error(f"unknown arguments: {' '.join(rest)} (see `invertible {options.command} --help`)")
    try:
        options.run(options, rest)
    except InvertibleError as error:
        if os.environ.get("INVERTIBLE_TRACEBACK"):
            raise
        show(f"error: {error}", is_error=True)
        return 2
    except KeyboardInterrupt:
        show("stopped", is_error=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("invertible", description=DESCRIPTION, epilog=EPILOG, formatter_class=style)
    parser.add_argument("--version", action="version", version=version("invertible"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., None], text: str, add_help: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=style, add_help=add_help, allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    demo = add("demo", _demo, "train an i-RevNet on the 8x8 digits and reconstruct every test image")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    _add_train(add("train", _train, "train a recipe; any key of it can be overridden: --optimizer.lr 0.05", False))
    resume = add("resume", _resume, "go on with a run that was stopped; it ends with the same weights")
    resume.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    _add_run(add("evaluate", _evaluate, "accuracy or likelihood, and reconstruction error, of a run on its test data"))
    reconstruct = add("reconstruct", _reconstruct, "reconstruct images from the last representation; writes a picture")
    _add_run(reconstruct)
    reconstruct.add_argument("--image", type=Path, help="any picture of yours; default: the test images")
    reconstruct.add_argument(
        "--out",
        type=Path,
        help="the PNG to write (default: RUN/reconstruction.png, RUN/reconstruction-NAME.png for --image)",
    )
    add_interpolate(add("interpolate", interpolate, "images decoded from straight lines between two representations"))
    add_sample(add("sample", sample, "draw from a run's flow: a picture, and the numbers"))
    add_score(add("score", score, "how likely a run's flow finds your files, outliers first; default: its test data"))
    encode = add("encode", _encode, "a picture as the representation of an exact network, without loss")
    encode.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run with an exact network")
    encode.add_argument(
        "image", type=Path, metavar="IMAGE", help="grey or RGB, with or without alpha, 8 bits, any size"
    )
    encode.add_argument("-o", "--out", type=Path, required=True, help="the file to write: NAME.safetensors")
    decode = add("decode", _decode, "the picture that `encode` encoded: every pixel the same, or an error")
    decode.add_argument("folder", type=Path, metavar="RUN", help="the run it was encoded with")
    decode.add_argument("file", type=Path, metavar="FILE", help="what `invertible encode` wrote")
    decode.add_argument("-o", "--out", type=Path, required=True, help="the picture to write: NAME.png or NAME.tif")
    add_restore(add("restore", restore, "restore a photograph: noise, missing pixels, too few pixels, JPEG's blocks"))
    add_measure(add("measure", measure, "run one instrument on a run or on a network of yours", False))
    add_checkup(add("checkup", checkup, "run the instruments that fit a budget: what is wrong, worst first"))
    add_compare(add("compare", compare, "train a table of recipes over seeds, ours beside the paper's figures"))
    add_experiment(add("experiment", experiment, "a paper's experiment: ours beside the paper's figures", False))
    add_recipes(
        add("recipes", _recipes, "list what can be trained and reproduced: recipes, tables, ours and the papers'")
    )
    return parser


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a name from `invertible recipes`, or a YAML file")
    command.add_argument("--out", type=Path, help="folder to write to (default: runs/RECIPE)")
    command.add_argument("--overwrite", action="store_true", help="replace a run that is in that folder already")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    command.add_argument("-h", "--help", action=_RecipeHelp, nargs=0, help="this text, with every key of a recipe")


class _RecipeHelp(argparse.Action):
    """Help of `train`: its own options, then every key of a recipe (found only when asked for: it takes a moment)."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from invertible.train.read_recipe import recipe_parser

        keys = recipe_parser().format_help().split("\n\n", 1)[-1]
        show(f"{parser.format_help()}\nEvery key of a recipe can be overridden; in a YAML file they nest.\n\n{keys}")
        parser.exit()


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    text = "float64 measures the map itself, float32 (default) includes rounding"
    command.add_argument("--dtype", choices=["float32", "float64"], default="float32", help=text)


def _demo(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train import read_recipe, train

    recipe = read_recipe("irevnet/digits")
    metrics = train(recipe, options.out, overwrite=_is_demo(options.out, recipe.title))
    _report(metrics, options.out)


def _is_demo(folder: Path, title: str) -> bool:
    from invertible.train import read_recipe

    return (folder / "recipe.yaml").is_file() and read_recipe(folder / "recipe.yaml").title == title


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train import read_recipe, train

    check_data_dir(options.data_dir)
    overrides = [*rest, "--data.data_dir", options.data_dir] if options.data_dir else rest
    recipe = read_recipe(options.recipe, overrides)
    folder = options.out or Path("runs") / Path(options.recipe).with_suffix("").as_posix().strip("./").replace("/", "-")
    try:
        _report(train(recipe, folder, overwrite=options.overwrite), folder)
    except KeyboardInterrupt:
        _say_resume(folder)
        raise


def _resume(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train import resume

    try:
        _report(resume(options.folder), options.folder)
    except KeyboardInterrupt:
        _say_resume(options.folder)
        raise


def _say_resume(folder: Path) -> None:
    from invertible.train.checkpoint import has_checkpoint

    if int(os.environ.get("RANK", "0")) == 0 and (folder / "recipe.yaml").is_file():
        what = "Saved" if has_checkpoint(folder) else "Nothing saved yet"
        show(f"{what}. Go on with:  invertible resume {folder}", is_error=True)


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train import assess, load_run

    check_data_dir(options.data_dir)
    run = load_run(options.folder, dtype=options.dtype)
    what = "images" if run.scaling is not None else "points"
    show_table(assess(run, run.test_data(options.data_dir)), f"{options.folder} on its test {what}")


def _reconstruct(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train import load_run, reconstruct_file, reconstruct_images

    run = load_run(options.folder, dtype=options.dtype)
    check_data_dir(options.data_dir)
    path = _picture_path(options)
    if options.image is None:
        figures, note = reconstruct_images(run, run.test_images(options.data_dir), path), None
    else:
        figures, note = reconstruct_file(run, options.image, path)
    if note:
        show(f"note: {note}")
    show_table(figures, "reconstruction error, in units of the pixel range")
    show(f"picture: {path}")


def _encode(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train.codec import encode_image
    from invertible.train.encoding import check_encoding_path
    from invertible.train.run import load_run

    check_encoding_path(options.out)
    encoding, note = encode_image(load_run(options.folder), options.image)
    encoding.save(options.out)
    about, n = encoding.description, encoding.values
    if note:
        show(f"note: {note}")
    show(f"{options.image}: {about.width}x{about.height} {about.mode}, {len(n):,} tiles, {n.numel():,} whole numbers")
    show(f"decoded again: every pixel the same. Encoding: {options.out}")


def _decode(options: argparse.Namespace, rest: list[str]) -> None:
    from invertible.train.codec import decode_image
    from invertible.train.encoding import Encoding
    from invertible.train.lossless import check_lossless_suffix, write_lossless
    from invertible.train.run import load_run

    check_lossless_suffix(options.out)
    encoding = Encoding.load(options.file)
    device = "cpu" if encoding.description.device == "cpu" else None
    pixels, mode = decode_image(load_run(options.folder, device=device), encoding)
    write_lossless(pixels, mode, options.out)
    show(f"{pixels.shape[2]}x{pixels.shape[1]} {mode}, every pixel as it was encoded. Picture: {options.out}")


def _picture_path(options: argparse.Namespace) -> Path:
    # Where the picture goes: never over the user's own one.
    from invertible.errors import ConfigError

    stem = "reconstruction" if options.image is None else f"reconstruction-{options.image.stem}"
    path = options.out or options.folder / f"{stem}.png"
    check_picture(path)
    if options.image is not None and path.resolve() == options.image.resolve():
        raise ConfigError("--out would replace --image", expected="another file", got=str(path))
    return path


def _report(metrics: dict[str, Any], folder: Path) -> None:
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process prints
        return
    show_table({key: metrics[key] for key in SHOWN if key in metrics}, str(folder))
    show("\n".join(_what_next(metrics, folder)))


def _what_next(metrics: dict[str, Any], folder: Path) -> list[str]:
    is_flow, is_invertible = "test_nats" in metrics, "reconstruction_max_abs_error" in metrics
    lines = [f"All figures: {folder}/metrics.json   curves: {folder}/curves.png"]
    if is_flow:
        has_images = "test_bits_per_dim" in metrics
        pictures = ("samples", "temperatures", "interpolations") if has_images else ("density",)
        lines.append("Pictures: " + "   ".join(f"{folder}/{name}.png" for name in pictures))
        return [*lines, f"Next: invertible sample {folder}", f"      invertible score {folder} FILES"]
    if is_invertible:
        lines.append(f"Originals beside their reconstructions: {folder}/reconstruction.png")
    more = f"invertible reconstruct {folder} --image PICTURE" if is_invertible else "invertible recipes"
    return [*lines, f"Next: invertible evaluate {folder}", f"      {more}"]
