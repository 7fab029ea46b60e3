"""The record of a sweep and what is read from it, without Ray."""

import io

import pytest
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from upath import UPath

from mst.config import Config
from mst.errors import ConfigError
from mst.model import MST
from mst.model.flops import forward_flops
from mst.overrides import override
from pipelines.cluster import Resources
from pipelines.sweeping.budget import Budget, Limits, spent
from pipelines.sweeping.charts import importances
from pipelines.sweeping.counting import counted
from pipelines.sweeping.page import write_page
from pipelines.sweeping.plan import OBJECTIVES, keep, planned, read
from pipelines.sweeping.points import points
from pipelines.sweeping.record import Record, Result, Takeover, pareto_set, rank
from pipelines.sweeping.schedulers import replay, scheduler
from pipelines.sweeping.search import Proposals
from pipelines.sweeping.sweep import concurrent_trials
from pipelines.sweeping.table import SweepView, seconds_left, sparkline

SPACE = {"model.k_ratio": {"choice": (0.1, 0.2, 0.5)}, "loss.alpha": {"uniform": (0.1, 0.9)}}
CONFIG = override(Config(), {"train.choose_by": "iou", "train.epochs": 4, "train.samples_per_epoch": 240})


@pytest.fixture
def folder(tmp_path):
    return UPath(tmp_path)


def plan_of(trials=20, **asked):
    return planned(CONFIG, asked.pop("space", SPACE), trials, **asked)


def metrics(iou, seconds=0.01):
    return {"val_iou": iou, "val_noc90": 20 - 10 * iou, "val_noc85": 15.0, "val_seconds_per_click": seconds}


def filled(plan, folder, trials=8):
    """A record of trials whose IoU rises with `loss.alpha`, every other one stopped."""
    record = Record(plan, folder)
    for place in range(trials):
        number, settings = record.propose()
        for epoch in range(1, 5 if place % 2 else 3):
            record.add(number, Result(epoch, metrics(settings["loss.alpha"] * epoch / 5, 0.01 * number), 9.0))
        record.end(number)
    return record


