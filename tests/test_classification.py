"""Class posteriors measured: against naive loops, and by what the definitions promise."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.classification import adaptive_calibration_error, area_under_risk_coverage, measure_posteriors


def naive_adaptive(confidences, correct, bins):
    n = len(confidences)
    members = [[] for _ in range(bins)]
    for i in range(n):
        members[sum(c < confidences[i] for c in confidences) * bins // n].append(i)
    error = 0.0
    for chosen in filter(None, members):
        accuracy = sum(correct[i] for i in chosen) / len(chosen)
        confidence = sum(confidences[i] for i in chosen) / len(chosen)
        error += len(chosen) / n * abs(accuracy - confidence)
    return error


def naive_aurc(confidences, correct):
    total = 0.0
    for threshold in confidences:
        accepted = [right for c, right in zip(confidences, correct, strict=True) if c >= threshold]
        total += sum(not right for right in accepted) / len(accepted)
    return total / len(confidences)


def naive_spread(values):
    middle = sum(values) / len(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / len(values))


def naive(logits, labels, bins):
    rows = [[math.exp(o - max(row)) for o in row] for row in logits.tolist()]
    rows = [[p / sum(row) for p in row] for row in rows]
    n, labels = len(rows), labels.tolist()
    ranks = [sum(p > row[y] for p in row) for row, y in zip(rows, labels, strict=True)]
    confidences, correct = [max(row) for row in rows], [rank == 0 for rank in ranks]
    ece = 0.0
    for b in range(bins):
        chosen = [i for i in range(n) if b / bins <= confidences[i] < (b + 1) / bins]
        ece += abs(sum(correct[i] for i in chosen) - sum(confidences[i] for i in chosen)) / n
    return {
        "top1": sum(correct) / n,
        "top5": sum(rank < 5 for rank in ranks) / n,
        "ece": ece,
        "adaptive_ece": naive_adaptive(confidences, correct, bins),
        "nll": -sum(math.log(row[y]) for row, y in zip(rows, labels, strict=True)) / n,
        "brier": sum((p - (c == y)) ** 2 for row, y in zip(rows, labels, strict=True) for c, p in enumerate(row)) / n,
        "aurc": naive_aurc(confidences, correct),
        "confidence": sum(confidences) / n,
        "entropy": -sum(p * math.log(p) for row in rows for p in row if p > 0) / n,
        "spread": naive_spread(confidences),
        "label_spread": naive_spread([row[y] for row, y in zip(rows, labels, strict=True)]),
    }


def made_up(n=97, classes=9, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=generator)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.5,
        logits.argmax(dim=1),
        torch.randint(classes, (n,), generator=generator),
    )
    return logits, labels


@pytest.mark.parametrize("bins", [1, 4, 15, 200])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_every_score_is_that_of_the_naive_loops(bins, sharpness):
    logits, labels = made_up(sharpness=sharpness)
    found = measure_posteriors(logits=logits, labels=labels, bins=bins)._asdict()
    assert found == pytest.approx(naive(logits, labels, bins), abs=1e-6)


tied = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=40)


@given(tied, st.integers(1, 20), st.randoms())
def test_adaptive_error_and_aurc_are_the_naive_ones_with_ties_and_in_any_order(pairs, bins, random):
    confidences, correct = zip(*pairs, strict=True)
    random.shuffle(pairs)
    arrays = [
        {"confidences": torch.tensor(c), "correct": torch.tensor(r)}
        for c, r in ((confidences, correct), zip(*pairs, strict=True))
    ]
    expected = naive_adaptive(torch.tensor(confidences).tolist(), correct, bins)
    for array in arrays:
        assert adaptive_calibration_error(**array, bins=bins) == pytest.approx(expected, abs=1e-12)
        assert area_under_risk_coverage(**array) == pytest.approx(naive_aurc(confidences, correct), abs=1e-12)


@given(st.lists(st.integers(3, 9), min_size=1, max_size=5))
def test_both_calibration_errors_are_0_where_each_confidence_is_the_share_of_right_predictions(tenths):
    logits, labels = [], []
    for right in tenths:  # ten images of confidence right / 10, among 5 classes
        rest = (1 - right / 10) / 4
        for image in range(10):
            logits.append([math.log(right / 10), *[math.log(rest)] * 4])
            labels.append(0 if image < right else 1)
    scores = measure_posteriors(logits=torch.tensor(logits, dtype=torch.float64), labels=torch.tensor(labels))
    assert scores.ece == pytest.approx(0, abs=1e-6)
    assert scores.adaptive_ece == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000))
def test_the_order_of_the_images_and_a_shift_of_the_logits_change_nothing(seed):
    logits, labels = made_up(n=40, seed=seed)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    shifted = logits.double() + torch.randn(40, 1, dtype=torch.float64)
    first = measure_posteriors(logits=logits, labels=labels)._asdict()
    assert measure_posteriors(logits=logits[order], labels=labels[order])._asdict() == pytest.approx(first, abs=1e-6)
    assert measure_posteriors(logits=shifted, labels=labels)._asdict() == pytest.approx(first, abs=1e-6)


def test_bins_of_the_adaptive_error_hold_equally_many():
    confidences = torch.linspace(0.2, 0.9, 30)
    # Right and wrong in turn: in bins of two, each is off by |1/2 - mean|; in one bin the deviations cancel out.
    correct = torch.arange(30) % 2 == 0
    pairs = confidences.reshape(15, 2).double().mean(dim=1)
    found = adaptive_calibration_error(confidences=confidences, correct=correct)
    assert found == pytest.approx(float((0.5 - pairs).abs().mean()), abs=1e-9)


def test_aurc_is_the_error_rate_where_confidence_says_nothing_and_least_where_it_ranks_right_first():
    correct = torch.tensor([True] * 6 + [False] * 2)
    best = area_under_risk_coverage(confidences=torch.arange(8).flip(0), correct=correct)
    assert best == pytest.approx((1 / 7 + 2 / 8) / 8)
    assert area_under_risk_coverage(confidences=torch.ones(8), correct=correct) == 0.25
    assert area_under_risk_coverage(confidences=torch.arange(8), correct=correct) > 0.25


SURE = {"entropy": 0, "spread": 0, "label_spread": 0}  # of posteriors that are all one-hot


def test_sure_and_right_is_perfect_and_sure_and_wrong_the_worst():
    logits, labels = 1000 * torch.eye(6), torch.arange(6)
    right = measure_posteriors(logits=logits, labels=labels)
    assert right._asdict() == pytest.approx(
        {"top1": 1, "top5": 1, "ece": 0, "adaptive_ece": 0, "nll": 0, "brier": 0, "aurc": 0, "confidence": 1, **SURE}
    )
    wrong = measure_posteriors(logits=logits, labels=labels.roll(1))
    assert wrong._asdict() == pytest.approx(
        {
            "top1": 0,
            "top5": wrong.top5,
            "ece": 1,
            "adaptive_ece": 1,
            "nll": 1000,
            "brier": 2,
            "aurc": 1,
            "confidence": 1,
            **SURE,
        }
    )


@pytest.mark.parametrize("classes", [2, 7])
def test_entropy_is_that_of_the_uniform_posterior_where_nothing_is_known(classes):
    found = measure_posteriors(logits=torch.zeros(5, classes), labels=torch.arange(5) % classes)
    assert found.entropy == pytest.approx(math.log(classes))
    assert (found.spread, found.label_spread) == (0, 0)


def test_being_wrong_and_sure_of_some_images_spreads_the_labels_probability_and_not_the_confidence():
    logits, labels = 1000 * torch.eye(4), torch.tensor([0, 1, 3, 2])
    found = measure_posteriors(logits=logits, labels=labels)
    assert found.spread == 0
    assert found.label_spread == pytest.approx(0.5)


def test_fewer_than_five_classes_are_all_among_the_five_highest():
    assert measure_posteriors(logits=torch.randn(9, 3), labels=torch.arange(9) % 3).top5 == 1


def test_float16_is_measured_in_float64():
    logits, labels = made_up()
    half = measure_posteriors(logits=logits.half(), labels=labels)
    assert half == measure_posteriors(logits=logits.half().double(), labels=labels)


WRONG = {
    "shapes": ({"logits": torch.zeros(3, 2), "labels": torch.zeros(2, dtype=torch.long)}, r"got \(3, 2\) and \(2,\)"),
    "no images": ({"logits": torch.zeros(0, 2), "labels": torch.zeros(0, dtype=torch.long)}, r"got \(0, 2\)"),
    "not finite": ({"logits": torch.full((1, 2), torch.nan), "labels": torch.tensor([0])}, "finite"),
    "no such class": ({"logits": torch.zeros(1, 2), "labels": torch.tensor([2])}, "from 0 to 1"),
    "float labels": ({"logits": torch.zeros(1, 2), "labels": torch.tensor([1.0])}, "whole numbers"),
    "bins": ({"logits": torch.zeros(1, 2), "labels": torch.tensor([1]), "bins": 0}, "bins must be at least 1, got 0"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_posteriors(**arguments)


def test_importing_the_module_does_not_import_torchmetrics():
    code = "import sys, dmlkd.classification; print('torchmetrics' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_agrees_with_scikit_learn():
    from sklearn.metrics import log_loss, top_k_accuracy_score

    logits, labels = made_up(n=300)
    posteriors = logits.double().softmax(dim=1).numpy()
    scores = measure_posteriors(logits=logits, labels=labels)
    classes = np.arange(9)
    assert scores.nll == pytest.approx(log_loss(labels, posteriors, labels=classes), abs=1e-9)
    for k, found in ((1, scores.top1), (5, scores.top5)):
        assert found == pytest.approx(top_k_accuracy_score(labels, posteriors, k=k, labels=classes), abs=1e-6)
