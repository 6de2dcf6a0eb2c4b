"""Reading plans: what a fit takes from the common sections, how it names earlier fits, one line for what is wrong."""

import pytest

from dmlkd.config import PlanConfig, RunConfig, load_config, load_training
from dmlkd.config.plan import laid_over
from dmlkd.errors import ConfigError

COMMON = """\
data: {name: digits, validation: 0}
metric_loss: {name: MultiSimilarityLoss, alpha: 2}
train: {epochs: 20, batch_size: 80, per_class: 16}
"""
GENERATIONS = (
    COMMON
    + """\
plan:
  - first
  - name: next
    repeat: 2
    start: {fit: first, part: trunk}
    train: {epochs: 5}
    distill: [{name: lsd, weight: 50, teacher: {name: finished_run, fit: previous}}]
  - name: last
    metric_loss: ContrastiveLoss
    start: next-1
"""
)
FOLDS = (
    COMMON.replace("validation: 0", "validation: 0, image_folds: 2")
    + """\
plan:
  - {name: a, data: {image_fold: 0}}
  - {name: b, data: {image_fold: 1}}
  - {name: c, distill: [{name: lsd, weight: 1, teacher: {name: out_of_fold, fits: [a, b]}}]}
"""
)


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return path

    return write


def read(path, *overrides) -> dict[str, RunConfig]:
    plan, _ = load_training(path, overrides)
    assert isinstance(plan, PlanConfig)
    return {fit.name: fit.config for fit in plan.fits}


def test_each_fit_is_laid_over_the_common_sections(written):
    fits = read(written(GENERATIONS))
    assert list(fits) == ["first", "next-1", "next-2", "last"]
    assert [config.train.epochs for config in fits.values()] == [20, 5, 5, 20]
    assert {config.train.batch_size for config in fits.values()} == {80}
    assert fits["next-1"].metric_loss.arguments == {"alpha": 2}
    assert fits["last"].metric_loss.arguments == {}  # of another loss: the common one's arguments are not its own
    assert [len(config.distill) for config in fits.values()] == [0, 1, 1, 0]


def test_the_previous_fit_is_that_before_also_among_repetitions(written):
    fits = read(written(GENERATIONS))
    assert [fits[f"next-{n}"].distill[0].teacher.arguments["fit"] for n in (1, 2)] == ["first", "next-1"]
    assert (fits["next-2"].start.fit, fits["next-2"].start.part) == ("first", "trunk")
    assert (fits["last"].start.fit, fits["last"].start.part) == ("next-1", "model")


@pytest.mark.parametrize("text", [GENERATIONS, FOLDS])
def test_the_resolved_plan_reads_back_as_itself(written, text):
    plan, _ = load_training(written(text))
    again, _ = load_training(written(plan.to_yaml()))
    assert again == plan


def test_set_changes_all_fits_or_one(written):
    fits = read(written(GENERATIONS), "train.epochs=3", "train.seed=7", "plan.2.train.lr=1e-2", "plan.0.train.lr=2e-2")
    assert [config.train.epochs for config in fits.values()] == [3, 5, 5, 3]
    assert {config.train.seed for config in fits.values()} == {7}
    assert (fits["first"].train.lr, fits["last"].train.lr) == (2e-2, 1e-2)


def test_a_file_without_a_plan_is_one_run(written):
    config, _ = load_training(written(COMMON))
    assert config == load_config(written(COMMON))[0]


def test_where_one_run_is_due_a_plan_is_refused(written):
    with pytest.raises(ConfigError, match=r"plan\.yaml:4: plan: here is a plan of several fits"):
        load_config(written(GENERATIONS))


