"""For fork servers to import: their children are commands of the project, or workers, that need not begin at zero."""

from __future__ import annotations

import gc

from warm import warm_up

warm_up()
gc.freeze()  # else a collection in a child writes to every page, which is then copied
