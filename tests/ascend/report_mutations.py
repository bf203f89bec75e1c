"""Applies every mutation of the Ascend kernels and prints which test caught it, and in which words.

python -m tests.ascend.report_mutations
python -m tests.ascend.report_mutations --delayed   # by results, with the model's delayed mode
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .conftest import MUTANT_DEADLINE_S, AscendPools, compile_objects, delayed
from .kernel_mutations import build_mutant, try_mutant
from .seeded_faults import MUTATIONS


def main() -> int:
    escaped = 0
    pools = AscendPools(MUTANT_DEADLINE_S)
    with tempfile.TemporaryDirectory() as name:
        objects = compile_objects(Path(name))
        for mutation in MUTATIONS:
            folder = Path(name, mutation.name)
            folder.mkdir()
            if "--delayed" in sys.argv:
                objects = delayed(objects, folder)
            caught, words = try_mutant(mutation, pools, build_mutant(mutation, objects, folder))
            escaped += not caught
            print(f"{'caught' if caught else 'ESCAPED'}  {mutation.name}\n    {mutation.test.__name__}\n    {words}")
    pools.close()
    print(f"{len(MUTATIONS) - escaped} of {len(MUTATIONS)} faults caught")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
