"""What the cgroups that this process is in allow it: a container's memory and cores, or a Slurm job's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux's; elsewhere there are none


def limits(controller: str, names: Collection[str], root: Path, membership: Path) -> Iterator[dict[str, str]]:
    """Name -> content of those of the files `names` that are there, for each group of the process and those above it.

    Version 1 has a tree for each controller, version 2 one for all. A container may see its own group as the top, under
    the path that it has outside, which is not there then.
    """
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        trees = (controllers, controller) if controllers else ()
        top = next((root / name for name in trees if (root / name).is_dir()), root)
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield {name: (folder / name).read_text().strip() for name in names if (folder / name).exists()}
            if folder == top:
                break
