"""Takes each synchronisation out in turn and prints which test caught it, with which seed, in which words.

python -m tests.npu.cann.report_mutations_npu LIBRARIES TORCH_NPU_HEADERS MEMFABRIC_HEADERS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.npu.cann.build_cann import Headers
from tests.npu.cann.exchange_mutations import MUTATIONS, build_mutant, try_mutant


def main() -> int:
    libraries, torch_npu, memfabric = map(Path, sys.argv[1:])
    escaped = 0
    for mutation in MUTATIONS:
        # Beside the libraries, which it links to.
        with tempfile.TemporaryDirectory(dir=libraries.parent) as name:
            folder = build_mutant(mutation, libraries, Headers(torch_npu, memfabric), Path(name))
            seed, words = try_mutant(mutation, folder)
        escaped += seed is None and not mutation.needless
        said = f"caught with seed {seed}" if seed is not None else "needless" if mutation.needless else "ESCAPED"
        print(f"{said}: {mutation.name}\n    {mutation.test.__name__}\n    {words or mutation.needless}", flush=True)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
