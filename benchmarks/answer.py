"""How often the answer is right: rule and plan replayed over a pool of trained runs.

    python benchmarks/answer.py pool --data ../shared/data/mnist --samples 7 --seeds 16 --out runs/answer
    python benchmarks/answer.py replay --out runs/answer --replays 200
    python benchmarks/answer.py command --out runs/answer
    python benchmarks/answer.py synthetic --repeats 1000

`pool` trains the digits experiment on disjoint samples of 10,000 images of MNIST's training set, every rank and full
fine-tuning at each learning rate, with many seeds, each validating on its own cut, and measures every run on images
that none of the sample's runs has seen. `replay` then draws seeds of one sample in a random order and lets the
package's own plan and rule decide on them, many times; the truth is the mean over all of the pool's seeds on the unseen
images, against full fine-tuning at its best rate. Where a configuration's true distance to the tolerance is less than
two standard errors, it is counted apart as "at the edge". `command` runs `rankwise digits` on each of the samples, and
holds its answer against the same truth. `synthetic` asks the rule alone, on populations whose truth is
known by construction.
"""

import argparse
import io
import json
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from rankwise.sweeps.choose.adaptive import Ladder
from rankwise.sweeps.choose.answer import decide, reference_of
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.configurations import RunScore, choose_learning_rates
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.choose.rule import Rule, Tolerance, parse_tolerance
from rankwise.sweeps.problem import Scores, SweepState
from rankwise.sweeps.run.auto import Auto, Walk
from rankwise.sweeps.run.run import run_sweep
from rankwise.sweeps.run.stage import Decisions, Phase
from rankwise.tasks.digits.digits import digits_candidates, make_problem, pretrain
from rankwise.tasks.digits.mnist import RawDigits, Split, load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.events import Observers
from rankwise.train.outcome import Outcome

LRS, BASELINE_LRS = (1e-3, 3e-3), (3e-4, 1e-3)
TOLERANCES = ("1%", "1.5%", "2%", "3%")
SIZE, N_TRAIN, N_VALIDATION, UNSEEN = 10_000, 7_000, 1_000, 20_000


def options(seeds: int, epochs: int | None) -> DigitsOptions:
    return DigitsOptions(lr=LRS, baseline_lr=BASELINE_LRS, seeds=tuple(range(seeds)), epochs=epochs, device="cpu")


def part(split: Split, index: np.ndarray) -> Split:
    return replace(split, images=split.images[index], labels=split.labels[index])


def raw_sample(data: str, sample: int, n_validation: int) -> RawDigits:
    """One of the disjoint samples, cut as the embedded data is; its test images are of the other samples."""
    whole = load_digits_data(data)
    images = np.concatenate([whole.train.images, whole.validation.images, whole.test.images])
    labels = np.concatenate([whole.train.labels, whole.validation.labels, whole.test.labels])
    everything = Split(images, labels)
    order = np.random.default_rng(0).permutation(len(labels))
    own = order[sample * SIZE : (sample + 1) * SIZE]
    others = np.random.default_rng(sample + 1).permutation(np.setdiff1d(order, own))[:UNSEEN]
    n_train = N_TRAIN + N_VALIDATION - n_validation
    return RawDigits(
        f"sample {sample}",
        part(everything, own[:n_train]),
        part(everything, own[n_train : n_train + n_validation]),
        part(everything, others),
    )


