"""Say of every stage what it is made of, so that DVC reruns it only when that changes.

In: stages/ and requirements.lock. Out: programs/<stage>.json: the stage's modules, each with a digest that
comments, docstrings and layout do not change, and the packages that they use, each with its version. Every
other stage depends on its own of these files: a changed comment runs this stage alone, a changed pin the
stages that use the package. A package that is installed in another version than the lock's stops it.

    python -m stages.program
"""

import argparse
from pathlib import Path

from stages.common import files, program
from stages.common.errors import run
from stages.common.params import load
from stages.common.program import ProgramParams

PROGRAMS = Path("programs")


def main() -> None:
    """Write what every stage is made of."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("program", ProgramParams)
    there, locked = program.tree(program.ROOT), program.lock(program.ROOT)
    made = {stage: program.described(stage, chosen, there, locked) for stage in program.stages(there)}
    used = set().union(*(found["packages"] for found in made.values()))
    program.check_installed(used, locked)
    for stage, found in made.items():
        files.write_json(PROGRAMS / f"{stage}.json", found)
    print(f"program: {len(made)} stages, {len(used)} packages")


if __name__ == "__main__":
    run(main)
