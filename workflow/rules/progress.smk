"""What is said of the time left while a run goes on, beside Snakemake's own count of steps.

A handler of Snakemake's logger, and no plugin of it: nothing has to be installed, found or switched
on before this file is read, and `--logger` stays free for a plugin of the user's.
"""

from functools import partial

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from l0plane.progress import Progress

# Of rules that have several jobs or several like them: what the line calls these.
KINDS = {
    "search_lambda": "searches for lambda",
    "tune_candidate": "tuning candidates",
    "tune_neighbour": "tuning candidates",
    "tune_size": "tunings of a size",
    **{f"train_{method}": "trainings" for method in METHODS},
    **{group.name: "trainings" for group in GROUPS.values()},
    **{f"evaluate_{method}": "evaluations" for method in SERIES},
    **{f"draw_{figure}": "figures" for figure in FIGURE_TABLES},
}

# How many of these a job makes, where that is not one.
MADE = {group.name: len(group.levels) for group in GROUPS.values()}

# --quiet progress silences it too.
say = partial(logger.info, extra={"quietness": Quietness.PROGRESS})
logger.addHandler(Progress(KINDS, say, MADE))
