"""The notebooks' exercises: `check` says whether an answer is right, then why.

Answers stand here and in docs/teachers.md, not in the notebooks.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass

_misses = Counter()  # by exercise, since Python started


@dataclass(frozen=True)
class Exercise:
    """What is right, and what is said after a try.

    Attributes: truth: a number or a word. hint: after a miss. why: the solution.
        tolerance: of a number, in its unit. spellings: other words that are right.
        between: what a notebook may measure, where shapes and settings of a reader's
            own move it further than the tolerance.
    """

    truth: float | str
    hint: str
    why: str
    tolerance: float = 0.0
    spellings: tuple[str, ...] = ()
    between: tuple[float, float] | None = None


EXERCISES = {
    "triangles": Exercise(
        4,
        "A triangle is about as large as a cell. What of the object do they cover?",
        "They cover a surface: half the cell's width asks for four times as many "
        "triangles. The samples in space would be eight times as many; cells far from "
        "the surface are skipped.",
        tolerance=0.8,
        between=(1, float("inf")),
    ),
    "wrong camera": Exercise(
        "no",
        "What are the maps made from: the picture alone, or the camera, too?",
        "The maps are made from the picture alone, a number a pixel. The camera only "
        "tells where in them a point looks, u(p). The paper's base is the picture's "
        "alone as well, and stays; one that also looks the picture up at u(p) bends.",
        spellings=("n", "false", "none", "nothing", "they do not"),
    ),
    "period": Exercise(
        4,
        "Differentiate a sin kx twice. What does the k in front do?",
        "The Laplacian of a sin kx is -a k² sin kx, and half the period is twice k: "
        "2² = 4. Fine detail is loud in a Laplacian.",
        tolerance=0.2,
    ),
    "ridge": Exercise(
        "positive",
        "About a ball of radius r the Laplacian of the distance is 2 / r.",
        "A ridge bends like a ball: the distance grows outward, and its gradients "
        "spread. In a groove they meet, and the Laplacian is negative.",
        spellings=("+", "pos", "plus", "above 0", "above zero", "> 0", ">0"),
    ),
    "who holds the waves": Exercise(
        "base",
        "What does L_B ask of the base? And is a wave then left for the map?",
        "L_B asks the base to be F, waves and all. A base that can bend so finely "
        "takes them, the sum is right, and the map has nothing to add. Only L_lap asks "
        "the map for them.",
        spellings=("the base", "f_b", "fb"),
    ),
    "bound": Exercise(
        1,
        "A surface that moves by at most A moves every distance by at most A.",
        "The nearest point of the one surface lies within A of the other one, so no "
        "distance, near or far, changes by more than A: one time the relief's height.",
        tolerance=0.02,
        spellings=("one", "amplitude", "the amplitude"),
        between=(0, 1.01),
    ),
    "twice as far": Exercise(
        0.5,
        "u = f · x / z. What becomes of z?",
        "x stays, z doubles: half. A little less than half of the nearest parts, "
        "which had the smallest z, is what perspective adds.",
        tolerance=0.06,
        between=(0.35, 0.65),
        spellings=("half", "one half", "a half"),
    ),
    "constant": Exercise(
        0,
        "Which derivative of a constant does a Laplacian take?",
        "Nothing: a Laplacian does not see a constant, nor a slope. L_lap teaches "
        "where relief is and how it bends; its height over the base is taught by "
        "L_sdf.",
        tolerance=1e-3,
        spellings=("nothing", "not at all", "zero", "none", "it does not"),
    ),
    "perfect map": Exercise(
        0,
        "Put f_D = F - f_B into f_B + f_D, then think where you stand.",
        "f_B + (F - f_B) = F, and the true F is 0 on the true surface.",
        tolerance=1e-3,
        spellings=("zero", "nothing"),
        between=(0, 0.01),
    ),
    "back map": Exercise(
        "last",
        'Set maps to "back" above and move the strength: where does a ray leave?',
        "The ray enters where the surface looks at the camera, by the front map, and "
        "leaves where it looks away, by the back map.",
        spellings=("second", "the second", "the last", "last one", "the last one"),
    ),
    "twice the gap": Exercise(
        4,
        "Which power of the distance does L2 take the mean of?",
        "L2 is 2h², a mean of squares: twice h is four times L2, in squared units. "
        "Ratios of L2 and of L1 must not be compared.",
        tolerance=0.1,
    ),
    "half the union": Exercise(
        1 / 6,
        "(a - s) / (a + s) = 1/2 with a = 0.5. Try larger shifts.",
        "2 (a - s) = a + s gives s = a/3 = 0.1667: boxes that share two thirds of "
        "each share half of their union.",
        tolerance=0.005,
    ),
    "strength three": Exercise(
        3,
        "Is the Laplacian linear?",
        "The Laplacian is linear: of 3 f_D it is 3 times that of f_D. Relief gets "
        "higher and steeper, never finer: its pixels stay.",
        tolerance=0.05,
    ),
    "finer grid": Exercise(
        8,
        "Its cells must be half as wide, in each of its directions.",
        "A map has two directions, 2² = 4; a grid in space has three, 2³ = 8.",
        tolerance=0.01,
        spellings=("2^3", "2**3", "2³"),
    ),
    "tilt": Exercise(
        0.25,
        "The curve is true / target; you are asked for target / true.",
        "cos² 60° = 1/4: the target asks for a quarter.",
        tolerance=0.01,
        spellings=("a quarter", "one quarter", "quarter", "cos² 60°"),
    ),
    "half a wave": Exercise(
        26.57,
        "The angle whose tangent is one half, in degrees.",
        "arctan(0.075 / 0.15) = 26.6°: from there on a bump is read where a dent is. "
        "The measured curve passes 1 earlier: a sixth of a period off is already no "
        "better than no map, 2 sin(60° / 2) = 1.",
        tolerance=1.0,
    ),
    "overdone": Exercise(
        1,
        "F = f_B + s f_D is a straight line in s, 0 at s = 1. What is it at 2?",
        "A perfect map is -f_B there, so f_B + 2 f_D = -f_B: as large an error as "
        "without a map, on the other side. Too much relief is as wrong as none.",
        tolerance=0.05,
        spellings=("one", "the same", "same", "as large", "once"),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What `check` says; a notebook shows it, its solution folded.

    Attributes: right: bool, or None before a try. said: a line. solution: "" before a
        try. folded: a plain text leaves the solution out.
    """

    right: bool | None
    said: str
    solution: str = ""
    folded: bool = False

    def __repr__(self) -> str:
        shown = self.solution and not self.folded
        return f"{self.said}\n{self.solution}" if shown else self.said

    def _repr_html_(self) -> str:
        said, why = html.escape(self.said), html.escape(self.solution)
        if not why:
            return f"<p>{said}</p>"
        opened = " open" if self.right else ""
        fold = f"<details{opened}><summary>the solution</summary><p>{why}</p></details>"
        return f"<p>{said}</p>{fold}"


