"""Every defense of conf/ as a run would build it, for suites that ask all of them the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flame.defenses.base import Defense
from flame.run.build import make

CONF = Path(__file__).resolve().parents[1] / "conf"
NAMES = sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))
SHORT = {  # what a defense trains itself is trained for a moment here, and as long as its YAML says in its own tests
    "fedredefense": {"steps": 1, "first_iterations": 2, "iterations": 2, "threshold": 2.0},
    "masa": {"epochs": 1},
    "snowball": {"top_down.first_epochs": 9, "top_down.epochs": 2},
}


@cache
def defense(name: str, quiet: bool = False) -> Defense:
    """The defense as its YAML has it, but for SHORT; `quiet` turns its noise off."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(f"defense/{name}").defense  # the group alone: fast, and none interpolates anything outside
    OmegaConf.set_struct(cfg, False)
    for key, value in SHORT.get(name, {}).items():
        OmegaConf.update(cfg, key, value)
    if quiet and "noise" in cfg:
        cfg.noise.factor, cfg.noise.epsilon, cfg.noise.delta = 0.0, None, None
    if quiet and "noise_std" in cfg:
        cfg.noise_std = 0.0
    built: Defense = make(OmegaConf.create({"defense": cfg}), "defense")
    return built
