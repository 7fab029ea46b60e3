"""What TPE and ASHA save against random search, on an objective whose optimum is known."""

import io
import math
import statistics
from types import SimpleNamespace

from ray import tune
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from upath import UPath

from mst.config import Config
from mst.overrides import override
from pipelines.sweeping.budget import Limits
from pipelines.sweeping.plan import planned
from pipelines.sweeping.record import Record, Result
from pipelines.sweeping.schedulers import scheduler
from pipelines.sweeping.sweep import explore
from pipelines.sweeping.table import SweepView

EPOCHS = 16
OPTIMUM = 0.9
FOUND = 0.95 * OPTIMUM
SEEDS = range(0, 5000, 1000)  # far apart, as a sweep that goes on adds to its seed
MOST = 3000  # epochs of random search
SPACE = {
    "optim.lr": {"loguniform": (1e-6, 1e-1)},
    "loss.alpha": {"uniform": (0.05, 0.95)},
    "model.k_ratio": {"choice": (0.05, 0.1, 0.2, 0.4)},
}


def learning():
    """The IoU of a training after so many epochs; made here, it travels to Ray's workers as it is."""

    def iou(settings, epoch):
        far = ((math.log10(settings["optim.lr"]) + 3.3) / 2) ** 2 + (
            (settings["loss.alpha"] - 0.4) / 0.6
        ) ** 2
        far += 0.0 if settings["model.k_ratio"] == 0.1 else 0.15
        return OPTIMUM * math.exp(-far) * (1 - math.exp(-epoch / 3)) / (1 - math.exp(-EPOCHS / 3))

    return iou


def plan_of(seed, trials, **asked):
    config = override(Config(), {"seed": seed, "train.choose_by": "iou", "train.epochs": EPOCHS})
    return planned(config, SPACE, trials, **asked)


def epochs_of_random_search(seed, folder):
    """What random search takes, which trains every trial to its end."""
    record = Record(plan_of(seed, 1, search="random"), UPath(folder))
    iou, used = learning(), 0
    while used < MOST:
        used += EPOCHS
        if iou(record.propose()[1], EPOCHS) >= FOUND:
            break
    return used


def test_tpe_and_asha_take_half_the_epochs_of_random_search(tmp_path):
    iou = learning()

    def epochs(seed, folder):
        plan = plan_of(seed, 60)
        record, asha, used = Record(plan, UPath(folder)), scheduler(plan), 0
        for _ in range(plan.trials):
            number, settings = record.propose()
            trial = SimpleNamespace(trial_id=str(number))
            asha.on_trial_add(None, trial)
            for epoch in range(1, EPOCHS + 1):
                used, value = used + 1, iou(settings, epoch)
                record.add(number, Result(epoch, {"val_iou": value}, 1.0))
                if value >= FOUND:
                    return used
                if (
                    asha.on_trial_result(None, trial, {"epoch": epoch, "val_iou": value})
                    == TrialScheduler.STOP
                ):
                    break
            record.end(number)
        return math.inf

    ours, random = compare(epochs, tmp_path)
    assert ours <= random / 2


def test_so_they_do_through_ray_tune(cluster, tmp_path):
    iou = learning()

    def train(proposal):
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "val_iou": iou(proposal, epoch)})

    class Counting(SweepView):
        """Notes after how many epochs of all trials the point was found."""

        used, found = 0, math.inf

        def show(self, trials, *, validated=None, failed=None):
            self.used += validated is not None
            if validated is not None and trials[validated].results[-1].metrics["val_iou"] >= FOUND:
                self.found = min(self.found, self.used)

    def epochs(seed, folder):
        plan = plan_of(seed, 40)
        view = Counting(plan, Console(file=io.StringIO()), 2)
        explore(plan, UPath(folder), Limits(), view, train)
        return view.found

    ours, random = compare(epochs, tmp_path)
    assert ours <= random / 2


def compare(epochs, tmp_path):
    """The median over seeds of the epochs that a search takes, and of those that random search takes."""
    ours, random = [], []
    for seed in SEEDS:
        for name in ("ours", "random"):
            (tmp_path / f"{name}_{seed}").mkdir()
        ours.append(epochs(seed, tmp_path / f"ours_{seed}"))
        random.append(epochs_of_random_search(seed, tmp_path / f"random_{seed}"))
    print(f"epochs: ours {ours}, random search {random}")  # noqa: T201  # shown by pytest -s
    return statistics.median(ours), statistics.median(random)
