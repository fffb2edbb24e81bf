"""One full measurement of the benchmark's MLP on MNIST: 60,000 samples, all exact, in wall-clock seconds.

    .venv-peers/bin/python benchmarks/full_pass.py --data-dir PATH

PATH holds the four idx files of MNIST, as they come or gzipped; default: the environment variable
SHOTNOISE_DATA. Two threads; the target is under 60 seconds. Writes results/full_pass.json.
"""

import argparse
import time

import torch

import shotnoise as sn
from cases import CASES
from protocol import save

TARGET = 60.0
BATCH_SIZES = [1, 8, 64, 512]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the idx files")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    data = sn.datasets.load("mnist", data_dir=chosen.data_dir)
    problem = sn.Problem(CASES["mlp"].model(), "cross_entropy", data.inputs.flatten(1), data.targets)
    wall, cpu = time.perf_counter(), time.process_time()
    result = sn.measure(problem, batch_sizes=BATCH_SIZES)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert result.attrs["samples_used"] == problem.n == 60_000
    print(f"{problem.n} samples in {wall:.1f} s on {chosen.threads} threads (CPU {cpu:.1f}), target {TARGET} s")
    found = {name: float(result[name]) for name in ("loss", "gradient_norm_sq", "noise_trace", "noise_scale")}
    for name, value in found.items():
        print(f"  {name:17s} {value:.6g}")
    report = {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "target_seconds": TARGET,
        "samples": problem.n,
        **found,
    }
    print("written:", save("full_pass", report))


if __name__ == "__main__":
    main()
