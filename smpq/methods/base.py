"""What a search method declares, and the registry of methods. Importing it loads neither torch nor scipy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from calib.errors import UserError

if TYPE_CHECKING:
    from calib.task import Batch, Task
    from smpq.methods.problem import Objective, SearchProblem, Solution
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling

    Score = Callable[[SearchProblem], Objective]
    Train = Callable[[SearchProblem], Solution]
    Allocate = Callable[[Space, Scores, Sequence[Ceiling]], Policy]

Function = TypeVar("Function", bound="Callable[..., Any]")


class Need(Enum):
    """What a method may need besides a model and inputs."""

    LABELS = "labels"
    TRAINING_DATA = "training data"
    GRADIENTS = "gradients"


@dataclass(frozen=True)
class Method:
    """A method that says what every move of the search space is worth, or one that trains: policy and weights together.

    `cost` is counted in passes over the calibration data. `decides` names what gets a format. `allocate` is the
    method's own rule from scores to a policy within ceilings; None stands for the knapsack (`smpq.solve.allocate`).
    `searched`: the search goes on near that policy, with policies evaluated on calibration data; otherwise the scores
    decide alone. `latency`: a latency budget can be met, in a loop with measured engines, which searches too.
    `finetuned`: its policy is meant to be fine-tuned, so `smpq run` does by default.
    `epochs`: a method that trains returns a `Solution`, and trains so long where nobody says; None stands for one that
    scores.
    """

    name: str
    paper: str
    needs: tuple[Need, ...]
    cost: str
    function: Score | Train
    decides: str = "layers"
    allocate: Allocate | None = None
    searched: bool = True
    latency: bool = True
    finetuned: bool = False
    epochs: float | None = None

    @property
    def trains(self) -> bool:
        """Whether it returns a policy with its weights, and no scores."""
        return self.epochs is not None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def score(self, problem: SearchProblem) -> Objective:
        """Return what the method says about a problem, under its name. UserError when the task lacks what it needs, and
        for a method that trains.
        """
        from smpq.methods.problem import Objective

        self.check_scores()
        self.check_task(problem.task, problem.batches)
        objective = self.function(problem)
        assert isinstance(objective, Objective)
        return replace(objective, linear=replace(objective.linear, method=self.name))

    def train(self, problem: SearchProblem) -> Solution:
        """Return the policy that a method trained for the problem's ceilings, and its weights. UserError when the task
        lacks what it needs.
        """
        from smpq.methods.problem import Solution

        self.check_task(problem.task, problem.batches)
        solution = self.function(problem)
        assert isinstance(solution, Solution)
        return solution

    def policy(self, space: Space, scores: Scores, ceilings: Sequence[Ceiling], *, quick: bool = False) -> Policy:
        """Return the policy that its scores decide on within ceilings; `Impossible` when there is none.

        `quick`: one that a local search finds is enough, where scores have pairs.
        """
        if self.allocate is not None:
            return self.allocate(space, scores, ceilings)
        from smpq.solve.allocate import Problem
        from smpq.solve.quadratic import best_or_explain

        return best_or_explain(Problem(space, scores.objective(), ceilings), quick=quick).policy

    def check_task(self, task: Task, batches: Sequence[Batch]) -> None:
        """Raise UserError when the task lacks what the method needs; `batches` are its calibration data."""
        from calib.data import training_batches

        if Need.TRAINING_DATA in self.needs:
            next(training_batches(task, 0))
        if Need.LABELS in self.needs and any(batch.target is None for batch in batches):
            raise UserError(
                f"task {task.name} has no labels (calibration() gives targets of None), and the method {self.name} "
                "needs them: "
                f"add them, or use one of {', '.join(name for name, other in METHODS.items() if not other.needs)}"
            )

    def check_scores(self) -> None:
        """Raise UserError when the method trains, and so has no scores."""
        if self.trains:
            raise UserError(
                f"--method {self.name} trains a policy with its weights for one budget, and has no scores: use smpq run"
            )

    def check_latency(self) -> None:
        """Raise UserError when the method has no answer to a latency budget, nor to one on what the network loses."""
        able = ", ".join(name for name, other in METHODS.items() if other.latency)
        if self.trains:
            raise UserError(
                f"--method {self.name} trains for limits that are known before, without engines: give a budget on "
                f"size, avg_bits or bops, or use one of {able} as --method"
            )
        if not self.latency:
            raise UserError(
                f"--method {self.name} chooses by its scores alone, without engines: give a budget on size, avg_bits "
                "or bops, "
                f"or use one of {able} as --method"
            )


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    paper: str,
    cost: str,
    needs: Sequence[Need] = (),
    decides: str = "layers",
    allocate: Allocate | None = None,
    searched: bool = True,
    latency: bool = True,
    finetuned: bool = False,
    epochs: float | None = None,
) -> Callable[[Function], Function]:
    """Register a method under the name that `--method` takes.

    1. Write one function in a file of its own in `smpq/methods`. It is given a `SearchProblem`: everything that a
       method may ask for. The first line of its docstring is what `smpq methods` shows.
    2. It returns an `Objective`: the value of every move (group, format), higher is better, 0 for the float format,
       and the values of pairs of moves, where it has any.
       `linear_objective` makes one of plain numbers, or of independent samples of each number; of samples the standard
       errors follow, and how sure the decision is.
    3. Take random numbers from `numpy.random.default_rng(problem.seed)` or a `torch.Generator` of that seed. Tell how
       far you are by `problem.progress`.
    4. Decorate it with `@method("my-name", paper=..., cost=..., needs=...)`; the other arguments are described at
       `Method`. What is needed and missing is told to the user before the function is called.
    5. Import the file in `smpq.methods`. Import torch and scipy inside the function, so that `smpq --help` answers at
       once.

    A method that trains is given `epochs`, how many it takes where nobody says, and returns a `Solution` in place of an
    `Objective`: a policy within `problem.ceilings`, and weights as `smpq.training.finetune.finetune` returns them for
    `problem.subject(policy)`. `problem.training` says how to train, and `problem.files` where to keep what would take
    long to do again. The run puts these weights where fine-tuned ones would be.

    Budgets, the latency loop, the search near the plan, confirmation on other samples, export and the report know
    nothing of the method: there is nothing else to do. `tests/smpq/methods/test_every_method.py` tests it with all the
    others.
    """

    def register(function: Function) -> Function:
        METHODS[name] = Method(
            name,
            paper,
            tuple(needs),
            cost,
            function,
            decides,
            allocate,
            searched=searched and epochs is None,
            latency=latency and epochs is None,
            finetuned=finetuned,
            epochs=epochs,
        )
        return function

    return register


def method_from_name(name: str) -> Method:
    """Return a registered method; UserError lists the names."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose one of {', '.join(METHODS)} (smpq methods says what they do)")
    return METHODS[name]
