"""Kill a run at random moments, resume it, and compare its tables with an undisturbed one's.

    make test-kill                                         # twenty kills of the smoke configuration
    python tests/kill/run.py --kills 3 --config 'methods=[topk]'
    python tests/kill/run.py --seed 7                      # other moments

Runs the workflow once undisturbed and once killed: SIGKILL to the whole process group, after a
random time, again and again; the same command follows each time. A run that ends before it was
killed often enough is compared, and another begins. Trainings write checkpoints every third of a
second, so that many are killed between two. Then every table has to be the same to the last byte,
but for the columns that hold times, and nothing half written may lie about. Exits with 1, and names
the file, where that is not so.
"""

import argparse
import csv
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from os import killpg
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
#: Columns, and their headings in readable tables, that hold times.
TIMES = {"training_seconds", "seconds_per_million_tokens"}
TIMES |= {"training seconds", "s per million tokens"}
#: What Snakemake says once it has read the workflow.
BEGUN = b"Select jobs to execute"
SETTINGS = ["execution={checkpoint_minutes: 0.005}", "training={tokens: 65536}"]


def command(directory, arguments):
    """The run's command; everything it writes is in `directory`."""
    return [
        *(Path(sys.executable).parent / "snakemake", "--snakefile", REPOSITORY / "Snakefile"),
        *("--configfile", REPOSITORY / "config/smoke.yaml", "--directory", directory),
        *("--cores", str(arguments.cores), "--config", *SETTINGS, *arguments.config),
        *("--", *arguments.targets),
    ]


def run(directory, arguments, kill_after=None):
    """Run until it ends (True) or `kill_after` seconds after its first job is chosen (False).

    Returns that, and how long it worked before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "output.txt").open("ab") as log:
        log.write(b"\n--- begins\n")
        log.flush()
        place = log.tell()
        process = subprocess.Popen(
            list(map(str, command(directory, arguments))),
            cwd=directory,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        begun = None
        try:
            while process.poll() is None:
                time.sleep(0.05)
                if begun is None and BEGUN in (directory / "output.txt").read_bytes()[place:]:
                    begun = time.monotonic()
                worked = 0.0 if begun is None else time.monotonic() - begun
                if begun is not None and kill_after is not None and worked >= kill_after:
                    return False, worked
        finally:
            if process.poll() is None:
                killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        sys.exit(f"{directory}/output.txt: the run ended with {process.returncode}")
    return True, time.monotonic() - (begun or time.monotonic())


def cells(path):
    """The rows of a table without the columns that hold times; any other file as its bytes."""
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows = list(csv.reader(stream))
    elif path.parent.name == "tables":
        sign = "&" if path.suffix == ".tex" else "|"
        lines = path.read_text().splitlines()
        rows = [line.split(sign) for line in lines if sign in line]
    elif path.name == "README.md":  # the language model's card, a row of which is a time
        return [line for line in path.read_text().splitlines() if "| seconds |" not in line]
    else:
        return path.read_bytes()
    heading = [cell.strip(" \\") for cell in rows[0]]
    kept = [place for place, cell in enumerate(heading) if cell not in TIMES]
    return [[row[place] for place in kept] for row in rows]


def tables(directory):
    """The tables that a run left, by their paths within it."""
    kinds = {".csv", ".parquet", ".md", ".tex"}
    paths = [p for p in (directory / "results").rglob("*") if p.suffix in kinds]
    paths += (directory / "results").glob("*/run.json")
    return {p.relative_to(directory): p for p in paths if p.name != "timing.csv"}


def compare(undisturbed, killed):
    """End with 1 where the tables of the two runs differ or something half written was left."""
    expected, found = tables(undisturbed), tables(killed)
    both = set(expected) & set(found)
    same = {name for name in both if cells(expected[name]) == cells(found[name])}
    wrong = [f"not as in the undisturbed run: {p}" for p in sorted(set(expected | found) - same)]
    left = [p for p in killed.rglob("*") if re.search(r"\.part\.|\.checkpoint$", p.name)]
    wrong += [f"left behind: {path}" for path in left]
    if wrong:
        sys.exit("\n".join([f"in {killed}:", *wrong]))
    print(f"  {len(expected)} tables are the same, and nothing else was left", flush=True)


def went_on(directory):
    """How many trainings of a run that was killed went on from a checkpoint."""
    return (directory / "output.txt").read_text().count("going on after step")


def main():
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--cores", type=int, default=2, help="for the run (2)")
    parser.add_argument("--directory", type=Path, help="where to work, and to leave the runs")
    parser.add_argument("--config", nargs="*", default=[], help="more keys of the configuration")
    parser.add_argument("targets", nargs="*", help="files to make (all)")
    arguments = parser.parse_args()
    place = arguments.directory or Path(tempfile.mkdtemp(prefix="l0plane-kill-"))
    undisturbed, killed = place.absolute() / "undisturbed", place.absolute() / "killed"
    for directory in (undisturbed, killed):
        shutil.rmtree(directory, ignore_errors=True)
    print(f"in {place}: undisturbed", flush=True)
    _, seconds = run(undisturbed, arguments)
    print(f"  took {seconds:.0f} s; now killed (seed {arguments.seed})", flush=True)
    moments = random.Random(arguments.seed)
    kills = resumed = 0
    while kills < arguments.kills:
        ended, worked = run(killed, arguments, moments.uniform(0, seconds / 5))
        if ended:
            print("  it ended; another one begins", flush=True)
            compare(undisturbed, killed)
            resumed += went_on(killed)
            shutil.rmtree(killed)
            continue
        kills += 1
        logs = sorted((killed / "logs").rglob("*.log"), key=lambda p: p.stat().st_mtime)
        at = logs[-1].relative_to(killed / "logs") if logs else "the start"
        print(f"  kill {kills} after {worked:.1f} s of work, at {at}", flush=True)
    run(killed, arguments)
    resumed += went_on(killed)
    print(f"  {resumed} trainings went on from a checkpoint", flush=True)
    compare(undisturbed, killed)
    if arguments.directory is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
