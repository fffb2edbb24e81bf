"""`shotnoise reproduce ...`: figures of papers, made again."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from shotnoise import reproduce as recipes
from shotnoise.cli.common import ERR, OUT, print_table, tell, warnings_as_lines
from shotnoise.errors import InputError
from shotnoise.reproduce import Reproduction
from shotnoise.show.ensemble_progress import ensemble_progress
from shotnoise.show.tables import set_for_terminal

reproduce = typer.Typer(no_args_is_help=True, help="Make a paper's figure again: theory, simulation, verdict.")


@reproduce.callback()
def about() -> None:
    """Make a paper's figure again: theory, simulation over it, and a verdict."""


@reproduce.command("graduate-admission")
def graduate_admission(
    csv: Annotated[Path | None, typer.Option(help="Admission_Predict_Ver1.1.csv; without it embedded data.")] = None,
    preset: Annotated[str, typer.Option(help="quick, or paper for the paper's numbers of runs.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for figures, page, numbers and the runs.")] = Path(
        "reproduce/graduate-admission"
    ),
    seed: Annotated[int, typer.Option(help="Of first weights and batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Fig. 2 of "The Impact of the Mini-batch Size on the Variance of Gradients in SGD"."""
    _folder(out)
    try:
        with warnings_as_lines(), ensemble_progress(ERR) as progress:
            found = recipes.graduate_admission(
                out, preset=preset, csv=csv, seed=seed, workers=workers, progress=progress
            )
    except KeyboardInterrupt:
        tell(ERR, f"interrupted: finished runs are kept in {out}; the same command continues", "bold red")
        raise typer.Exit(130) from None
    _deliver(found, out)


@reproduce.command("adaptive-steps")
def adaptive_steps(
    preset: Annotated[str, typer.Option(help="quick (two minutes), or paper for more and longer runs.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for tables, figure, page and numbers.")] = Path(
        "reproduce/adaptive-steps"
    ),
    data_dir: Annotated[
        Path | None, typer.Option(help="Files of MNIST and the reviews; else these are left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
) -> None:
    """AdaptiveSGD and PreconditionedSGD beside SGD, Adam and AdamW at their best learning rates."""
    _folder(out)
    with warnings_as_lines(), ERR.status("Gauss-10") as status:
        found = recipes.adaptive_steps(preset=preset, data_dir=data_dir, seed=seed, progress=status.update)
    _deliver(found, out)


@reproduce.command("strength-of-noise")
def strength_of_noise(
    figure: Annotated[str, typer.Argument(help="fig1 to fig7; all for one after the other.")] = "all",
    preset: Annotated[str, typer.Option(help="quick, or paper for more runs (and 1,000 features in fig6).")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for figures, pages, numbers and the runs.")] = Path(
        "reproduce/strength-of-noise"
    ),
    data_dir: Annotated[Path | None, typer.Option(help="MNIST's files, for fig1; without them digits.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, data and batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Figures of "Strength of Minibatch Noise in SGD" on linear models."""

    def make(name: str, progress: Any) -> Reproduction:
        return recipes.strength_of_noise(
            out, name, preset=preset, data_dir=data_dir, seed=seed, workers=workers, progress=progress
        )

    _several(recipes.STRENGTH_OF_NOISE if figure == "all" else [figure], out, make)


@reproduce.command("continuous-limit")
def continuous_limit(
    figure: Annotated[str, typer.Argument(help=f"{', '.join(recipes.CONTINUOUS_LIMIT)}; or all.")] = "all",
    preset: Annotated[str, typer.Option(help="quick, or paper for ten times the runs.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for figures, pages, numbers and the runs.")] = Path(
        "reproduce/continuous-limit"
    ),
    seed: Annotated[int, typer.Option(help="Of the batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Statements of lecture notes on the continuous-time limit of SGD, each beside SGD itself."""

    def make(name: str, progress: Any) -> Reproduction:
        return recipes.continuous_limit(out, name, preset=preset, seed=seed, workers=workers, progress=progress)

    _several(recipes.CONTINUOUS_LIMIT if figure == "all" else [figure], out, make)


def _several(names: Iterable[str], out: Path, make: Callable[[str, Any], Reproduction]) -> None:
    """One figure after the other, each in its folder; an exit code of 1 if one of them does not hold."""
    _folder(out)
    made = []
    for name in names:
        try:
            with warnings_as_lines(), ensemble_progress(ERR) as progress:
                made.append(make(name, progress))
        except KeyboardInterrupt:
            tell(ERR, f"interrupted: finished runs are kept in {out}; the same command continues", "bold red")
            raise typer.Exit(130) from None
        folder = out / name
        _folder(folder)
        _show(made[-1], folder)
    if not all(found.holds for found in made):
        raise typer.Exit(1)


@reproduce.command("teacher-student")
def teacher_student(
    preset: Annotated[str, typer.Option(help="quick, or paper (1,000 runs of 1,000 steps).")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for figures, page, numbers and the runs.")] = Path(
        "reproduce/teacher-student"
    ),
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Fig. 3 of the variance paper (Fig. 1 of its successor): a linear student network on fresh Gaussian inputs."""
    _folder(out)
    try:
        with warnings_as_lines(), ensemble_progress(ERR) as progress:
            found = recipes.teacher_student(out, preset=preset, seed=seed, workers=workers, progress=progress)
    except KeyboardInterrupt:
        tell(ERR, f"interrupted: finished runs are kept in {out}; the same command continues", "bold red")
        raise typer.Exit(130) from None
    _deliver(found, out)


@reproduce.command("hessian-sgd")
def hessian_sgd(
    figure: Annotated[str, typer.Argument(help="fig1 to fig4, fig6 to fig10, fig12 to fig24; all for all.")] = "all",
    preset: Annotated[
        str, typer.Option(help="quick; paper for 10,000 runs; printed for the paper's recipe, which does not train.")
    ] = "quick",
    runs: Annotated[int | None, typer.Option(min=2, help="Instead of the preset's number.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, pages, numbers and the runs.")] = Path(
        "reproduce/hessian-sgd"
    ),
    data_dir: Annotated[
        Path | None, typer.Option(help="MNIST's and CIFAR-10's files, for fig3, fig4, fig21 and fig22.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data, weights and batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Figures of "Hessian based analysis of SGD for deep nets", each with the paper's claims and which of them held."""
    _folder(out)
    for name in recipes.HESSIAN_SGD if figure == "all" else [figure]:
        try:
            with warnings_as_lines(), ensemble_progress(ERR) as progress:
                made = recipes.hessian_sgd(
                    out, name, preset=preset, runs=runs, data_dir=data_dir, seed=seed, workers=workers,
                    progress=progress, say=lambda line: tell(ERR, line),
                )  # fmt: skip
        except KeyboardInterrupt:
            tell(ERR, f"interrupted: finished runs are kept in {out}; the same command continues", "bold red")
            raise typer.Exit(130) from None
        folder = out / name
        _folder(folder)
        _show(made, folder)


@reproduce.command("gauss-bounds")
def gauss_bounds(
    figure: Annotated[str, typer.Argument(help="loss-change, fig11 or fig25; all for one after the other.")] = "all",
    preset: Annotated[str, typer.Option(help="quick, or paper for 10,000 runs.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for figures, pages, numbers and the runs.")] = Path(
        "reproduce/gauss-bounds"
    ),
    seed: Annotated[int, typer.Option(help="Of data, weights and batches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
) -> None:
    """Bounds of "Hessian based analysis of SGD for deep nets" on Gauss-10: one step, generalization."""
    _folder(out)
    made = []
    for name in recipes.GAUSS_BOUNDS if figure == "all" else [figure]:
        try:
            with warnings_as_lines(), ensemble_progress(ERR) as progress:
                made.append(
                    recipes.gauss_bounds(out, name, preset=preset, seed=seed, workers=workers, progress=progress)
                )
        except KeyboardInterrupt:
            tell(ERR, f"interrupted: finished runs are kept in {out}; the same command continues", "bold red")
            raise typer.Exit(130) from None
        _folder(out / name)
        _show(made[-1], out / name)
    if not all(found.holds for found in made):
        raise typer.Exit(1)


def _deliver(found: Reproduction, out: Path) -> None:
    _show(found, out)
    if not found.holds:
        raise typer.Exit(1)


def _show(found: Reproduction, out: Path) -> None:
    for sheet in found.tables:
        print_table(set_for_terminal(sheet))
    for sentence in found.sentences:
        OUT.print(Text(f"• {sentence}"))
    for path in found.save(out):
        tell(ERR, f"wrote {path}")


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot make this folder ({error}); choose another one") from error