def test_a_plan_is_kept_and_read(folder):
    plan = plan_of(objectives=["iou"], resources=Resources(num_workers=2), scheduler="median")
    keep(plan, folder)
    again = read(folder)
    assert again.config == plan.config
    assert again.resources == plan.resources
    assert {name: list(*each.values()) for name, each in again.space.items()} == {
        name: list(*each.values()) for name, each in SPACE.items()
    }
    assert (again.trials, again.scheduler, again.objectives) == (20, "median", ("iou",))
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        read(folder)
    with pytest.raises(ConfigError, match="holds no sweep to resume"):
        read(folder / "none")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objectives": ["noc99"]}, "unknown objective 'noc99'; known are noc90"),
        ({"objectives": ["ms_per_click"]}, "first objective chooses checkpoints"),
        ({"objectives": ["iou", "ms_per_click"], "scheduler": "asha"}, "give --scheduler none"),
        ({"scheduler": "pbt", "trials": 1, "space": {}}, "pbt needs a population"),
        ({"seeds": 3, "scheduler": "asha"}, "a mean over 3 seeds needs all of them; give --scheduler none"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(**asked)


def test_pbt_changes_only_what_can_change():
    with pytest.raises(ConfigError, match=r"mid-training, which 'model.k_ratio' cannot"):
        plan_of(scheduler="pbt")


def test_the_first_objective_chooses_checkpoints():
    assert plan_of(objectives=["noc85"]).config.train.choose_by == "noc85"
    assert plan_of().objectives == ("iou",)


@pytest.mark.parametrize("search", ["tpe", "grid"])
def test_each_point_is_proposed_for_each_seed(folder, search):
    space = {"model.k_ratio": SPACE["model.k_ratio"], "loss.alpha": {"choice": (0.1, 0.9)}}
    plan = plan_of(trials=4, seeds=3, scheduler="none", space=space, search=search)
    keep(plan, folder)
    assert (read(folder).seeds, plan.runs) == (3, 12)
    proposed = []
    for _ in range(12):  # each time another process, as after a kill
        record = Record(plan, folder)
        number, settings = record.propose()
        record.add(number, Result(4, metrics(0.1), 1.0))
        record.end(number)
        proposed.append(settings)
        config = plan.config_for(number, settings)
        assert config.seed == plan.config.seed + number % 3
        assert config.loss.alpha == settings["loss.alpha"]
    assert [proposed[3 * (number // 3)] for number in range(12)] == proposed
    assert len({str(each) for each in proposed}) > 1


def test_points_are_ranked_by_the_mean_of_their_seeds_and_whole_ones_come_first(folder):
    plan = plan_of(trials=3, seeds=2, scheduler="none")
    record = Record(plan, folder)
    for iou in (0.9, 0.1, 0.6, 0.6, 0.99):
        number, _ = record.propose()
        record.add(number, Result(4, metrics(iou), 1.0))
        record.end(number)
    ranked = points(plan, record.trials(), folder)
    assert [[trial.number for trial in each.trials] for each in ranked] == [[2, 3], [0, 1], [4]]
    assert [each.mean for each in ranked] == pytest.approx([0.6, 0.5, 0.99])
    assert ranked[1].values == (0.9, 0.1)
    assert ranked[0].interval is None  # no checkpoint tells of objects
    write_page(plan, record.trials(), folder, ranked)
    assert "each seed" in (folder / "sweep.html").read_text()


def test_a_record_goes_on_in_another_process(folder):
    plan = plan_of()
    record = filled(plan, folder, trials=3)
    number, settings = record.propose()
    record.add(number, Result(1, metrics(0.3), 5.0))
    before = record.trials()
    with (folder / "trials.journal").open("ab") as journal:
        journal.write(b'{"op_code": 8, "worker')  # cut short by a kill

    again = Record(plan, folder)
    assert again.trials() == before
    assert [each.state for each in again.trials()] == ["stopped", "finished", "stopped", "running"]
    again.add(number, Result(1, metrics(0.9), 5.0))  # told twice
    again.add(number, Result(2, metrics(0.4), 5.0))
    assert [each.metrics["val_iou"] for each in again.trial(number).results] == [0.3, 0.4]
    assert again.trial(number).settings == settings
    following = again.propose()[1]
    assert following not in [each.settings for each in before]  # the sampler does not begin anew
    assert len(Record(plan, folder).trials()) == 5


def test_interrupted_trials_come_first_and_ended_ones_never_again(folder, monkeypatch):
    plan = plan_of(trials=5)
    record = filled(plan, folder, trials=2)
    interrupted, settings = record.propose()
    record.add(interrupted, Result(1, metrics(0.3), 5.0))
    proposals = Proposals(plan, Record(plan, folder), concurrent=9, on_infeasible=lambda trial: None)
    asked = []
    monkeypatch.setattr(proposals, "_trial", lambda number, proposal: asked.append((number, proposal)) or 1)
    while proposals.next_trial():
        pass
    assert [number for number, _ in asked] == [2, 3, 4]
    assert asked[0][1] == {**settings, "epochs told": 1}
    assert proposals.is_finished()


def test_what_cannot_be_trained_fails_by_name_and_teaches_tpe(folder, monkeypatch):
    config = override(CONFIG, {"model.image_size": 112})
    space = {"model.patch_sizes": {"choice": ("8,28", "8,32")}, "loss.alpha": {"uniform": (0.1, 0.9)}}
    plan = planned(config, space, 40)
    record, failed = Record(plan, folder), []
    proposals = Proposals(plan, record, concurrent=1, on_infeasible=failed.append)

    def train(number, proposal):
        record.add(number, Result(4, metrics(0.5), 5.0))
        record.end(number)
        return number + 1

    monkeypatch.setattr(proposals, "_trial", train)
    while proposals.next_trial():
        pass
    trials = record.trials()
    assert len(trials) == 40
    assert {each.settings["model.patch_sizes"] for each in trials if each.state == "failed"} == {"8,32"}
    assert all("no multiple of the patch size 32" in each.failure for each in failed)
    assert [each.number for each in failed] == [each.number for each in trials if each.failure]
    first, last = (sum(bool(each.failure) for each in part) for part in (trials[:20], trials[20:]))
    assert last < first
    assert last <= 6  # of 20, where chance would make it 10


def test_a_grid_tries_each_point_once(folder):
    space = {"model.k_ratio": {"choice": (0.1, 0.2)}, "loss.alpha": {"choice": (0.4, 0.6)}}
    plan = plan_of(trials=4, space=space, search="grid")
    asked = [tuple(Record(plan, folder).propose()[1].values()) for _ in range(4)]  # a new process for each
    assert asked == [(0.1, 0.4), (0.1, 0.6), (0.2, 0.4), (0.2, 0.6)]


def test_weights_that_were_taken_over_replace_what_came_after_them(folder):
    record = Record(plan_of(), folder)
    number, settings = record.propose()
    for epoch in (1, 2, 3):
        record.add(number, Result(epoch, metrics(epoch / 10), 5.0))
    takeover, others = Takeover("trial_007", 2, 1.5), {**settings, "loss.alpha": 0.25}
    for epoch in (3, 4):
        record.take_over(number, takeover, others)
        record.add(number, Result(epoch, metrics(epoch / 5), 5.0))
    mine = record.trial(number)
    assert [(each.epoch, each.metrics["val_iou"]) for each in mine.results] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.6),
        (4, 0.8),
    ]
    assert (mine.settings, mine.takeovers) == (others, (takeover,))
    assert (mine.validations, mine.seconds) == (5, 25.0)  # what was dropped has cost as well


def test_an_ordered_setting_comes_as_its_value_and_is_found_again(folder):
    space = {"model.k_ratio": {"ordered": (0.04, 0.1, 0.5)}}
    plan = plan_of(space=space, search="grid", trials=3)
    record = Record(plan, folder)
    assert [record.propose()[1]["model.k_ratio"] for _ in range(3)] == [0.04, 0.1, 0.5]
    keep(plan, folder)
    again = Record(read(folder), folder).trials()  # from JSON
    assert [each.settings["model.k_ratio"] for each in again] == [0.04, 0.1, 0.5]


def test_operations_and_parameters_are_objectives_that_are_counted(folder):
    tiny = {"model.size": "tiny", "model.image_size": 112, "model.depth": 3}
    config = override(CONFIG, tiny)
    one, four = (counted(override(config, {"model.fusion_mlp_ratio": each}).model) for each in (0, 4))
    assert one["forward_flops"] == forward_flops(MST(config.model)) < four["forward_flops"]
    assert one["click_flops"] == one["forward_flops"]  # clicks enter first
    late = counted(override(config, {"model.click_entry": 3, "model.fusion_stages": 1}).model)
    assert 0 < late["click_flops"] < late["forward_flops"] / 3
    mlps = 3 * 2 * (8 * 192**2 + (4 + 1 + 2) * 192)  # weights, biases and norms of two in three modules
    assert four["parameters"] - one["parameters"] == mlps
    plan = plan_of(scheduler="none", objectives=["iou", "gflops", "parameters"])
    assert (plan.is_counted, plan.is_timed) == (True, False)
    flops, parameters = plan.all_objectives()[1:]
    assert flops.shown(one) == pytest.approx(one["forward_flops"] / 1e9)
    assert parameters.shown(one) == pytest.approx(one["parameters"] / 1e6)


def test_where_clicks_are_timed_trials_train_one_at_a_time():
    assert concurrent_trials(plan_of(scheduler="none", objectives=["iou", "ms_per_click"])) == 1


def test_ranks_and_the_pareto_set(folder):
    plan = plan_of(scheduler="none", objectives=["iou", "ms_per_click"])
    record = Record(plan, folder)
    for iou, seconds in ((0.5, 0.010), (0.8, 0.030), (0.7, 0.040), (0.6, 0.020), (0.5, 0.010)):
        number, _ = record.propose()
        record.add(number, Result(4, metrics(iou, seconds), 5.0))
        record.end(number)
    trials = record.trials()
    assert [each.number for each in rank(trials, plan.primary)] == [1, 2, 3, 0, 4]
    assert [each.number for each in rank(trials, OBJECTIVES["ms_per_click"])][-1] == 2
    assert [each.number for each in pareto_set(trials, plan.all_objectives())] == [1, 3, 0, 4]
    assert {each.number for each in record._study.best_trials} == {0, 1, 3, 4}  # Optuna's own says the same


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (Limits(), None),
        (Limits(hours=1), None),
        (Limits(hours=0), "0 hours"),
        (Limits(samples=12 * 240), "2880 samples"),
        (Limits(samples=12 * 240 + 1), None),
        (Limits(gpu_hours=12 * 9 / 3600), "0.03 GPU hours"),
        (Limits(gpu_hours=12.1 * 9 / 3600), None),
    ],
)
def test_a_budget_ends_the_sweep(folder, limits, reached):
    plan = plan_of(resources=Resources(num_workers=2, use_gpu=True, gpus_per_worker=0.5))
    record = filled(plan, folder, trials=4)
    assert spent(plan, record.trials()) == (spent_now := spent(plan, record.trials()))
    assert spent_now.samples == 12 * 240
    budget = Budget(plan, limits, record)
    assert budget.stop_all() is (reached is not None)
    assert budget.reached == reached


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_resumed_sweeps_scheduler_knows_the_trials_before(folder, name):
    plan = plan_of(scheduler=name)
    trials = filled(plan, folder).trials()

    class Bad:
        trial_id, status = "trial_099", "RUNNING"

    def decision(decides):
        decides.on_trial_add(None, Bad)
        return decides.on_trial_result(None, Bad, {"epoch": 1, "val_iou": 0.001})

    remembers = scheduler(plan)
    replay(remembers, plan, trials)
    assert decision(remembers) == TrialScheduler.STOP
    if name == "asha":  # a fresh one has nothing to compare with
        assert decision(scheduler(plan)) == TrialScheduler.CONTINUE