def test_what_lies_over_what():
    assert laid_over({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": None}) == {"a": {"b": 1, "c": [3]}, "d": None}
    assert laid_over({"name": "x", "k": 1}, {"k": 2}) == {"name": "x", "k": 2}
    assert laid_over({"name": "x", "k": 1}, {"name": "y"}) == {"name": "y"}
    assert laid_over("x", {"name": "x", "k": 2}) == {"name": "x", "k": 2}


def in_first(entry: str) -> str:
    return GENERATIONS.replace("  - first\n", f"  - {entry}\n")


BAD = {
    "no list": (COMMON + "plan: 3\n", "plan.yaml:4: plan: must be a list of at least one fit, got 3"),
    "no fit": (COMMON + "plan: []\n", "plan.yaml:4: plan: must be a list of at least one fit, got []"),
    "no name": (in_first("{train: {seed: 1}}"), "plan.yaml:5: plan.0: key 'name' is missing"),
    "no mapping": (in_first("[a]"), "plan.yaml:5: plan.0: must be a fit's name, or a mapping with its name, got ['a']"),
    "unknown key of a fit": (
        in_first("{name: a, repaet: 2}"),
        "plan.0.repaet: unknown key 'repaet'; did you mean 'rep",
    ),
    "unknown key in its section": (
        GENERATIONS.replace("{epochs: 5}", "{epoch: 5}"),
        "plan.yaml:9: plan.1.train.epoch: unknown key 'epoch'; did you mean 'epochs'? (fit next-1)",
    ),
    "unknown key in a common section": (
        GENERATIONS.replace("batch_size: 80", "batchsize: 80"),
        "plan.yaml:3: train.batchsize: unknown key 'batchsize'; did you mean 'batch_size'? (fit first)",
    ),
    "missing section": (
        GENERATIONS.replace("metric_loss: {name: MultiSimilarityLoss, alpha: 2}\n", ""),
        "plan.0: key 'metric_loss' is missing (fit first)",
    ),
    "bad repetition": (in_first("{name: a, repeat: 0}"), "plan.0.repeat: must be a whole number of at least 1, got 0"),
    "bad name": (in_first("{name: ../a}"), "plan.0.name: a fit's name must be of letters"),
    "name of two dots": (in_first("{name: '..'}"), "plan.0.name: a fit's name must be of letters"),
    "number for a name": (in_first("{name: 3}"), "plan.0.name: a fit's name must be of letters"),
    "kept name": (in_first("previous"), "plan.0.name: 'previous' stands for the fit before: choose another name"),
    "name twice": (GENERATIONS.replace("name: last", "name: First"), "plan.2.name: there is a fit 'First' already"),
    "later fit": (
        GENERATIONS.replace("start: {fit: first,", "start: {fit: last,"),
        "plan.yaml:8: plan.1.start.fit: no fit 'last' comes before this one; valid: first, previous (fit next-1)",
    ),
    "unknown fit": (
        GENERATIONS.replace("fit: previous", "fit: frist"),
        "plan.yaml:10: plan.1.distill.0.teacher.fit: no fit 'frist' comes before this one; did you mean 'first'?",
    ),
    "itself": (GENERATIONS.replace("start: next-1", "start: last"), "no fit 'last' comes before this one"),
    "none before": (
        in_first("{name: a, start: previous}"),
        "plan.0.start.fit: names the fit 'previous', but no fit comes",
    ),
    "two starts": (
        GENERATIONS.replace("{fit: first, part: trunk}", "{fit: first, path: x}"),
        "plan.1.start: give either fit or path",
    ),
    "unknown key of start": (
        GENERATIONS.replace("part: trunk", "parts: trunk"),
        "plan.1.start.parts: unknown key 'parts'; did you mean 'part'?",
    ),
    "folds that are not left out": (
        FOLDS.replace("{name: b, data: {image_fold: 1}}", "b"),
        "plan.yaml:7: plan.2.distill.0.teacher.fits: fit b leaves no images out: it needs data.image_folds and",
    ),
    "a fold twice": (FOLDS.replace("image_fold: 1", "image_fold: 0"), "for each of 2 folds, these have [0, 0]"),
    "a fold too few": (FOLDS.replace("[a, b]", "[a]"), "must name a fit for each of 2 folds, these have [0]"),
    "other images": (
        FOLDS.replace("image_fold: 1", "image_fold: 1, noise: 0.1"),
        "fit b has another data section or train.seed: its rows are not the same",
    ),
    "another seed": (FOLDS.replace("{name: c,", "{name: c, train: {seed: 1},"), "fit a has another data section or"),
    "unknown fold's fit": (FOLDS.replace("[a, b]", "[a, bb]"), "plan.2.distill.0.teacher.fits.1: no fit 'bb' comes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plan_is_one_line_that_says_where_and_what(written, case):
    text, message = BAD[case]
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_training(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_bad_override_of_a_fit_is_named(written):
    with pytest.raises(ConfigError, match=r"^--set plan\.1\.train\.epoch=3: plan\.1\.train\.epoch: unknown key"):
        load_training(written(GENERATIONS), ["plan.1.train.epoch=3"])