def make_pool(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for sample in range(args.samples):
        path = args.out / f"sample-{sample}-{args.validation}.npz"
        if path.exists():
            continue
        chosen = options(args.seeds, args.epochs)
        problem = replace(
            make_problem(raw_sample(args.data, sample, args.validation), torch.device("cpu")), rotate=True
        )
        model = pretrain(problem, chosen)
        runs = [c.run(lr, seed) for c in digits_candidates(chosen) for lr in c.lrs for seed in chosen.seed_list]
        swept = run_sweep(model, runs, replace(problem, other_tests={}), Observers())
        floors: dict[str, np.ndarray] = {}
        from rankwise.sweeps.floors import measured_floors

        found = measured_floors(model, problem, "new")
        for seed in chosen.seed_list:
            rows = problem.splits["new"].rotation.cut(seed).validation.numpy()
            floors[f"base/{seed}"], floors[f"constant/{seed}"] = found.base(rows), found.constant(rows)
            floors[f"rows/{seed}"] = rows
        arrays = {f"deciding/{r.name}": swept.scores[r.name].deciding.astype(np.float32) for r in runs}
        arrays |= {f"test/{r.name}": swept.scores[r.name].test.astype(np.float32) for r in runs}
        np.savez_compressed(path, **arrays, **floors)
        print(f"{path}: {len(runs)} runs", flush=True)


@dataclass
class Pool:
    """One sample's runs."""

    arrays: dict[str, np.ndarray]
    candidates: list
    parameters: dict[str, int]
    model: torch.nn.Module

    def mean(self, name: str, seeds: range) -> tuple[float, np.ndarray, float]:
        """The best rate's mean on unseen images, by the pool's own means; and its seeds' means."""
        c = next(c for c in self.candidates if c.name == name)
        by_rate = {lr: np.array([self.arrays[f"test/{c.run(lr, s).name}"].mean() for s in seeds]) for lr in c.lrs}
        best = max(by_rate, key=lambda lr: by_rate[lr].mean())
        return float(by_rate[best].mean()), by_rate[best], best


class Replayed:
    """What the plan asks of the stages of a sweep, answered from the pool."""

    def __init__(self, pool: Pool, seeds: list[int], search_seed: int, price: float) -> None:
        self.pool, self.seeds, self.search_seed, self.price = pool, tuple(seeds), search_seed, price
        self.candidates, self.model = pool.candidates, pool.model
        self.observers, self.rungs = SimpleNamespace(message=lambda text: None), ()
        self.seconds_before = 0.0

    def measured(self, run) -> tuple[np.ndarray, np.ndarray]:
        """The deciding values of a run, and the rows they were measured on."""
        return self.pool.arrays[f"deciding/{run.name}"], self.pool.arrays[f"rows/{run.member.seed}"]

    def train(self, runs):
        return (yield Phase(runs))

    def carried_out(self, phase):
        runs = phase.runs
        swept = SweepState(runs, {run.name: self.pool.parameters[run.configuration] for run in runs}, complete=True)
        for run in runs:
            deciding, rows = self.measured(run)
            swept.outcomes[run.name] = Outcome(run.name, {}, "finished", None, 0, 0, 0, 0.0)
            swept.scores[run.name] = Scores(deciding, 0.0, np.empty(0), {}, deciding, rows)
        return swept

    def search_rates(self, candidates, seed, further=()):
        yield from ()
        rates, told = {}, []
        for c in candidates:
            values = {lr: self.pool.arrays[f"deciding/{c.run(lr, self.search_seed).name}"].mean() for lr in c.lrs}
            rates[c.name] = max(values, key=values.get)
            told += [{"configuration": c.name, "lr": lr} for lr in c.lrs]
        return rates, {}, told

    def measured_price(self, runs):
        return self.price


def load_pool(path: Path, seeds: int) -> Pool:
    return replace(made_up_pool(seeds), arrays=dict(np.load(path)))


def made_up_pool(seeds: int = 16) -> Pool:
    """The digits experiment's candidates, without a run."""
    from rankwise.pack.resolved import resolve
    from rankwise.tasks.digits.digits import make_model

    candidates, model = digits_candidates(options(seeds, None)), make_model()
    parameters = {c.name: resolve(model, c.run(c.lrs[0], 0).member).parameter_count() for c in candidates}
    return Pool({}, candidates, parameters, model)


def floors_of(pool: Pool, seeds: range) -> Floors:
    by_rows = {pool.arrays[f"rows/{s}"].tobytes(): s for s in seeds}

    def taken(name):
        return lambda rows: pool.arrays[f"{name}/{by_rows[rows.tobytes()]}"]

    return Floors(taken("base"), taken("constant"))


def truth(pool: Pool, rule: Rule, seeds: range) -> tuple[str, dict[str, tuple[float, float]]]:
    """The right answer; and by rank how far it lies inside the tolerance on unseen images, with its standard error."""
    full, full_seeds, _ = pool.mean("full", seeds)
    inside: dict[str, tuple[float, float]] = {}
    for c in pool.candidates:
        if c.method == "lora" and pool.parameters[c.name] < pool.parameters["full"]:
            mean, own, _ = pool.mean(c.name, seeds)
            gap = mean - (1 - rule.tolerance.of_reference) * full
            error = float((own - (1 - rule.tolerance.of_reference) * full_seeds).std(ddof=1) / len(own) ** 0.5)
            inside[c.name] = (gap, error)
    return next((name for name, (gap, _) in inside.items() if gap > 0), "full"), inside


def command(args: argparse.Namespace) -> None:
    from rankwise.cli import main as rankwise
    from rankwise.tasks.digits import run

    seeds = range(args.seeds)
    print("| sample | tolerance | verdict | answer | right | inside by (points) | runs | seconds |")
    print("|---:|---:|---|---|---|---:|---:|---:|")
    for sample in range(args.samples):
        pool = load_pool(args.out / f"sample-{sample}-{args.validation}.npz", args.seeds)
        run.load_digits_data = lambda _, sample=sample: raw_sample(args.data, sample, args.validation)
        for text in args.tolerances.split(","):
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                rankwise(["digits", "--tolerance", text, "--quiet", "--device", "cpu", "--out", f"{folder}/run"])
                results = json.loads((Path(folder) / "run" / "results.json").read_text())
            answer, rule = results["answer"], Rule(parse_tolerance(text, True), True)
            right, inside = truth(pool, rule, seeds)
            gap = (
                "{:+.2f} \u00b1 {:.2f}".format(*(100 * x for x in inside[answer["name"]]))
                if answer["name"] in inside
                else ""
            )
            cells = [sample, text, answer["verdict"], answer["name"], right, gap]
            cells += [len(results["runs"]), f"{results['seconds']:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


@dataclass(frozen=True)
class FromRight(Ladder):
    """A ladder on which the plan begins at the right size: no proposal can do better."""

    right: str

    @property
    def middle(self) -> str:
        return self.right if self.right in self.names else self.names[-1]


def replay(args: argparse.Namespace) -> None:
    paths = sorted(args.out.glob(f"sample-*-{args.validation}.npz"))
    seeds = range(args.seeds)
    pools = [load_pool(path, args.seeds) for path in paths]
    print(f"{len(pools)} samples, {args.seeds} seeds, n = {args.validation} images before digits are selected")
    print("| tolerance | outside | at the edge | shown | right rank | undecided | nothing smaller | runs |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for text in TOLERANCES:
        counts = dict.fromkeys(("outside", "edge", "shown", "right", "undecided", "nothing_smaller"), 0)
        runs, n = 0, 0
        rule = Rule(parse_tolerance(text, True), True, args.confidence)
        for k in range(args.replays):
            pool = pools[k % len(pools)]
            draws = np.random.default_rng([k, 7])
            order = draws.permutation(args.seeds).tolist()
            # The last one searches for learning rates and decides nothing.
            stages = Replayed(pool, order[:-1], order[-1], args.price)
            walk = Walk(stages, Auto(rule=rule, floors=floors_of(pool, seeds), curve=False))
            if args.oracle:
                walk.ladders = [FromRight(one.names, truth(pool, rule, seeds)[0]) for one in walk.ladders]
            answer = decided(walk, rule, floors_of(pool, seeds))
            runs, n = runs + len(walk.swept.runs) + walk.searched, n + 1
            right, inside = truth(pool, rule, seeds)
            counts["undecided"] += answer.verdict == "undecided"
            counts["nothing_smaller"] += answer.verdict == "nothing_smaller"
            if answer.verdict == "shown":
                gap, error = inside[answer.name]
                counts["shown"] += 1
                counts["edge"] += gap <= 0 and abs(gap) < 2 * error
                counts["outside"] += gap <= 0 and abs(gap) >= 2 * error
            counts["right"] += answer.name == right and answer.verdict in ("shown", "nothing_smaller")
        shares = [
            f"{counts[key] / n:.3f}" for key in ("outside", "edge", "shown", "right", "undecided", "nothing_smaller")
        ]
        print(f"| {text} | {' | '.join(shares)} | {runs / n:.1f} |", flush=True)


def correct(draws, difficulty, mean, seeds, luck=0.004, noise=0.35):
    """Hits of runs whose accuracy is about `mean` on examples of this difficulty."""
    from scipy.stats import norm

    shares = np.clip(mean + luck * draws.standard_normal(seeds), 0.001, 0.999)
    scale = (1 + noise**2) ** 0.5
    cuts = norm.ppf(shares)[:, None] * scale
    return difficulty[None] + noise * draws.standard_normal((seeds, len(difficulty))) < cuts


def scores(name, hits, parameters, method="lora"):
    r = int(name[1:]) if method == "lora" else None
    return [
        RunScore(
            name=f"{name}-s{s}",
            method=method,
            r=r,
            lr=1e-3,
            seed=s,
            trainable_parameters=parameters,
            validation=row.astype(float),
            configuration=name,
        )
        for s, row in enumerate(hits)
    ]


class MadeUp(Replayed):
    """Stages whose runs are drawn: every seed has validation rows of its own, all sizes have one accuracy."""

    def __init__(self, pool: Pool, k: int, full: float, others: float, n: int = 506) -> None:
        super().__init__(pool, list(range(15)), 15, 1.0)
        self.k, self.n, self.means = k, n, {c.name: full if c.method == "full" else others for c in pool.candidates}

    def measured(self, run) -> tuple[np.ndarray, np.ndarray]:
        seed = run.member.seed
        difficulty = np.random.default_rng([self.k, seed, 0]).standard_normal(self.n)
        own = np.random.default_rng([self.k, seed, 1 + list(self.means).index(run.configuration)])
        hits = correct(own, difficulty, self.means[run.configuration], 1)[0].astype(float)
        return hits, seed * self.n + np.arange(self.n)

    def search_rates(self, candidates, seed, further=()):
        yield from ()
        return {c.name: c.lrs[0] for c in candidates}, {}, []


def decided(walk: Walk, rule: Rule, floors: Floors):
    """The plan followed to its end, and the answer: as the package's own record of a sweep takes it."""
    phases = Decisions(walk.phases())
    for phase in phases:
        phases.take(walk.stages.carried_out(phase))
    found = phases.result
    runs_at = [run for run in found.swept.runs if run.training.lr == found.rates[run.configuration]]
    configurations = choose_learning_rates([found.swept.score(run) for run in runs_at], True)
    (reference,) = (c for c in configurations if c.name == found.reference)
    return decide(configurations, reference, rule, floors, found.path)


def synthetic(args: argparse.Namespace) -> None:
    tolerance = Tolerance(of_reference=0.01)

    def share(repeats, make, strict=False, floor=None):
        named = 0
        for k in range(repeats):
            runs, floors = make(np.random.default_rng(k))
            configurations = choose_learning_rates(runs, True)
            rule = Rule(tolerance, True, 0.95, strict)
            answer = decide(configurations, reference_of(configurations, True), rule, floors)
            named += answer.verdict == "shown"
        return named / repeats

    def outside(draws, n=506, seeds=5, full=0.962, off=0.0001):
        difficulty = draws.standard_normal(n)
        runs = scores("full", correct(draws, difficulty, full, seeds), 54_725, "full")
        for r in (1, 2, 4, 8, 16, 32, 48):
            runs += scores(f"r{r}", correct(draws, difficulty, 0.99 * full - off, seeds), 1045 * r)
        return runs, Floors()

    def few(n):
        def make(draws):
            difficulty = draws.standard_normal(n)
            runs = scores("full", correct(draws, difficulty, 0.97, 3), 54_725, "full")
            runs += scores("r1", correct(draws, difficulty, 0.955, 3), 1045)
            return runs, Floors()

        return make

    def random_labels(draws):
        labels = draws.integers(0, 5, 506)
        floor = (labels == 0).astype(float)
        runs = scores("full", draws.random((5, 506)) < 0.2, 54_725, "full")
        runs += scores("r1", draws.random((5, 506)) < 0.2, 1045)
        return runs, Floors(base=lambda rows: floor)

    def equal(n):
        def make(draws):
            difficulty = draws.standard_normal(n)
            hits = correct(draws, difficulty, 0.96, 3)
            return scores("full", hits, 54_725, "full") + scores("r1", hits, 1045), Floors()

        return make

    def automatic(strict, full=0.962, off=0.0001):
        pool = made_up_pool()
        named = 0
        for k in range(args.repeats):
            rule = Deciding(tolerance="1%", strict=strict, plan="auto").rule(True)
            rule = replace(rule, tolerance=tolerance)
            stages = MadeUp(pool, k, full, 0.99 * full - off)
            answer = decided(Walk(stages, Auto(rule=rule, floors=Floors(), curve=False)), rule, Floors())
            named += answer.verdict == "shown"
        return named / args.repeats

    rows = {
        "7 ranks all just outside, --plan auto": lambda: automatic(False),
        "7 ranks all just outside, --plan auto --strict": lambda: automatic(True),
        "7 ranks all 0.2 points outside, --plan auto": lambda: automatic(False, off=0.002),
        "7 ranks all 0.4 points outside, --plan auto": lambda: automatic(False, off=0.004),
        "all equal, n = 506 (r = 1 is right)": lambda: share(args.repeats, equal(506)),
        "all equal, n = 300 (too few rows for 1%)": lambda: share(args.repeats, equal(300)),
        "7 ranks all just outside, plain grid": lambda: share(args.repeats, outside),
        "7 ranks all just outside, strict": lambda: share(args.repeats, outside, strict=True),
        **{f"r = 1 outside, accuracy .97, n = {n}": lambda n=n: share(args.repeats, few(n)) for n in (20, 50, 100)},
        "random labels": lambda: share(min(args.repeats, 200), random_labels),
    }
    print(f"{args.repeats} repeats a row")
    print("| population | an adapter is named |")
    print("|---|---:|")
    for name, value in rows.items():
        print(f"| {name} | {value():.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pool", "replay", "command", "synthetic"])
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/answer"))
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--validation", type=int, default=N_VALIDATION, help="images of a cut, of all ten digits")
    parser.add_argument("--tolerances", default="1%,1.5%,2%,3%", help="of `command`")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--oracle", action="store_true", help="replays begin at the right size")
    parser.add_argument("--price", type=float, default=1.0, help="of a further adapter, as a share of the first")
    args = parser.parse_args()
    {"pool": make_pool, "replay": replay, "command": command, "synthetic": synthetic}[args.what](args)


if __name__ == "__main__":
    main()
