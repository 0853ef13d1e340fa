"""The commands of `asr`, a file each, and what several of them share.

`python -m asr_lightning.tools.NAME` is `asr NAME`, also for the names that commands had before.
"""

import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from asr_lightning.asr import RENAMED


class _RenamedCommands(MetaPathFinder, InspectLoader):
    """Finds modules for the names that commands had before: each runs what the command is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __name__ and name in RENAMED else None

    def get_source(self, fullname: str) -> str:
        name = fullname.rpartition(".")[2]
        return f"import sys\nfrom asr_lightning.asr import main\nsys.exit(main([{name!r}, *sys.argv[1:]]))\n"


sys.meta_path.append(_RenamedCommands())