def test_importance_finds_the_setting_that_matters(folder):
    plan = plan_of(search="random")
    trials = filled(plan, folder, trials=40).trials()
    shares = importances(plan, trials, plan.primary)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["loss.alpha"] > 0.6
    assert importances(plan, trials[:3], plan.primary) is None


def test_the_page_shows_every_trial_and_needs_no_network(folder):
    plan = plan_of()
    record = filled(plan, folder)
    number, _ = record.propose()
    record.fail(number, "patches <32> do not divide", is_of_settings=True)
    page, picture = write_page(plan, record.trials(), folder)
    text = page.read_text()
    assert text.count("<svg") == 4
    assert [text.count(f'<tr id="trial_00{each}"') for each in range(9)] == [1] * 9
    assert "patches &lt;32&gt; do not divide" in text
    assert all(f"trial_00{each}.{chart}" in text for each in range(8) for chart in ("parallel", "curve"))
    assert "src=" not in text
    assert "@import" not in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_single_trial_says_what_it_cannot_show(folder):
    plan = plan_of()
    page, _ = write_page(plan, filled(plan, folder, trials=1).trials(), folder)
    assert "too few trials" in page.read_text()


def test_a_terminal_has_a_table_and_a_file_has_lines(folder):
    plan = plan_of(trials=10)
    trials = filled(plan, folder).trials()
    lines = io.StringIO()
    view = SweepView(plan, Console(file=lines, width=60), concurrent=2)
    with view.shown():
        view.show(trials, validated=3)
    best = max(trials, key=lambda each: each.results[-1].metrics["val_iou"])
    (line,) = lines.getvalue().splitlines()
    assert line.startswith("trial_003: epoch 4/4  IoU ")
    assert f"({best.name})" in line
    assert line.endswith("at most 0:00:36 left")  # 2 trials of 4 epochs of 9 s, side by side
    assert seconds_left(plan, trials, 2) == 36

    screen = io.StringIO()
    view = SweepView(plan, Console(file=screen, width=120, force_terminal=True), concurrent=2)
    with view.shown():
        view.show(trials)
    assert "8/10 trials" in screen.getvalue()
    assert sparkline(trials[1], plan.primary) in screen.getvalue()
    assert sparkline(trials[1], plan.primary)[-1] == "█"
