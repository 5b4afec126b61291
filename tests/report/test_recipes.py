"""Every recipe (a primary config with its sweep inside): its first job, tiny, and one through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from conftest import Compose, Start
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from texts import TEXT

from flame.federation import play
from flame.report.recipes import recipes
from flame.run.config import identity
from flame.run.overrides import recipe_meant
from flame.run.record import read_run
from flame.run.sweep import jobs

CONF = Path(__file__).parents[2] / "conf"
COMPONENTS = "recipe/ablations/components"
RECIPES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("recipe/*/*.yaml"))
SMALL = ("experiment=smoke", "dataset=digits", "train_samples=300", "rounds=2", "clients=10", "clients_per_round=10")
TINY = (*SMALL, "attack_rounds.start=0", "engine=sequential", "tracker=files")
SMALL_IMAGES = ("model=cnn", "dataset.mean=[0.5]", "dataset.std=[0.5]")
MANY_OR_ONE = ("multi", "single")
TOY_TEXT = (
    *TEXT,
    "dataset.tokens=12",
    "train_samples=null",
    "clients=6",
    "clients_per_round=6",
    "partition=natural",
    "partition.min_samples=1",
)
TOY_WORDS = "sentences=[t1 t2 t3,t4 t5 t6]"
QUICK = {  # what makes the model of a recipe small, too, and what it needs for images of 8 x 8 pixels and two rounds
    "recipe/ablations/masks_wide_digits": ("model.widths=[4,4,4,16]",),
    "recipe/paper/zhmzm": ("train_samples=60",),
    **{f"recipe/protocols/{name}": SMALL_IMAGES for name in ("zhmzm_flame", "backfed_cifar10", "bagdasaryan")},
    "recipe/protocols/dba": (*SMALL_IMAGES, "attack.trigger.size=3", "attack.trigger.gap=1"),
    "recipe/protocols/threedfed": (*SMALL_IMAGES, "attack.backdoor.trigger.points=[[0,0,255]]"),
    "recipe/protocols/neurotoxin": (*SMALL_IMAGES, "client.schedule.falls=1"),
    "recipe/protocols/flpoison": (
        *(*SMALL_IMAGES, "client.schedule.milestones=[1]"),
        *("attack.trigger.size=3", "attack.trigger.row=-3", "attack.trigger.column=-3"),
    ),
    "recipe/defenses/shakespeare_defenses": (*TOY_TEXT, "model=lstm", f"attack.{TOY_WORDS}"),
    "recipe/paper/paper_text": (*TOY_TEXT, "model=lstm", f"attack.backdoor.{TOY_WORDS}"),
    "recipe/question/shakespeare_question": TOY_TEXT,
    **{f"recipe/protocols/backfed_emnist_{shots}shot": ("model=cnn", "~dataset.split") for shots in MANY_OR_ONE},
}


def recipe(name: str) -> DictConfig:
    """As composed without overrides, with the `hydra` node."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, return_hydra_config=True)


def first_job(whole: DictConfig) -> list[str]:
    """Its overrides, made tiny; on the recipe's own partition where that has a q, which it sets or sweeps."""
    words = jobs(whole, [])[0]
    if "q" not in whole.partition or any(word.startswith("partition=") for word in words):
        return [*TINY, *words]
    small = ["partition.samples_per_client=20"] if "samples_per_client" in whole.partition else []
    return [*TINY, f"partition={whole.hydra.runtime.choices.partition}", *small, *words]


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_gives_the_command(name: str) -> None:
    assert f"python train.py --config-name {name}\n" in (CONF / f"{name}.yaml").read_text()


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize("name", RECIPES)
def test_its_table_plans_what_hydra_sweeps(name: str) -> None:
    swept = recipe(name).hydra.sweeper.params
    known = {each.config: each for each in recipes().values()}
    assert known[name].plan == {
        key: tuple(value.strip() for value in str(values).split(",")) for key, values in swept.items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_its_first_job_runs(compose: Compose, start: Start, name: str) -> None:
    whole = recipe(name)
    assert whole.hydra.mode.name == "MULTIRUN"
    with start(compose(*first_job(whole), *QUICK.get(name, ()), name=name)) as (fed, state):
        assert play(fed, state).after.round == 1


def test_the_command_needs_no_flag(train: Callable, tmp_path: Path) -> None:
    """No -m, as a recipe is a sweep by itself; here, of a single job."""
    done = train("--config-name", COMPONENTS, *first_job(recipe(COMPONENTS)), f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (path.parent for path in tmp_path.glob("*/summary.json"))
    assert read_run(folder).config["recipe"] is None  # its tables are nothing of a run
    assert "sweep: 1 of 1 runs, " in done.stdout and done.stdout.rstrip().endswith("about 0 s left")


def test_components_switch_single_steps(compose: Compose) -> None:
    """All eight combinations, none twice."""
    swept = [word for job in jobs(recipe(COMPONENTS), ["seed=0", "attack=badnets"]) for word in [job[2:]]]
    assert len(swept) == len({tuple(words) for words in swept}) == 8


def test_no_run_knows_the_recipe_that_it_is_of(compose: Compose) -> None:
    """Neither its tables nor its name are of its identity."""
    plain = compose("rounds=24", "partition=dirichlet_03", "defense=fedavg", "train_samples=24000", "evaluate_every=24")
    swept = compose("partition=dirichlet_03", "defense=fedavg", name="recipe/question/vector_question")
    assert identity(compose(name=RECIPES[0])) != identity(plain)
    assert identity(OmegaConf.merge(swept, {"evaluate_every": 24})) == identity(plain) and swept.recipe is not None


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--config-name", "vector_question"], "did you mean --config-name recipe/question/vector_question?"),
        (["-cn=recipe/paper/vector_question", "seed=1"], "did you mean --config-name recipe/question/vector_question?"),
        (["recipe/question=norms"], "recipe/question=norms: a recipe is started with --config-name"),
        (["+recipe=shrunkk"], "did you mean --config-name recipe/attacks/shrunk?"),
        (["--config-name", "zzz"], "see `ls conf/recipe/*`"),
    ],
)
def test_a_recipe_that_is_named_otherwise(words: list[str], hint: str) -> None:
    assert hint in str(recipe_meant(words))


def test_a_recipe_that_is_named_as_it_is_needs_no_hint() -> None:
    for words in (["--config-name", RECIPES[0]], ["seed=1"], ["--config-dir", "mine", "--config-name", "x"], []):
        assert recipe_meant(words) is None
