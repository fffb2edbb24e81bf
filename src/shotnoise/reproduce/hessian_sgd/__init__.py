"""Figures of Li, Gu, Zhou, Chen, Banerjee, "Hessian based analysis of SGD for deep nets: dynamics and generalization".

    fig1, fig12, fig13          full spectra of H, M and H_p           (spectra)
    fig2, fig14 to fig17        leading eigenspaces, bounds            (subspaces)
    fig6, fig7                  layers                                 (layers)
    fig8, fig18 to fig20        loss, angles, norms                    (dynamics)
    fig9, fig10, fig23, fig24   change of the loss in one update       (changes)
    fig3, fig4, fig21, fig22    the same on MNIST and CIFAR-10         (images)

One ensemble serves many figures and is kept between calls. Each ends with the paper's claims, which held, and numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shotnoise.errors import InputError
from shotnoise.reproduce.hessian_sgd import changes, dynamics, images, layers, spectra, subspaces
from shotnoise.reproduce.hessian_sgd.settings import PRESETS
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction

__all__ = ["FIGURES", "hessian_sgd"]

FIGURES: dict[str, Callable[[Workshop], Reproduction]] = {
    "fig1": spectra.figure_1,
    "fig2": subspaces.figure_2,
    "fig3": images.figure_3,
    "fig4": images.figure_4,
    "fig6": layers.figure_6,
    "fig7": layers.figure_7,
    "fig8": dynamics.figure_8,
    "fig9": changes.figure_9,
    "fig10": changes.figure_10,
    "fig12": spectra.figure_12,
    "fig13": spectra.figure_13,
    "fig14": subspaces.figure_14,
    "fig15": subspaces.figure_15,
    "fig16": subspaces.figure_16,
    "fig17": subspaces.figure_17,
    "fig18": dynamics.figure_18,
    "fig19": dynamics.figure_19,
    "fig20": dynamics.figure_20,
    "fig21": images.figure_21,
    "fig22": images.figure_22,
    "fig23": changes.figure_23,
    "fig24": changes.figure_24,
}


def hessian_sgd(
    folder: Path,
    figure: str,
    *,
    preset: str = "quick",
    runs: int | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Reproduction:
    """One figure, by its name in the paper (`FIGURES`).

    folder: where the stores of the runs live; a second call continues or reuses them. preset: "quick"; "paper", 10,000
    runs, whose duration is predicted and told to `say` first; "printed", the recipe as the paper prints it, which does
    not train. runs: instead of the preset's number. data_dir: MNIST's and CIFAR-10's files, for fig3, 4, 21 and 22.
    Raises InputError for another figure or preset, DataError for data that are not there.
    """
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: one of {', '.join(FIGURES)}")
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    if runs is not None and runs < 2:
        raise InputError(f"runs={runs}: at least 2")
    return FIGURES[figure](Workshop(folder, preset, seed, runs, workers, progress, say, data_dir))