def check(name: str, answer: object, measured: float | str | None = None) -> Verdict:
    """Say whether an exercise's answer is right.

    A miss brings the hint and the solution, which a notebook folds; plain text has the
    solution from the second miss on.

    Args: name: of EXERCISES. answer: a number, or a text such as "4", "1/4", "25 %",
        "Positive"; None or "" is no try. measured: what the notebook itself found.
    Returns: Verdict; the last line of a cell shows it.
    Raises: ValueError: an unknown exercise; a measured value that contradicts its key.
    """
    if name not in EXERCISES:
        known = ", ".join(EXERCISES)
        raise ValueError(f"no exercise is called {name!r}: take one of {known}")
    exercise = EXERCISES[name]
    if measured is not None and not _holds(exercise, measured):
        raise ValueError(
            f"exercise {name!r}: measured here is {measured}, which its key "
            "contradicts: take the parameters that the notebook came with"
        )
    if answer is None or isinstance(answer, str) and not answer.strip():
        return Verdict(None, "Your turn: put your answer in, and run this cell again.")
    found = "" if measured is None else f" Measured here: {_shown(measured)}."
    solution = f"Answer: {_shown(exercise.truth)}. {exercise.why}{found}"
    if _is_right(exercise, answer):
        return Verdict(True, "Right.", solution)
    _misses[name] += 1
    said = f"Not yet. Hint: {exercise.hint}"
    return Verdict(False, said, solution, folded=_misses[name] == 1)


def _is_right(exercise, answer):
    words = _words(answer)
    if words in map(_words, (exercise.truth, *exercise.spellings)):
        return True
    if isinstance(exercise.truth, str) or isinstance(answer, bool):
        return False
    return abs(_number(answer) - exercise.truth) <= exercise.tolerance + 1e-9


def _holds(exercise, measured):
    if isinstance(exercise.truth, str):
        return measured == exercise.truth
    truth, off = exercise.truth, exercise.tolerance
    low, high = exercise.between or (truth - off, truth + off)
    return low <= measured <= high


def _words(answer):
    """A text in lower case, without outer signs and double spaces."""
    text = str(answer).casefold().strip(" \t\n!?\"'")
    return " ".join(text.rstrip(". \t\n!?\"'").split())  # .5 begins with its point


def _number(answer):
    """An answer as a float, NaN where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError):  # a text, perhaps with a unit, or no number at all
        text = _words(answer).replace(",", ".").replace("−", "-")
    pattern = r"(?:about |times |[~≈x×] ?)?([-+]?\d*\.?\d+)(?: ?/ ?(\d*\.?\d+))? ?"
    pattern += r"(%|percent|°|degrees?|deg|x|×|times|world units?)?"
    match = re.fullmatch(pattern, text)
    if not match or match[2] and not float(match[2]):
        return float("nan")
    whole = float(match[1]) / float(match[2] or 1)
    return whole / 100 if match[3] in ("%", "percent") else whole


def _shown(value):
    return value if isinstance(value, str) else f"{value:.4g}"
