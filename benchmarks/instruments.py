"""What do instruments cost, and are they right: against peers and against what one would write by hand?

Signal propagation against a loop of hooks, weight spectra against WeightWatcher, Jacobian spectra against
torch.func's dense Jacobian; in pairs, as ratios of one run.

    python benchmarks/instruments.py [--quick] [--json FILE] [--only signal spectrum jacobian]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _instruments_jacobian import measure_jacobian
from _instruments_signal import measure_signal
from _instruments_spectrum import measure_spectrum

QUESTIONS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    "signal": measure_signal,
    "spectrum": measure_spectrum,
    "jacobian": measure_jacobian,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: under two minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="which questions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records: list[dict[str, Any]] = []
    for question in options.only:
        for record in QUESTIONS[question](options.quick):
            records.append(record)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
            where = ", ".join(f"{name} {value}" for name, value in record["setting"].items())
            print(f"{record['implementation']} ({where}): {figures}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
