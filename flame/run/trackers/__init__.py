"""Where a run's record goes: the files of the run folder always, views such as W&B by choice."""
