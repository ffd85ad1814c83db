"""What the comparison says, in sentences, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pursuit.report.comparison.data import FULL, RANDOM, CompareData, Interval, MethodScore, MetricScores
from pursuit.report.text import UNKNOWN, count, duration, known, number, percent

FEW_SEEDS = 3
AS_GOOD = 0.95  # of the full pool's gain


def budgets_of(metric: MetricScores) -> list[float]:
    """The budgets in ascending order."""
    return sorted({score.budget for score in metric.scores})


def methods_of(data: CompareData) -> list[str]:
    """The methods in the order in which they were given, random last."""
    names = dict.fromkeys(score.method for metric in data.metrics for score in metric.scores)
    return sorted(names, key=lambda name: name == RANDOM)


def better(metric: MetricScores, difference: float) -> bool:
    """Whether a difference in score is one for the better."""
    return difference > 0 if metric.higher_is_better else difference < 0


def at(metric: MetricScores, budget: float) -> list[MethodScore]:
    """The scores at one budget, the best first."""
    sign = -1 if metric.higher_is_better else 1
    found = [score for score in metric.scores if score.budget == budget and known(score.score.mean)]
    return sorted(found, key=lambda score: (sign * score.score.mean, score.method))


def beyond_random(metric: MetricScores, score: MethodScore) -> int:
    """1 where the interval of the paired difference to random lies on the better side, −1 on the worse, 0 neither."""
    interval = score.to_random
    if interval is None or not interval.known or interval.low <= 0 <= interval.high:
        return 0
    return 1 if better(metric, interval.mean) else -1


def interval_text(interval: Interval | None, sign: bool = False) -> str:
    """0.412 (0.398 to 0.426): as many decimals as the interval's width supports; four digits where it is not known."""
    if interval is None or not known(interval.mean):
        return UNKNOWN
    width = interval.high - interval.low if interval.known else 0.0
    if width <= 0:
        return _signed(number(float(f"{interval.mean:.4g}")), interval.mean, sign)
    decimals = max(0, 1 - math.floor(math.log10(width / 2) + 1e-9))
    mean, low, high = (_signed(f"{value:z,.{decimals}f}", value, sign) for value in interval)
    return f"{mean} ({low} to {high})"


def _signed(text: str, value: float, sign: bool) -> str:
    """With a minus that is one, and a plus where the sign matters."""
    return ("+" if sign and value > 0 else "") + text.replace("-", "−")


def findings(data: CompareData) -> list[str]:
    """The result of the first metric, budget by budget, and what limits it."""
    if not data.metrics:
        return ["There are no scores."]
    metric = data.metrics[0]
    return [*_by_budget(metric), *_cost(metric), *_limits(data)]


def _by_budget(metric: MetricScores) -> Iterator[str]:
    worse: dict[str, list[str]] = {}
    for budget in budgets_of(metric):
        ranked = at(metric, budget)
        for score in ranked:
            if beyond_random(metric, score) < 0:
                worse.setdefault(score.method, []).append(percent(budget))
        if ranked:
            yield _best_at(metric, budget, ranked[0])
    if worse:
        named = "; ".join(f"{method} at {', '.join(budgets)}" for method, budgets in worse.items())
        yield f"Worse than random, the interval clear of 0: {named}."


def _best_at(metric: MetricScores, budget: float, best: MethodScore) -> str:
    sentence = f"At {percent(budget)}, {best.method} is best: {metric.name} {interval_text(best.score)}"
    if best.method != RANDOM and best.to_random is not None:
        clear = "clear of 0" if beyond_random(metric, best) else "not clear of 0"
        sentence += f", {interval_text(best.to_random, True)} against random, {clear}"
    if best.gain_kept is not None and known(best.gain_kept):
        sentence += f"; it keeps {percent(best.gain_kept)} of what the whole pool gains"
    return sentence + "."


def _cost(metric: MetricScores) -> Iterator[str]:
    full = metric.full.seconds if metric.full is not None else None
    if full is None:
        return
    dear = [score for score in metric.scores if score.seconds is not None and score.seconds >= full]
    for score in dear[:3]:
        yield (
            f"{score.method} at {percent(score.budget)} does not pay: selecting and training take "
            f"{duration(score.seconds)}, training on the whole pool {duration(full)}."
        )
    enough = [
        score for score in metric.scores
        if (score.gain_kept or 0.0) >= AS_GOOD and score.seconds is not None and score not in dear
    ]  # fmt: skip
    if enough:
        cheapest = min(enough, key=lambda score: score.seconds or 0.0)
        yield (
            f"The cheapest way to {percent(AS_GOOD)} of the full gain or more: {cheapest.method} at "
            f"{percent(cheapest.budget)}, {duration(cheapest.seconds)} against {duration(full)}."
        )


def _limits(data: CompareData) -> Iterator[str]:
    seeds = [score.seeds for metric in data.metrics for score in metric.scores]
    if seeds and min(seeds) < FEW_SEEDS:
        yield f"Some results rest on {min(seeds)} seed{'s' * (min(seeds) != 1)}: their intervals say little or nothing."
    if not any(score.method == RANDOM for score in data.metrics[0].scores):
        yield "Random is not among the methods: nothing says that a selection is better than none."
    if data.metrics[0].full is None:
        yield f"The pool was not trained on as a whole ({FULL}), so the share of its gain is not known."
    if data.failed:
        runs = "One run has" if len(data.failed) == 1 else f"{count(len(data.failed))} runs have"
        yield f"{runs} no result; see Runs."


def families_of(scores: Sequence[MethodScore]) -> list[str]:
    """The families in the order of the first score that has them."""
    return list(dict.fromkeys(name for score in scores for name in score.families))
