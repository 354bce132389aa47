"""Training: recipes, the loop, checkpoints, evaluation. The only part that uses accelerate; import it by name."""

from invertible.train.adaptive_clipping import AdaptiveClipping, clip_adaptively
from invertible.train.assess import assess
from invertible.train.codec import decode_image, encode_image
from invertible.train.compare import compare
from invertible.train.compare_table import read_table_recipe, table_names
from invertible.train.density import evaluate_likelihood
from invertible.train.encoding import Encoding
from invertible.train.evaluate import evaluate_classifier, evaluate_reconstruction
from invertible.train.experiment_recipe import experiment_names, read_experiment
from invertible.train.experiment_run import run_experiment
from invertible.train.flow_figures import draw_samples
from invertible.train.likelihood import Likelihood
from invertible.train.loop import FitOptions, InterruptedRun, Trainer
from invertible.train.objective import Classification
from invertible.train.read_recipe import read_recipe, recipe_names
from invertible.train.recipe import Recipe
from invertible.train.reconstruct import reconstruct_file, reconstruct_images
from invertible.train.run import Run, load_run
from invertible.train.saddle_free_newton import SaddleFreeNewton
from invertible.train.score import Scores, read_files, score
from invertible.train.train import resume, train

__all__ = [
    "AdaptiveClipping",
    "Classification",
    "Encoding",
    "FitOptions",
    "InterruptedRun",
    "Likelihood",
    "Recipe",
    "Run",
    "SaddleFreeNewton",
    "Scores",
    "Trainer",
    "assess",
    "clip_adaptively",
    "compare",
    "decode_image",
    "draw_samples",
    "encode_image",
    "evaluate_classifier",
    "evaluate_likelihood",
    "evaluate_reconstruction",
    "experiment_names",
    "load_run",
    "read_experiment",
    "read_files",
    "read_recipe",
    "read_table_recipe",
    "recipe_names",
    "reconstruct_file",
    "reconstruct_images",
    "resume",
    "run_experiment",
    "score",
    "table_names",
    "train",
]
